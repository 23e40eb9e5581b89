"""Any supported file -> a motion: our own .npz and .json, BVH, and 21-joint arrays as hand trackers save them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..export.bvh import METRES_PER_UNIT
from ..motion import HAND_NAMES, JOINTS_PER_HAND, Camera, HandObjectMotion
from .bvh import read_bvh_hands
from .json_ import read_json

EXPECTED = (
    "expected `hands` (frames x 2 x 21 x 3, left then right), or `left` and `right` (frames x 21 x 3 each), or one "
    "row per detection: `frame`, `is_right` and `pred_keypoints_3d` (rows x 21 x 3), and `pred_cam_t_full` (rows x 3)"
)
IMAGE = (624, 416)
"""Width and height in pixels of a motion from elsewhere that does not say."""
MAX_FRAMES = 1_000_000
"""Of detections: a frame number beyond is a mistake, not nine hours of video."""


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
    :func:`svimo_core.importing.bvh.read_bvh_hands`), and .npz or .npy with joints in camera space, OpenPose order.

    Args:
        paths: the file, or two .bvh files.
        camera: for files that carry none; default 50 degrees wide, of the arrays' `image_size` or 624 x 416 pixels.
        fps: for arrays that carry none.
        metres_per_unit: default 0.01 for BVH (centimetres) and 1 for arrays.
        max_gap: fill up to so many missing frames in a row in arrays, by straight lines; 0 fills none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is none of these, that lacks a hand, or whose values are not finite.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".bvh"}:
        hands, fps = read_bvh_hands(paths, metres_per_unit=metres_per_unit or METRES_PER_UNIT)
        return HandObjectMotion(hands=hands, objects={}, camera=camera or Camera.from_fov(*IMAGE), fps=fps)
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
        fps = _single(path.name, arrays, "fps") if fps is None else fps
        if fps is None:
            raise ValueError(f"{path.name} does not say its frame rate: set fps")
        if camera is None:
            camera = Camera.from_fov(*_image_size(path.name, arrays))
        hands = fill_gaps(_hands(path.name, arrays, camera), max_gap, name=path.name)
        return HandObjectMotion(hands=hands * (metres_per_unit or 1), objects={}, camera=camera, fps=fps)
    raise ValueError(f"{path.name}: a motion comes as .npz, .npy, .json or .bvh")


def fill_gaps(hands: np.ndarray, max_gap: int, *, name: str = "the motion") -> np.ndarray:
    """Replace frames in which a hand is not finite by straight lines between its neighbours.

    Args:
        hands: N x 2 x 21 x 3; a hand with any value that is not finite, or with all joints in one place (zeros), counts
            as missing in that frame.
        max_gap: the longest run of frames to fill.
        name: what to call the motion in errors.

    Raises:
        ValueError: a hand that is missing for longer, or at the start or end, or throughout.
    """
    hands = np.array(hands, dtype=np.float64)
    frames = np.arange(len(hands))
    for i, side in enumerate(HAND_NAMES):
        seen = np.isfinite(hands[:, i]).all(axis=(1, 2))
        seen &= (hands[:, i] != hands[:, i, :1]).any(axis=(1, 2))
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


def _hands(name: str, arrays: dict[str, np.ndarray], camera: Camera) -> np.ndarray:
    """Joints, N x 2 x 21 x 3, from any of the expected layouts; NaN where a hand was not detected."""
    keypoints = _first(arrays, "pred_keypoints_3d", "keypoints_3d")
    if "hands" in arrays:
        hands = _numbers(name, arrays, "hands")
        if hands.ndim == 3 and hands.shape[1:] == (2 * JOINTS_PER_HAND, 3):
            hands = hands.reshape(-1, 2, JOINTS_PER_HAND, 3)
    elif {"left", "right"} <= set(arrays):
        left, right = (_numbers(name, arrays, side) for side in HAND_NAMES)
        if left.shape != right.shape:
            raise ValueError(
                f"{name}: left and right must have the same shape, got {left.shape} and {right.shape}"
            )
        hands = np.stack([left, right], axis=1)
    elif {"left", "right"} & set(arrays):
        missing = ({"left", "right"} - set(arrays)).pop()
        raise ValueError(f"{name} has no {missing} hand: both hands are needed in every frame")
    elif keypoints and {"frame", "is_right"} <= set(arrays):
        hands = _detections(name, arrays, keypoints, camera)
    else:
        raise ValueError(f"{name} has {', '.join(sorted(arrays)) or 'nothing'}; {EXPECTED}")
    if hands.ndim != 4 or hands.shape[1:] != (2, JOINTS_PER_HAND, 3) or not len(hands):
        raise ValueError(f"{name}: its joints have shape {hands.shape}; {EXPECTED}")
    return hands


def _detections(name: str, arrays: dict[str, np.ndarray], key: str, camera: Camera) -> np.ndarray:
    """One row per detected hand -> N x 2 x 21 x 3, NaN where there was none."""
    keypoints = _numbers(name, arrays, key)
    frame, is_right = (_numbers(name, arrays, column).ravel() for column in ("frame", "is_right"))
    column = _first(arrays, "pred_cam_t_full", "cam_t")
    place = _numbers(name, arrays, column) if column else np.zeros((len(frame), 3))
    rows = len(frame)
    if (keypoints.shape, is_right.shape, place.shape) != ((rows, JOINTS_PER_HAND, 3), (rows,), (rows, 3)):
        raise ValueError(f"{name}: rows of different number or shape; {EXPECTED}")
    if not rows or not ((frame >= 0) & (frame < MAX_FRAMES)).all() or not np.isin(is_right, (0, 1)).all():
        raise ValueError(
            f"{name}: frame must count from 0 (at most {MAX_FRAMES:,} frames) and is_right be 0 or 1; {EXPECTED}"
        )
    frame, is_right = frame.astype(int), is_right.astype(int)
    pairs, counts = np.unique(np.stack([frame, is_right]), axis=1, return_counts=True)
    if counts.max() > 1:
        number, side = pairs[:, np.argmax(counts > 1)]
        raise ValueError(
            f"{name} has {counts.max()} detections of the {HAND_NAMES[side]} hand in frame {number}: keep the best"
        )
    focal_length = _single(name, arrays, "focal_length")
    if focal_length is not None:
        # Trackers that see only a crop assume a lens of many thousand pixels, which puts hands many metres away.
        # At this distance they look the same through the motion's own camera.
        width, _ = _image_size(name, arrays, needed=True)
        place = place * (1, 1, camera.fx / camera.width * width / focal_length)
    hands = np.full((frame.max() + 1, 2, JOINTS_PER_HAND, 3), np.nan)
    hands[frame, is_right] = keypoints + place[:, None]
    return hands


def _first(arrays: dict[str, np.ndarray], *keys: str) -> str | None:
    """The first of these names that is there."""
    return next((key for key in keys if key in arrays), None)


def _numbers(name: str, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    """An array as float64."""
    if arrays[key].dtype.kind not in "biuf":
        raise ValueError(f"{name}: {key} holds {arrays[key].dtype} instead of numbers")
    return arrays[key].astype(np.float64)


def _single(name: str, arrays: dict[str, np.ndarray], key: str) -> float | None:
    """A number that holds for the whole clip, however often it is repeated; None without such an array."""
    if key not in arrays:
        return None
    values = np.unique(_numbers(name, arrays, key))
    if len(values) != 1 or not values[0] > 0:
        raise ValueError(f"{name}: {key} must be one positive number for the whole clip, got {values}")
    return float(values[0])


def _image_size(name: str, arrays: dict[str, np.ndarray], *, needed: bool = False) -> tuple[int, int]:
    """Width and height that arrays say, or the default."""
    if "image_size" not in arrays:
        if needed:
            raise ValueError(f"{name} has focal_length without image_size (width, height), both in pixels")
        return IMAGE
    sizes = np.unique(np.atleast_2d(_numbers(name, arrays, "image_size")), axis=0)
    if sizes.shape != (1, 2) or not (sizes >= 1).all():
        raise ValueError(
            f"{name}: image_size must be one width and height for the whole clip, got {sizes.tolist()}"
        )
    return int(sizes[0, 0]), int(sizes[0, 1])


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
