"""MANO parameters of others: every layout against smplx with that source's own settings, an independent reading."""

import json
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import smplx
import torch
from helpers.synthetic_mano import MIRROR, TURNS, mano_arrays
from scipy.spatial.transform import Rotation
from smplx.utils import Struct

from svimo_core.importing.decide import ImportOptions
from svimo_core.importing.parameters import LAYOUTS, find_parameters, has_parameters
from svimo_core.importing.read import import_motion
from svimo_core.mano import FROM_MANO, TIP_VERTICES, fit_mano, left_shape, load_mano, save_mano
from svimo_core.motion import HAND_NAMES, Camera

FRAMES = 5
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mano")
    found = {}
    for side in HAND_NAMES:
        np.savez(folder / f"{side}.npz", **mano_arrays(side, left_shape="official"))
        found[side] = load_mano(folder / f"{side}.npz", side)
    return found


@lru_cache
def layer(side, flat, components, shape):
    arrays = mano_arrays(side, left_shape=shape)
    arrays["f"] = arrays["f"].astype(np.int64)
    return smplx.MANO(
        "",
        data_struct=Struct(**arrays),
        is_rhand=side == "right",
        use_pca=components > 0,
        num_pca_comps=components or 6,
        flat_hand_mean=flat,
        dtype=torch.float64,
    )


def joints_of(hand, *, side, flat, components=0, shape="official", transl=True):
    """The joints that smplx gives a hand of :func:`a_hand`, N x 21 x 3."""
    tensor = torch.from_numpy
    if components == 45:  # smplx takes so many for rotation vectors
        hand, components = hand | {"pose": hand["pose"] @ mano_arrays(side)["hands_components"]}, 0
    output = layer(side, flat, components, shape)(
        betas=tensor(np.broadcast_to(hand["betas"], (len(hand["pose"]), 10)).copy()),
        global_orient=tensor(hand["orient"]),
        hand_pose=tensor(hand["pose"]),
        transl=tensor(hand["transl"]) if transl else torch.zeros(len(hand["pose"]), 3, dtype=torch.float64),
    )
    vertices, joints = (values.detach().numpy() for values in (output.vertices, output.joints))
    return np.concatenate([joints, vertices[:, list(TIP_VERTICES)]], axis=1)[:, FROM_MANO]


def a_hand(seed, fingers=45, frames=FRAMES):
    rng = np.random.default_rng(seed)
    return {
        "orient": rng.normal(size=(frames, 3)),
        "pose": rng.normal(size=(frames, fingers)) * 0.4,
        "betas": rng.normal(size=10),
        "transl": rng.normal(size=(frames, 3)) * 0.2 + (0, 0, 0.7),
    }


def both(make):
    return np.stack([make(side, seed) for seed, side in enumerate(HAND_NAMES)], axis=1)


def whole(hand):
    return np.concatenate([hand["orient"], hand["pose"]], axis=1)


def matrices(vectors):
    return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(len(vectors), -1, 3, 3)


# Layouts


def test_our_own_parameters_come_back(models, tmp_path):
    fits = {}
    for seed, side in enumerate(HAND_NAMES):
        hand = a_hand(seed)
        joints = joints_of(hand, side=side, flat=True)
        joints[1] = np.nan
        fits[side] = fit_mano(joints, models[side], fps=8, smoothness=0)
    with np.load(save_mano(tmp_path / "m.npz", fits, 8.0)) as file:
        arrays = dict(file)
    assert has_parameters(arrays)
    found = find_parameters("m.npz", arrays, models)
    expected = np.stack([fits[side].joints for side in HAND_NAMES], axis=1)
    expected[1] = np.nan
    np.testing.assert_allclose(found.hands, expected, **CLOSE)
    assert found.fps == 8
    assert found.seen_by_camera

    # The file says which left hand its betas are for, and the model that is there follows it.
    arrays["left_shapedirs"] = np.array("mended")
    mended = find_parameters("m.npz", arrays, models).hands
    assert np.nanmax(np.abs(mended[:, 0] - expected[:, 0])) > 1e-3
    np.testing.assert_allclose(mended[:, 1], expected[:, 1], **CLOSE)


