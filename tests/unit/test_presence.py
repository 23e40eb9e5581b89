"""Motion in which a hand is absent, in some frames or throughout: everything takes it as it is and invents nothing."""

import dataclasses

import numpy as np
import pytest

from svimo_core.clean import add_missing_hands, resample, scale, smooth, trim, trim_to_hands
from svimo_core.export.glb import write_glb
from svimo_core.export.json_ import write_json
from svimo_core.importing.json_ import read_json
from svimo_core.motion import HandObjectMotion
from svimo_core.normalization import MotionNormalizer
from svimo_core.render import HAND_COLORS, render_motion, render_view
from svimo_core.rigged import rig_motion
from svimo_core.tracks import bridge
from svimo_train.metrics import mpjpe_mm, smoothness_mm
from tests.helpers.moving_hands import motion as moving_hands
from tests.helpers.read_glb import Glb


@pytest.fixture(scope="module")
def motion() -> HandObjectMotion:
    """The left hand is there in frames 2 to 9 of 12, without 5 and 6; the right one never."""
    whole = moving_hands(frames=12)
    hands = whole.hands.copy()
    hands[[0, 1, 5, 6, 10, 11], 0] = np.nan
    hands[:, 1] = np.nan
    return dataclasses.replace(whole, hands=hands)


def absent_as_in(motion, other):
    np.testing.assert_array_equal(other.present, motion.present)
    np.testing.assert_array_equal(np.isnan(other.hands), np.isnan(motion.hands))


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_files_keep_who_is_absent(tmp_path, motion, suffix):
    path = tmp_path / f"m{suffix}"
    if suffix == ".npz":
        motion.save(path)
        back = HandObjectMotion.load(path)
        assert int(np.load(path)["version"]) == 2
    else:
        write_json(path, motion)
        back = read_json(path)
        assert "NaN" not in path.read_text()
    absent_as_in(motion, back)
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-6)


def test_complete_motion_stays_readable_for_older_versions(tmp_path):
    whole = moving_hands(frames=3)
    assert int(np.load(whole.save(tmp_path / "m.npz"))["version"]) == 1


def test_an_absent_hand_is_not_drawn(motion):
    red, green = (
        [(np.abs(frame.astype(int) - color).sum(-1) < 30).sum() for frame in render_motion(motion, 312, 208)]
        for color in HAND_COLORS
    )
    assert [count > 0 for count in red] == motion.present[:, 0].tolist()
    assert sum(green) == 0
    assert render_view(motion, 96, 64).any()


def test_rig_has_the_hands_that_are_there(motion):
    rigged = rig_motion(motion)
    assert [hand.rig.side for hand in rigged.hands] == ["left"]
    (hand,) = rigged.hands
    assert len(rigged) == len(hand) == 12
    np.testing.assert_array_equal(hand.present, motion.present[:, 0])
    whole = moving_hands(frames=12)
    there = motion.present[:, 0]
    np.testing.assert_allclose(hand.joints[there], rig_motion(whole).hands[0].joints[there], atol=2e-3)
    assert np.isfinite(hand.joints).all()
    assert rigged.residuals_mm()["left"] < 2
    named = dataclasses.replace(
        motion, objects={"left": motion.objects["tool"]}
    )  # which hides no hand's residual
    assert list(rig_motion(named).residuals_mm()) == ["left", "left (object)"]


def test_cleaning_leaves_absence_alone(motion):
    absent_as_in(motion, smooth(motion, 0.1))
    absent_as_in(motion, scale(motion, 2))
    double = resample(motion, 2 * motion.fps)
    np.testing.assert_array_equal(double.present[::2], motion.present)
    np.testing.assert_array_equal(double.present[1::2], motion.present[1:])  # of two as near, the later


