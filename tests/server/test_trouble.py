"""Bad input and cancelling: one clear error, and the server goes on to finish the next prompt."""

import itertools
import pickle
import threading
import time

import numpy as np
import pytest

from dev.comfy import ROOT, WorkflowRefused, api_workflow

BUNDLED = ROOT / "assets" / "models" / "svimo-tiny.safetensors"
seeds = itertools.count(5000)


@pytest.fixture
def workflow():
    """The main workflow, two steps, and a seed of its own."""
    workflow = api_workflow("image_to_video_and_motion")
    node(workflow, "SViMoSampler")["inputs"].update({"steps": 2, "seed": next(seeds)})
    return workflow


def node(workflow, class_type):
    (found,) = (content for content in workflow.values() if content["class_type"] == class_type)
    return found


def node_id(workflow, class_type):
    (found,) = (name for name, content in workflow.items() if content["class_type"] == class_type)
    return found


@pytest.fixture(autouse=True)
def the_server_goes_on(client):
    """After each of these tests the same server finishes a sound workflow."""
    yield
    sound = api_workflow("image_to_video_and_motion")
    node(sound, "SViMoSampler")["inputs"].update({"steps": 1, "seed": next(seeds)})
    node(sound, "SViMoImageEncode")["inputs"].update({"width": 48, "height": 32, "frames": 9})
    assert client.run(sound, timeout=120).status == "success"


def error_of(client, workflow) -> tuple[str, str]:
    """Class of the node that failed, and its message."""
    result = client.wait(client.queue(workflow))
    assert result.status == "error"
    return result.error["node_type"], result.error["exception_message"]


# Bad conditions and latents


def test_wrong_size_latent(client, workflow):
    workflow["other"] = {
        "class_type": "EmptyHunyuanLatentVideo",
        "inputs": {"width": 144, "height": 96, "length": 9, "batch_size": 1},
    }
    node(workflow, "SViMoSampler")["inputs"]["latent_image"] = ["other", 0]
    where, message = error_of(client, workflow)
    assert where == "SViMoSampler"
    assert "the latent is 18 x 12" in message
    assert "12 x 8" in message
    assert "same SViMo Image Encode" in message


@pytest.mark.parametrize(
    ("latent", "expected"),
    [
        (
            {"class_type": "EmptyLatentImage", "inputs": {"width": 144, "height": 96, "batch_size": 1}},
            "batch x channels x frames x height x width",
        ),
        (
            {
                "class_type": "EmptyHunyuanLatentVideo",
                "inputs": {"width": 96, "height": 64, "length": 13, "batch_size": 1},
            },
            "frames must be 8k + 1",
        ),
    ],
)
def test_latent_of_another_kind(client, workflow, latent, expected):
    workflow["other"] = latent
    node(workflow, "SViMoSampler")["inputs"]["latent_image"] = ["other", 0]
    where, message = error_of(client, workflow)
    assert where == "SViMoSampler"
    assert expected in message


def test_clip_size_that_does_not_divide(client, workflow):
    node(workflow, "SViMoImageEncode")["inputs"].update({"width": 150, "frames": 18})
    where, message = error_of(client, workflow)
    assert where == "SViMoImageEncode"
    assert "frames must be 8k + 1" in message
    assert "18" in message


@pytest.mark.parametrize(("batch", "expected"), [(1, "not finite"), (2, "batch of 2")])
def test_nan_image_and_image_batch(client, workflow, batch, expected):
    workflow["broken"] = {"class_type": "TestBrokenImage", "inputs": {"batch": batch, "variant": next(seeds)}}
    node(workflow, "SViMoImageEncode")["inputs"]["image"] = ["broken", 0]
    where, message = error_of(client, workflow)
    assert where == "SViMoImageEncode"
    assert expected in message


def test_conditioning_without_reference_image(client, workflow):
    encode = node_id(workflow, "SViMoImageEncode")
    node(workflow, "SViMoSampler")["inputs"]["positive"] = workflow[encode]["inputs"]["positive"]
    where, message = error_of(client, workflow)
    assert where == "SViMoSampler"
    assert "positive has no reference image" in message