@pytest.fixture
def detections():
    """A right and a left hand as HaMeR sees them: the left one is a right hand in a mirror."""
    hand = a_hand(3, frames=4)
    hand["transl"] += (0, 0, 20)
    joints = joints_of(hand, side="right", flat=True, transl=False)
    right = np.array([1, 0, 1, 0])
    joints[right == 0] *= MIRROR
    frame = np.array([0, 0, 2, 3])
    hands = np.full((4, 2, 21, 3), np.nan)
    hands[frame, right] = joints + hand["transl"][:, None]
    arrays = {
        "pred_mano_params": {
            "global_orient": matrices(hand["orient"]),
            "hand_pose": matrices(hand["pose"]),
            "betas": np.tile(hand["betas"], (4, 1)),
        },
        "right": right.astype(np.float32),
        "frame": frame,
        "pred_cam_t_full": hand["transl"],
        "scaled_focal_length": np.float32(9375),
        "img_size": np.tile([480.0, 270.0], (4, 1)),
        "box_size": np.full(4, 100.0),
    }
    return arrays, hands, hand


def test_hamer_and_wilor(models, detections):
    arrays, expected, _ = detections
    inner = arrays.pop("pred_mano_params")
    for write in (
        lambda: {"pred_mano_params": inner},
        lambda: {f"pred_mano_params.{key}": value for key, value in inner.items()},
        lambda: {f"pred_mano_params/{key}": value for key, value in inner.items()},
        lambda: {f"pred_mano_params_{key}": value for key, value in inner.items()},
        lambda: {
            "mano_pose": np.concatenate([inner["global_orient"], inner["hand_pose"]], 1),
            "mano_shape": inner["betas"],
        },
    ):
        content = arrays | write()
        assert has_parameters(content)
        found = find_parameters("hamer.npz", content, {"right": models["right"]})
        # as with joints, the tracker's long lens becomes the motion's, and hands as much nearer
        wrist = expected[:, :, :1]
        nearer = expected - wrist + wrist * (1, 1, found.camera.fx / 9375)
        np.testing.assert_allclose(found.hands, nearer, **CLOSE)
    assert found.camera == Camera.from_fov(480, 270)


def test_wilor_mini_has_left_hands_of_their_own(models, detections):
    arrays, expected, hand = detections
    turns = np.where(arrays["right"][:, None, None] == 1, 1, TURNS)
    content = {
        "is_right": arrays["right"],
        "frame": arrays["frame"],
        "global_orient": hand["orient"][:, None] * turns,
        "hand_pose": hand["pose"].reshape(4, 15, 3) * turns,
        "betas": np.tile(hand["betas"], (4, 1)),
        "pred_cam_t_full": hand["transl"],
    }
    found = find_parameters("wilor.npz", content, {"right": models["right"]})
    np.testing.assert_allclose(found.hands, expected, **CLOSE)
    assert any("WiLoR-mini" in note for note in found.notes)


def test_a_place_before_the_crop_is_mirrored_as_well(models, detections):
    arrays, expected, _ = detections
    arrays["pred_cam_t"] = arrays.pop("pred_cam_t_full")
    del arrays["scaled_focal_length"]
    place = arrays["pred_cam_t"][[1, 3]] * MIRROR - arrays["pred_cam_t"][[1, 3]]
    expected[[0, 3], 0] += place[:, None]
    found = find_parameters("hamer.npz", arrays, models)
    np.testing.assert_allclose(found.hands, expected, **CLOSE)
    assert any("pred_cam_t_full" in note for note in found.notes)


@pytest.mark.parametrize("side", HAND_NAMES)
def test_taco(models, side):
    """The translation is where the wrist is."""
    hand = a_hand(4)
    expected = joints_of(hand, side=side, flat=True, transl=False)
    expected = expected - expected[:, :1] + hand["transl"][:, None]
    pose = whole(hand)
    flat = {"hand_pose": pose, "hand_trans": hand["transl"], "hand_shape": hand["betas"]}
    nested = {
        f"{i + 1:05}": {"hand_pose": pose[i], "hand_trans": hand["transl"][i]}
        for i in reversed(range(FRAMES))
    }
    for content in (flat, nested | {"hand_shape": hand["betas"]}):
        assert has_parameters(content)
        found = find_parameters(f"{side}_hand.npz", content, models)
        np.testing.assert_allclose(found.hands[:, HAND_NAMES.index(side)], expected, **CLOSE)
        assert np.isnan(found.hands[:, 1 - HAND_NAMES.index(side)]).all()
        assert not found.seen_by_camera


