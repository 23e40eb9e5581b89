"""Changes an artist may ask for, each a pure function of a motion: smooth, resample, scale, place in view."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.ndimage import gaussian_filter1d, maximum_filter1d
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation, RotationSpline

from .motion import HandObjectMotion
from .tracks import RigidTrack, fit_rigid_track


def smooth(motion: HandObjectMotion, seconds: float, contact_distance: float = 0.012) -> HandObjectMotion:
    """Filter jitter out of a motion while fingers that touch an object keep touching it.

    Objects are filtered as rigid motions (position, rotation, and what is left in the object's own axes), joints in
    camera space. A joint that is within `contact_distance` of an object is filtered in the axes of that object
    instead, so that it follows the filtered object and does not slide; the two blend where contact begins and ends.

    Args:
        motion: unchanged.
        seconds: standard deviation of the Gaussian filter; slower movement than this stays.
        contact_distance: metres from a joint to the nearest object point that count as touching.

    Raises:
        ValueError: a negative duration, or an object without a rigid motion.
    """
    if seconds < 0 or contact_distance < 0:
        raise ValueError(
            f"seconds and contact_distance cannot be negative, got {seconds} and {contact_distance}"
        )
    sigma = seconds * motion.fps  # in frames
    if sigma == 0 or len(motion) == 1:
        return motion

    hands = _smooth_line(motion.hands.astype(np.float64), sigma)
    objects = {}
    for name, points in motion.objects.items():
        track = fit_rigid_track(points, name=name)
        filtered = _smooth_track(track, sigma)
        shape = _smooth_line(track.to_local(points.astype(np.float64)), sigma)
        objects[name] = _from_local(filtered, shape)

        # In the object's axes, filter the frames in contact alone; then blend from before to after them.
        touching = _touching(motion.hands, points, contact_distance).astype(np.float64)[..., None]
        held, near = _smooth_where(touching, track.to_local(motion.hands.astype(np.float64)), sigma)
        contact = maximum_filter1d(touching, 2 * int(np.ceil(2 * sigma)) + 1, axis=0, mode="nearest")
        share = gaussian_filter1d(contact, sigma, axis=0, mode="nearest")
        hands += share * np.where(near, _from_local(filtered, held) - hands, 0)
    return dataclasses.replace(motion, hands=hands, objects=objects)


def resample(motion: HandObjectMotion, fps: float) -> HandObjectMotion:
    """The same motion at another frame rate, from its first frame to its last.

    Joints follow cubic splines; objects turn along smooth rotation splines, so their shape is kept exactly. A lower
    rate drops frames without filtering: smooth first if the motion is fast.

    Raises:
        ValueError: a rate that is not positive, or an object without a rigid motion.
    """
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be positive, got {fps}")
    if fps == motion.fps or len(motion) == 1:
        return dataclasses.replace(motion, fps=fps)
    before = np.arange(len(motion)) / motion.fps
    count = int(np.floor(before[-1] * fps + 1e-6)) + 1
    after = np.minimum(np.arange(count) / fps, before[-1])

    objects = {}
    for name, points in motion.objects.items():
        track = fit_rigid_track(points, name=name)
        moved = dataclasses.replace(
            track,
            rotations=RotationSpline(before, Rotation.from_matrix(track.rotations))(after).as_matrix(),
            translations=CubicSpline(before, track.translations)(after),
        )
        shape = PchipInterpolator(before, track.to_local(points.astype(np.float64)))(after)
        objects[name] = _from_local(moved, shape)
    return dataclasses.replace(
        motion, hands=CubicSpline(before, motion.hands)(after), objects=objects, fps=fps
    )


def scale(motion: HandObjectMotion, factor: float) -> HandObjectMotion:
    """Everything larger by a factor about the camera: 0.01 turns centimetres into metres.

    Raises:
        ValueError: a factor that is not positive.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"the factor must be positive, got {factor}")
    objects = {name: points * factor for name, points in motion.objects.items()}
    return dataclasses.replace(motion, hands=motion.hands * factor, objects=objects)


def place_in_view(motion: HandObjectMotion, distance: float = 0.6) -> HandObjectMotion:
    """Move a motion from elsewhere in front of the camera: its middle on the optical axis, `distance` metres away.

    Raises:
        ValueError: a distance that leaves some of the motion behind the camera.
    """
    low, high = motion.bounds()
    shift = (0, 0, distance) - (low + high) / 2
    if low[2] + shift[2] <= 0:
        raise ValueError(
            f"the motion is {high[2] - low[2]:.3g} m deep, so {distance} m puts some of it behind the camera; "
            f"choose more than {(high[2] - low[2]) / 2:.3g} m (or scale it: is it in metres?)"
        )
    objects = {name: points + shift for name, points in motion.objects.items()}
    return dataclasses.replace(motion, hands=motion.hands + shift, objects=objects)


def _smooth_line(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian filter along time whose ends continue the movement instead of stopping it."""
    pad = min(len(values) - 1, int(np.ceil(4 * sigma)))
    padded = np.pad(values, [(pad, pad)] + [(0, 0)] * (values.ndim - 1), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(padded, sigma, axis=0, mode="nearest")[pad : pad + len(values)]


def _smooth_where(mask: np.ndarray, values: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Filter along time with the frames where `mask` is 1 and no others: a local straight line through them.

    Returns:
        The filtered values, and where there was any such frame to filter (within six standard deviations).
    """
    time = np.arange(len(values), dtype=np.float64).reshape(-1, *(1,) * (values.ndim - 1))
    average = functools.partial(gaussian_filter1d, sigma=sigma, axis=0, mode="constant", truncate=6)
    weight = average(mask)
    near = weight > 1e-12
    mean = lambda array: average(mask * array) / np.where(near, weight, 1)  # noqa: E731
    centre, mean_time = mean(values), mean(np.broadcast_to(time, mask.shape))
    spread = mean(np.broadcast_to(time**2, mask.shape)) - mean_time**2
    slope = (mean(time * values) - mean_time * centre) / (
        spread + 0.1
    )  # 0.1 frames^2: one frame has no slope
    return centre + slope * (time - mean_time), near


def _smooth_track(track: RigidTrack, sigma: float) -> RigidTrack:
    """Filter position and rotation; quaternions with continuous signs average well over a short window."""
    quaternions = Rotation.from_matrix(track.rotations).as_quat()
    flips = np.cumprod(np.append(1, np.where(np.sum(quaternions[1:] * quaternions[:-1], axis=1) < 0, -1, 1)))
    rotations = Rotation.from_quat(_smooth_line(quaternions * flips[:, None], sigma)).as_matrix()
    return dataclasses.replace(
        track, rotations=rotations, translations=_smooth_line(track.translations, sigma)
    )


def _from_local(track: RigidTrack, local: np.ndarray) -> np.ndarray:
    """Points in the object's axes (N x ... x 3) -> camera space."""
    turned = np.einsum("nij,n...j->n...i", track.rotations, local)
    return turned + track.translations.reshape(-1, *(1,) * (local.ndim - 2), 3)


def _touching(hands: np.ndarray, points: np.ndarray, distance: float) -> np.ndarray:
    """Which joints are within `distance` of an object's points, N x 2 x 21 bool."""
    nearest = [
        cKDTree(cloud).query(joints.reshape(-1, 3))[0] for joints, cloud in zip(hands, points, strict=True)
    ]
    return np.stack(nearest).reshape(hands.shape[:-1]) <= distance