def test_two_prompts_combined(client, workflow):
    """As everywhere in core, their predictions are averaged."""
    encode = node_id(workflow, "SViMoImageEncode")
    workflow["both"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": [encode, 0], "conditioning_2": [encode, 1]},
    }
    node(workflow, "SViMoSampler")["inputs"]["positive"] = ["both", 0]
    assert client.run(workflow).status == "success"


def test_motion_from_a_latent_without_any(client, workflow):
    decode = node(workflow, "SViMoDecodeMotion")["inputs"]
    workflow["split"] = {"class_type": "SViMoSplitLatent", "inputs": {"latent": decode["latent"]}}
    decode["latent"] = ["split", 0]
    where, message = error_of(client, workflow)
    assert where == "SViMoDecodeMotion"
    assert "this latent is video only" in message


def test_joint_latent_into_core_nodes(client, workflow):
    """Core's VAE Decode takes the video; what would change the latent as one picture says what to do."""
    decode = node(workflow, "SViMoDecodeVideo")
    workflow["core"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": decode["inputs"]["latent"], "vae": decode["inputs"]["vae"]},
    }
    workflow["save"] = {"class_type": "PreviewImage", "inputs": {"images": ["core", 0]}}
    assert len(client.run(workflow).files("save")) == 9
    workflow["flip"] = {
        "class_type": "LatentFlip",
        "inputs": {"samples": decode["inputs"]["latent"], "flip_method": "x-axis: vertically"},
    }
    workflow["core"]["inputs"]["samples"] = ["flip", 0]
    assert "SViMo Split Latent" in error_of(client, workflow)[1]


def test_empty_prompt_word(client, workflow):
    node(workflow, "SViMoPrompt")["inputs"]["action"] = " "
    where, message = error_of(client, workflow)
    assert where == "SViMoPrompt"
    assert "action is empty" in message


def test_feedback_that_ends_before_it_starts(client, workflow):
    node(workflow, "SViMoFeedbackLoop")["inputs"].update({"start_percent": 0.8, "end_percent": 0.3})
    assert "start <= end" in error_of(client, workflow)[1]


# Bad files


@pytest.mark.parametrize(
    ("class_type", "change"),
    [
        ("SViMoCheckpointLoader", {"ckpt_name": "absent.safetensors"}),
        ("SViMoCheckpointLoader", {"ckpt_name": "../../secret.safetensors"}),
        ("SViMoSampler", {"solver": "euler"}),
        ("SViMoSampler", {"cfg_schedule": "Dynamic"}),
        ("SViMoPreviewMotion", {"view": "above"}),
    ],
)
def test_choices_that_do_not_exist(client, workflow, class_type, change):
    """Newer ComfyUIs refuse the prompt, 0.3.75 leaves it to the node; either names the value."""
    if class_type == "SViMoPreviewMotion":
        workflow = api_workflow("retarget_and_export")
    node(workflow, class_type)["inputs"].update(change)
    (value,) = change.values()
    try:
        where, message = error_of(client, workflow)
    except WorkflowRefused as refused:
        where, message = class_type, str(refused)
    assert where == class_type
    assert value in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("truncated.safetensors", lambda: BUNDLED.read_bytes()[:100_000], "is damaged|not a complete"),
        ("disguised.safetensors", lambda: pickle.dumps({"weights": 1}), "PyTorch pickle"),
        ("zipped.safetensors", lambda: b"PK\x03\x04" + bytes(100), "PyTorch pickle"),
        ("empty.safetensors", lambda: b"", "not a complete safetensors"),
    ],
)
def test_bad_checkpoints(client, server, workflow, name, content, expected):
    (server.base_directory / "models" / "svimo" / name).write_bytes(content())
    node(workflow, "SViMoCheckpointLoader")["inputs"]["ckpt_name"] = name
    where, message = error_of(client, workflow)
    assert where == "SViMoCheckpointLoader"
    assert name in message
    assert any(part in message for part in expected.split("|"))


class Hostile:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("motion", "expected"),
    [
        ("absent.npz", "no motion file 'absent.npz'"),
        ("../../secret.npz", "lies outside of ComfyUI's"),
        ("/etc/passwd", "lies outside of ComfyUI's"),
    ],
)
def test_motion_files_that_are_not_there(client, motion, expected):
    guided = api_workflow("motion_to_video")
    node(guided, "SViMoLoadMotion")["inputs"]["motion"] = motion
    with pytest.raises(WorkflowRefused) as refused:
        client.queue(guided)
    assert expected in str(refused.value.node_errors)


