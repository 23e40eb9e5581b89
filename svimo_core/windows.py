"""Long clips in windows of a model's length: where they lie, and how what they show is put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .motion import HandObjectMotion


def window_starts(total: int, frames: int, overlap: int) -> list[int]:
    """First frames of the windows that cover a clip; the last one ends with the clip and may overlap more.

    Args:
        total: frames of the clip, at least `frames`.
        overlap: frames that a window shares with the next, at least.

    Raises:
        ValueError: a clip shorter than a window, or an overlap that leaves nothing new.
    """
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
    """Windows of one motion put together: where two overlap, each counts more the farther it is from its own end.

    Args:
        starts: first frame of each window in the whole, ascending; windows touch or overlap.
        follow: move each hand and object of a window by as much as it is off, on average, from where the window before
            has it: for windows that go on from each other, the first of which is right. Windows that were seen one by
            one are right by themselves.

    Raises:
        ValueError: windows of another rate, camera or other objects than the first, or a gap between them.
    """
    whole, *others = motions
    for motion, start in zip(others, starts[1:], strict=True):
        _check_alike(whole, motion, len(whole) - start)
        overlap = len(whole) - start
        if follow and overlap:
            motion = _moved_to(motion, whole, overlap)
        hands = _joined(whole.hands, motion.hands, overlap)
        objects = {
            name: _joined(points, motion.objects[name], overlap) for name, points in whole.objects.items()
        }
        whole = dataclasses.replace(whole, hands=hands, objects=objects)
    return whole


def join_videos(videos: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """Windows of one video (N H W C each) put together: what two show comes from the earlier one, which the later one
    repeats.

    Raises:
        ValueError: windows of another size than the first, or a gap between them.
    """
    whole, *others = videos
    for video, start in zip(others, starts[1:], strict=True):
        if video.shape[1:] != whole.shape[1:] or not 0 <= len(whole) - start <= len(video):
            raise ValueError(
                f"windows of a video must have one size and leave no gap: the next, {_size(video)}, begins at frame "
                f"{start} of {_size(whole)}"
            )
        whole = torch.cat([whole, video[len(whole) - start :]])
    return whole


def _joined(before: np.ndarray, after: np.ndarray, overlap: int) -> np.ndarray:
    """Frames (N ...) of two windows; where one has no number (an absent hand), the other counts alone."""
    first, second = before[len(before) - overlap :], after[:overlap]
    weight = (np.arange(1, overlap + 1) / (overlap + 1)).reshape(-1, *[1] * (before.ndim - 1))
    blended = np.where(
        np.isnan(first), second, np.where(np.isnan(second), first, first + weight * (second - first))
    )
    return np.concatenate([before[: len(before) - overlap], blended, after[overlap:]]).astype(np.float32)


def _moved_to(motion: HandObjectMotion, whole: HandObjectMotion, overlap: int) -> HandObjectMotion:
    """A window with each hand and object where the clip before it has it, on average over their common frames."""

    def by(before: np.ndarray, after: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        apart = before[len(before) - overlap :] - after[:overlap]
        seen = np.isfinite(apart).all(axis=axes, keepdims=True)
        mean = np.nanmean(np.where(np.isfinite(apart), apart, 0), axis=axes, keepdims=True)
        return np.where(seen, mean, 0)

    objects = {
        name: points + by(whole.objects[name], points, (0, 1)) for name, points in motion.objects.items()
    }
    return dataclasses.replace(
        motion, hands=motion.hands + by(whole.hands, motion.hands, (0, 2)), objects=objects
    )


def _check_alike(whole: HandObjectMotion, motion: HandObjectMotion, overlap: int) -> None:
    if not 0 <= overlap <= len(motion):
        raise ValueError(f"a window of {len(motion)} frames cannot overlap the one before it by {overlap}")
    if (whole.fps, whole.camera) != (motion.fps, motion.camera):
        raise ValueError(
            f"windows of one motion need one rate and camera, got {whole.fps:g} and {motion.fps:g} frames a second, "
            f"{whole.camera} and {motion.camera}"
        )
    counts = [{name: points.shape[1] for name, points in x.objects.items()} for x in (whole, motion)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"windows of one motion need the same objects and points, got {counts[0]} and {counts[1]}"
        )


def _size(video: Tensor) -> str:
    return " x ".join(map(str, video.shape))
