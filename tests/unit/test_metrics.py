import numpy as np
import pytest

from svimo_core.motion import Camera, HandObjectMotion
from svimo_core.render import render_motion
from svimo_train import metrics
from svimo_train.data.synthetic import generate_motion


def test_mpjpe_is_the_mean_distance():
    true = np.zeros((2, 2, 21, 3))
    predicted = true.copy()
    predicted[0, 0, 0] = (0.003, 0.004, 0)  # 5 mm off
    assert metrics.mpjpe_mm(predicted, true) == pytest.approx(5 / (2 * 2 * 21))
    assert metrics.mpjpe_mm(true + (0, 0, 0.01), true) == pytest.approx(10)
    with pytest.raises(ValueError, match="same shape"):
        metrics.mpjpe_mm(true[:1], true)


def test_smoothness_is_the_mean_acceleration():
    time = np.arange(5.0)[:, None]
    steady = time * (0.01, 0, 0)
    assert metrics.smoothness_mm(steady) == pytest.approx(0)
    assert metrics.smoothness_mm(0.5 * 0.004 * time**2 * (0, 0.6, 0.8)) == pytest.approx(4)
    zigzag = np.array([0, 0.001, 0, 0.001, 0])[:, None] * (1, 0, 0)
    assert metrics.smoothness_mm(zigzag) == pytest.approx(2)
    with pytest.raises(ValueError, match="at least 3 frames"):
        metrics.smoothness_mm(steady[:2])


def test_chamfer_is_squared_and_two_sided():
    one = np.array([[[0.0, 0, 0], [0.01, 0, 0]]])
    other = np.array([[[0.0, 0.002, 0]]])
    # to `other`: 4 and 104 mm^2, mean 54; back: 4
    assert metrics.chamfer_mm2(one, other) == pytest.approx(58)
    assert metrics.chamfer_mm2(other, one) == pytest.approx(58)
    assert metrics.chamfer_mm2(one, one[:, ::-1]) == 0
    frames = np.concatenate([one, one]), np.concatenate([one, one + (0, 0, 0.003)])
    assert metrics.chamfer_mm2(*frames) == pytest.approx((0 + 18) / 2)
    with pytest.raises(ValueError, match="number of frames"):
        metrics.chamfer_mm2(one, frames[0])


def test_frechet_distance_of_gaussians():
    # two samples at m - s and m + s have mean m and variance 2 s^2
    a, b = np.array([[-1.0], [1.0]]), np.array([[3.0 - 2], [3.0 + 2]])
    assert metrics.frechet_distance(a, b) == pytest.approx(3**2 + (np.sqrt(8) - np.sqrt(2)) ** 2)
    # covariances diag(1, 4) and diag(4, 1), made exactly
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * np.sqrt(3) / 2
    wide, high = corners * (1, 2), corners * (2, 1)
    assert metrics.frechet_distance(wide, high) == pytest.approx(1 + 1)
    assert metrics.frechet_distance(wide, wide) == pytest.approx(0, abs=1e-9)
    # turned covariances: 2 tr C - 2 tr (C_a C_b)^(1/2); for 2 x 2 the last is sqrt(tr M + 2 sqrt(det M)), M = C_a C_b
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    c = np.diag([1.0, 4.0])
    m = c @ turn.T @ c @ turn
    expected = 2 * 5 - 2 * np.sqrt(np.trace(m) + 2 * np.sqrt(np.linalg.det(m)))
    assert metrics.frechet_distance(wide, wide @ turn) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 2 samples"):
        metrics.frechet_distance(wide[:1], wide)


def test_psnr():
    true = np.full((2, 4, 4, 3), 100, np.uint8)
    assert metrics.psnr_db(true + np.uint8(5), true) == pytest.approx(20 * np.log10(255 / 5))
    assert metrics.psnr_db(true, true) == float("inf")


def test_psnr_on_moving_pixels_leaves_the_background_out():
    true = np.zeros((3, 4, 4, 3), np.uint8)
    true[1, 0, 0] = (0, 0, 100)  # one pixel moves in one frame, by one channel
    true[2, 3, 3] = metrics.MOVING  # noise does not
    still = np.repeat(true[:1], 3, axis=0)
    assert metrics.psnr_moving_db(still, true) == pytest.approx(10 * np.log10(255**2 / (100**2 / 3)))
    wrong_background = true.copy()
    wrong_background[:, 2, 2] = 50
    assert metrics.psnr_moving_db(wrong_background, true) == float("inf")
    with pytest.raises(ValueError, match="nothing moves"):
        metrics.psnr_moving_db(still, still)


def test_ssim():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 24, 32, 3)).astype(np.uint8)
    assert metrics.ssim(noise, noise) == pytest.approx(1)
    # between constants only the luminance term is left
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert metrics.ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    # against its negative about 128, texture is anticorrelated: the structure term is (-2 v + c2) / (2 v + c2)
    mild = (128 + rng.integers(-20, 21, (1, 64, 64, 3))).astype(np.uint8)
    assert metrics.ssim((256 - mild.astype(int)).astype(np.uint8), mild) < -0.4
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(a[:, :8], b[:, :8])


def hand_at(shift: float = 0.0, **points) -> HandObjectMotion:
    """A left hand squeezed to one spot, and one-point objects; the rest far away in the corner, off the image."""
    hands = np.tile((50.0, 50.0, 1.0), (2, 2, 21, 1))
    objects = {"tool": np.tile(points.get("tool", (50.0, 50.0, 1.0)), (2, 1, 1)) + (shift, 0, 0)}
    camera = Camera(fx=100, fy=100, cx=100, cy=100, width=200, height=200)
    return HandObjectMotion(hands=hands, objects=objects, camera=camera, fps=8)


def test_reprojection_measures_pixels():
    here, there = hand_at(tool=(0, 0, 1.0)), hand_at(0.3, tool=(0, 0, 1.0))  # 30 pixels apart
    video = render_motion(here, 200, 200)
    assert metrics.reprojection_px(here, video) == 0
    assert metrics.reprojection_px(there, video) == pytest.approx(30, rel=0.02)
    assert metrics.reprojection_px(hand_at(), video) == pytest.approx(np.hypot(200, 200))  # shown by one only
    with pytest.raises(ValueError, match="neither the motion nor its video"):
        metrics.reprojection_px(hand_at(), np.zeros_like(video))
    with pytest.raises(ValueError, match="frames"):
        metrics.reprojection_px(here, video[:1])


def test_reprojection_tells_parts_apart_and_bears_noise():
    motion = generate_motion(0, frames=5)
    video = render_motion(motion, 144, 96)
    noisy = np.clip(video + np.random.default_rng(0).normal(0, 25, video.shape), 0, 255).astype(np.uint8)
    shifted = np.roll(video, 6, axis=2)
    assert metrics.reprojection_px(motion, noisy) < 1.0
    assert metrics.reprojection_px(motion, shifted) == pytest.approx(6, abs=1)  # some of it leaves the image
    swapped = video[..., [1, 0, 2]]  # the hands change colours, and so places
    assert metrics.reprojection_px(motion, swapped) > 10