@pytest.mark.parametrize("side", HAND_NAMES)
def test_dexycb(models, side):
    hand = a_hand(5)
    expected = joints_of(hand, side=side, flat=False, components=45)
    pose = np.concatenate([whole(hand), hand["transl"]], axis=1)[:, None]
    pose[2] = 0  # what DexYCB writes where there is no hand
    expected[2] = np.nan
    content = {"pose_m": pose, "betas": hand["betas"], "mano_side": np.array(side)}
    found = find_parameters("labels.npz", content, models)
    np.testing.assert_allclose(found.hands[:, HAND_NAMES.index(side)], expected, **CLOSE)
    single = find_parameters("labels.npz", content | {"pose_m": pose[0]}, models)
    np.testing.assert_allclose(single.hands, found.hands[:1], **CLOSE)


def test_arctic(models):
    def write(side):
        hand = a_hand(HAND_NAMES.index(side))
        return {
            "rot": hand["orient"],
            "pose": hand["pose"],
            "trans": hand["transl"],
            "shape": np.tile(hand["betas"], (FRAMES, 1)),
            "fitting_err": np.zeros(FRAMES),
        }

    expected = both(lambda side, seed: joints_of(a_hand(seed), side=side, flat=False))
    content = {side: write(side) for side in HAND_NAMES}
    splits = {f"{key}_{side[0]}": value for side in HAND_NAMES for key, value in write(side).items()}
    for arrays in (content, splits):
        found = find_parameters("box_grab_01.mano.npz", arrays, models)
        np.testing.assert_allclose(found.hands, expected, **CLOSE)
        assert not found.seen_by_camera


def test_ho3d(models):
    hand = a_hand(6)
    content = {"handPose": whole(hand), "handTrans": hand["transl"], "handBeta": hand["betas"]}
    found = find_parameters("ho3d.npz", content, models)
    expected = joints_of(hand, side="right", flat=True) * (1, -1, -1)
    np.testing.assert_allclose(found.hands[:, 1], expected, **CLOSE)


def test_interhand(models, tmp_path):
    """Its left hands were fitted with shape directions turned round."""

    def write(side, frame):
        hand = a_hand(HAND_NAMES.index(side))
        return {
            "pose": whole(hand)[frame].tolist(),
            "shape": hand["betas"].tolist(),
            "trans": hand["transl"][frame].tolist(),
        }

    expected = both(lambda side, seed: joints_of(a_hand(seed), side=side, flat=False, shape="mended"))
    frames = {str(38685 + 3 * i): {side: write(side, i) for side in HAND_NAMES} for i in range(FRAMES)}
    frames["38688"]["left"] = None
    expected[1, 0] = np.nan
    for content in (frames, {"13": frames}):
        assert has_parameters(content)
        found = find_parameters("InterHand2.6M_train_MANO_NeuralAnnot.json", content, models)
        np.testing.assert_allclose(found.hands, expected, **CLOSE)
    path = tmp_path / "InterHand2.6M_test_MANO_NeuralAnnot.json"  # its dictionaries come from a file, too
    path.write_text(json.dumps({"13": frames}))
    read = import_motion(path, ImportOptions(fps=5, sides="keep", distance=1), mano=lambda: models)
    np.testing.assert_array_equal(read.motion.present, np.isfinite(expected[..., 0, 0]))
    path.write_text(json.dumps({str(i): {} for i in range(1000)}))
    with pytest.raises(ValueError, match=r"has 0, 1, 10, .{80,140} and 976 more; expected"):
        import_motion(path)
    with pytest.raises(ValueError, match=r"2 captures \(13, 14\): give one of them alone"):
        find_parameters("x.json", {"13": frames, "14": frames}, models)


@pytest.mark.parametrize(("mean", "flat"), [("auto", True), ("flat", True), ("relaxed", False)])
def test_unknown_names(models, mean, flat):
    expected = both(lambda side, seed: joints_of(a_hand(seed), side=side, flat=flat))
    content = {}
    for seed, side in enumerate(HAND_NAMES):
        hand = a_hand(seed)
        content |= {
            f"{side}_orient": hand["orient"],
            f"{side}_pose": hand["pose"],
            f"{side}_trans": hand["transl"],
            f"{side}_betas": hand["betas"],
        }
    found = find_parameters("hands.npz", content, models, mean=mean)
    np.testing.assert_allclose(found.hands, expected, **CLOSE)
    assert any("set mano_mean to relaxed" in note for note in found.notes) == (mean == "auto")
    joined = {f"{side}_pose": whole(a_hand(seed)) for seed, side in enumerate(HAND_NAMES)}
    rest = {key: value for key, value in content.items() if "trans" in key or "betas" in key}
    np.testing.assert_allclose(
        find_parameters("h.npz", joined | rest, models, mean=mean).hands, expected, **CLOSE
    )


