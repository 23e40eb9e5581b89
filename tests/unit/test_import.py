"""Joints as trackers, data sets and other programs have them: each reads right, or is refused with the way out."""

import json
import zipfile

import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion

from svimo_core.importing.axes import AXES, UNITS, guess_unit, to_camera
from svimo_core.importing.decide import ImportOptions
from svimo_core.importing.orders import INTERHAND, MANO, OPENXR, ORDERS, WEBXR
from svimo_core.importing.read import import_motion, read_motion
from svimo_core.motion import HAND_NAMES, Camera

MOTION = moving_motion(frames=9)
H = MOTION.hands.astype(np.float64)


def import_arrays(tmp_path, options=None, **arrays):
    """What becomes of a file with these arrays."""
    np.savez(tmp_path / "m.npz", **{"fps": 30.0} | arrays)
    return import_motion(tmp_path / "m.npz", ImportOptions(**options or {}))


def refused(tmp_path, message, options=None, **arrays):
    with pytest.raises(ValueError, match=message) as error:
        import_arrays(tmp_path, options, **arrays)
    assert str(error.value).count("m.npz") == 1


def reads_as(expected, tmp_path, options=None, **arrays):
    imported = import_arrays(tmp_path, options, **arrays)
    np.testing.assert_allclose(imported.motion.hands, expected, atol=2e-6)
    return " ".join(imported.report)


# Layouts


def detections(hands):
    """One row per hand and frame, right before left."""
    frame, side = (x.ravel() for x in np.meshgrid(np.arange(len(hands)), [1, 0], indexing="ij"))
    place = hands[frame, side, 0] + 0.1
    return {
        "frame": frame,
        "is_right": side.astype(np.float32),
        "pred_keypoints_3d": hands[frame, side] - place[:, None],
        "pred_cam_t_full": place,
    }


