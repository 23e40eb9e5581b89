"""The files behind the viewer: the motion, and sheets of frames."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dev.comfy import ROOT, ComfyError
from svimo_core.motion import HandObjectMotion

EXAMPLE = "stir_cup.npz [example]"


@pytest.fixture
def motion() -> HandObjectMotion:
    return HandObjectMotion.load(ROOT / "assets" / "motions" / "stir_cup.npz")


def view(motion=EXAMPLE, frames=None) -> dict:
    workflow = {
        "load": {"class_type": "SViMoLoadMotion", "inputs": {"motion": motion, "fps": 0.0}},
        "draw": {
            "class_type": "SViMoPreviewMotion",
            "inputs": {"motion": ["load", 0], "view": "camera", "width": 96, "height": 64},
        },
        "view": {"class_type": "SViMoMotionViewer", "inputs": {"motion": ["load", 0]}},
    }
    if frames:
        workflow["view"]["inputs"]["video"] = frames
    return workflow


def test_viewer_gets_the_motion_and_every_frame(client, motion):
    result = client.run(view(frames=["draw", 0]))
    entries = {entry["role"]: entry for entry in result.outputs["view"]["svimo_viewer"]}
    assert set(entries) == {"motion", "video"}

    shown = json.loads(client.download(entries["motion"]))
    assert (shown["frames"], shown["fps"]) == (len(motion), motion.fps)
    for i, side in enumerate(("left", "right")):
        np.testing.assert_allclose(shown["hands"][side], motion.hands[:, i], atol=1e-6)
    for name, points in motion.objects.items():
        np.testing.assert_allclose(shown["objects"][name], points, atol=1e-6)
    assert len(json.dumps(result.outputs)) < 2000  # references, no data

    sheet = np.asarray(Image.open(io.BytesIO(client.download(entries["video"]))), dtype=int)
    (preview,) = result.files("draw")
    drawn = Image.open(io.BytesIO(client.download(preview)))
    size = entries["video"]["width"], entries["video"]["height"]
    assert size == (96, 64)
    for frame in (0, 7, len(motion) - 1):
        drawn.seek(frame)
        row, column = divmod(frame, entries["video"]["columns"])
        cell = sheet[row * 64 : (row + 1) * 64, column * 96 : (column + 1) * 96]
        assert np.abs(cell - np.asarray(drawn.convert("RGB"), dtype=int)).mean() < 6


def test_a_server_that_began_anew_gives_other_names(client, server):
    """It empties its temp folder, and a page that stayed open still knows the files that were there."""
    names = []
    for fps in (11.0, 12.0):
        workflow = view()
        workflow["load"]["inputs"]["fps"] = fps
        outputs = client.run(workflow).outputs
        names.append(
            [outputs["view"]["svimo_viewer"][0]["filename"], outputs["draw"]["images"][0]["filename"]]
        )
        for file in (server.base_directory / "temp").rglob("SViMo*"):
            file.unlink()
    assert not set(names[0]) & set(names[1]), names


def test_large_objects_are_thinned_out_for_the_viewer(client, server, motion):
    rng = np.random.default_rng(0)
    cloud = rng.normal(scale=0.05, size=(len(motion), 30_001, 3)) + (0, 0, 0.5)
    path = server.base_directory / "input" / "large.npz"
    HandObjectMotion(hands=motion.hands, objects={"cloud": cloud}, camera=motion.camera, fps=motion.fps).save(
        path
    )
    (entry,) = client.run(view("large.npz")).outputs["view"]["svimo_viewer"]
    shown = np.array(json.loads(client.download(entry))["objects"]["cloud"])
    assert 1000 < shown.shape[1] <= 2000
    np.testing.assert_allclose(shown[:, 1], cloud[:, 16], atol=1e-5)


def test_a_long_clip_shows_fewer_points(client, server, motion):
    frames = 200
    clouds = np.random.default_rng(0).normal(scale=0.05, size=(2, 1, 4000, 3)) + (0, 0, 0.5)
    objects = {name: cloud.repeat(frames, 0) for name, cloud in zip(("tool", "target"), clouds, strict=True)}
    hands = np.resize(motion.hands, (frames, *motion.hands.shape[1:]))
    HandObjectMotion(hands=hands, objects=objects, camera=motion.camera, fps=30).save(
        server.base_directory / "input" / "long.npz"
    )
    workflow = view("long.npz")
    del workflow["draw"]
    (entry,) = client.run(workflow).outputs["view"]["svimo_viewer"]
    shown = json.loads(client.download(entry))["objects"]
    assert 300_000 < sum(np.size(points) for points in shown.values()) <= 1_500_000
    assert len(shown["tool"]) == frames


def test_frames_of_another_clip_are_refused(client):
    workflow = view(frames=["other", 0])
    workflow["other"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 5, "color": 0},
    }
    with pytest.raises(ComfyError, match="video has 5 frames and the motion 17"):
        client.run(workflow)
