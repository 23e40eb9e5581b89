"""Long clips in windows of a model's length: where they lie, and how what they show is put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .motion import Camera, HandObjectMotion
from .tracks import fit_rigid_track


def window_starts(total: int, frames: int, overlap: int = 0) -> list[int]:
    """First frames of the windows that cover a clip; the last one ends with the clip and may overlap more.

    Args:
        total: frames of the clip, at least `frames`.
        overlap: frames that a window shares with the next, at least; 0: half a window.

    Raises:
        ValueError: a clip shorter than a window, or an overlap that leaves nothing new.
    """
    overlap = overlap or frames // 2
    if not 0 <= overlap < frames <= total:
        raise ValueError(
            f"windows of {frames} frames need a clip of at least as many, got {total}, and an overlap of 0 to "
            f"{frames - 1}, got {overlap}"
        )
    starts = list(range(0, total - frames, frames - overlap))
    return [*starts, total - frames]


def join_motions(
    motions: Sequence[HandObjectMotion], starts: Sequence[int], follow: bool = False
) -> HandObjectMotion:
    """Windows of one motion put together, seen through the first one's camera: where two overlap, each counts more the
    farther it is from its own end.

    Args:
        starts: first frame of each window in the whole, ascending; windows touch or overlap.
        follow: for windows that go on from each other, the first of which is right: move each hand of a window by as
            much as it is off, on average, from where the window before has it, and carry the points that an object has
            along with those of the next window. Windows that were seen one by one are right by themselves.

    Raises:
        ValueError: windows of another rate or other objects than the first, or a gap between them.
    """
    first, *others = motions
    lengths = [len(first)]
    for motion, start in zip(others, starts[1:], strict=True):
        overlap = lengths[-1] - start
        _check_alike(first, motion, lengths[-1], overlap, follow and overlap > 0)
        lengths.append(start + len(motion))

    # In place, so that the time grows with the frames and not with their square
    hands = _room(first.hands, lengths[-1])
    objects = {name: _room(points, lengths[-1]) for name, points in first.objects.items()}
    for motion, start, length in zip(others, starts[1:], lengths, strict=False):
        motion, end = _seen_through(first.camera, motion), start + len(motion)
        goes_on = follow and length > start
        apart = _apart(hands[start:length], motion.hands) if goes_on else 0
        hands[start:end] = _blended(hands[start:length], motion.hands + apart)
        for name, points in objects.items():
            if goes_on:
                points[length:end] = _carried(points[length - 1], motion.objects[name], length - start)
            else:
                points[start:end] = _blended(points[start:length], motion.objects[name])
    return dataclasses.replace(first, hands=hands, objects=objects)


def join_videos(videos: Sequence[Tensor], starts: Sequence[int], blend: bool = False) -> Tensor:
    """Windows of one video (N H W C each) put together: what two show comes from the earlier one, which the later one
    repeats.

    Args:
        blend: go over from the one to the other instead, as in :func:`join_motions`: a window's copy of what it was
            given went through the VAE once more, and is softer.

    Raises:
        ValueError: windows of another size than the first, or a gap between them.
    """
    first, *others = videos
    parts, length = [first], len(first)
    for video, start in zip(others, starts[1:], strict=True):
        overlap = length - start
        if video.shape[1:] != first.shape[1:] or not 0 <= overlap <= len(video):
            raise ValueError(
                f"windows of a video must have one size and leave no gap: the next, {_size(video)}, begins at frame "
                f"{start} of {length} x {_size(first[0])}: scale the clip to the size of the next first"
            )
        parts.append(video[overlap:])
        length = start + len(video)
    joined = torch.cat(parts)
    if blend:
        length = len(first)
        for video, start in zip(others, starts[1:], strict=True):
            weight = torch.arange(1, length - start + 1) / (length - start + 1)
            joined[start:length].lerp_(video[: length - start], weight.reshape(-1, 1, 1, 1).to(video))
            length = start + len(video)
    return joined


def _room(frames: np.ndarray, length: int) -> np.ndarray:
    """Frames with room behind them, for so many in all."""
    room = np.empty((length, *frames.shape[1:]), np.float32)
    room[: len(frames)] = frames
    return room


def _blended(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A window (N ...) whose first frames go over from those that the one before has; where one has no number (an
    absent hand), the other counts alone."""
    overlap = len(before)
    weight = (np.arange(1, overlap + 1) / (overlap + 1)).reshape(-1, *[1] * (before.ndim - 1))
    second = after[:overlap]
    both = before + weight * (second - before)
    shared = np.where(np.isnan(before), second, np.where(np.isnan(second), before, both))
    return np.concatenate([shared, after[overlap:]])


def _apart(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each hand (N 2 21 3) of a window is from where the clip before has it, 1 2 1 3: the mean over the frames
    in which both show it, or 0."""
    apart = before - after[: len(before)]
    seen = np.isfinite(apart).all(axis=(2, 3), keepdims=True)
    total = np.where(seen, apart, 0).mean(axis=2, keepdims=True).sum(axis=0, keepdims=True)
    return total / np.maximum(seen.sum(axis=0, keepdims=True), 1)


def _carried(last: np.ndarray, after: np.ndarray, overlap: int) -> np.ndarray:
    """The points that an object has (K 3), carried on by the rigid motion of those that a window shows (M L 3), behind
    its first `overlap` frames."""
    track = fit_rigid_track(after)
    turns = track.rotations[overlap:] @ track.rotations[overlap - 1].T
    centre = last.mean(axis=0)
    ways = track.translations[overlap:] - track.translations[overlap - 1]
    return np.einsum("nij,kj->nki", turns, last - centre) + centre + ways[:, None]


def _seen_through(camera: Camera, motion: HandObjectMotion) -> HandObjectMotion:
    """A motion that looks through this camera as it does through its own: as large and in the same place of the image,
    so nearer or farther where the lenses differ."""
    if motion.camera == camera:
        return motion
    fx, fy, cx, cy = camera.relative
    own_fx, own_fy, own_cx, own_cy = motion.camera.relative

    def moved(points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(points, -1, 0)
        nearer = fx / own_fx
        across, down = own_fx * x + (own_cx - cx) * z, own_fy * y + (own_cy - cy) * z
        return np.stack([across * nearer / fx, down * nearer / fy, z * nearer], axis=-1)

    objects = {name: moved(points) for name, points in motion.objects.items()}
    return dataclasses.replace(motion, hands=moved(motion.hands), objects=objects, camera=camera)


def _check_alike(
    whole: HandObjectMotion, motion: HandObjectMotion, length: int, overlap: int, goes_on: bool
) -> None:
    if overlap < 0:
        raise ValueError(f"a window is missing: a gap of {-overlap} frames lies behind the first {length}")
    if overlap > len(motion):
        raise ValueError(
            f"a window of {len(motion)} frames begins {overlap} before the end of what it shall be put behind: the "
            "windows belong to different clips"
        )
    if abs(whole.fps - motion.fps) > 1e-3:
        raise ValueError(
            f"windows of one motion need one rate, got {whole.fps:g} and {motion.fps:g} frames a second"
        )
    counts = [{name: points.shape[1] for name, points in x.objects.items()} for x in (whole, motion)]
    if counts[0].keys() != counts[1].keys() or (counts[0] != counts[1] and not goes_on):
        raise ValueError(
            f"windows of one motion need the same objects and points, got {counts[0]} and {counts[1]}"
        )


def _size(frames: Tensor) -> str:
    return " x ".join(map(str, frames.shape))
