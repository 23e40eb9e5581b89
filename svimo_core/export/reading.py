"""Any supported file -> a motion: our own .npz and .json, BVH, and 21-joint arrays as hand trackers save them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..motion import HAND_NAMES, JOINTS_PER_HAND, Camera, HandObjectMotion
from .bvh import METRES_PER_UNIT, read_bvh_hands
from .json_ import read_json

EXPECTED = (
    "expected `hands` (frames x 2 x 21 x 3, left then right), or `left` and `right` (frames x 21 x 3 each), or one "
    "row per detection: `frame`, `is_right` and `pred_keypoints_3d` (rows x 21 x 3), and `pred_cam_t_full` (rows x 3)"
)


def read_motion(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    camera: Camera | None = None,
    fps: float | None = None,
    metres_per_unit: float | None = None,
    max_gap: int = 0,
) -> HandObjectMotion:
    """Read a motion from one file, or from one BVH per hand.

    SViMo's own .npz and .json come back as they were. Everything else has hands alone: .bvh (see
    :func:`svimo_core.export.bvh.read_bvh_hands`), and .npz or .npy with joints in camera space, OpenPose order.

    Args:
        paths: the file, or two .bvh files.
        camera: for files that carry none; default a 50 degree camera of 624 x 416 pixels.
        fps: for arrays that carry none.
        metres_per_unit: default 0.01 for BVH (centimetres) and 1 for arrays.
        max_gap: fill up to so many missing frames in a row in arrays, by straight lines; 0 fills none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is none of these, that lacks a hand, or whose values are not finite.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    suffixes = {path.suffix.lower() for path in paths}
    camera = camera or Camera.from_fov(624, 416)
    if suffixes == {".bvh"}:
        hands, fps = read_bvh_hands(paths, metres_per_unit=metres_per_unit or METRES_PER_UNIT)
        return HandObjectMotion(hands=hands, objects={}, camera=camera, fps=fps)
    if len(paths) != 1:
        raise ValueError(
            f"expected one file, or two .bvh files, got {', '.join(path.name for path in paths) or 'none'}"
        )
    path = paths[0]
    if suffixes == {".json"}:
        return read_json(path)
    if suffixes == {".npz"} and "format" in _names(path):
        return HandObjectMotion.load(path)
    if suffixes <= {".npz", ".npy"}:
        arrays = _arrays(path)
        fps = float(arrays["fps"]) if fps is None and "fps" in arrays else fps
        if fps is None:
            raise ValueError(f"{path.name} does not say its frame rate: set fps")
        hands = fill_gaps(_hands(path.name, arrays), max_gap, name=path.name)
        return HandObjectMotion(hands=hands * (metres_per_unit or 1), objects={}, camera=camera, fps=fps)
    raise ValueError(f"{path.name}: a motion comes as .npz, .npy, .json or .bvh")


def fill_gaps(hands: np.ndarray, max_gap: int, *, name: str = "the motion") -> np.ndarray:
    """Replace frames in which a hand is not finite by straight lines between its neighbours.

    Args:
        hands: N x 2 x 21 x 3; a hand with any value that is not finite counts as missing in that frame.
        max_gap: the longest run of frames to fill.
        name: what to call the motion in errors.

    Raises:
        ValueError: a hand that is missing for longer, or at the start or end, or throughout.
    """
    hands = np.array(hands, dtype=np.float64)
    frames = np.arange(len(hands))
    for i, side in enumerate(HAND_NAMES):
        seen = np.isfinite(hands[:, i]).all(axis=(1, 2))
        if not seen.any():
            raise ValueError(f"{name} has no {side} hand: both hands are needed in every frame")
        gaps = np.diff(np.flatnonzero(np.concatenate([[True], seen, [True]]))) - 1
        if not (seen[0] and seen[-1]) or gaps.max() > max_gap:
            raise ValueError(
                f"{name}: the {side} hand is missing in {int((~seen).sum())} of {len(seen)} frames, first in frame "
                f"{int(np.argmin(seen))}, for up to {gaps.max()} in a row; max_gap fills {max_gap} between frames "
                "that have it: raise it, or cut the motion to where both hands are seen"
            )
        flat = hands[:, i].reshape(len(hands), -1)
        for column in flat.T:
            column[~seen] = np.interp(frames[~seen], frames[seen], column[seen])
        hands[:, i] = flat.reshape(-1, JOINTS_PER_HAND, 3)
    return hands


def _hands(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Joints, N x 2 x 21 x 3, from any of the expected layouts; NaN where a hand was not detected."""
    keypoints = arrays.get("pred_keypoints_3d", arrays.get("keypoints_3d"))
    if "hands" in arrays:
        hands = arrays["hands"]
        if hands.ndim == 3 and hands.shape[1:] == (2 * JOINTS_PER_HAND, 3):
            hands = hands.reshape(-1, 2, JOINTS_PER_HAND, 3)
    elif {"left", "right"} <= set(arrays):
        left, right = arrays["left"], arrays["right"]
        if left.shape != right.shape:
            raise ValueError(
                f"{name}: left and right must have the same shape, got {left.shape} and {right.shape}"
            )
        hands = np.stack([left, right], axis=1)
    elif {"left", "right"} & set(arrays):
        missing = ({"left", "right"} - set(arrays)).pop()
        raise ValueError(f"{name} has no {missing} hand: both hands are needed in every frame")
    elif keypoints is not None and {"frame", "is_right"} <= set(arrays):
        frame, is_right = arrays["frame"].astype(int).ravel(), arrays["is_right"].astype(int).ravel()
        place = arrays.get("pred_cam_t_full", arrays.get("cam_t", np.zeros((len(keypoints), 3))))
        if not len(keypoints) == len(frame) == len(is_right) == len(place) or keypoints.shape[1:] != (
            JOINTS_PER_HAND,
            3,
        ):
            raise ValueError(f"{name}: rows of different number or shape; {EXPECTED}")
        if not len(frame) or frame.min() < 0 or not set(is_right.tolist()) <= {0, 1}:
            raise ValueError(f"{name}: frame must count from 0 and is_right be 0 or 1; {EXPECTED}")
        hands = np.full((frame.max() + 1, 2, JOINTS_PER_HAND, 3), np.nan)
        hands[frame, is_right] = keypoints + place[:, None]
    else:
        raise ValueError(f"{name} has {', '.join(sorted(arrays)) or 'nothing'}; {EXPECTED}")
    if hands.ndim != 4 or hands.shape[1:] != (2, JOINTS_PER_HAND, 3) or not len(hands):
        raise ValueError(f"{name}: its joints have shape {hands.shape}; {EXPECTED}")
    return hands


def _names(path: Path) -> set[str]:
    """Arrays in an .npz, or none if it is no such file."""
    if not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as file:
        return {name.removesuffix(".npy") for name in file.namelist()}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Plain arrays of an .npz or .npy; pickled ones are refused, never run."""
    if not path.is_file():
        raise FileNotFoundError(f"no motion file at {path}")
    if path.suffix.lower() == ".npz" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name} is not a complete .npz archive (it may be truncated): copy it again")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"hands": content}
        with content:
            return {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path.name} cannot be read as plain arrays: {error}") from error