ROWS = detections(H)
LAYOUTS = {
    "hands": {"hands": H},
    "joints": {"joints_3d": H},
    "42 joints": {"hands": H.reshape(-1, 42, 3)},
    "126 numbers": {"hands": H.reshape(-1, 126)},
    "sides": {"left": H[:, 0], "right": H[:, 1]},
    "sides in a box": {"left_hand": H[:, :1], "right_hand": H[:, 1:]},
    "detections": ROWS,
    "detections in a box": ROWS | {"pred_keypoints_3d": ROWS["pred_keypoints_3d"][:, None]},
    "sides in words": ROWS | {"is_right": np.where(ROWS["is_right"] == 1, "Right", "Left")},
    "trackers' names": {
        {"is_right": "right", "frame": "frame_id"}.get(key, key): value for key, value in ROWS.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_arrays(tmp_path, layout):
    report = reads_as(MOTION.hands, tmp_path, **LAYOUTS[layout])
    assert "30 frames per second" in report
    assert "Not used" not in report


def test_full_predictions_count_before_older_names(tmp_path):
    others = {"keypoints_3d": ROWS["pred_keypoints_3d"] * 2, "cam_t": ROWS["pred_cam_t_full"] + 1}
    report = reads_as(MOTION.hands, tmp_path, **ROWS, **others)
    assert "Not used: cam_t, keypoints_3d." in report


def test_arrays_that_are_not_used_are_named(tmp_path):
    report = reads_as(MOTION.hands, tmp_path, hands=H, scores=np.ones(9), frame=np.arange(9))
    assert "Not used: frame, scores." in report


@pytest.mark.parametrize(
    ("key", "size"), [("focal_length", "image_size"), ("scaled_focal_length", "img_size")]
)
def test_hands_of_a_trackers_long_lens_come_near(tmp_path, key, size):
    """HaMeR and WiLoR place hands as if seen by a lens of 5000 pixels for a crop of 256."""
    width, height = 1280, 720
    focal_length, camera = 25_000.0, Camera.from_fov(width, height)
    wrist = H[ROWS["frame"], ROWS["is_right"].astype(int), :1]
    rows = ROWS | {
        "pred_keypoints_3d": H[ROWS["frame"], ROWS["is_right"].astype(int)] - wrist,
        "pred_cam_t_full": wrist[:, 0] * (1, 1, focal_length / camera.fx),
    }
    sizes = np.tile([[float(width), height]], (len(rows["frame"]), 1))
    report = reads_as(MOTION.hands, tmp_path, **rows, **{key: focal_length, size: sizes})
    assert "lens of 25000 pixels" in report
    assert import_arrays(tmp_path, **rows, **{key: focal_length, size: sizes}).motion.camera == camera
    refused(tmp_path, "focal_length without image_size", **rows, **{key: focal_length})


def test_camera_and_objects_without_our_mark(tmp_path):
    lens = MOTION.camera
    matrix = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    arrays = {
        "hands": H,
        "image_size": [lens.width, lens.height],
        "object_names": ["cup"],
        "object_0": MOTION.objects["tool"],
    }
    for intrinsics in (matrix, np.tile(matrix, (9, 1, 1)), [lens.fx, lens.fy, lens.cx, lens.cy]):
        motion = import_arrays(tmp_path, intrinsics=intrinsics, **arrays).motion
        assert motion.camera == lens
    np.testing.assert_array_equal(motion.objects["cup"], MOTION.objects["tool"])
    refused(tmp_path, "object_1 is not there", **arrays | {"object_names": ["cup", "lid"]})
    refused(tmp_path, "intrinsics must be fx, fy, cx, cy", intrinsics=np.eye(2), **arrays)
    report = import_arrays(tmp_path, hands=H, intrinsics=matrix).report
    assert any("intrinsics is not used, as image_size" in line for line in report)


def test_detections_of_a_clip_of_so_many_frames(tmp_path):
    """Numbered from 0, or from 1 as only then the last can be the number of all; others are refused, not wrapped."""
    for begin, total, before, behind in ((2, 13, 2, 2), (2, 11, 2, 0), (2, 10, 1, 0), (0, 9, 0, 0)):
        arrays = ROWS | {"frame": ROWS["frame"] + begin, "frame_count": total}
        present = import_arrays(tmp_path, **arrays).motion.present
        assert present[:, 1].tolist() == [False] * before + [True] * 9 + [False] * behind
    for begin, total in ((-3, 9), (0, 8), (2, 9)):
        arrays = ROWS | {"frame": ROWS["frame"] + begin, "frame_count": total}
        refused(tmp_path, f"frame counts from {begin} to {begin + 8}, and frame_count says", **arrays)


def test_names_of_frames_are_no_detections(tmp_path):
    names = np.array([f"{i:05}.jpg" for i in range(len(H))])
    report = reads_as(MOTION.hands, tmp_path, left=H[:, 0], right=H[:, 1], frame=names)
    assert "Not used: frame." in report


def test_lists_in_json(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"fps": 30, "left": H[:, 0].tolist()}))
    np.testing.assert_allclose(read_motion(path).hands[:, 0], H[:, 0], atol=1e-6)
    lost = [None, *H[1:, 0].tolist()]  # as in our own, and as JSON has no NaN
    path.write_text(json.dumps({"fps": 30, "left": lost}))
    assert read_motion(path).present[:, 0].tolist() == [False] + [True] * (len(H) - 1)
    path.write_text(json.dumps(H[:, 1].tolist()))  # as FreiHAND's: one hand, and its side is not said
    imported = import_motion(path, ImportOptions(fps=10))
    np.testing.assert_allclose(imported.motion.hands[:, 1], H[:, 1], atol=1e-6)
    assert not imported.motion.present[:, 0].any()
    assert "It is a right hand" in " ".join(imported.report)


def world(hand):
    return [dict(zip("xyz", joint, strict=True)) for joint in hand.tolist()]


