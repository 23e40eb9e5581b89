"""dev/comfy.py against a real ComfyUI, with core nodes alone."""

import io
import time

import av
import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from dev.comfy import ROOT, ComfyError, ComfyServer, WorkflowRefused, find_comfyui

PHOTO = ROOT / "assets" / "coffee.png"


def scale_and_save(image: str, width: int, prefix: str = "scaled") -> dict:
    return {
        "load": {"class_type": "LoadImage", "inputs": {"image": image}},
        "scale": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["load", 0],
                "upscale_method": "area",
                "width": width,
                "height": width * 2 // 3,
                "crop": "disabled",
            },
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["scale", 0], "filename_prefix": prefix}},
    }


def blurs(count: int, size: int, color: int) -> dict:
    """A workflow of `count` equal steps, each of them slow enough on a CPU to be interrupted."""
    workflow = {
        "0": {
            "class_type": "EmptyImage",
            "inputs": {"width": size, "height": size, "batch_size": 1, "color": color},
        },
        "preview": {"class_type": "PreviewImage", "inputs": {"images": [str(count), 0]}},
    }
    for step in range(1, count + 1):
        inputs = {"image": [str(step - 1), 0], "blur_radius": 8, "sigma": 3.0}
        workflow[str(step)] = {"class_type": "ImageBlur", "inputs": inputs}
    return workflow


def test_image_round_trip(client):
    name = client.upload_image(PHOTO)
    seen = []
    result = client.run(scale_and_save(name, 96), on_progress=seen.append)

    image = Image.open(io.BytesIO(client.download(result.files("save")[0])))
    assert image.size == (96, 64)
    expected = np.asarray(
        Image.open(PHOTO).convert("RGB").resize((96, 64), Image.Resampling.BOX), dtype=float
    )
    assert np.abs(np.asarray(image, dtype=float) - expected).mean() < 2
    assert set(result.seconds) == {"load", "scale", "save"} == {progress.node for progress in seen}
    assert all(seconds > 0 for seconds in result.seconds.values())


def test_second_run_is_cached_and_still_has_outputs(client):
    workflow = scale_and_save(client.upload_image(PHOTO), 48, "cached")
    first = client.run(workflow)
    second = client.run(workflow)
    assert not first.cached or set(first.cached) == {
        "load"
    }  # the photograph may be known from an earlier test
    assert set(second.cached) == {"load", "scale", "save"}
    assert not second.seconds
    assert second.outputs == first.outputs

    workflow["scale"]["inputs"]["width"] = 60
    third = client.run(workflow)
    assert set(third.cached) == {"load"}
    assert third.outputs != first.outputs


def test_video_is_saved_and_decodes(client):
    workflow = {
        "frames": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 48, "batch_size": 5, "color": 0x20C040},
        },
        "create": {"class_type": "CreateVideo", "inputs": {"images": ["frames", 0], "fps": 8.0}},
        "save": {
            "class_type": "SaveVideo",
            "inputs": {
                "video": ["create", 0],
                "filename_prefix": "test/video",
                "format": "mp4",
                "codec": "h264",
            },
        },
    }
    result = client.run(workflow)
    (file,) = result.files("save")
    with av.open(io.BytesIO(client.download(file))) as video:
        assert video.streams.video[0].average_rate == 8
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5
    assert np.abs(frames[0].astype(int) - (0x20, 0xC0, 0x40)).max() < 8


def test_invalid_workflow_is_refused_whole(client):
    name = client.upload_image(PHOTO)
    broken = scale_and_save(name, 48, "refused")
    broken["scale"]["inputs"]["width"] = -5
    with pytest.raises(WorkflowRefused, match=r"ImageScale \(node scale\).*width") as refusal:
        client.queue(broken)
    assert set(refusal.value.node_errors) == {"scale"}

    # ComfyUI itself would run the sound half of this.
    half_broken = broken | {"preview": {"class_type": "PreviewImage", "inputs": {"images": ["load", 0]}}}
    with pytest.raises(WorkflowRefused, match="ImageScale"):
        client.queue(half_broken)

    with pytest.raises(WorkflowRefused, match="NoSuchNode"):
        client.queue({"1": {"class_type": "NoSuchNode", "inputs": {}}})
    assert client.run(scale_and_save(name, 72)).status == "success"


def test_failing_node_is_reported_and_the_server_goes_on(client, tmp_path):
    (tmp_path / "not_an_image.png").write_bytes(b"nothing")
    workflow = scale_and_save(client.upload_image(tmp_path / "not_an_image.png"), 48)

    result = client.wait(client.queue(workflow))
    assert result.status == "error"
    assert result.error["node_type"] == "LoadImage"
    assert "cannot identify image file" in result.error["exception_message"]
    with pytest.raises(ComfyError, match=r"LoadImage \(node load\): cannot identify"):
        client.run(workflow)
    assert client.run(scale_and_save(client.upload_image(PHOTO), 36)).status == "success"


def test_interrupt_stops_the_workflow_and_the_server_goes_on(client):
    count = 40
    prompt_id = client.queue(blurs(count, size=1024, color=1))
    interrupted_at = []

    def interrupt_third(progress):
        if progress.node == "3" and not interrupted_at:
            interrupted_at.append(time.monotonic())
            client.interrupt(prompt_id)

    result = client.wait(prompt_id, on_progress=interrupt_third)
    assert result.status == "interrupted"
    assert time.monotonic() - interrupted_at[0] < 2
    assert "3" in result.seconds
    assert str(count) not in result.seconds
    assert client.run(blurs(1, size=64, color=2)).status == "success"


def test_two_workflows_are_followed_in_any_order(client):
    first, second = client.queue(blurs(2, size=128, color=3)), client.queue(blurs(3, size=128, color=4))
    assert set(client.wait(second).seconds) == {"0", "1", "2", "3", "preview"}
    assert set(client.wait(first).seconds) == {"0", "1", "2", "preview"}


def test_waiting_gives_up_in_time(client):
    prompt_id = client.queue(blurs(20, size=1024, color=5))
    with pytest.raises(ComfyError, match="did not finish within 0 s"):
        client.wait(prompt_id, timeout=0.2)
    client.interrupt(prompt_id)
    assert client.wait(prompt_id).status == "interrupted"


def test_broken_pack_is_named_and_no_process_stays_behind(tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'child.pid')!r}).write_text(str(child.pid))\n"
        "raise RuntimeError('this pack is broken')\n"
    )
    server = ComfyServer(tmp_path / "base", pack=pack)
    with pytest.raises(ComfyError, match=r"could not import ComfyUI-SViMo(.|\n)*this pack is broken"), server:
        pass
    assert not psutil.pid_exists(int((tmp_path / "child.pid").read_text()))
    with pytest.raises(requests.ConnectionError):
        requests.get(server.url, timeout=5)


def test_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ComfyError, match=r"No ComfyUI in .*COMFYUI_PATH"):
        find_comfyui()
    (tmp_path / "main.py").write_text("raise SystemExit('no room left')")
    with pytest.raises(ComfyError, match=r"exit code 1(.|\n)*no room left"), ComfyServer(tmp_path / "base"):
        pass
