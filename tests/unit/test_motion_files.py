import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion
from scipy.spatial.transform import Rotation

from svimo_core.export.bvh import write_bvh
from svimo_core.export.json_ import write_json
from svimo_core.importing.bvh import read_bvh, read_bvh_hands
from svimo_core.importing.read import fill_gaps, read_motion
from svimo_core.motion import HAND_NAMES, Camera
from svimo_core.rigged import rig_motion

CAMERA = Camera.from_fov(144, 96)


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
        (lambda c: [c], "not a SViMo motion"),
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
    back = read_motion(paths, camera=CAMERA)
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


def body(names, tips=True):
    """A BVH of a body whose hands have the given naming scheme: name(side, finger, number) and name(side)."""
    lines = [
        "HIERARCHY",
        "ROOT Hips",
        "{",
        "OFFSET 0 90 0",
        "CHANNELS 6 Xposition Yposition Zposition Yrotation Xrotation Zrotation",
    ]
    for side in HAND_NAMES:
        x = 1 if side == "left" else -1
        lines += [
            f"JOINT {names(side)}",
            "{",
            f"OFFSET {60 * x} 40 0",
            "CHANNELS 3 Zrotation Xrotation Yrotation",
        ]
        for f, finger in enumerate(("thumb", "index", "middle", "ring", "pinky")):
            for number in range(1, 4 + tips):
                offset = f"OFFSET {(9 if number == 1 else 3) * x} 0 {2 - f if number == 1 else 0}"
                lines += [
                    f"JOINT {names(side, finger, number)}",
                    "{",
                    offset,
                    "CHANNELS 3 Zrotation Xrotation Yrotation",
                ]
            lines += ["End Site", "{", f"OFFSET {3 * x} 0 0", "}"] + ["}"] * (3 + tips)
        lines += ["}"]
    lines += ["}", "MOTION", "Frames: 2", "Frame Time: 0.0333333"]
    width = 6 + 3 * 2 * (1 + 5 * (3 + tips))
    lines += ["0 90 0 " + " ".join(["0"] * (width - 3)), "10 90 0 90 " + " ".join(["0"] * (width - 4))]
    return "\n".join(lines)


def mixamo(side, finger="", number=""):
    return f"mixamorig:{side.capitalize()}Hand{finger.capitalize()}{number}"


def unreal(side, finger="", number=""):
    return f"{finger}_{number:02d}_{side[0]}" if finger else f"hand_{side[0]}"


def rigify(side, finger="", number=""):
    return f"f_{finger}.{number:02d}.{side[0].upper()}" if finger else f"hand.{side[0].upper()}"


def rigify_deform(side, finger="", number=""):
    return f"DEF-{rigify(side, finger, number)}"


def vrm(side, finger="", number=""):
    finger = {"pinky": "little"}.get(finger, finger)
    return f"J_Bip_{side[0].upper()}_{finger.capitalize() or 'Hand'}{number}"


def several_words(side, finger="", number=""):
    return f"Actor 1 {side} {finger or 'hand'} {number}"


@pytest.mark.parametrize(
    ("names", "tips"),
    [
        (mixamo, True),
        (unreal, False),
        (rigify, False),
        (rigify_deform, False),
        (vrm, False),
        (several_words, True),
    ],
)
@pytest.mark.parametrize("extra", [False, True], ids=["", "ik"])
def test_hands_are_found_in_the_bvh_of_a_body(tmp_path, names, tips, extra):
    text = body(names, tips)
    if extra:  # as in Unreal's and others' rigs: a further joint called hand, which no finger hangs from
        ik = "JOINT ik_hand_l\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\nJOINT ik_hand_r\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\n"
        head, motion = text.split("}\nMOTION")
        text = f"{head}{ik}}}\nMOTION{motion}"
    (tmp_path / "body.bvh").write_text(text)
    motion = read_motion(tmp_path / "body.bvh")
    assert motion.fps == pytest.approx(30, abs=0.001)
    wrist, index_tip = motion.hands[0, 0, 0], motion.hands[0, 0, 8]
    np.testing.assert_allclose(wrist, [0.6, -1.3, 0], atol=1e-6)  # 130 cm up, y down
    np.testing.assert_allclose(index_tip - wrist, [0.18, 0, -0.01], atol=1e-6)
    # A quarter turn about the vertical in the second frame: left (+x) turns away from the viewer (-z, so camera +z).
    np.testing.assert_allclose(motion.hands[1, 0, 0], [0.1, -1.3, 0.6], atol=1e-6)


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
        read_bvh_hands([tmp_path / "m.bvh"])


