from dataclasses import replace

import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion

from svimo_core.clean import place_in_view, resample, scale, smooth
from svimo_core.tracks import fit_rigid_track

FREE = [j for j in range(21) if j not in (4, 8)]
"""Joints that never hold anything."""


@pytest.fixture(scope="module")
def truth():
    """Three seconds at 30 Hz in which the right thumb and index hold the tool from frame 30 to 60."""
    motion = moving_motion(frames=90, fps=30)
    hands = motion.hands.copy()
    points = motion.objects["tool"]
    for joint, point in ((4, 3), (8, 40)):
        hands[30:60, 1, joint] = points[30:60, point] + (0, 0, 0.002)
    return replace(motion, hands=hands)


def shaken(motion, amount=0.002, seed=0):
    rng = np.random.default_rng(seed)
    noise = lambda array: array + rng.normal(scale=amount, size=array.shape)  # noqa: E731
    objects = {name: noise(points) for name, points in motion.objects.items()}
    return replace(motion, hands=noise(motion.hands), objects=objects)


def acceleration(points):
    return np.sqrt(np.mean(np.diff(points, n=2, axis=0) ** 2))


def error(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


def distance_to_tool(motion, joint, frames):
    joints, points = motion.hands[frames, 1, joint], motion.objects["tool"][frames]
    return np.linalg.norm(points - joints[:, None], axis=-1).min(axis=1)


def test_smoothing_removes_jitter_and_keeps_the_movement(truth):
    noisy = shaken(truth)
    calm = smooth(noisy, seconds=0.05)
    wanted, given, got = (m.hands[:, :, FREE] for m in (truth, noisy, calm))
    assert acceleration(got) < acceleration(given) / 5
    assert error(got, wanted) < error(given, wanted) / 1.5
    for name in truth.objects:
        assert acceleration(calm.objects[name]) < acceleration(noisy.objects[name]) / 5
        assert (
            error(calm.objects[name], truth.objects[name])
            < error(noisy.objects[name], truth.objects[name]) / 1.5
        )


def test_smoothing_keeps_ends_where_they_are(truth):
    alone = replace(truth, objects={})
    calm = smooth(alone, seconds=0.1)
    np.testing.assert_allclose(calm.hands[[0, -1], 0], truth.hands[[0, -1], 0], atol=0.002)


def test_smoothing_keeps_contact(truth):
    for joint in (4, 8):
        before = distance_to_tool(truth, joint, slice(31, 59))
        after = distance_to_tool(smooth(truth, seconds=0.15), joint, slice(31, 59))
        blind = distance_to_tool(smooth(truth, seconds=0.15, contact_distance=0), joint, slice(31, 59))
        assert before.max() < 0.003
        assert after.max() < 0.005
        assert blind.max() > 2 * after.max()


def test_smoothing_in_contact_does_not_slide(truth):
    calm = smooth(shaken(truth, 0.001), seconds=0.1)
    held = fit_rigid_track(calm.objects["tool"]).to_local(calm.hands[:, 1, 8])[35:55]
    assert held.std(axis=0).max() < 0.0015


def test_smoothing_lets_a_finger_slide(truth):
    track = fit_rigid_track(truth.objects["tool"])
    slide = np.linspace((-0.04, 0, 0.04), (0.04, 0, 0.04), 90)  # through the mug, along one of its diameters
    hands = truth.hands.copy()
    hands[:, 1, 8] = np.einsum("nij,nj->ni", track.rotations, slide) + track.translations
    tool = {"tool": truth.objects["tool"]}
    sliding = smooth(replace(truth, hands=hands, objects=tool), seconds=0.2, contact_distance=0.1)
    kept = fit_rigid_track(sliding.objects["tool"]).to_local(sliding.hands[:, 1, 8])
    np.testing.assert_allclose(kept, slide, atol=0.002)


def test_smoothing_of_rigid_objects_stays_rigid(truth):
    assert fit_rigid_track(smooth(truth, seconds=0.2).objects["target"]).residual_mm < 0.1


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_smoothing_can_have_nothing_to_do(truth, seconds):
    one = replace(truth, hands=truth.hands[:1], objects={})
    assert smooth(one, seconds) is one
    assert smooth(truth, 0) is truth


def test_smoothing_can_be_longer_than_the_motion(truth):
    short = replace(truth, hands=truth.hands[:3], objects={k: v[:3] for k, v in truth.objects.items()})
    assert np.isfinite(smooth(short, seconds=2).hands).all()


def test_resampling_up_and_down_comes_back():
    motion = moving_motion(frames=25, fps=8)
    faster = resample(motion, 24)
    assert (len(faster), faster.fps) == (73, 24)
    np.testing.assert_allclose(faster.hands[::3], motion.hands, atol=1e-6)
    dense = moving_motion(frames=73, fps=24)
    np.testing.assert_allclose(faster.hands, dense.hands, atol=0.0005)
    for name in motion.objects:
        np.testing.assert_allclose(faster.objects[name], dense.objects[name], atol=0.0005)
        assert fit_rigid_track(faster.objects[name]).residual_mm < 0.001
    back = resample(faster, 8)
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-5)
    assert back.duration == motion.duration


def test_resampling_to_a_rate_that_does_not_divide():
    motion = moving_motion(frames=10, fps=8)  # 1.125 s from first to last
    other = resample(motion, 10)
    assert len(other) == 12
    assert (len(other) - 1) / 10 <= 9 / 8


def test_resampling_to_the_rate_that_was_rounded_keeps_the_last_frame():
    motion = moving_motion(frames=301, fps=30.0003)  # as 1 / 0.033333
    back = resample(motion, 30)
    assert len(back) == 301
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_resampling_short_motions(frames):
    motion = moving_motion(frames=3, fps=8)
    short = replace(
        motion, hands=motion.hands[:frames], objects={k: v[:frames] for k, v in motion.objects.items()}
    )
    assert len(resample(short, 24)) == 3 * (frames - 1) + 1


def test_scale_and_place_in_view(truth):
    away = lambda points: points * 100 + (0, -150, 300)  # noqa: E731
    far = replace(truth, hands=away(truth.hands), objects={k: away(v) for k, v in truth.objects.items()})
    placed = place_in_view(scale(far, 0.01), distance=0.7)
    low, high = placed.bounds()
    np.testing.assert_allclose((low + high) / 2, (0, 0, 0.7), atol=1e-5)
    np.testing.assert_allclose(np.diff(placed.hands, axis=0), np.diff(truth.hands, axis=0), atol=1e-5)
    assert placed.camera.project(placed.hands).min() > -500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: smooth(m, -1), "cannot be negative"),
        (lambda m: resample(m, 0), "fps must be positive"),
        (lambda m: resample(m, float("nan")), "fps must be positive"),
        (lambda m: scale(m, 0), "factor must be positive"),
        (lambda m: place_in_view(m, 0.05), "behind the camera"),
    ],
)
def test_bad_settings_are_refused(truth, call, message):
    with pytest.raises(ValueError, match=message):
        call(truth)
