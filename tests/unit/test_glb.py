import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import helpers
import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion
from helpers.read_glb import Glb
from helpers.synthetic_mano import mano_arrays
from scipy.spatial.transform import Rotation

from svimo_core.export.glb import write_glb
from svimo_core.export.names import NAMINGS
from svimo_core.mano import load_mano
from svimo_core.motion import HAND_NAMES, JOINT_NAMES, Camera, HandObjectMotion
from svimo_core.rigged import ObjectMesh, rig_motion

VALIDATOR = "gltf-validator@2.0.0-dev.3.10"
Y_UP = np.array([1, -1, -1])


@pytest.fixture(scope="session")
def validate(pytestconfig):
    """Khronos' validator, from npm into pytest's cache folder."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        pytest.skip("the glTF validator needs node and npm")
    folder = pytestconfig.cache.mkdir("gltf-validator")
    if not (folder / "node_modules").is_dir():
        subprocess.run([npm, "install", "--no-save", "--no-audit", "--prefix", folder, VALIDATOR], check=True)
    script = Path(helpers.__path__[0]) / "validate_glb.mjs"

    def run(path: Path) -> dict:
        return json.loads(
            subprocess.run([node, script, folder, path], check=True, capture_output=True).stdout
        )

    return run


@pytest.fixture(scope="module")
def motion():
    return moving_motion(frames=9)


@pytest.fixture(scope="module")
def rigged(motion):
    return rig_motion(motion)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mano")
    for side in HAND_NAMES:
        np.savez(folder / f"{side}.npz", **mano_arrays(side))
    return {side: load_mano(folder / f"{side}.npz", side) for side in HAND_NAMES}


@pytest.mark.parametrize(
    ("hands", "content"),
    [("capsule", "all"), ("capsule", "no objects"), ("capsule", "one frame"), ("mano", "one frame")],
)
def test_validator_finds_nothing(tmp_path, validate, motion, models, hands, content):
    if content == "no objects":
        motion = replace(motion, objects={})
    elif content == "one frame":
        motion = replace(
            motion, hands=motion.hands[:1], objects={k: v[:1] for k, v in motion.objects.items()}
        )
    rigged = rig_motion(motion, mano=models if hands == "mano" else None)
    report = validate(write_glb(tmp_path / "motion.glb", replace(rigged, metadata={"workflow": "{}"})))
    assert report["issues"]["messages"] == []
    assert (report["info"]["animationCount"], report["info"]["hasSkins"]) == (1, True)
    assert report["info"]["drawCallCount"] == 2 + len(motion.objects)


@pytest.mark.parametrize("naming", NAMINGS[1:])
def test_validator_finds_nothing_whatever_bones_are_called(tmp_path, validate, motion, naming):
    hands = motion.hands.copy()
    hands[3:5, 0] = np.nan
    rigged = rig_motion(replace(motion, hands=hands, objects={}))
    assert validate(write_glb(tmp_path / "motion.glb", rigged, naming=naming))["issues"]["messages"] == []


@pytest.fixture(scope="module")
def glb(tmp_path_factory, rigged):
    path = tmp_path_factory.mktemp("glb") / "motion.glb"
    return Glb(write_glb(path, replace(rigged, metadata={**rigged.metadata, "seed": "7"})))


def test_frames_are_seconds(glb, motion):
    np.testing.assert_allclose(glb.times, np.arange(len(motion)) / motion.fps)


def test_played_back_joints_meshes_and_objects_are_the_motion(glb, motion, rigged):
    for frame in range(len(motion)):
        world = glb.world(frame)
        for i, side in enumerate(HAND_NAMES):
            joints = [world[glb.node(f"{side}_{name}")][:3, 3] for name in JOINT_NAMES]
            np.testing.assert_allclose(joints * Y_UP, motion.hands[frame, i], atol=1e-5)
            vertices, _ = glb.triangles(f"{side}_hand", frame)
            np.testing.assert_allclose(vertices * Y_UP, rigged.hands[i].posed_vertices()[frame], atol=1e-5)
        for name, thing in rigged.objects.items():
            vertices, faces = glb.triangles(name, frame)
            track = thing.track
            placed = thing.vertices @ track.rotations[frame].T + track.translations[frame]
            np.testing.assert_allclose(vertices * Y_UP, placed, atol=1e-5)
            np.testing.assert_array_equal(faces, thing.faces)


def test_rest_pose_is_the_bind_pose_and_upright(glb, rigged):
    world = glb.world(None)
    for i, side in enumerate(HAND_NAMES):
        mesh = glb.json["meshes"][glb.json["nodes"][glb.node(f"{side}_hand")]["mesh"]]
        stored = glb.array(mesh["primitives"][0]["attributes"]["POSITION"])
        np.testing.assert_allclose(glb.triangles(f"{side}_hand", None)[0], stored, atol=1e-6)
        wrist = world[glb.node(f"{side}_wrist")][:3, 3]
        np.testing.assert_allclose(wrist * Y_UP, rigged.hands[i].translations.mean(axis=0), atol=1e-6)
        joints = np.stack([world[glb.node(f"{side}_{name}")][:3, 3] for name in JOINT_NAMES]) - wrist
        assert (
            joints[[8, 12, 16, 20], 2] < -0.1
        ).all()  # fingers point away from the camera, which looks along -z
        volume = signed_volume(*glb.triangles(f"{side}_hand", None))
        assert volume > 0  # the half turn to y-up keeps faces looking outwards


def test_bones_point_along_fingers_and_bend_about_x(glb):
    rest, bent = glb.world(None), glb.world(4)
    for side in HAND_NAMES:
        node = {name: glb.node(f"{side}_{name}") for name in JOINT_NAMES}
        for finger in ("index", "middle", "ring", "pinky"):
            for joint, child in (("mcp", "pip"), ("pip", "dip"), ("dip", "tip")):
                here, there = rest[node[f"{finger}_{joint}"]], rest[node[f"{finger}_{child}"]]
                bone = there[:3, 3] - here[:3, 3]
                np.testing.assert_allclose(here[:3, 1], bone / np.linalg.norm(bone), atol=1e-5)
            wrist, knuckle = node["wrist"], node[f"{finger}_mcp"]
            before = np.linalg.inv(rest[wrist]) @ rest[knuckle]
            after = np.linalg.inv(bent[wrist]) @ bent[knuckle]
            turn = Rotation.from_matrix((np.linalg.inv(before) @ after)[:3, :3]).as_rotvec()
            assert -1 < turn[0] < -0.8  # about 0.9 rad, and closing is the same way for both hands
            assert np.abs(turn[1:]).max() < 0.25


def signed_volume(vertices, faces):
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.einsum("fi,fi->", a, np.cross(b, c)) / 6


def test_camera_sees_what_the_motion_camera_sees(glb, motion):
    lens = glb.json["cameras"][0]["perspective"]
    point = np.array([0.07, -0.03, 0.6])
    x, y, z = point * Y_UP
    focal = 1 / np.tan(lens["yfov"] / 2)
    ndc = np.array([focal / lens["aspectRatio"] * x / -z, focal * y / -z])
    pixels = (ndc * (1, -1) + 1) / 2 * (motion.camera.width, motion.camera.height)
    np.testing.assert_allclose(pixels, motion.camera.project(point), atol=1e-6)
    assert Camera(**glb.json["cameras"][0]["extras"]) == motion.camera


def test_quaternions_never_jump(glb):
    animation = glb.json["animations"][0]
    for channel in animation["channels"]:
        if channel["target"]["path"] == "rotation":
            q = glb.array(animation["samplers"][channel["sampler"]]["output"])
            assert (np.sum(q[1:] * q[:-1], axis=1) > 0).all()


def test_metadata_travels(glb, motion):
    extras = glb.json["asset"]["extras"]
    assert extras == {"text": motion.prompt, "fps": 8, "frames": 9, "seed": "7"}


def test_residuals_are_reported_by_name(rigged):
    assert list(rigged.residuals_mm()) == ["left", "right", "tool", "target"]
    assert max(rigged.residuals_mm().values()) < 0.01


def test_hundred_thousand_points_make_a_small_file(tmp_path, motion):
    cloud = np.random.default_rng(0).normal(scale=0.03, size=(1, 100_000, 3)) + (0, 0, 0.6)
    large = HandObjectMotion(
        hands=motion.hands[:2], objects={"tool": cloud.repeat(2, 0)}, camera=motion.camera, fps=8
    )
    assert write_glb(tmp_path / "m.glb", rig_motion(large)).stat().st_size < 500_000


def test_few_points_are_bodies_the_validator_likes(tmp_path, validate, motion):
    cloud = motion.objects["tool"]
    line = cloud[:, :1] + np.linspace(0, 1, 5)[:, None] * (cloud[:, 1:2] - cloud[:, :1])
    few = {f"{count}": cloud[:, :count] for count in (1, 2, 3, 4)} | {"line": line}
    few["place"] = cloud[:, :1].repeat(3, axis=1)
    rigged = rig_motion(replace(motion, objects=few))
    path = write_glb(tmp_path / "few.glb", rigged)
    assert validate(path)["issues"]["messages"] == []
    glb = Glb(path)
    for name, points in few.items():
        vertices, _ = glb.triangles(name, 4)
        middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2 * Y_UP
        low, high = points[4].min(axis=0), points[4].max(axis=0)
        np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-3)
    assert max(rigged.residuals_mm().values()) < 0.01


def test_parts_and_own_meshes_become_nodes(motion):
    scissors = np.concatenate(list(motion.objects.values()), axis=1)
    motion = replace(motion, objects={"scissors": scissors, "tool": motion.objects["tool"]})
    own = (
        motion.objects["tool"][0] @ Rotation.from_rotvec((1, 2, 3)).as_matrix() * 100
    )  # in its own axes and unit
    mesh = ObjectMesh(vertices=own[:3], faces=np.array([[0, 1, 2]]), points=own)
    rigged = rig_motion(motion, parts={"scissors": 2}, meshes={"tool": mesh})
    assert list(rigged.objects) == ["scissors part 1", "scissors part 2", "tool"]
    assert [len(thing.track.points) for thing in rigged.objects.values()] == [128, 96, 128]
    assert max(rigged.residuals_mm().values()) < 0.01
    tool = rigged.objects["tool"]
    placed = tool.vertices @ tool.track.rotations[5].T + tool.track.translations[5]
    np.testing.assert_allclose(placed, motion.objects["tool"][5, :3], atol=1e-6)
    np.testing.assert_array_equal(tool.faces, mesh.faces)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": {"mug": 2}}, "no object 'mug'.* it has tool, target"),
        ({"parts": {"tool": 2}, "meshes": {"tool": None}}, "tool: one mesh .* not both"),
        ({"parts": {"tool": 2}}, "tool: .* already move as one rigid body"),
        ({"meshes": {"tool": ObjectMesh(vertices=np.eye(3), faces=np.arange(3)[None], points=np.eye(3))}},
         "tool: its mesh was made for 3 points and its motion has 128"),
    ],
)  # fmt: skip
def test_wrong_parts_and_meshes_are_named(motion, settings, message):
    with pytest.raises(ValueError, match=message):
        rig_motion(motion, **settings)
    taken = replace(motion, objects={**motion.objects, "tool part 1": motion.objects["tool"]})
    with pytest.raises(ValueError, match="rename"):
        rig_motion(taken, parts={"tool": 2})


def test_rigging_reports_progress_and_can_be_cancelled(motion, models):
    short = replace(motion, hands=motion.hands[:2], objects={k: v[:2] for k, v in motion.objects.items()})
    for mano in (None, models):
        seen = []
        rig_motion(short, mano=mano, on_progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (202, 202)
        with pytest.raises(InterruptedError):
            rig_motion(short, mano=mano, on_progress=interrupt)


def interrupt(done, total):
    raise InterruptedError


def test_cancelled_export_leaves_nothing(tmp_path, rigged):
    seen = []
    write_glb(tmp_path / "m.glb", rigged, on_progress=lambda *progress: seen.append(progress))
    assert seen == [(i, 5) for i in range(1, 6)]
    (tmp_path / "m.glb").unlink()
    for last in seen:

        def stop(*progress, last=last):
            if progress == last:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            write_glb(tmp_path / "m.glb", rigged, on_progress=stop)
        assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_older_file(tmp_path, rigged):
    path = tmp_path / "m.glb"
    path.write_bytes(b"older")
    broken = replace(rigged, metadata={"score": float("nan")})
    with pytest.raises(ValueError):
        write_glb(path, broken)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.glb", b"older")]


def test_unwritable_folder_is_one_clear_error(tmp_path, rigged):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(
            OSError, match=r"cannot write m\.glb .*; choose a folder that exists and is writable"
        ):
            write_glb(folder / "m.glb", rigged)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
