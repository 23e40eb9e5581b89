"""3D motion in the graph: cleaned, rigged, saved for other programs, drawn over frames, and loaded again."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.inside import run_inside
from helpers.read_glb import Glb
from helpers.synthetic_mano import mano_arrays
from PIL import Image

from dev.comfy import ROOT, ComfyError, WorkflowRefused, api_workflow
from svimo_core.export.bvh import write_bvh
from svimo_core.importing.bvh import read_bvh
from svimo_core.importing.json_ import read_json
from svimo_core.importing.orders import ORDERS
from svimo_core.importing.read import read_motion
from svimo_core.motion import HandObjectMotion
from svimo_core.rigged import rig_motion

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
    extras = glb.json["asset"][
        "extras"
    ]  # the graph where ComfyUI looks for it, the prompt in words beside it
    assert set(json.loads(extras["prompt"])) == set(workflow)
    assert extras["text"] == example.prompt

    hands = [download(client, file, tmp_path) for file in result.files(ids["SViMoSaveBVH"])]
    back = read_motion(hands)
    assert back.fps == pytest.approx(8, rel=1e-3)
    np.testing.assert_allclose(back.hands, example.hands, atol=2e-3)
    assert "mm" in result.outputs[ids["SViMoRigMotion"]]["text"][0]


def test_core_takes_the_glb(client, tmp_path):
    """As text where saved workflows have it, and as a file for the 3D nodes of newer ComfyUI."""
    core = client.object_info()
    workflow = {
        "load": LOAD,
        "rig": {
            "class_type": "SViMoRigMotion",
            "inputs": {"motion": ["load", 0], "hands": "capsule", "smoothness": 1.0},
        },
        "save": {
            "class_type": "SViMoSaveGLB",
            "inputs": {"rigged_motion": ["rig", 0], "filename_prefix": "glb/taken"},
        },
        "old": {"class_type": "Preview3D", "inputs": {"model_file": ["save", 0]}},
    }
    newer = "Preview3DAdvanced" in core
    if newer:
        view = {"model_3d": ["save", 1], "viewport_state": {}, "width": 64, "height": 64}
        copy = {"mesh": ["save", 1], "filename_prefix": "glb/copied"}
        workflow |= {
            "file": {"class_type": "Preview3D", "inputs": {"model_file": ["save", 1]}},
            "new": {"class_type": "Preview3DAdvanced", "inputs": view},
            "copy": {"class_type": "SaveGLB", "inputs": copy},
        }
    assert newer == (len(core["SViMoSaveGLB"]["output"]) == 2)
    result = client.run(workflow)
    (saved,) = result.files("save")
    assert result.outputs["old"]["result"][0] == f"glb/{saved['filename']}"
    if newer:
        (copied,) = result.files("copy")
        content = client.download(saved)
        assert client.download(copied) == content
        temporary = {"filename": result.outputs["new"]["result"][0], "subfolder": "", "type": "temp"}
        assert client.download(temporary) == content
        kept = {"filename": result.outputs["file"]["result"][0], "subfolder": "", "type": "output"}
        assert client.download(kept) == content


def test_bones_by_other_names_and_both_hands_in_one_bvh(client, server, example, tmp_path):
    hands = example.hands.copy()
    hands[3:5, 0] = np.nan
    replace(example, hands=hands).save(server.base_directory / "input" / "one_absent.npz")
    workflow = {
        "load": {"class_type": "SViMoLoadMotion", "inputs": {"motion": "one_absent.npz", "fps": 0.0}},
        "rig": {
            "class_type": "SViMoRigMotion",
            "inputs": {"motion": ["load", 0], "hands": "capsule", "smoothness": 1.0},
        },
        "glb": {
            "class_type": "SViMoSaveGLB",
            "inputs": {"rigged_motion": ["rig", 0], "filename_prefix": "glb/named", "bone_names": "unreal"},
        },
        "bvh": {
            "class_type": "SViMoSaveBVH",
            "inputs": {
                "rigged_motion": ["rig", 0],
                "filename_prefix": "bvh/named",
                "bone_names": "mixamo",
                "files": "both hands in one",
            },
        },
    }
    result = client.run(workflow)
    glb = Glb(download(client, result.files("glb")[0], tmp_path))
    assert {"hand_l", "index_01_r"} <= {node["name"] for node in glb.json["nodes"]}
    (file,) = result.files("bvh")
    assert file["filename"] == "named_00001_hands.bvh"
    bvh = read_bvh(download(client, file, tmp_path))
    right = bvh.positions([bvh.names.index("mixamorig:RightHand")])[:, 0] / (100, -100, -100)
    np.testing.assert_allclose(right, example.hands[:, 1, 0], atol=2e-3)
    assert result.outputs["bvh"]["text"] == [
        "the left hand is absent in 2 of 17 frames; BVH cannot say so, it moves on in straight lines there"
    ]

    workflow["bvh"]["inputs"]["files"] = "one per hand"
    assert [file["filename"] for file in client.run(workflow).files("bvh")] == [
        "named_00002_left.bvh",
        "named_00002_right.bvh",
    ]
    hands[:] = np.nan
    replace(example, hands=hands).save(server.base_directory / "input" / "handless.npz")
    workflow["load"]["inputs"]["motion"] = "handless.npz"
    with pytest.raises(ComfyError, match="no hand is present in this motion"):
        client.run(workflow)


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


def test_mano_hands_are_the_users_own(client, server, example, tmp_path):
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
    saved = {Path(file["filename"]).suffix: file for file in result.files("save")}
    glb = Glb(download(client, saved[".glb"], tmp_path))
    assert len(glb.json["skins"]) == 2
    with np.load(download(client, saved[".npz"], tmp_path), allow_pickle=False) as parameters:
        assert parameters["left_hand_pose"].shape == (len(example), 45)
    assert saved[".npz"]["filename"] == "mano_00001_mano.npz"
    assert not any("_mano.npz" in name for name in listed(client.object_info()))


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


def listed(info: dict) -> list[str]:
    choices, options = info["SViMoLoadMotion"]["input"]["required"]["motion"]
    return options.get("options", choices)


def test_the_list_follows_the_folders(client, server, example):
    """Files come and go at any depth, and what was made after the list was sent can be loaded all the same."""
    folder = server.base_directory / "output" / "some" / "where"
    folder.mkdir(parents=True)
    name = "some/where/kept.npz [output]"
    assert name not in listed(client.object_info())
    example.save(folder / "kept.npz")
    workflow = {
        "load": {"class_type": "SViMoLoadMotion", "inputs": {"motion": name, "fps": 0.0}},
        "view": {"class_type": "SViMoMotionViewer", "inputs": {"motion": ["load", 0]}},
    }
    client.run(workflow)
    assert name in listed(client.object_info())
    (folder / "notes.txt").write_text("no motion")
    (folder / "kept.npz").rename(folder / "Moved.NPZ")
    after = listed(client.object_info())
    assert "some/where/Moved.NPZ [output]" in after
    assert not any("kept" in motion or "notes" in motion for motion in after)
    with pytest.raises(WorkflowRefused, match="no motion file"):
        client.run(workflow)
    shutil.rmtree(folder.parent)
    assert not any("some/where" in motion for motion in listed(client.object_info()))
    workflow["load"]["inputs"]["motion"] = "../outside.npz"
    with pytest.raises(WorkflowRefused, match="lies outside"):
        client.run(workflow)


def test_listing_does_not_slow_down_with_a_full_output_folder(tmp_path):
    """20,000 pictures in one folder: only the first look reads them."""
    printed = run_inside(
        """
        import time
        from pathlib import Path
        import folder_paths
        from pack.nodes import motion

        folder_paths.set_output_directory(args[0])
        for i in range(20_000):
            Path(args[0], f"picture_{i:05}.png").touch()
        Path(args[0], "walk.npz").touch()
        seconds = []
        for _ in range(5):
            before = time.perf_counter()
            for node in motion.NODES:
                node.define_schema()
            seconds.append(time.perf_counter() - before)
        assert "walk.npz [output]" in motion.list_motions()
        print(seconds[0], min(seconds[1:]))
        """,
        str(tmp_path),
    )
    first, later = map(float, printed.split()[-2:])
    assert first < 1
    assert later < min(0.01, first / 4)


@pytest.fixture
def importing() -> dict:
    return {
        "import": {
            "class_type": "SViMoImportMotion",
            "inputs": {"other_hand": "none", "fps": 0.0, "unit": "usual", "max_gap": 0, "distance": 0.0},
        },
        "save": {
            "class_type": "SViMoSaveMotion",
            "inputs": {"motion": ["import", 0], "filename_prefix": "imported", "format": "npz"},
        },
    }


def test_a_file_that_another_node_names():
    """It is not known (None) before the graph runs: motions are read anew then, and models stay."""
    run_inside(
        """
        from comfy_execution.caching import to_hashable
        from pack.nodes.load import SViMoInteractionLoader
        from pack.nodes.motion import SViMoImportMotion, SViMoLoadMotion
        from pack.nodes.objects import SViMoAddObject

        for node, names in (
            (SViMoLoadMotion, ["motion"]),
            (SViMoImportMotion, ["motion", "other_hand"]),
            (SViMoAddObject, ["object_file", "poses_file"]),
        ):
            linked = dict.fromkeys(names)
            assert node.validate_inputs(**linked) is True
            first, second = (to_hashable([node.fingerprint_inputs(**linked)]) for _ in range(2))
            assert first != second  # as core's cache looks it up
            refused = node.validate_inputs(**linked | {names[0]: "gone.npz"} | dict.fromkeys(names[1:], "none"))
            assert "gone.npz" in refused
        same = [SViMoInteractionLoader.fingerprint_inputs(model_name=None) for _ in range(2)]
        assert same[0] == same[1]
        """
    )


def test_import_shows_what_it_understood(client, server, example, importing, tmp_path):
    """Joints of one hand in centimetres, mirrored and in MANO's order: noticed, then read as the settings say."""
    joints = example.hands[:, 1] * (-1, 1, 1) * 100
    np.savez(server.base_directory / "input" / "odd.npz", fps=30, right=joints[:, np.argsort(ORDERS["MANO"])])
    settings = importing["import"]["inputs"]
    settings["motion"] = "odd.npz"
    importing["picture"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["import", 2], "filename_prefix": "picture"},
    }
    with pytest.raises(ComfyError, match=r"fingers bend backwards .* .set sides to mirror;"):
        client.run(importing)
    settings |= {"sides": "mirror", "missing_hands": "park"}
    result = client.run(importing)
    motion = HandObjectMotion.load(download(client, result.files("save")[0], tmp_path))
    np.testing.assert_allclose(motion.hands[:, 1], example.hands[:, 1], atol=1e-5)
    assert motion.present.all()
    (report,) = result.outputs["import"]["text"]
    for words in ("MANO order", "the unit is centimetres", "Sides: mirror", "Absent: the left hand in"):
        assert words in report
    assert len(result.outputs["import"]["images"]) == 1
    download(client, result.files("picture")[0], tmp_path)