@pytest.mark.parametrize("label", [lambda s: s, lambda s: [{"categoryName": s}], lambda s: {"label": s}])
def test_mediapipe_world_landmarks_need_a_place(tmp_path, label):
    relative = H - H.mean(axis=2, keepdims=True)
    frames = [
        {"handedness": [label("Left"), label("Right")], "worldLandmarks": [world(f[0]), world(f[1])]}
        for f in relative
    ]
    frames[3] = frames[8] = {"handedness": [], "worldLandmarks": []}
    path = tmp_path / "hands.json"
    path.write_text(json.dumps(frames))
    with pytest.raises(
        ValueError, match=r"left and right hand stays within 15 cm of the camera.*set distance"
    ):
        read_motion(path, fps=30)
    path.write_text(json.dumps({"fps": 30, "frames": frames}))
    motion = read_motion(path, distance=0.5)
    assert len(motion) == 9  # the last frame is there, too, though it shows no hand
    assert np.flatnonzero(~motion.present.any(axis=1)).tolist() == [3, 8]
    there = motion.present[:, 0]
    own = motion.hands - motion.hands[:, :, :1]
    np.testing.assert_allclose(own[there], (H - H[:, :, :1])[there], atol=1e-6)
    assert (motion.hands[there, 1, 0, 0] - motion.hands[there, 0, 0, 0] > 0).all()

    path.write_text(json.dumps([{"handedness": ["Left"], "landmarks": [world(H[0, 0])]}]))
    with pytest.raises(ValueError, match=r"hands\.json .* in the image are not in metres"):
        read_motion(path, fps=30)


# One hand, and gaps


@pytest.mark.parametrize("side", HAND_NAMES)
def test_one_hand_is_a_motion(tmp_path, side):
    i = HAND_NAMES.index(side)
    motion = import_arrays(tmp_path, **{side: H[:, i]}).motion
    np.testing.assert_allclose(motion.hands[:, i], H[:, i], atol=1e-6)
    assert motion.present.all(axis=0).tolist() == [side == "left", side == "right"]


def test_a_hand_without_a_name_is_told_by_its_fingers(tmp_path):
    for i, side in enumerate(HAND_NAMES):
        mano = H[:, i][:, np.argsort(ORDERS[MANO])]
        assert f"It is a {side} hand" in reads_as(
            np.where(np.arange(2)[:, None, None] == i, H, np.nan), tmp_path, hands=mano
        )
        report = reads_as(np.where(np.arange(2)[:, None, None] == i, H, np.nan), tmp_path, hands=H[:, i])
        assert f"It is a {side} hand" in report
    refused(tmp_path, "does not say which, and its fingers are too straight", hands=H[:1, 0])
    np.savez(tmp_path / "the_left-hand.npz", fps=30, hands=H[:1, 0])
    assert read_motion(tmp_path / "the_left-hand.npz").present.tolist() == [[True, False]]


def test_one_frame_may_come_without_its_axis(tmp_path):
    one = import_arrays(tmp_path, right=H[4, 1]).motion
    np.testing.assert_allclose(one.hands[:, 1], H[4:5, 1], atol=1e-6)
    refused(tmp_path, "two hands in one frame or one hand in two", hands=H[4])


def test_frames_count_from_where_they_start(tmp_path):
    report = reads_as(MOTION.hands, tmp_path, **ROWS | {"frame": ROWS["frame"] + 100})
    assert "numbered from 100" in report


@pytest.mark.parametrize("lost", [np.nan, 0.0])
def test_lost_hands_stay_absent_or_are_filled(tmp_path, lost):
    hands = H.copy()
    hands[[0, 3, 4, 6, 7, 8], 0] = lost
    motion = import_arrays(tmp_path, hands=hands).motion
    assert motion.present[:, 0].tolist() == [False, True, True, False, False, True, False, False, False]
    assert motion.present[:, 1].all()
    filled = import_arrays(tmp_path, {"max_gap": 2}, hands=hands).motion
    assert filled.present[:, 0].tolist() == [False, True, True, True, True, True, False, False, False]
    expected = H[2, 0] + (H[5, 0] - H[2, 0]) / 3
    np.testing.assert_allclose(filled.hands[3, 0], expected, atol=1e-6)
    assert not import_arrays(tmp_path, {"max_gap": 1}, hands=hands).motion.present[3, 0]
    assert len(import_arrays(tmp_path, {"max_gap": 2, "missing_hands": "trim"}, hands=hands).motion) == 5
    assert import_arrays(tmp_path, {"missing_hands": "hold"}, hands=hands).motion.present.all()


def test_a_partly_seen_hand_counts_as_absent(tmp_path):
    hands = H.copy()
    hands[4, 1, 7] = np.inf
    imported = import_arrays(tmp_path, hands=hands)
    assert imported.motion.present.sum() == 17
    assert any(line.startswith("1 hands with joints missing") for line in imported.report)


# Nothing is read wrongly in silence