@pytest.mark.parametrize("count", [6, 30])
def test_components_are_of_the_users_own_file(models, count):
    expected = both(
        lambda side, seed: joints_of(a_hand(seed, count), side=side, flat=False, components=count)
    )
    content = {}
    for seed, side in enumerate(HAND_NAMES):
        hand = a_hand(seed, count)
        content |= {
            f"{side}_pose": whole(hand),
            f"{side}_trans": hand["transl"],
            f"{side}_betas": hand["betas"],
        }
    found = find_parameters("hands.npz", content, models)
    np.testing.assert_allclose(found.hands, expected, **CLOSE)
    assert any(f"{count} principal components" in note for note in found.notes)


def test_left_shape_can_be_chosen(models):
    hand = a_hand(0)
    content = {
        "pose_m": np.concatenate([whole(hand), hand["transl"]], 1),
        "betas": hand["betas"],
        "mano_side": "left",
    }
    for shape in ("official", "mended"):
        expected = joints_of(hand, side="left", flat=False, components=45, shape=shape)
        found = find_parameters("labels.npz", content, models, left=shape)
        np.testing.assert_allclose(found.hands[:, 0], expected, **CLOSE)
        assert any(f'"{shape}" shape' in note for note in found.notes)
    assert left_shape(models["left"]) == "official"


def test_hands_without_a_side_say_so(models):
    hand = a_hand(1)
    content = {"hand_pose": whole(hand), "hand_trans": hand["transl"]}
    found = find_parameters("sequence.npz", content, models)
    assert np.isnan(found.hands[:, 0]).all()
    assert np.isfinite(found.hands[:, 1]).all()
    assert any("taken for the right" in note for note in found.notes)
    assert any("no betas" in note for note in found.notes)
    assert np.isfinite(find_parameters("sequence_LeftHand.npz", content, models).hands[:, 0]).all()


# Errors


def arctic(**changes):
    hand = a_hand(0)
    content = {"rot": hand["orient"], "pose": hand["pose"], "trans": hand["transl"], "shape": hand["betas"]}
    content = {f"{side}_{key}": value for side in HAND_NAMES for key, value in content.items()}
    return {key: value for key, value in (content | changes).items() if value is not None}


def ours(**changes):
    hand = a_hand(0)
    names = {"global_orient": "orient", "hand_pose": "pose", "transl": "transl", "betas": "betas"}
    content = {f"{side}_{key}": hand[name] for side in HAND_NAMES for key, name in names.items()}
    return {key: value for key, value in (content | changes).items() if value is not None}