def test_bvh_hands_must_belong_together(tmp_path):
    hands = [rig_motion(moving_motion(frames=n)).hands for n in (3, 4)]
    left, right = write_bvh(tmp_path / "l.bvh", hands[0][0], 8), write_bvh(tmp_path / "r.bvh", hands[1][1], 8)
    with pytest.raises(ValueError, match="3 and 4 frames"):
        read_motion([left, right])
    with pytest.raises(ValueError, match="no right hand"):
        read_motion(left)
    with pytest.raises(ValueError, match="different frame rates"):
        read_motion([left, write_bvh(tmp_path / "r.bvh", hands[0][1], 30)])
    text = left.read_text().replace("left_index_mcp", "left_unknown")
    left.write_text(text)
    with pytest.raises(ValueError, match="the left hand lacks index_mcp"):
        read_motion([left, right])


# Joints from elsewhere


def layouts(hands):
    """The same hands as every layout of arrays that hand trackers write."""
    frame, side = np.meshgrid(np.arange(len(hands)), [1, 0], indexing="ij")
    place = hands[frame.ravel(), side.ravel(), 0] + 0.1
    return {
        "hands": {"hands": hands},
        "flat": {"hands": hands.reshape(-1, 42, 3)},
        "sides": {"left": hands[:, 0], "right": hands[:, 1]},
        "detections": {
            "frame": frame.ravel(),
            "is_right": side.ravel().astype(np.float32),
            "pred_keypoints_3d": hands[frame.ravel(), side.ravel()] - place[:, None],
            "pred_cam_t_full": place,
        },
    }


@pytest.mark.parametrize("layout", ["hands", "flat", "sides", "detections"])
def test_joint_arrays_become_a_motion(tmp_path, motion, layout):
    np.savez(tmp_path / "track.npz", **layouts(motion.hands)[layout])
    back = read_motion(tmp_path / "track.npz", fps=30, camera=CAMERA)
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-6)
    assert (back.fps, back.camera, back.objects) == (30, CAMERA, {})


def test_full_predictions_count_before_older_names(tmp_path, motion):
    rows = layouts(motion.hands)["detections"]
    others = {"keypoints_3d": rows["pred_keypoints_3d"] * 2, "cam_t": rows["pred_cam_t_full"] + 1}
    np.savez(tmp_path / "track.npz", **rows, **others)
    np.testing.assert_allclose(read_motion(tmp_path / "track.npz", fps=8).hands, motion.hands, atol=1e-6)


def test_hands_of_a_trackers_long_lens_come_near(tmp_path, motion):
    """HaMeR and WiLoR place hands as if seen by a lens of 5000 pixels for a crop of 256."""
    width, height = 1280, 720
    far = Camera(fx=25_000, fy=25_000, cx=width / 2, cy=height / 2, width=width, height=height)
    camera = Camera.from_fov(width, height)
    rows = layouts(motion.hands)["detections"]
    wrist = motion.hands[rows["frame"], rows["is_right"].astype(int), :1]
    rows["pred_keypoints_3d"] = motion.hands[rows["frame"], rows["is_right"].astype(int)] - wrist
    rows["pred_cam_t_full"] = wrist[:, 0] * (1, 1, far.fx / camera.fx)
    sizes = np.tile([[width, height]], (len(rows["frame"]), 1))
    np.savez(tmp_path / "track.npz", fps=8.0, focal_length=far.fx, image_size=sizes, **rows)
    back = read_motion(tmp_path / "track.npz")
    assert back.camera == camera
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-5)
    small = read_motion(tmp_path / "track.npz", camera=camera.resized(640, 360))
    np.testing.assert_allclose(small.hands, back.hands, atol=1e-6)
    np.savez(tmp_path / "track.npz", fps=8.0, focal_length=far.fx, **rows)
    with pytest.raises(ValueError, match="focal_length without image_size"):
        read_motion(tmp_path / "track.npz")


def test_npy_and_units(tmp_path, motion):
    np.save(tmp_path / "track.npy", motion.hands * 1000)
    back = read_motion(tmp_path / "track.npy", fps=8, metres_per_unit=0.001)
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-6)


