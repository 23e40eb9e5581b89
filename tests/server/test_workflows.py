"""The workflows that ship with the pack, queued on a real ComfyUI as its users queue them."""

import io
import itertools
import json

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dev.comfy import ROOT, ComfyError, Result, api_workflow
from dev.workflows import BRING_YOUR_OWN, NEEDS
from dev.workflows import WORKFLOWS as ALL_WORKFLOWS
from svimo_core.motion import HandObjectMotion

OTHERS = "retarget_and_export", "video_to_motion", "image_to_video_and_motion_extended"
"""Workflows of another kind, each with a test of its own."""
WORKFLOWS = [name for name in ALL_WORKFLOWS if name not in (*BRING_YOUR_OWN, *OTHERS)]
CORE_SAMPLER = "image_to_video_and_motion_with_core_sampler"
FRAMES, HEIGHT, WIDTH = 9, 64, 96
OTHER_WORK = {
    "load": {"class_type": "LoadImage", "inputs": {"image": "coffee.png"}},
    "save": {"class_type": "PreviewImage", "inputs": {"images": ["load", 0]}},
}
seeds = itertools.count(1000)
"""A fresh seed for every test: ComfyUI remembers results from one test to the next."""


def the_id(workflow: dict, class_type: str) -> str:
    (found,) = (node for node, content in workflow.items() if content["class_type"] == class_type)
    return found


def workflow_with(
    name: str = "image_to_video_and_motion", steps: int = 2, seed: int | None = None, **sampler_inputs
) -> tuple[dict, str]:
    """A shipped workflow at few steps, and the id of its sampler."""
    workflow = api_workflow(name)
    core = name == CORE_SAMPLER
    sampler = the_id(workflow, "SamplerCustomAdvanced" if core else "SViMoSampler")
    noise, sigmas = (the_id(workflow, x) if core else sampler for x in ("RandomNoise", "BasicScheduler"))
    workflow[noise]["inputs"]["noise_seed" if core else "seed"] = next(seeds) if seed is None else seed
    workflow[sigmas]["inputs"]["steps"] = steps
    workflow[sampler]["inputs"].update(sampler_inputs)
    return workflow, sampler


def add_lossless(workflow: dict) -> dict:
    """Frames of video and rendered motion as PNG too: the video encoder has threads and a mind of its own."""
    decode = the_id(workflow, "SViMoDecodeVideo")
    for output in (0, 1):
        workflow[f"frames{output}"] = {"class_type": "PreviewImage", "inputs": {"images": [decode, output]}}
    return workflow


def lossless(client, result: Result) -> np.ndarray:
    """The frames of :func:`add_lossless`, one after the other."""
    files = [file for output in (0, 1) for file in result.files(f"frames{output}")]
    return np.stack([np.asarray(Image.open(io.BytesIO(client.download(file)))) for file in files])


def saved_motion(client, workflow: dict, result: Result, tmp_path) -> HandObjectMotion:
    (file,) = result.files(the_id(workflow, "SViMoSaveMotion"))
    path = tmp_path / file["filename"]
    path.write_bytes(client.download(file))
    return HandObjectMotion.load(path)


def videos(client, workflow: dict, result: Result) -> dict[str, np.ndarray]:
    """Frames of each saved video by its filename prefix."""
    found = {}
    for node, content in workflow.items():
        if content["class_type"] == "SaveVideo":
            (file,) = result.files(node)
            with av.open(io.BytesIO(client.download(file))) as video:
                frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            found[content["inputs"]["filename_prefix"]] = np.stack(frames)
    return found


def test_every_workflow_is_there_in_both_formats():
    for folder in (ROOT / "workflows", ROOT / "workflows" / "api"):
        assert {path.stem for path in folder.glob("*.json")} == set(ALL_WORKFLOWS)
    thumbnails = {path.stem for path in (ROOT / "workflows").glob("*.jpg")}
    assert thumbnails == set(ALL_WORKFLOWS)