@pytest.mark.parametrize("order", [MANO, INTERHAND])
def test_orders_are_noticed(tmp_path, order):
    mixed = H[:, :, np.argsort(ORDERS[order])]
    assert f"Joints are in {order} order" in reads_as(MOTION.hands, tmp_path, hands=mixed)
    reads_as(MOTION.hands, tmp_path, {"joint_order": order}, hands=mixed)


def test_other_orders_are_refused(tmp_path):
    mixed = np.random.default_rng(0).permutation(21)
    for order in (mixed, np.arange(21)[::-1]):  # the second has the little finger first, and tips before all
        refused(tmp_path, "in no order that is known", hands=H[:, :, order])


def test_the_orders_of_the_issue(tmp_path):
    numbers = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]
    assert "in MANO order" in reads_as(MOTION.hands, tmp_path, hands=H[:, :, numbers])


def test_interhand_begins_with_the_right_hand(tmp_path):
    flat = H[:, ::-1, np.argsort(ORDERS[INTERHAND])].reshape(-1, 42, 3)
    reads_as(MOTION.hands, tmp_path, {"joint_order": INTERHAND}, hands=flat)
    reads_as(MOTION.hands, tmp_path, hands=flat)
    straight = reads_as(MOTION.hands[:1], tmp_path, hands=flat[:1])
    assert "too little to tell left from right" in straight


@pytest.mark.parametrize(("order", "joints"), [(OPENXR, 26), (WEBXR, 25)])
def test_headsets_have_more_joints(tmp_path, order, joints):
    more = np.zeros((9, 2, joints, 3))
    more[:, :, ORDERS[order]] = H
    assert f"{order} order" in reads_as(MOTION.hands, tmp_path, hands=more)


@pytest.mark.parametrize(
    ("unit", "factor"), [("metres", 1), ("centimetres", 100), ("millimetres", 1000), ("inches", 1 / 0.0254)]
)
def test_units_are_told_by_the_palm(tmp_path, unit, factor):
    report = reads_as(MOTION.hands, tmp_path, hands=H * factor)
    assert f"9.1 cm; the unit is {unit}" in report
    reads_as(MOTION.hands, tmp_path, {"unit": unit}, hands=H * factor)


def test_no_two_units_can_both_be_right():
    for palm in np.geomspace(1e-3, 1e3, 2000):
        fitting = [u for u, metres in UNITS.items() if 0.06 <= palm * metres <= 0.14]
        assert len(fitting) < 2
        assert guess_unit(palm) in (*fitting, None)
    assert guess_unit(5.0) is None  # a child's in centimetres, or a giant's in inches


def test_sizes_that_no_hand_has(tmp_path):
    refused(tmp_path, r"wrist to middle knuckle is 0\.03\d+, which .* in none of metres", hands=H * 0.4)
    refused(tmp_path, r"wrist to middle knuckle is 0\.21\d+, which .* in none of metres", hands=H * 2.4)
    assert "Note: a person's is" in reads_as(MOTION.hands * 0.4, tmp_path, {"unit": "metres"}, hands=H * 0.4)
    assert "scale 0.41" in reads_as(MOTION.hands * 2.4, tmp_path, {"unit": "metres"}, hands=H * 2.4)
    refused(tmp_path, "set unit to centimetres", {"unit": "millimetres"}, hands=H * 100)


def test_mirrored_and_swapped_hands_are_refused(tmp_path):
    one = H.copy()
    one[:, 0, :, 0] *= -1
    refused(tmp_path, r"by left 0\.\d+ palm lengths.*set sides to mirror left", hands=one)
    reads_as(MOTION.hands, tmp_path, {"sides": "mirror left"}, hands=one)
    refused(tmp_path, "left and right are swapped.*set sides to swap", hands=H[:, ::-1])
    reads_as(MOTION.hands, tmp_path, {"sides": "swap"}, hands=H[:, ::-1])
    refused(tmp_path, "set sides to mirror", hands=H * (-1, 1, 1))
    reads_as(MOTION.hands, tmp_path, {"sides": "mirror"}, hands=H * (-1, 1, 1))
    reads_as(MOTION.hands * np.float32([-1, 1, 1]), tmp_path, {"sides": "keep"}, hands=H * (-1, 1, 1))