def test_hostile_and_damaged_motion_files(client, server, tmp_path):
    trace = tmp_path / "trace"
    folder = server.base_directory / "input"
    np.savez(folder / "hostile.npz", hands=np.array([Hostile(str(trace))], dtype=object))
    whole = (ROOT / "assets" / "motions" / "stir_cup.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, expected in (("hostile.npz", "cannot be read as plain arrays"), ("cut.npz", "truncated")):
        guided = api_workflow("motion_to_video")
        node(guided, "SViMoLoadMotion")["inputs"]["motion"] = name
        where, message = error_of(client, guided)
        assert where == "SViMoLoadMotion"
        assert name in message
        assert expected in message
    assert not trace.exists()


def guided_workflow() -> dict:
    """The main workflow with a motion that guides."""
    workflow = api_workflow("image_to_video_and_motion")
    (sampler,) = (x["inputs"] for x in workflow.values() if x["class_type"] == "SViMoSampler")
    workflow["load"] = node(api_workflow("motion_to_video"), "SViMoLoadMotion")
    workflow["guided"] = {
        "class_type": "SViMoMotionEncode",
        "inputs": {
            "positive": sampler["positive"],
            "negative": sampler["negative"],
            "vae": node(workflow, "SViMoImageEncode")["inputs"]["vae"],
            "motion": ["load", 0],
            "latent": sampler["latent_image"],
            "strength": 1.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
    }
    sampler |= {"positive": ["guided", 0], "negative": ["guided", 1]}
    return workflow


def test_motion_of_another_length(client):
    guided = guided_workflow()
    node(guided, "SViMoImageEncode")["inputs"]["frames"] = 17
    where, message = error_of(client, guided)
    assert where == "SViMoMotionEncode"
    assert "9 frames" in message
    assert "the clip 17" in message


def test_motion_that_the_camera_does_not_see(client):
    guided = guided_workflow()
    encode = node(guided, "SViMoMotionEncode")["inputs"]
    guided["far"] = {
        "class_type": "SViMoCleanMotion",
        "inputs": {"motion": encode["motion"], "smooth_seconds": 0.0, "fps": 0.0, "scale": 0.001},
    }
    encode["motion"] = ["far", 0]
    where, message = error_of(client, guided)
    assert where == "SViMoMotionEncode"
    assert "nothing of the motion is in view of its camera" in message


# Cancelling


def interrupted_after(client, workflow, at_node: str, steps: int = 0) -> float:
    """Seconds from the cancel to the end, cancelling once a node has begun, or has made some steps."""
    prompt = client.queue(workflow)
    cancelled = []

    def on_progress(progress):
        if progress.node == at_node and progress.value >= steps and not cancelled:
            cancelled.append(time.perf_counter() + 0.3)
            threading.Timer(0.3, client.interrupt, [prompt]).start()

    result = client.wait(prompt, on_progress=on_progress)
    assert cancelled
    assert result.status == "interrupted"
    return time.perf_counter() - cancelled[0]


@pytest.mark.parametrize("steps", [0, 2])
def test_cancel_while_sampling(client, workflow, steps):
    node(workflow, "SViMoSampler")["inputs"]["steps"] = 300
    node(workflow, "SViMoFeedbackLoop")["inputs"]["start_percent"] = 0.0
    assert interrupted_after(client, workflow, node_id(workflow, "SViMoSampler"), steps) < 2


def test_cancel_inside_feedback_iterations(client, workflow):
    node(workflow, "SViMoSampler")["inputs"]["steps"] = 100
    node(workflow, "SViMoFeedbackLoop")["inputs"].update({"start_percent": 0.0, "iterations": 8})
    assert interrupted_after(client, workflow, node_id(workflow, "SViMoSampler")) < 2


def test_cancel_while_decoding(client, workflow):
    loader = node_id(workflow, "SViMoCheckpointLoader")
    long = {
        "load": workflow[loader],
        "latent": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 288, "height": 192, "length": 97 + 8 * (next(seeds) % 8), "batch_size": 1},
        },
        "decode": {
            "class_type": "SViMoDecodeVideo",
            "inputs": {"vae": ["load", 2], "latent": ["latent", 0], "tiled": False},
        },
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }
    assert interrupted_after(client, long, "decode") < 2