def test_the_main_workflow_is_the_first_by_name():
    """The page lists templates as the file system does, or by name."""
    assert sorted(ALL_WORKFLOWS)[0] == next(iter(ALL_WORKFLOWS)) == "image_to_video_and_motion"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_makes_video_and_motion(client, name, tmp_path):
    skip_if_too_old(client, name)
    workflow, sampler = workflow_with(name, steps=5)
    result = client.run(workflow)

    made = videos(client, workflow, result)
    assert set(made) == {"svimo/video", "svimo/motion_video"}
    for frames in made.values():
        assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
        assert frames.std() > 1  # not a blank picture

    motion = saved_motion(client, workflow, result, tmp_path)
    assert len(motion) == FRAMES
    assert set(motion.objects) == {"tool", "target"}
    assert motion.prompt == "use spoon to stir cup"
    assert json.loads(motion.metadata["prompt"])[sampler]["inputs"] == workflow[sampler]["inputs"]

    roles = {file["role"] for file in result.files(the_id(workflow, "SViMoMotionViewer"))}
    assert roles == {"motion", "video", "rendered_motion"}

    assert len(result.previews) >= 5
    if name != CORE_SAMPLER:  # which reports nothing
        report = result.outputs[sampler]["svimo"][0]
        assert report["steps"] == 5
        # The loop closes after a fifth of the steps.
        passes = {"image_to_video_and_motion": 4, "image_to_video_and_motion_fast": 4}
        assert report["feedback_passes"] == passes.get(name, 0)


def test_a_video_gives_its_motion_in_windows(client, tmp_path):
    """21 frames in four windows of 9, each sampled by itself, and one motion of all of them."""
    workflow, sampler = workflow_with("video_to_motion", steps=2)
    result = client.run(workflow)
    motion = saved_motion(client, workflow, result, tmp_path)
    assert len(motion) == 21
    assert motion.fps == 8
    assert len(result.outputs[sampler]["svimo"]) == 4
    assert [file["filename"].endswith(".glb") for file in result.files(the_id(workflow, "SViMoSaveGLB"))] == [
        True
    ]


def test_a_clip_goes_on_three_times(client, tmp_path):
    workflow = api_workflow("image_to_video_and_motion_extended")
    for node in workflow.values():
        if node["class_type"] == "SViMoSampler":
            node["inputs"] |= {"steps": 2, "seed": next(seeds)}
    result = client.run(workflow)
    motion = saved_motion(client, workflow, result, tmp_path)
    (made,) = videos(client, workflow, result).values()
    assert len(motion) == len(made) == FRAMES + 3 * 4
    assert made.shape[1:] == (HEIGHT, WIDTH, 3)


def version_of(client) -> tuple[int, ...]:
    """ComfyUI's."""
    return tuple(int(x) for x in client.system_stats()["system"]["comfyui_version"].split(".")[:2])


def skip_if_too_old(client, name: str) -> None:
    if version_of(client) < NEEDS.get(name, (0,)):
        pytest.skip(f"needs ComfyUI {NEEDS[name]}")


@pytest.mark.parametrize("name", NEEDS)
def test_older_comfyui_says_that_it_cannot(client, name):
    if version_of(client) >= NEEDS[name]:
        pytest.skip("this ComfyUI can")
    with pytest.raises(ComfyError, match="EasyCache of this ComfyUI knows models of one stream only"):
        client.run(workflow_with(name)[0])


def test_core_sampler_samples_as_ours_does(client):
    """euler on the scheduler simple is DDIM, and both draw the same noise of a seed."""
    made = []
    for name in ("image_to_video_and_motion", CORE_SAMPLER):
        workflow, _ = workflow_with(name, seed=21, steps=10)
        made.append(lossless(client, client.run(add_lossless(workflow))).astype(int))
    assert np.abs(made[0] - made[1]).max() <= 2


def test_the_loop_changes_the_video(client):
    made = []
    for name in (
        "image_to_video_and_motion",
        "image_to_video_and_motion_without_feedback",
        "motion_to_video",
    ):
        workflow, _ = workflow_with(name, seed=7, steps=3)
        made.append(videos(client, workflow, client.run(workflow))["svimo/motion_video"].astype(int))
    for a, b in itertools.combinations(made, 2):
        assert np.abs(a - b).max() > 8


@pytest.mark.parametrize("name", ["image_to_video_and_motion", CORE_SAMPLER])
def test_a_loop_that_is_off_equals_none(client, name):
    made = []
    for loop in (True, False, None):
        workflow, _ = workflow_with(name, seed=7, steps=3)
        feedback = the_id(workflow, "SViMoFeedbackLoop")
        if loop is None:
            model = workflow.pop(feedback)["inputs"]["model"]
            for content in workflow.values():
                if content["inputs"].get("model") == [feedback, 0]:
                    content["inputs"]["model"] = model
        else:
            workflow[feedback]["inputs"]["enabled"] = loop
        made.append(lossless(client, client.run(add_lossless(workflow))).astype(int))
    closed, off, none = made
    np.testing.assert_array_equal(off, none)
    assert np.abs(closed - off).max() > 8


def test_second_queue_is_cached_and_a_changed_seed_is_not(client):
    workflow, sampler = workflow_with()
    first = client.run(workflow)
    assert sampler in first.seconds
    second = client.run(workflow)
    assert set(second.cached) == set(workflow)
    workflow[sampler]["inputs"]["seed"] = next(seeds)
    third = client.run(workflow)
    assert sampler in third.seconds
    assert the_id(workflow, "SViMoCheckpointLoader") in third.cached


