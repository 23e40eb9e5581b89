import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion
from scipy.spatial.transform import Rotation

from svimo_core.export.bvh import write_bvh
from svimo_core.export.json_ import write_json
from svimo_core.importing.bvh import read_bvh
from svimo_core.importing.read import read_motion
from svimo_core.motion import Camera, HandObjectMotion
from svimo_core.rigged import rig_motion

CAMERA = Camera.from_fov(624, 416)


@pytest.fixture(scope="module")
def motion():
    return moving_motion(frames=9)


def same_motion(a, b, atol):
    np.testing.assert_allclose(a.hands, b.hands, atol=atol)
    assert list(a.objects) == list(b.objects)
    for name in a.objects:
        np.testing.assert_allclose(a.objects[name], b.objects[name], atol=atol)
    assert (a.camera, a.fps, a.prompt, a.metadata) == (b.camera, b.fps, b.prompt, b.metadata)


# JSON and NPZ


def test_json_and_npz_round_trip(tmp_path, motion):
    motion = replace(motion, metadata={"seed": "7"}, prompt='use "mug" to pour \u7897')
    same_motion(read_motion(write_json(tmp_path / "m.json", motion)), motion, atol=1e-6)
    same_motion(read_motion(motion.save(tmp_path / "m.npz")), motion, atol=0)
    more = read_motion(write_json(tmp_path / "m.json", motion, metadata={"workflow": "{}"}))
    assert more.metadata == {"seed": "7", "workflow": "{}"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.npz"]


def test_json_of_others_may_have_nothing_to_say(tmp_path, motion):
    """null is no prompt, not the word None, and what is no text in the metadata becomes it, as .npz has text alone."""
    path = write_json(tmp_path / "m.json", motion)
    content = json.loads(path.read_text(encoding="utf-8"))
    for metadata, expected in ((None, {}), ({"seed": 7}, {"seed": "7"})):
        path.write_text(json.dumps(content | {"prompt": None, "metadata": metadata}))
        read = read_motion(read_motion(path).save(tmp_path / "m.npz"))
        assert (read.prompt, read.metadata) == ("", expected)


def test_ten_thousand_equal_frames_are_a_motion(tmp_path, motion):
    """Compressed a thousand times, as only a bomb otherwise is."""
    points = np.resize(motion.objects["tool"][0], (500, 3))
    pose = replace(motion.take(slice(1)), objects={"tool": points[None], "target": points[None]})
    path = pose.take(np.zeros(10_000, int)).save(tmp_path / "m.npz")
    assert path.stat().st_size < 2**20
    loaded = HandObjectMotion.load(path)
    assert loaded.objects["target"].shape == (10_000, 500, 3)
    assert np.array_equal(loaded.hands[[0, -1]], pose.hands[[0, 0]])


def test_json_has_the_documented_schema(tmp_path, motion):
    content = json.loads(write_json(tmp_path / "m.json", motion).read_text(encoding="utf-8"))
    assert (content["format"], content["version"], content["units"]) == ("svimo-motion", 1, "metres")
    assert content["joint_names"][:5] == ["wrist", "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip"]
    assert np.shape(content["hands"]["left"]) == (9, 21, 3)
    assert np.shape(content["objects"]["target"]) == (9, 96, 3)
    assert set(content["camera"]) == {"fx", "fy", "cx", "cy", "width", "height"}


def test_json_refuses_what_it_is_too_slow_for(tmp_path, motion):
    cloud = np.zeros((9, 400_000, 3), np.float32)
    with pytest.raises(ValueError, match=r"too many for JSON .* save as \.npz"):
        write_json(tmp_path / "m.json", replace(motion, objects={"tool": cloud}))
    assert list(tmp_path.iterdir()) == []


def test_json_cancelled_or_unwritable_leaves_nothing(tmp_path, motion):
    def stop(done, total):
        if done == total:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_json(tmp_path / "m.json", motion, on_progress=stop)
    with pytest.raises(OSError, match=r"cannot write m\.json"):
        write_json(tmp_path / "missing" / "m.json", motion)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"format": "other"}, "its format is 'other'"),
        (lambda c: c | {"version": 99}, "update the pack"),
        (lambda c: c | {"hands": {"third": c["hands"]["right"]}}, r"hands called \['third'\]"),
        (lambda c: c | {"fps": -1}, "fps must be positive"),
        (lambda c: c | {"camera": {}}, "Camera"),
        (lambda c: c | {"objects": {"tool": [[[0, 0]]]}}, "object 'tool'"),
        (lambda c: {k: v for k, v in c.items() if k != "objects"}, "lacks 'objects'"),
        (lambda c: [c], "expected a SViMo motion"),
    ],
)
def test_bad_json_is_one_clear_error(tmp_path, motion, change, message):
    path = write_json(tmp_path / "m.json", motion)
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_motion(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 5000, "\xff"])
def test_what_is_no_json_is_one_clear_error(tmp_path, text):
    (tmp_path / "m.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"^m\.json is not a SViMo motion"):
        read_motion(tmp_path / "m.json")


# BVH


def test_bvh_per_hand_round_trip(tmp_path, motion):
    rigged = rig_motion(motion)
    paths = [write_bvh(tmp_path / f"{hand.rig.side}.bvh", hand, motion.fps) for hand in rigged.hands]
    back = read_motion(paths)
    np.testing.assert_allclose(back.hands, motion.hands, atol=2e-6)
    assert (back.fps, back.objects, back.camera) == (8, {}, CAMERA)
    np.testing.assert_allclose(read_motion(paths[::-1]).hands, motion.hands, atol=2e-6)


def test_bvh_is_centimetres_y_up_with_a_flat_rest_pose(tmp_path):
    hand = rig_motion(moving_motion(frames=3)).hands[1]
    bvh = read_bvh(write_bvh(tmp_path / "right.bvh", hand, 24))
    assert bvh.fps == pytest.approx(24)
    assert len(bvh.names) == 21
    np.testing.assert_allclose(bvh.positions([0])[:, 0], hand.translations * (100, -100, -100), atol=1e-4)
    text = (tmp_path / "right.bvh").read_text()
    offsets = [line.split()[1:] for line in text.splitlines() if "OFFSET" in line]
    assert np.array(offsets, float).shape == (21, 3)
    middle = bvh.names.index("right_middle_mcp")
    np.testing.assert_allclose(
        np.array(offsets[middle], float), hand.rig.rest_joints[9] * (100, -100, -100), atol=1e-5
    )


def test_bvh_angles_do_not_jump(tmp_path):
    hand = rig_motion(moving_motion(frames=60)).hands[0]
    spin = Rotation.from_euler("z", np.linspace(0, 720, 60)[:, None], degrees=True).as_matrix()
    hand = replace(hand, rotations=np.concatenate([spin[:, None], hand.rotations[:, 1:]], axis=1))
    path = write_bvh(tmp_path / "left.bvh", hand, 30)
    rows = np.array(
        [line.split() for line in path.read_text().split("Frame Time")[1].splitlines()[1:]], float
    )
    assert rows.shape == (60, 6 + 15 * 3)
    assert np.abs(np.diff(rows[:, 3:], axis=0)).max() < 90


BVH = textwrap.dedent("""\
    HIERARCHY
    ROOT left_wrist
    {
        OFFSET 0 0 0
        CHANNELS 3 Xposition Yposition Zposition
        End Site
        {
            OFFSET 0 1 0
        }
    }
    MOTION
    Frames: 1
    Frame Time: 0.125
    1 2 3
""")


def test_bvh_by_hand(tmp_path):
    (tmp_path / "m.bvh").write_text(BVH)
    bvh = read_bvh(tmp_path / "m.bvh")
    assert (bvh.names, bvh.parents, bvh.fps) == (["left_wrist", "left_wrist_end"], [-1, 0], 8)
    assert bvh.positions([0, 1]).tolist() == [[[1, 2, 3], [1, 3, 3]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a BVH file"),
        (BVH[:60], "not a BVH file .* it ends early"),
        (BVH.replace("1 2 3", "1 2"), "promises 1 frames of 3 numbers, 2 numbers were found"),
        (BVH.replace("Xposition", "Wposition"), "unknown channel 'wposition'"),
        (BVH.replace("OFFSET", "OFSET"), "unexpected 'OFSET'"),
        (BVH, "m.bvh has left_wrist but no finger joints"),
    ],
)
def test_bad_bvh_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "m.bvh").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_motion(tmp_path / "m.bvh")


def test_bvh_hands_must_belong_together(tmp_path):
    hands = [rig_motion(moving_motion(frames=n)).hands for n in (3, 4)]
    left, right = write_bvh(tmp_path / "l.bvh", hands[0][0], 8), write_bvh(tmp_path / "r.bvh", hands[1][1], 8)
    with pytest.raises(ValueError, match="3 and 4 frames"):
        read_motion([left, right])
    assert read_motion(left).present.all(axis=0).tolist() == [True, False]
    with pytest.raises(ValueError, match="different frame rates"):
        read_motion([left, write_bvh(tmp_path / "r.bvh", hands[0][1], 30)])
    text = left.read_text().replace("left_index_mcp", "left_unknown")
    left.write_text(text)
    with pytest.raises(ValueError, match="the left hand lacks index_mcp"):
        read_motion([left, right])