def test_good_hands_that_a_setting_mirrors(tmp_path):
    refused(tmp_path, "only because sides is mirror: set it to check", {"sides": "mirror"}, hands=H)


def test_one_hand_that_bends_backwards_may_be_the_other_or_mirrored(tmp_path):
    message = "it is the other hand .set sides to swap.*set sides to mirror left"
    refused(tmp_path, message, left=H[:, 0] * (-1, 1, 1))


def test_hands_that_change_sides_are_refused(tmp_path):
    hands = np.tile(H[4:5], (12, 1, 1, 1))
    hands[3:6] = hands[3:6, ::-1]
    refused(
        tmp_path, "left hand bend backwards in 3 of 12 frames that have it, first in its frame 3", hands=hands
    )
    hands[4:] = H[4]  # a single frame may be noise
    reads_as(hands, tmp_path, {"sides": "keep"}, hands=hands)
    hands[3] = H[4]
    hands[7, 0, 8] += 60
    import_arrays(tmp_path, hands=hands)


def test_a_tracker_that_left_left_hands_mirrored(tmp_path):
    """HaMeR's network sees every hand as a right one; whoever forgets to turn left ones back has them mirrored."""
    raw = ROWS["pred_keypoints_3d"] * np.where(ROWS["is_right"] == 0, -1, 1)[:, None, None] ** np.array(
        [1, 0, 0]
    )
    refused(tmp_path, "set sides to mirror left", **ROWS | {"pred_keypoints_3d": raw})
    reads_as(MOTION.hands, tmp_path, {"sides": "mirror left"}, **ROWS | {"pred_keypoints_3d": raw})


@pytest.mark.parametrize(
    ("up", "forward", "turn"),
    [
        ("-y", "+z", np.eye(3)),  # camera space
        ("+y", "-z", np.diag([1, -1, -1])),  # OpenGL, Blender's and ARKit's cameras
        ("+z", "+y", np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])),  # Blender's world
    ],
)
def test_axes(tmp_path, up, forward, turn):
    reads_as(MOTION.hands, tmp_path, {"up": up, "forward": forward}, hands=H @ turn.T)


def test_axes_of_unity_are_left_handed(tmp_path):
    unity = H * (1, -1, 1)
    refused(tmp_path, r"for Unity also up to \+y and forward to \+z", hands=unity)
    reads_as(MOTION.hands, tmp_path, {"up": "+y", "forward": "+z", "sides": "mirror"}, hands=unity)


def test_what_lies_behind_the_camera_is_refused(tmp_path):
    refused(
        tmp_path, r"all of it lies behind the camera .* up to \+y and forward to -z", hands=H * (1, -1, -1)
    )


def test_all_axes_make_rotations():
    for up in AXES:
        for forward in AXES:
            if up[1] == forward[1]:
                with pytest.raises(ValueError, match="cannot lie along one axis"):
                    to_camera(up, forward)
                continue
            turn = to_camera(up, forward)
            assert np.linalg.det(turn) == pytest.approx(1)
            assert (turn @ AXES[up]).tolist() == [0, -1, 0]
            assert (turn @ AXES[forward]).tolist() == [0, 0, 1]


def test_joints_relative_to_the_hand_are_refused_or_placed(tmp_path):
    relative = H - H[:, :, 9:10]
    refused(tmp_path, "joints are relative to the hand itself", hands=relative)
    motion = import_arrays(tmp_path, {"distance": 0.5}, hands=relative).motion
    low, high = motion.bounds()
    np.testing.assert_allclose((low + high) / 2, [0, 0, 0.5], atol=1e-6)
    one = import_arrays(tmp_path, {"distance": 0.5}, right=relative[:, 1])
    assert one.motion.present[:, 1].all()


def test_rate_and_unit_of_a_file_that_has_its_own(tmp_path):
    imported = import_arrays(tmp_path, {"fps": 24.0}, hands=H)
    assert imported.motion.fps == 24
    assert "24 frames per second, as asked for; the file says 30." in imported.report
    MOTION.save(tmp_path / "own.npz")
    assert read_motion(tmp_path / "own.npz", fps=24.0).fps == 24
    with pytest.raises(
        ValueError, match=r"own\.npz is a SViMo motion, in metres.*set unit to auto, got inches"
    ):
        read_motion(tmp_path / "own.npz", unit="inches")
    assert read_motion(tmp_path / "own.npz", unit="metres", joint_order="OpenPose").fps == 8


