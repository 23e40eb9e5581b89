"""3D motion in the graph: cleaned, rigged, saved for other programs, drawn over frames, and loaded again."""

import io

import numpy as np
import pytest
from helpers.read_glb import Glb
from helpers.synthetic_mano import mano_arrays
from PIL import Image

from dev.comfy import ROOT, ComfyError, api_workflow
from svimo_core.export.bvh import read_bvh_hands
from svimo_core.export.json_ import read_json
from svimo_core.motion import HandObjectMotion

EXAMPLE = "stir_cup.npz [example]"
LOAD = {"class_type": "SViMoLoadMotion", "inputs": {"motion": EXAMPLE, "fps": 0.0}}


@pytest.fixture(scope="module")
def example() -> HandObjectMotion:
    return HandObjectMotion.load(ROOT / "assets" / "motions" / "stir_cup.npz")


def download(client, file, folder):
    path = folder / file["filename"]
    path.write_bytes(client.download(file))
    return path


def test_retarget_and_export(client, example, tmp_path):
    workflow = api_workflow("retarget_and_export")
    ids = {content["class_type"]: node for node, content in workflow.items()}
    clean = workflow[ids["SViMoCleanMotion"]]["inputs"]
    clean.update({"smooth_seconds": 0.0, "fps": 8.0})
    result = client.run(workflow)

    motion = read_json(download(client, result.files(ids["SViMoSaveMotion"])[0], tmp_path))
    np.testing.assert_allclose(motion.hands, example.hands, atol=1e-5)

    (preview,) = result.files(ids["SViMoPreviewMotion"])
    assert Image.open(io.BytesIO(client.download(preview))).n_frames == len(example)

    glb = Glb(download(client, result.files(ids["SViMoSaveGLB"])[0], tmp_path))
    assert len(glb.json["skins"]) == 2
    assert glb.json["animations"]

    hands = [download(client, file, tmp_path) for file in result.files(ids["SViMoSaveBVH"])]
    joints, fps = read_bvh_hands(hands)
    assert fps == pytest.approx(8, rel=1e-3)
    np.testing.assert_allclose(joints, example.hands, atol=2e-3)
    assert "mm" in result.outputs[ids["SViMoRigMotion"]]["text"][0]


def test_cleaning_changes_rate_and_keeps_the_way(client, example, tmp_path):
    workflow = {
        "load": LOAD,
        "clean": {
            "class_type": "SViMoCleanMotion",
            "inputs": {"motion": ["load", 0], "smooth_seconds": 0.05, "fps": 24.0, "scale": 1.0},
        },
        "save": {
            "class_type": "SViMoSaveMotion",
            "inputs": {"motion": ["clean", 0], "filename_prefix": "clean", "format": "npz"},
        },
    }
    result = client.run(workflow)
    motion = HandObjectMotion.load(download(client, result.files("save")[0], tmp_path))
    assert motion.fps == 24
    assert len(motion) == 3 * (len(example) - 1) + 1
    assert np.abs(motion.hands[::3] - example.hands).max() < 0.03


def test_overlay_draws_over_the_frames(client, example):
    workflow = {
        "load": LOAD,
        "white": {
            "class_type": "EmptyImage",
            "inputs": {"width": 144, "height": 96, "batch_size": len(example), "color": 0xFFFFFF},
        },
        "overlay": {
            "class_type": "SViMoOverlayMotion",
            "inputs": {"images": ["white", 0], "motion": ["load", 0], "opacity": 1.0},
        },
        "save": {"class_type": "PreviewImage", "inputs": {"images": ["overlay", 0]}},
    }
    files = client.run(workflow).files("save")
    assert len(files) == len(example)
    frame = np.asarray(Image.open(io.BytesIO(client.download(files[0]))).convert("RGB"), dtype=int)
    assert frame[0, 0].tolist() == [255, 255, 255]
    assert (np.abs(frame - (0, 255, 0)).sum(axis=-1) < 60).any()  # the right hand
    workflow["white"]["inputs"]["batch_size"] = 3
    with pytest.raises(ComfyError, match="images has 3 frames, the motion 17"):
        client.run(workflow)


def test_mano_hands_are_the_users_own(client, server, tmp_path):
    workflow = {
        "load": LOAD,
        "rig": {
            "class_type": "SViMoRigMotion",
            "inputs": {"motion": ["load", 0], "hands": "mano", "smoothness": 1.0},
        },
        "save": {
            "class_type": "SViMoSaveGLB",
            "inputs": {"rigged_motion": ["rig", 0], "filename_prefix": "mano"},
        },
    }
    with pytest.raises(ComfyError, match=r"no MANO_LEFT.pkl .* register at"):
        client.run(workflow)
    folder = server.base_directory / "models" / "svimo" / "mano"
    folder.mkdir(parents=True)
    for side in ("left", "right"):
        np.savez(folder / f"MANO_{side.upper()}.npz", **mano_arrays(side))
    result = client.run(workflow)
    glb = Glb(download(client, result.files("save")[0], tmp_path))
    assert len(glb.json["skins"]) == 2


def test_motion_from_a_hand_tracker(client, server, example, tmp_path):
    np.savez(
        server.base_directory / "input" / "tracked.npz", left=example.hands[:, 0], right=example.hands[:, 1]
    )
    workflow = {
        "load": {"class_type": "SViMoLoadMotion", "inputs": {"motion": "tracked.npz", "fps": 0.0}},
        "save": {
            "class_type": "SViMoSaveMotion",
            "inputs": {"motion": ["load", 0], "filename_prefix": "tracked", "format": "npz"},
        },
    }
    with pytest.raises(ComfyError, match="does not say its frame rate"):
        client.run(workflow)
    workflow["load"]["inputs"]["fps"] = 30.0
    result = client.run(workflow)
    motion = HandObjectMotion.load(download(client, result.files("save")[0], tmp_path))
    np.testing.assert_array_equal(motion.hands, example.hands)
    assert motion.fps == 30