def test_same_seed_gives_the_same_bytes_after_everything_was_unloaded(client, tmp_path):
    made = []
    for _ in range(2):
        workflow, _ = workflow_with(seed=5, solver="dpmpp_2m_sde")
        workflow[the_id(workflow, "SViMoFeedbackLoop")]["inputs"]["start_percent"] = 0.0
        result = client.run(add_lossless(workflow))
        assert the_id(workflow, "SViMoSampler") in result.seconds
        made.append((lossless(client, result), saved_motion(client, workflow, result, tmp_path)))
        client.free()
        client.run(OTHER_WORK)  # ComfyUI keeps results only as long as the next workflow needs them
    (frames_a, motion_a), (frames_b, motion_b) = made
    np.testing.assert_array_equal(motion_a.hands, motion_b.hands)
    np.testing.assert_array_equal(frames_a, frames_b)


def test_given_motion_can_be_one_that_was_just_saved(client):
    workflow, _ = workflow_with()
    (file,) = client.run(workflow).files(the_id(workflow, "SViMoSaveMotion"))
    guided, _ = workflow_with("motion_to_video")
    loader = guided[the_id(guided, "SViMoLoadMotion")]
    loader["inputs"]["motion"] = f"{file['subfolder']}/{file['filename']} [output]"
    assert client.run(guided).status == "success"


def test_separate_loaders_equal_the_checkpoint_loader(client, tmp_path):
    made = []
    for separate in (False, True):
        workflow, _ = workflow_with(seed=11)
        if separate:
            loader = the_id(workflow, "SViMoCheckpointLoader")
            name = workflow[loader]["inputs"]["ckpt_name"]
            workflow |= {
                "model": {
                    "class_type": "SViMoDiffusionModelLoader",
                    "inputs": {"model_name": name, "weight_dtype": "default"},
                },
                "vid": {"class_type": "SViMoInteractionLoader", "inputs": {"model_name": name}},
                "vae": {"class_type": "SViMoVAELoader", "inputs": {"vae_name": name}},
            }
            sources = {0: "model", 1: "vid", 2: "vae"}
            for node in workflow.values():
                for key, value in node["inputs"].items():
                    if isinstance(value, list) and value[0] == loader and value[1] in sources:
                        node["inputs"][key] = [sources[value[1]], 0]
        made.append(saved_motion(client, workflow, client.run(workflow), tmp_path))
    np.testing.assert_array_equal(made[0].hands, made[1].hands)