def test_one_bvh_per_hand_comes_back_and_in_front_of_the_camera(client, server, example, importing, tmp_path):
    behind = example.hands - np.float32([0, 1, 2])  # as motion capture, which knows no camera
    for hand in rig_motion(replace(example, hands=behind, objects={})).hands:
        write_bvh(server.base_directory / "input" / f"walk_{hand.rig.side}.bvh", hand, example.fps)
    settings = importing["import"]["inputs"]
    settings["motion"] = "walk_left.bvh"
    motion = HandObjectMotion.load(download(client, client.run(importing).files("save")[0], tmp_path))
    assert motion.present.all(axis=0).tolist() == [True, False]
    settings.update({"other_hand": "walk_right.bvh", "distance": 0.7})
    motion = HandObjectMotion.load(download(client, client.run(importing).files("save")[0], tmp_path))
    middle = np.mean(motion.bounds(), axis=0)
    np.testing.assert_allclose(middle, [0, 0, 0.7], atol=1e-4)
    moved = motion.hands - behind
    np.testing.assert_allclose(moved, np.broadcast_to(moved.mean(axis=(0, 1, 2)), moved.shape), atol=2e-3)
    settings["unit"] = "metres"
    with pytest.raises(ComfyError, match="set unit to centimetres"):
        client.run(importing)
    settings["other_hand"] = "gone.bvh"
    with pytest.raises(WorkflowRefused, match=r"no motion file .gone\.bvh."):
        client.run(importing)


