"""How good a generated clip is: the paper's motion metrics, common video metrics, and two that need no reference.

Everything takes and returns plain numpy, and lower is better unless it says otherwise. The paper names MPJPE, motion
smoothness, Chamfer and FID (section 4.1) without units or formulas, so its figures cannot be compared with these.
"""

from __future__ import annotations

import cv2
import numpy as np

from svimo_core.motion import HandObjectMotion
from svimo_core.render import MOTION_STYLE, render_motion

MOVING = 12
"""A pixel moves where a channel differs by more than this (of 255) from the first frame: above compression noise."""


# --- motion ---


def mpjpe_mm(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean per-joint position error, without any alignment: the mean over frames, hands and joints of |p - q|.

    Args:
        predicted, true: joints (..., 3) in metres, same shape and axes; NaN in `true` where a hand is absent, and
            whatever was predicted there does not count.

    Returns:
        Millimetres. Source: Ionescu et al. 2014 (Human3.6M), without its root alignment.

    Raises:
        ValueError: unequal shapes, nothing to compare, or a hand that was not predicted.
    """
    _check_alike(predicted, true)
    there = np.isfinite(true).all(axis=-1)
    if not there.any() or not np.isfinite(predicted[there]).all():
        raise ValueError(
            f"the error is over {int(there.sum())} joints that are there, of which "
            f"{int((~np.isfinite(predicted[there]).all(axis=-1)).sum())} were not predicted"
        )
    return float(np.linalg.norm(predicted[there] - true[there], axis=-1).mean() * 1e3)


def smoothness_mm(points: np.ndarray) -> float:
    """Mean acceleration of points that keep their index: the mean of |x[t+1] - 2 x[t] + x[t-1]|.

    Stillness scores 0, so read it beside the value of true motion: far above is jitter, far below is a frozen pose.

    Args:
        points: N x ... x 3 in metres, at least 3 frames; NaN where a hand is absent, which does not count.

    Returns:
        Millimetres per squared frame, which depends on the frame rate. Formula: ours, the paper gives none.

    Raises:
        ValueError: fewer than 3 frames in a row.
    """
    accelerations = np.linalg.norm(np.diff(points, n=2, axis=0), axis=-1)
    if not np.isfinite(accelerations).any():
        raise ValueError(f"smoothness needs at least 3 frames in a row, got {len(points)} in all")
    return float(np.nanmean(accelerations) * 1e3)


def chamfer_mm2(predicted: np.ndarray, true: np.ndarray) -> float:
    """Squared two-sided Chamfer distance between clouds, averaged over frames.

        mean over p of min over q of |p - q|^2   +   mean over q of min over p of |p - q|^2

    Args:
        predicted, true: N x K x 3 and N x L x 3 in metres.

    Returns:
        Square millimetres. Source: Fan et al. 2017 ("A Point Set Generation Network"), with means for sums.

    Raises:
        ValueError: unequal numbers of frames.
    """
    if len(predicted) != len(true):
        raise ValueError(f"both clouds need the same number of frames, got {len(predicted)} and {len(true)}")
    frames = []
    for p, q in zip(predicted, true, strict=True):
        squared = ((p[:, None].astype(np.float64) - q[None]) ** 2).sum(-1)
        frames.append(squared.min(1).mean() + squared.min(0).mean())
    return float(np.mean(frames) * 1e6)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to two sets of features; FID, if a trained encoder made them.

        |mu_a - mu_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))

    It is biased upwards for few samples: compare only values from equal counts.

    Args:
        a, b: samples x features, at least 2 samples each.

    Returns:
        Squared feature units. Source: Dowson and Landau 1982; Heusel et al. 2017.

    Raises:
        ValueError: features of different size, or fewer than 2 samples.
    """
    if a.shape[1:] != b.shape[1:] or a.ndim != 2 or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features must be samples x features, of one size, at least 2 samples each; got {a.shape}, {b.shape}"
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    covariance_a, covariance_b = (
        np.atleast_2d(np.cov(a, rowvar=False)),
        np.atleast_2d(np.cov(b, rowvar=False)),
    )
    # C_a C_b has the eigenvalues of the symmetric root(C_a) C_b root(C_a), which are real and not negative
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_b @ root)
    between = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + max(between, 0.0))


# --- video: N x H x W x 3 uint8 ---