def test_gaps_are_filled_only_when_asked(tmp_path, motion):
    rows = layouts(motion.hands)["detections"]
    seen = ~((rows["is_right"] == 0) & np.isin(rows["frame"], [3, 4]))
    np.savez(tmp_path / "track.npz", fps=8, **{name: values[seen] for name, values in rows.items()})
    with pytest.raises(
        ValueError, match="left hand is missing in 2 of 9 frames, first in frame 3, for up to 2 in a row"
    ):
        read_motion(tmp_path / "track.npz")
    filled = read_motion(tmp_path / "track.npz", max_gap=2).hands
    expected = motion.hands[2, 0] + (motion.hands[5, 0] - motion.hands[2, 0]) / 3
    np.testing.assert_allclose(filled[3, 0], expected, atol=1e-6)
    np.testing.assert_allclose(filled[:, 1], motion.hands[:, 1], atol=1e-6)


@pytest.mark.parametrize("missing", [np.nan, 0.0], ids=["nan", "zeros"])
def test_gaps_at_the_ends_and_missing_hands_are_refused(motion, missing):
    for frames in ([0], [8], range(9)):
        hands = motion.hands.copy()
        hands[list(frames), 1] = missing
        with pytest.raises(ValueError, match="right hand"):
            fill_gaps(hands, max_gap=10)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "nothing; expected"),
        ({"x": np.zeros(3)}, "has fps, x; expected `hands`"),
        ({"hands": np.zeros((4, 20, 3))}, r"shape \(4, 20, 3\)"),
        ({"hands": np.zeros((0, 2, 21, 3))}, "shape"),
        ({"left": np.zeros((4, 21, 3))}, "no right hand"),
        ({"left": np.zeros((4, 21, 3)), "right": np.zeros((5, 21, 3))}, "the same shape"),
        ({"frame": [0], "is_right": [1, 0], "keypoints_3d": np.zeros((1, 21, 3))}, "different number"),
        ({"frame": [0], "is_right": [2], "keypoints_3d": np.zeros((1, 21, 3))}, "is_right be 0 or 1"),
        ({"frame": [np.nan], "is_right": [1], "keypoints_3d": np.zeros((1, 21, 3))}, "frame must count"),
        ({"frame": [10**9], "is_right": [1], "keypoints_3d": np.zeros((1, 21, 3))}, "at most 1,000,000"),
        ({"frame": [0], "is_right": [1], "keypoints_3d": np.zeros(3)}, "different number"),
        (
            {"frame": [3, 3], "is_right": [1, 1], "keypoints_3d": np.zeros((2, 21, 3))},
            "2 detections of the right hand in frame 3",
        ),
        ({"hands": np.full((4, 2, 21, 3), "a")}, r"m\.npz: hands holds <U1 instead of numbers"),
        ({"hands": np.zeros((4, 2, 21, 3)), "image_size": [1, 2, 3]}, "one width and height"),
        ({"hands": np.array([{}], dtype=object)}, "cannot be read as plain arrays"),
    ],
)
def test_bad_arrays_are_one_clear_error(tmp_path, arrays, message):
    if arrays:
        arrays = arrays | {"fps": 8.0}
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_motion(tmp_path / "m.npz", fps=8)


def test_files_that_say_too_little_or_are_none(tmp_path, motion):
    np.save(tmp_path / "m.npy", motion.hands)
    with pytest.raises(ValueError, match="does not say its frame rate"):
        read_motion(tmp_path / "m.npy")
    np.savez(tmp_path / "rates.npz", hands=motion.hands, fps=[8.0, 30.0])
    with pytest.raises(ValueError, match="fps must be one positive number"):
        read_motion(tmp_path / "rates.npz")
    with pytest.raises(FileNotFoundError, match="no motion file"):
        read_motion(tmp_path / "absent.npz", fps=8)
    with pytest.raises(FileNotFoundError, match="no BVH file"):
        read_motion(tmp_path / "absent.bvh")
    with pytest.raises(ValueError, match=r"comes as \.npz, \.npy, \.json or \.bvh"):
        read_motion(tmp_path / "m.fbx")
    with pytest.raises(ValueError, match=r"one file, or two \.bvh files"):
        read_motion([tmp_path / "a.npz", tmp_path / "b.npz"])
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"cannot be read as plain arrays|is not a complete \.npz archive"):
        read_motion(tmp_path / "m.npz", fps=8)