def rows(**changes):
    content = {
        "pred_mano_params_global_orient": matrices(np.zeros((2, 3))),
        "pred_mano_params_hand_pose": matrices(np.zeros((2, 45))),
        "right": np.array([0, 1]),
        "frame": np.array([0, 0]),
        "pred_cam_t_full": np.ones((2, 3)),
    }
    return content | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "f.npz has nothing; expected MANO parameters as one of SViMo, HaMeR or WiLoR, TACO, DexYCB"),
        ({"hands": np.zeros((2, 2, 21, 3))}, "f.npz has hands; expected"),
        (
            arctic(left_pose=np.zeros((5, 44, 3))),
            "left_pose should have .*45 .rotation vectors.*, got 5 x 44 x 3",
        ),
        (
            arctic(left_rot=np.zeros((5, 4))),
            r"left_rot should have 3 \(rotation vectors\) or 9 .*, got 5 x 4",
        ),
        (
            arctic(right_trans=np.zeros((4, 3))),
            "right_trans should have 5 rows of 3 as the pose has, got 4 x 3",
        ),
        (
            arctic(right_trans=np.zeros((5, 2))),
            "right_trans should have 5 rows of 3 as the pose has, got 5 x 2",
        ),
        (
            arctic(right_shape=np.zeros(11)),
            "right_shape should have 10 shape coefficients, or 5 rows .*, got 11",
        ),
        (arctic(right_pose=np.array(["a"] * 5)), "right_pose should hold numbers, got <U1"),
        (
            arctic(right_pose=[[1.0], [1.0, 2.0]]),
            "right_pose should hold numbers, got lists of different length",
        ),
        (
            arctic(right_pose=np.float64(1)),
            "right_pose should have a row of numbers for each frame, got one number",
        ),
        (arctic(fps=np.array(-3.0)), "fps should be one positive number for the clip, got -3.0"),
        (
            {
                key: value[:4] if "left" in key and "shape" not in key else value
                for key, value in arctic().items()
            },
            "both hands should have the same frames, got 4 of the left and 5 of the right",
        ),
        (arctic(right_pose=np.full((5, 45), 90.0)), "right_pose should have .*radians.*are they degrees"),
        (rows(right=np.array([0, 2])), "right should have 0 or 1 for each of 2 rows, got 2"),
        (rows(right=np.array([0])), "right should have 0 or 1 for each of 2 rows, got 1"),
        (rows(frame=np.array([0.5, 0])), "frame must count in whole numbers"),
        (rows(frame=np.array([0, 10**9])), "frame must count in whole numbers, at most 200,000"),
        (rows(right=np.array([1, 1])), "2 detections of the right hand in frame 0: keep the best"),
        (
            rows(pred_mano_params_hand_pose=np.full((2, 15, 3, 3), 0.5)),
            "hand_pose should have orthonormal .* in row 0",
        ),
        (
            rows(scaled_focal_length=5.0, img_size=np.array([[1, 0], [2, 2]])),
            "image_size must be one width and height",
        ),
        (
            ours(left_transl=None),
            "f.npz lacks left_transl, which SViMo has beside the other arrays of a hand",
        ),
        (
            ours(left_shapedirs=np.array("bent")),
            'left_shapedirs should be "official" or "mended", got .bent.',
        ),
        ({"pose_m": np.ones((2, 1, 52))}, "pose_m should have 51 numbers in a row .*, got 2 x 1 x 52"),
        (
            {"0": {"hand_pose": np.ones(48), "hand_trans": np.ones(3)}, "1": {"hand_pose": np.ones(45)}},
            r"hand_pose should have one shape in all frames, got \(45,\), \(48,\)",
        ),
    ],
)
def test_bad_arrays_are_one_clear_error(models, content, message):
    with pytest.raises(ValueError, match=message) as error:
        find_parameters("f.npz", content, models)
    assert str(error.value).startswith("f.npz")
    assert "\n" not in str(error.value)


def test_models_that_are_needed_are_named(models):
    with pytest.raises(ValueError, match=r"need the left hand's model, MANO_LEFT. MANO's files are free"):
        find_parameters("f.npz", arctic(), {"right": models["right"]})
    bare = {side: replace(model, hands_components=None) for side, model in models.items()}
    with pytest.raises(ValueError, match=r"has 45 principal components, and the right hand's model has 0"):
        find_parameters("f.npz", {"pose_m": np.ones((2, 51))}, bare)
    for wrong in ({"mean": "bent"}, {"left": "right"}):
        with pytest.raises(ValueError, match=r"(mean|left) should be one of .*, got"):
            find_parameters("f.npz", arctic(), models, **wrong)


@pytest.mark.parametrize(
    "arrays", [{}, {"hands": 1}, {"left": np.zeros((2, 21, 3))}, {"0": {"left": {"joints": 1}}}]
)
def test_other_files_are_left_alone(arrays):
    assert not has_parameters(arrays)


def test_every_source_is_named():
    for layout in LAYOUTS:
        assert re.search("/|svimo_core|names", layout.source)


def test_rows_of_zeros_have_no_hand(models):
    hand = a_hand(5)
    content = {"right_rot": hand["orient"], "right_pose": hand["pose"], "right_trans": hand["transl"]}
    content = {key: np.where(np.arange(FRAMES)[:, None] < 2, 0, value) for key, value in content.items()}
    found = find_parameters("f.npz", content, models)
    assert np.isfinite(found.hands[:, 1, 0, 0]).tolist() == [i >= 2 for i in range(FRAMES)]
    assert found.order == "OpenPose"
