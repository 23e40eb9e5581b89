"""Small files that promise much: refused soon, and without the memory that they ask for."""

import json
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from helpers.damage import nest_pickle, peak_memory
from helpers.readers import OPTIONS, read_surface
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svimo_core.checkpoint import read_header
from svimo_core.importing.read import import_motion
from svimo_train.data.taco.pickles import read_pickle

BVH = "HIERARCHY\nROOT LeftHand\n{\nOFFSET 0 0 0\nCHANNELS 3 Xrotation Yrotation Zrotation\n"


def archive_of_one_number(path):
    shape = (2**28 // 8 // 126 + 1, 2, 21, 3)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("hands.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
        for _ in range(2**8 + 1):
            member.write(bytes(2**20))
    return import_motion, OPTIONS


def frames_without_end(path):
    joints = np.zeros((2, 21, 3))
    arrays = {
        "pred_keypoints_3d": joints,
        "pred_cam_t_full": joints[:, 0],
        "is_right": [0, 1],
        "frame": [0, 1],
    }
    np.savez(path, frame_count=1e12, **arrays)
    return import_motion, OPTIONS


def joints_without_end(path):
    joints = "JOINT LeftHandIndex1\n{\nOFFSET 0 0 1\n" * 50_000
    path.write_text(f"{BVH}{joints}{'}' * 50_001}\nMOTION\nFrames: 1\nFrame Time: 0.1\n1 2 3")
    return import_motion, OPTIONS


def headers_without_end(path):
    path.write_text(f"{BVH}}}\nMOTION\n" + "Frames: 1\n" * 100_000 + "1 2 3")
    return import_motion, OPTIONS


def channels_without_end(path):
    path.write_text(BVH.replace("CHANNELS 3", f"CHANNELS {10**12}") + "}\nMOTION\n")
    return import_motion, OPTIONS


def nested_lists(path):
    path.write_text("[" * 300_000 + "]" * 300_000)
    return import_motion, OPTIONS


def lists_that_name_each_other(path):
    path.write_bytes(nest_pickle(None, b""))
    return (read_pickle,)


def tensors_of_one_storage(path):
    whole = torch.zeros(100_000)
    storage = whole.storage()

    class Part:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, 0, (100_000,), (1,), False, {})

    path.write_bytes(pickle.dumps([Part() for _ in range(20_000)]))
    return (read_pickle,)


def corners_without_vertices(path):
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 999999999999\n")
    return (read_surface,)


def vertices_without_end(path):
    path.write_text("OFF\n1000000000000 1000000000000 0\n0 0 0\n")
    return (read_surface,)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npz", archive_of_one_number),
        ("a.npz", frames_without_end),
        ("a.bvh", joints_without_end),
        ("a.bvh", headers_without_end),
        ("a.bvh", channels_without_end),
        ("a.json", nested_lists),
        ("a.pkl", lists_that_name_each_other),
        ("a.pkl", tensors_of_one_storage),
        ("a.obj", corners_without_vertices),
        ("a.off", vertices_without_end),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_small_files_are_refused_soon_and_in_little_memory(tmp_path, name, write):
    read, *options = write(tmp_path / name)
    memory, began = peak_memory(), time.process_time()
    with pytest.raises(ValueError, match=r"^a\.\w+") as error:
        read(tmp_path / name, *options)
    assert "\n" not in str(error.value)
    assert time.process_time() - began < 5
    assert peak_memory() - memory < 2**29


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("backbone", "num_layers", 10**9),
        ("vae", "layers_per_block", 10**9),
        ("interaction", "points_per_object", 1e300),
        ("schedule", "num_train_timesteps", 10**12),
    ],
)
def test_configurations_that_would_be_built_forever_are_refused(tmp_path, checkpoint_file, part, name, value):
    with safe_open(checkpoint_file, framework="pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["config"])
    config[part][name] = value
    path = tmp_path / "a.safetensors"
    save_file(load_file(checkpoint_file), path, metadata | {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=rf"^a\.safetensors has damaged SViMo metadata: {part}\.{name} is"):
        read_header(path)