def test_core_nodes_take_our_vae_text_encoder_and_latents(client, tmp_path):
    """CLIPTextEncode, VAEEncode, VAEDecode, VAEDecodeTiled and SaveLatent know nothing of SViMo. Of the joint latent
    VAEDecode shows the video."""
    workflow, sampler = workflow_with()
    loader = the_id(workflow, "SViMoCheckpointLoader")
    for node in workflow.values():
        if node["class_type"] == "SViMoTextEncode":
            node["class_type"] = "CLIPTextEncode"
    workflow |= {
        "split": {"class_type": "SViMoSplitLatent", "inputs": {"latent": [sampler, 0]}},
        "latent": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["split", 0], "filename_prefix": "video"},
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["split", 0], "vae": [loader, 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "frame"}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["decode", 0], "vae": [loader, 2]}},
        "tiled": {
            "class_type": "VAEDecodeTiled",
            "inputs": {
                "samples": ["encode", 0],
                "vae": [loader, 2],
                "tile_size": 256,
                "overlap": 64,
                "temporal_size": 64,
                "temporal_overlap": 8,
            },
        },
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["tiled", 0]}},
        "joint": {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0], "vae": [loader, 2]}},
        "of_joint": {"class_type": "PreviewImage", "inputs": {"images": ["joint", 0]}},
        "ours": {
            "class_type": "PreviewImage",
            "inputs": {"images": [the_id(workflow, "SViMoDecodeVideo"), 0]},
        },
    }
    result = client.run(workflow)
    assert len(result.files("save")) == len(result.files("preview")) == FRAMES
    (file,) = result.outputs["latent"]["latents"]
    path = tmp_path / "latent.safetensors"
    path.write_bytes(client.download(file))
    assert load_file(path)["latent_tensor"].shape == (1, 16, FRAMES // 4 + 1, HEIGHT // 8, WIDTH // 8)
    of_split, of_joint, ours = (
        Image.open(io.BytesIO(client.download(result.files(node)[3])))
        for node in ("save", "of_joint", "ours")
    )
    np.testing.assert_array_equal(of_split, ours)
    np.testing.assert_array_equal(of_joint, ours)


def test_a_sampled_latent_can_be_refined(client):
    workflow, sampler = workflow_with()
    refine = json.loads(json.dumps(workflow[sampler]))
    refine["inputs"] |= {"latent_image": [sampler, 0], "denoise": 0.4, "seed": next(seeds)}
    workflow["refine"] = refine
    for name in ("SViMoDecodeVideo", "SViMoDecodeMotion"):
        workflow[the_id(workflow, name)]["inputs"]["latent"] = ["refine", 0]
    assert client.run(workflow).status == "success"


def test_a_latent_without_3d_motion_gets_it_when_refined_with_feedback(client, tmp_path):
    workflow, sampler = workflow_with()
    refine = json.loads(json.dumps(workflow[sampler]))
    refine["inputs"] |= {"latent_image": [sampler, 0], "denoise": 0.4, "seed": next(seeds)}
    feedback = workflow[the_id(workflow, "SViMoFeedbackLoop")]
    workflow[sampler]["inputs"]["model"] = feedback["inputs"]["model"]
    workflow["refine"] = refine
    for name in ("SViMoDecodeVideo", "SViMoDecodeMotion"):
        workflow[the_id(workflow, name)]["inputs"]["latent"] = ["refine", 0]
    assert len(saved_motion(client, workflow, client.run(workflow), tmp_path)) == FRAMES


def test_a_latent_taken_apart_and_put_together_is_the_same(client, tmp_path):
    """But for the mean of the readings, which belongs to the very latents that were sampled: it is kept beside them."""
    workflow, sampler = workflow_with(seed=31)
    before = saved_motion(client, workflow, client.run(workflow), tmp_path)
    decode = workflow[the_id(workflow, "SViMoDecodeMotion")]["inputs"]
    made = []
    for latent in ([sampler, 0], ["join", 0]):
        workflow |= {
            "split": {"class_type": "SViMoSplitLatent", "inputs": {"latent": [sampler, 0]}},
            "join": {
                "class_type": "SViMoJoinLatents",
                "inputs": {"video": ["split", 0], "rendered_motion": ["split", 1]},
            },
        }
        decode |= {"latent": latent, "refine": True}
        made.append(saved_motion(client, workflow, client.run(workflow), tmp_path))
    np.testing.assert_array_equal(made[0].hands, made[1].hands)
    assert made[1].prompt == before.prompt
    assert np.abs(made[0].hands - before.hands).max() > 0


def test_growing_cfg_under_core_sampler(client):
    """It grows as ours does above 1, and stays away at 1, where core leaves the negative prompt out."""
    made = {}
    for name, cfg, growing in (
        ("image_to_video_and_motion", 4.0, True),
        (CORE_SAMPLER, 4.0, True),
        (CORE_SAMPLER, 1.0, True),
        (CORE_SAMPLER, 1.0, False),
    ):
        workflow, sampler = workflow_with(name, seed=41, steps=4)
        if name != CORE_SAMPLER:
            workflow[sampler]["inputs"].update({"cfg": cfg, "cfg_schedule": "dynamic"})
        else:
            guider = workflow[the_id(workflow, "CFGGuider")]["inputs"]
            if growing:
                workflow["growing"] = {
                    "class_type": "SViMoGrowingCFG",
                    "inputs": {"model": guider["model"], "cfg_schedule": "dynamic"},
                }
                guider["model"] = ["growing", 0]
            guider["cfg"] = cfg
        made[name, cfg, growing] = lossless(client, client.run(add_lossless(workflow))).astype(int)
    ours, core, one, plain = made.values()
    assert np.abs(ours - core).max() <= 2
    assert np.abs(core - plain).max() > 4
    np.testing.assert_array_equal(one, plain)


@pytest.mark.parametrize(
    "change",
    [
        {"cfg_schedule": "constant", "sequential_cfg": True},
        {"cfg": 1.0},
        {"solver": "dpmpp_2m_sde"},
    ],
)
def test_sampler_options(client, change):
    workflow, _ = workflow_with(**change)
    assert client.run(workflow).status == "success"


def test_another_clip_size(client, tmp_path):
    workflow, _ = workflow_with()
    workflow[the_id(workflow, "SViMoImageEncode")]["inputs"].update(
        {"width": 144, "height": 96, "frames": 17}
    )
    result = client.run(workflow)
    assert videos(client, workflow, result)["svimo/video"].shape == (17, 96, 144, 3)
    motion = saved_motion(client, workflow, result, tmp_path)
    assert (len(motion), motion.camera.width, motion.camera.height) == (17, 144, 96)