def test_objects_go_with_the_hands(tmp_path):
    cup = MOTION.objects["tool"].astype(np.float64)
    arrays = {"hands": H * 100, "object_names": ["cup"], "object_0": cup * 100}
    np.testing.assert_allclose(import_arrays(tmp_path, **arrays).motion.objects["cup"], cup, atol=1e-6)
    mirrored = {"hands": H * (-1, 1, 1), "object_names": ["cup"], "object_0": cup * (-1, 1, 1)}
    imported = import_arrays(tmp_path, {"sides": "mirror"}, **mirrored)
    np.testing.assert_allclose(imported.motion.objects["cup"], cup, atol=1e-6)
    assert not any(line.startswith("Note: cup") for line in imported.report)
    for other in ({"hands": H}, {"object_0": cup * 1e5}):  # in another unit than the other
        report = import_arrays(tmp_path, **arrays | other).report
        assert any(line.startswith("Note: cup is ") for line in report)


def test_oddities_are_noted(tmp_path):
    far = detections(H)
    far["pred_cam_t_full"] = far["pred_cam_t_full"] * 1000
    assert any("are their places in another unit" in line for line in import_arrays(tmp_path, **far).report)
    lens = {"image_size": [640, 360], "intrinsics": [1500, 1500, 960, 540]}
    assert any(
        "intrinsics of another size" in line for line in import_arrays(tmp_path, hands=H, **lens).report
    )
    half = np.stack([H[:, 0] - H[:, 0, :1], H[:, 1]], axis=1)
    refused(
        tmp_path,
        "left hand stays within 15 cm of the camera and the other does not",
        {"distance": 0.6},
        hands=half,
    )
    refused(tmp_path, "0.03333 frames per second .*time of a frame", hands=H, fps=1 / 30)


def test_joints_count_before_parameters(tmp_path):
    rows = ROWS | {
        "pred_mano_params_hand_pose": np.zeros((18, 45)),
        "pred_mano_params_global_orient": np.zeros((18, 3)),
    }
    assert "Not used: pred_mano_params" in reads_as(MOTION.hands, tmp_path, **rows)


def test_sides_of_our_own_motion(tmp_path):
    MOTION.save(tmp_path / "own.npz")
    np.testing.assert_array_equal(read_motion(tmp_path / "own.npz", sides="keep").hands, MOTION.hands)
    with pytest.raises(ValueError, match=r"own\.npz: fingers bend backwards .* only because sides is swap"):
        read_motion(tmp_path / "own.npz", sides="swap")


def test_invented_hands_are_in_view_with_a_distance(tmp_path):
    for side, i in (("left", 0), ("right", 1)):
        motion = import_arrays(tmp_path, {"distance": 0.5, "missing_hands": "park"}, **{side: H[:, i]}).motion
        seen = motion.hands[:, i].reshape(-1, 3)
        np.testing.assert_allclose((seen.min(axis=0) + seen.max(axis=0)) / 2, [0, 0, 0.5], atol=1e-6)
        both = import_arrays(tmp_path, {"distance": 0.5, "missing_hands": "mirror"}, **{side: H[:, i]}).motion
        assert (both.hands[:, 0, 0, 0] < both.hands[:, 1, 0, 0]).all()


def test_what_is_out_of_view_is_noted(tmp_path):
    report = import_arrays(tmp_path, hands=H + (5, 0, 0)).report
    assert report[-1].startswith("Note: nothing of it is in view of its camera: set distance, from about 0.")


