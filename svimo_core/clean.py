"""Changes an artist may ask for, each a pure function of a motion: smooth, resample, trim, scale, place."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.ndimage import gaussian_filter1d, maximum_filter1d
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation, RotationSpline

from .motion import HAND_NAMES, HandObjectMotion
from .tracks import RigidTrack, bridge, fit_rigid_track

MISSING_HANDS = ("hold", "mirror", "park")
"""Ways to invent a hand where there is none."""
SOON = 0.01
"""Of a frame: a motion that ends so little before one still has it, as rates are rounded (29.9997 for 30)."""
APART = 0.2
"""Metres between a hand and the one that is invented beside it."""


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

    # Frames without a hand stay without it, and have no say in those with it.
    seen, there = _bridged(motion), motion.present[..., None]
    hands = _smooth_line(seen, sigma)
    for i in np.flatnonzero(motion.present.any(axis=0) & ~motion.present.all(axis=0)):
        hands[:, i], _ = _smooth_where(there[:, i, :, None].astype(np.float64), seen[:, i], sigma)
    objects = {}
    for name, points in motion.objects.items():
        track = fit_rigid_track(points, name=name)
        filtered = _smooth_track(track, sigma)
        shape = _smooth_line(track.to_local(points.astype(np.float64)), sigma)
        objects[name] = _from_local(filtered, shape)

        # In the object's axes, filter the frames in contact alone; then blend from before to after them.
        touching = (there & _touching(seen, points, contact_distance)).astype(np.float64)[..., None]
        held, near = _smooth_where(touching, track.to_local(seen), sigma)
        contact = maximum_filter1d(touching, 2 * int(np.ceil(2 * sigma)) + 1, axis=0, mode="nearest")
        share = gaussian_filter1d(contact, sigma, axis=0, mode="nearest")
        hands += share * np.where(near, _from_local(filtered, held) - hands, 0)
    hands[~motion.present] = np.nan
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
    count = int(np.floor(before[-1] * fps + SOON)) + 1
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
    hands = CubicSpline(before, _bridged(motion))(after)
    nearest = np.floor(after * motion.fps + 0.5 + 1e-6).astype(int).clip(max=len(motion) - 1)
    hands[~motion.present[nearest]] = np.nan  # a hand is there where it is in the nearest frame
    return dataclasses.replace(motion, hands=hands, objects=objects, fps=fps)


def trim(motion: HandObjectMotion, first: int, last: int) -> HandObjectMotion:
    """The frames from `first` to `last`, which is part of it, counted from 0.

    Raises:
        ValueError: frames that the motion does not have.
    """
    if not 0 <= first <= last < len(motion):
        raise ValueError(
            f"cannot keep frames {first} to {last} of a motion that has frames 0 to {len(motion) - 1}"
        )
    return motion.take(slice(first, last + 1))


def trim_to_hands(motion: HandObjectMotion) -> HandObjectMotion:
    """From the first to the last frame in which every hand is there that is there at all.

    Raises:
        ValueError: the hands are never there together.
    """
    sides = motion.present.any(axis=0)
    together = np.flatnonzero(motion.present[:, sides].all(axis=1))
    if not sides.any() or not len(together):
        raise ValueError("the hands are in no frame together, so there is nothing to trim to")
    return trim(motion, int(together[0]), int(together[-1]))


def add_missing_hands(motion: HandObjectMotion, how: str) -> HandObjectMotion:
    """A hand in every frame, invented where there is none.

    Args:
        motion: unchanged.
        how: one of :data:`MISSING_HANDS`. "hold": a hand that is there at times stays as it was last seen, or will
            be seen first; one that is never there stays absent. "mirror": that one moves as the other, on its own
            side. "park": it stands still below the motion, in the other's first pose. Both hold gaps, too.

    Raises:
        ValueError: an unknown way, or no hand at all.
    """
    if how not in MISSING_HANDS:
        raise ValueError(f"missing hands can be added by {', '.join(MISSING_HANDS)}, got {how!r}")
    never = ~motion.present.any(axis=0)
    if never.all():
        raise ValueError(f"no hand is there in any frame, so there is no pose to {how}")
    hands = motion.hands.astype(np.float64)
    for i, present in enumerate(motion.present.T):
        if present.any():
            hands[:, i] = hands[_last_seen(present), i]
    for i in np.flatnonzero(never) if how != "hold" else ():
        other = hands[:, 1 - i]
        outward = -1 if HAND_NAMES[i] == "left" else 1  # the left hand is to the left in the picture
        plane = other[:, 0, 0].mean() + outward * APART / 2
        added = np.array((2 * plane, 0, 0)) + other * (-1, 1, 1)
        if how == "park":
            low, high = motion.bounds()
            added = np.broadcast_to(added[:1], added.shape) + (0, high[1] - low[1] + APART, 0)
        hands[:, i] = added
    return dataclasses.replace(motion, hands=hands)


def _last_seen(present: np.ndarray) -> np.ndarray:
    """For each frame, the last one in which a hand was there; before the first, the first."""
    seen = np.flatnonzero(present)
    return seen[np.searchsorted(seen, np.arange(len(present)), side="right").clip(1) - 1]


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
            f"choose at least {distance_to_see(motion):.2g} m (or scale it: is it in metres?)"
        )
    objects = {name: points + shift for name, points in motion.objects.items()}
    return dataclasses.replace(motion, hands=motion.hands + shift, objects=objects)


def _bridged(motion: HandObjectMotion) -> np.ndarray:
    """Joints in every frame, N x 2 x 21 x 3 float64; zeros of a hand that is never there."""
    hands = motion.hands.astype(np.float64)
    for i, present in enumerate(motion.present.T):
        hands[:, i] = bridge(hands[:, i], present) if present.any() else 0
    return hands


def distance_to_see(motion: HandObjectMotion) -> float:
    """Metres from the camera to the middle of a motion from which all of it is in view, and 0.2 m before the camera."""
    low, high = motion.bounds()
    width, height, depth = (high - low) / 2
    camera = motion.camera
    return depth + max(
        0.2, width * camera.fx / (0.5 * camera.width), height * camera.fy / (0.5 * camera.height)
    )


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