def psnr_db(predicted: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of a whole video, 10 log10(255^2 / mean squared error); higher is better.

    Returns:
        Decibels, infinite for equal videos.

    Raises:
        ValueError: unequal shapes.
    """
    _check_alike(predicted, true)
    return _psnr(predicted, true, np.ones(true.shape[:-1], bool))


def psnr_moving_db(predicted: np.ndarray, true: np.ndarray) -> float:
    """PSNR over the pixels that differ from the first frame in the true video (see MOVING); higher is better.

    Most of a clip is a still background that repeating the reference image gets for free; this leaves it out.

    Returns:
        Decibels. Formula: ours.

    Raises:
        ValueError: unequal shapes, or nothing moves.
    """
    _check_alike(predicted, true)
    return _psnr(predicted, true, moving(true))


def moving(video: np.ndarray) -> np.ndarray:
    """Which pixels differ from the first frame, N x H x W bool (see MOVING).

    Raises:
        ValueError: none.
    """
    differs = (np.abs(video.astype(np.int16) - video[0]) > MOVING).any(-1)
    if not differs.any():
        raise ValueError("nothing moves in the true video, so PSNR on moving pixels is not defined")
    return differs


def ssim(predicted: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity, mean over frames, channels and pixels at least 5 from the border; 1 for equal videos.

    Gaussian windows of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03. Source: Wang et al. 2004.

    Raises:
        ValueError: unequal shapes, or frames smaller than a window.
    """
    _check_alike(predicted, true)
    if min(true.shape[1:3]) < 11:
        raise ValueError(
            f"SSIM needs frames of at least 11 x 11 pixels, got {true.shape[1]} x {true.shape[2]}"
        )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def window(frame: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(frame, (11, 11), 1.5)[5:-5, 5:-5]

    frames = []
    for p, q in zip(predicted.astype(np.float64), true.astype(np.float64), strict=True):
        mean_p, mean_q = window(p), window(q)
        variance_p, variance_q = window(p * p) - mean_p**2, window(q * q) - mean_q**2
        covariance = window(p * q) - mean_p * mean_q
        luminance = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
        frames.append((luminance * (2 * covariance + c2) / (variance_p + variance_q + c2)).mean())
    return float(np.mean(frames))


def _psnr(predicted: np.ndarray, true: np.ndarray, where: np.ndarray) -> float:
    error = np.mean((predicted[where].astype(np.float64) - true[where]) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _check_alike(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"both must have the same shape, got {a.shape} and {b.shape}")


# --- video against motion ---


def reprojection_px(motion: HandObjectMotion, motion_video: np.ndarray) -> float:
    """Do the 3D motion and the generated rendered motion video show the same thing? No reference is needed.

    The motion is drawn through its own camera at the video's size. In both, every pixel belongs to the left hand, the
    right hand, one of the objects, or nothing, by the nearest of the drawing colours. For each frame and each of these
    parts, the distance is the earth mover's: how far the part's pixels have to travel on average to become those of
    the other picture (as the mean of one-dimensional distances over directions, scaled so that a shift by k pixels
    counts k). A part that only one of them shows counts the image's diagonal, one that neither shows is left out. The
    result is the mean over frames and parts. Formula: ours, from the sliced Wasserstein distance (Rabin et al. 2011).

    Args:
        motion: as generated.
        motion_video: as generated beside it, N x H x W x 3 uint8.

    Returns:
        Pixels of the video; 0 where every part covers the same pixels.

    Raises:
        ValueError: another number of frames, or nothing to compare.
    """
    if motion_video.shape[0] != len(motion):
        raise ValueError(f"the motion has {len(motion)} frames and its video {motion_video.shape[0]}")
    height, width = motion_video.shape[1:3]
    drawn = _parts(render_motion(motion, width, height), len(motion.objects))
    generated = _parts(motion_video, len(motion.objects))
    distances = [
        _travel(p == part, q == part)
        for p, q in zip(drawn, generated, strict=True)
        for part in range(1, 3 + len(motion.objects))
        if (p == part).any() or (q == part).any()
    ]
    if not distances:
        raise ValueError("neither the motion nor its video shows a hand or an object")
    return float(np.mean(distances))


def _parts(frames: np.ndarray, objects: int) -> np.ndarray:
    """Label pixels N x H x W: 0 nothing or a joint's dot, 1 and 2 the hands, then the objects in order."""
    colors = [MOTION_STYLE.background, *MOTION_STYLE.hand_colors, *MOTION_STYLE.object_colors[:objects]]
    palette = np.array([*colors, MOTION_STYLE.joint_color], dtype=np.float32)
    # the nearest colour c maximises 2 x.c - c.c
    score = frames.astype(np.float32) @ (2 * palette.T) - (palette**2).sum(1)
    label = score.argmax(-1)
    return np.where(label == len(colors), 0, label)


def _travel(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance in pixels between two masks H x W, seen as heaps of equal mass."""
    if not (a.any() and b.any()):
        return float(np.hypot(*a.shape))
    angle = np.arange(16) * (np.pi / 16)
    directions = np.stack([np.cos(angle), np.sin(angle)])
    share = (np.arange(64) + 0.5) / 64
    from_a, from_b = (np.quantile(np.argwhere(mask) @ directions, share, axis=0) for mask in (a, b))
    return float(np.abs(from_a - from_b).mean() * np.pi / 2)