def test_gaps_of_a_hand_tracker_are_filled(client, server, example, importing, tmp_path):
    hands = example.hands.copy()
    hands[5:7, 0] = np.nan
    np.savez(server.base_directory / "input" / "gaps.npz", hands=1000 * hands)
    settings = importing["import"]["inputs"]
    settings.update({"motion": "gaps.npz", "fps": 8.0, "unit": "millimetres", "max_gap": 1})
    motion = HandObjectMotion.load(download(client, client.run(importing).files("save")[0], tmp_path))
    assert np.flatnonzero(~motion.present[:, 0]).tolist() == [5, 6]
    settings["max_gap"] = 2
    motion = HandObjectMotion.load(download(client, client.run(importing).files("save")[0], tmp_path))
    np.testing.assert_allclose(motion.hands[:, 1], example.hands[:, 1], atol=1e-6)
    line = example.hands[4, 0] + (example.hands[7, 0] - example.hands[4, 0]) / 3
    np.testing.assert_allclose(motion.hands[5, 0], line, atol=1e-6)


def test_no_metadata_where_the_server_is_told_so(tmp_path):
    run_inside(
        """
        import json, numpy
        from dataclasses import replace
        from pathlib import Path
        from types import SimpleNamespace
        import folder_paths
        from comfy.cli_args import args as options
        from pack.nodes.rig import SViMoSaveGLB
        from pack.nodes.save import SViMoSaveMotion
        from pack.svimo_core.motion import HandObjectMotion
        from pack.svimo_core.rigged import rig_motion

        motion = replace(HandObjectMotion.load(args[0]), prompt="use secret to", metadata={"prompt": "secret"})
        folder_paths.set_output_directory(args[1])
        for disabled in (False, True):
            options.disable_metadata = disabled
            for node, thing, settings in (
                (SViMoSaveMotion, motion, {"format": "npz"}),
                (SViMoSaveMotion, motion, {"format": "json"}),
                (SViMoSaveGLB, rig_motion(motion), {}),
            ):
                node.hidden = SimpleNamespace(prompt={"1": "secret"}, extra_pnginfo={"workflow": "secret"})
                node.execute(thing, f"{disabled}", **settings)
            files = sorted(Path(args[1]).glob(f"{disabled}_*"))
            assert {path.suffix for path in files} == {".npz", ".json", ".glb"}
            for path in files:
                if path.suffix == ".npz":
                    with numpy.load(path) as arrays:
                        content = json.dumps({name: arrays[name].tolist() for name in arrays})
                else:
                    content = path.read_bytes().decode("latin1")
                assert content.count("secret") == (0 if disabled else 3), (path, content.count("secret"))
        """,
        str(ROOT / "assets" / "motions" / "stir_cup.npz"),
        str(tmp_path),
    )