# Bad input


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "has fps, x; expected `hands`"),
        ({"hands": H[:, :, :20]}, r"shape \(9, 2, 20, 3\)"),
        ({"hands": H[:0]}, "shape"),
        ({"hands": H * 0}, "no hand in any frame"),
        ({"left": H[:4, 0], "right": H[:5, 1]}, "the same shape"),
        ({"frame": [0], "is_right": [1, 0], "keypoints_3d": H[:1, 0]}, "different number"),
        ({"frame": [0], "is_right": [2], "keypoints_3d": H[:1, 0]}, "is_right must be 0 or 1"),
        ({"frame": [np.nan], "is_right": [1], "keypoints_3d": H[:1, 0]}, "frame must count"),
        ({"frame": [0, 10**9], "is_right": [1, 1], "keypoints_3d": H[:2, 1]}, "at most 200,000"),
        ({"frame": [0], "is_right": [1], "keypoints_3d": np.zeros(3)}, "different number"),
        (
            {"frame": [3, 3], "is_right": [1, 1], "keypoints_3d": H[:2, 1]},
            "2 detections of the right hand in frame 3",
        ),
        ({"hands": np.full((4, 2, 21, 3), "a")}, "hands holds <U1 instead of numbers"),
        ({"hands": H, "image_size": [1, 2, 3]}, "one width and height"),
        ({"hands": H, "fps": [8.0, 30.0]}, "fps must be one positive number"),
        ({"hands": np.array([{}], dtype=object)}, "cannot be read as plain arrays"),
        ({"left": np.array(5.0)}, "shape"),
        ({"hands": np.zeros((0, 126))}, "shape"),
        ({"hands": H, "image_size": [np.inf, 9]}, "one width and height"),
        ({"hands": H, "fps": np.inf}, "fps must be one positive number"),
        (ROWS | {"frame": np.full(18, 1e300)}, "frame must count"),
        (ROWS | {"frame": ROWS["frame"] + 0.5}, "whole numbers"),
        (ROWS | {"pred_cam_t_full": np.array(5.0)}, "rows of different number"),
        (ROWS | {"pred_cam_t_full": np.zeros(0)}, "different|not what they are called|cannot reshape"),
        ({key: value for key, value in ROWS.items() if key != "frame"}, "need `frame`"),
    ],
)
def test_bad_arrays_are_one_clear_error(tmp_path, arrays, message):
    refused(tmp_path, message, **arrays)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "feet"}, "unit is one of auto"),
        ({"joint_order": "COCO"}, "joint_order is one of auto"),
        ({"joint_order": OPENXR}, "has 26 joints"),
        ({"sides": "both"}, "sides is one of check"),
        ({"missing_hands": "guess"}, "missing_hands is one of leave out"),
        ({"up": "+z"}, "set both up and forward"),
    ],
)
def test_bad_options_are_one_clear_error(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        import_arrays(tmp_path, options, hands=H)


def test_files_that_say_too_little_or_are_none(tmp_path):
    np.save(tmp_path / "m.npy", H)
    with pytest.raises(ValueError, match="does not say its frame rate"):
        read_motion(tmp_path / "m.npy")
    np.testing.assert_allclose(read_motion(tmp_path / "m.npy", fps=8).hands, MOTION.hands, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_motion(tmp_path / "absent.npz", fps=8)
    with pytest.raises(FileNotFoundError, match="no BVH file"):
        read_motion(tmp_path / "absent.bvh")
    with pytest.raises(ValueError, match=r"comes as \.npz, \.npy, \.json or \.bvh"):
        read_motion(tmp_path / "m.fbx")
    with pytest.raises(ValueError, match=r"one file, or two \.bvh files"):
        read_motion([tmp_path / "a.npz", tmp_path / "b.npz"])
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(
        ValueError, match=r"m\.npz cannot be read as plain arrays: it is not a complete archive"
    ):
        read_motion(tmp_path / "m.npz", fps=8)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = {"descr": "|u1", "fortran_order": False, "shape": (100_000_000,)}
        with archive.open("hands.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
            member.write(bytes(100_000_000))
    with pytest.raises(
        ValueError, match=r"bomb\.npz .* with hands it would unpack to 763 MB, and a file of 0\.09 MB"
    ):
        read_motion(tmp_path / "bomb.npz", fps=8)
    (tmp_path / "m.json").write_text(json.dumps([{"worldLandmarks": [world(H[0, 0])]}]))
    with pytest.raises(ValueError, match="landmarks and handedness are expected"):
        read_motion(tmp_path / "m.json", fps=8)
    (tmp_path / "m.json").write_text('{"a": [1, [2]]}')
    with pytest.raises(ValueError, match=r"m\.json is no JSON that is known"):
        read_motion(tmp_path / "m.json", fps=8)