def test_smoothing_does_not_pull_a_hand_to_where_it_comes_back():
    """It rests, is gone for ten frames, and rests 40 cm away; a straight way to there would touch an object."""
    still = moving_hands(frames=40).take(np.zeros(40, int))
    hands = still.hands.copy()
    hands[25:, 0, :, 1] += 0.4
    hands[15:25, 0] = np.nan
    cloud = hands[:1, 0, 5:9] + (0, 0.04, 0)
    cloud = cloud + np.linspace(-0.02, 0.02, 40)[:, None, None] * (1, 0, 0)
    motion = dataclasses.replace(still, hands=hands, objects={"tool": cloud}, fps=30)
    np.testing.assert_allclose(smooth(motion, 0.05).hands, hands, atol=1e-5)


def test_trimming(motion):
    np.testing.assert_array_equal(trim(motion, 2, 4).hands, motion.hands[2:5])
    np.testing.assert_array_equal(trim_to_hands(motion).hands, motion.hands[2:10])
    with pytest.raises(ValueError, match="frames 3 to 12 of a motion that has frames 0 to 11"):
        trim(motion, 3, 12)


def test_hands_are_invented_only_as_asked(motion):
    mirrored = add_missing_hands(motion, "mirror")
    assert mirrored.present.all()
    np.testing.assert_array_equal(mirrored.hands[6, 0], motion.hands[4, 0])  # held
    np.testing.assert_array_equal(mirrored.hands[0, 0], motion.hands[2, 0])
    left, right = mirrored.hands[:, 0], mirrored.hands[:, 1]
    np.testing.assert_allclose(right[..., 1:], left[..., 1:], atol=1e-6)
    np.testing.assert_allclose(np.ptp(right[..., 0] + left[..., 0]), 0, atol=1e-6)
    assert (right[:, 0, 0] > left[:, 0, 0]).all()

    parked = add_missing_hands(motion, "park").hands[:, 1]
    assert (parked == parked[0]).all()
    assert parked[..., 1].min() > np.nanmax(motion.hands[..., 1])
    held = add_missing_hands(motion, "hold")
    assert held.present.all(axis=0).tolist() == [True, False]
    assert not held.present[:, 1].any()
    right = dataclasses.replace(
        motion, hands=moving_hands(frames=12).hands * np.float32([[[np.nan]], [[1]]])[None]
    )
    added = add_missing_hands(right, "mirror").hands
    assert (added[:, 0, 0, 0] < added[:, 1, 0, 0]).all()
    with pytest.raises(ValueError, match="no hand is there in any frame"):
        add_missing_hands(dataclasses.replace(motion, hands=motion.hands * np.nan), "park")


def test_metrics_count_what_is_there(motion):
    made = moving_hands(frames=12).hands + np.float32([0.003, 0, 0.004])
    assert mpjpe_mm(made, motion.hands) == pytest.approx(5, abs=1e-3)
    assert np.isfinite(smoothness_mm(motion.hands))
    with pytest.raises(ValueError, match="of which 126 were not predicted"):
        mpjpe_mm(np.full_like(made, np.nan), motion.hands)


def test_what_needs_both_hands_says_so(motion):
    with pytest.raises(
        ValueError, match=r"training needs both hands .* left one is absent in 6 of 12, first in frame 0"
    ):
        MotionNormalizer.fit([motion], tuple(motion.objects))


def test_bridging():
    values = np.array([np.nan, 1, np.nan, np.nan, 4, np.nan])[:, None]
    np.testing.assert_allclose(bridge(values, np.isfinite(values[:, 0]))[:, 0], [1, 1, 2, 3, 4, 4])
    with pytest.raises(ValueError, match="absent from every frame"):
        bridge(values, np.zeros(6, bool))


def test_glb_hides_a_hand_where_it_is_absent(tmp_path, motion):
    glb = Glb(write_glb(tmp_path / "m.glb", rig_motion(motion)))
    assert [skin["name"] for skin in glb.json["skins"]] == ["left_hand"]
    sizes = np.array([np.ptp(glb.triangles("left_hand", frame)[0], axis=0).max() for frame in range(12)])
    np.testing.assert_array_equal(sizes > 0.1, motion.present[:, 0])
    np.testing.assert_array_equal(sizes < 1e-4, ~motion.present[:, 0])