def test_objects_of_ones_own_join_a_motion(client, server, example, tmp_path):
    """A mesh in centimetres moved by poses, beside two sets of markers from one file."""
    folder = server.base_directory / "input" / "objects"
    folder.mkdir()
    (folder / "plate.obj").write_text("v 0 0 0\nv 10 0 0\nv 0 5 0\nf 1 2 3\n")
    poses = np.tile(np.eye(4), (len(example), 1, 1))
    poses[:, :3, 3] = np.linspace((0, 0, 0.5), (0.1, 0, 0.6), len(example))
    np.save(folder / "poses.npy", poses)
    np.savez(folder / "markers.npz", pen=example.objects["tool"][:, :2], cap=example.objects["tool"][:, 5:6])
    settings = {
        "motion": ["load", 0],
        "object_file": "objects/plate.obj",
        "poses_file": "objects/poses.npy",
        "name": "plate ",  # as it comes of a text field
        "unit": "centimetres",
        "poses_unit": "metres",
        "poses_layout": "auto",
        "points": 20,
        "fps": 0.0,
        "lengths": "equal",
        "first_frame": 0,
        "up": "-y",
        "forward": "+z",
    }
    markers = {
        **settings,
        "motion": ["mesh", 0],
        "meshes": ["mesh", 2],
        "object_file": "objects/markers.npz",
        "poses_file": "none",
    }
    workflow = {
        "load": LOAD,
        "mesh": {"class_type": "SViMoAddObject", "inputs": settings},
        "markers": {"class_type": "SViMoAddObject", "inputs": {**markers, "unit": "metres"}},
        "save": {
            "class_type": "SViMoSaveMotion",
            "inputs": {"motion": ["markers", 0], "filename_prefix": "added", "format": "npz"},
        },
        "rig": {
            "class_type": "SViMoRigMotion",
            "inputs": {
                "motion": ["markers", 0],
                "hands": "capsule",
                "smoothness": 1.0,
                "rigid_parts": "tool: 1",
                "meshes": ["markers", 2],
            },
        },
        "glb": {
            "class_type": "SViMoSaveGLB",
            "inputs": {"rigged_motion": ["rig", 0], "filename_prefix": "added"},
        },
    }
    result = client.run(workflow)
    motion = HandObjectMotion.load(download(client, result.files("save")[0], tmp_path))
    assert list(motion.objects) == [*example.objects, "plate", "pen", "cap"]
    plate = motion.objects["plate"]
    assert plate.shape == (len(example), 20, 3)
    np.testing.assert_allclose(np.ptp(plate[0], axis=0), (0.1, 0.05, 0), atol=0.03)
    np.testing.assert_allclose(plate[-1] - plate[0], np.tile((0.1, 0, 0.1), (20, 1)), atol=1e-6)
    (report,) = result.outputs["mesh"]["text"]
    assert report.startswith(f"plate: 20 points, {len(example)} frames, 1")
    assert report.endswith(" 0.50) m")
    glb = Glb(download(client, result.files("glb")[0], tmp_path))
    assert {"plate", "pen", "cap"} <= {node["name"] for node in glb.json["nodes"]}
    corners, faces = glb.triangles("plate", None)
    assert (len(corners), len(faces)) == (3, 1)  # the mesh itself, no surface around its points
    workflow["rig"]["inputs"]["rigid_parts"] = "tool 2"
    with pytest.raises(ComfyError, match="rigid_parts has 'tool 2': expected the name"):
        client.run(workflow)

    np.save(folder / "poses.npy", poses[:3])  # the file is read again
    with pytest.raises(ComfyError, match=r"plate has 3 frames at 8 fps.* the motion 17"):
        client.run(workflow)
    settings |= {"lengths": "fit", "object_file": "objects/markers.npz"}
    with pytest.raises(ComfyError, match="markers, which move by themselves"):
        client.run(workflow)
    settings["object_file"] = "../plate.obj"
    with pytest.raises(WorkflowRefused, match="lies outside"):
        client.run(workflow)
