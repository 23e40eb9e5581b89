"""Motion out of JSON files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ..motion import HAND_NAMES, JOINTS_PER_HAND, NPZ_FORMAT, NPZ_VERSION, Camera, HandObjectMotion


def read_json(path: str | os.PathLike) -> HandObjectMotion:
    """Read a motion written by :func:`svimo_core.export.json_.write_json`, or by another program to the same schema.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, damaged, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no motion file at {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != NPZ_FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {NPZ_FORMAT!r}")
        if content["version"] > NPZ_VERSION:
            raise ValueError(
                f"it has version {content['version']}; this version reads up to {NPZ_VERSION}: update the pack"
            )
        sides = content["hands"]
        unknown = sorted(set(sides) - set(HAND_NAMES))
        if unknown:
            raise ValueError(f"it has hands called {unknown}, expected {list(HAND_NAMES)}")
        frames = len(next(iter([*sides.values(), *content["objects"].values()]), ()))
        hands = np.full((frames, len(HAND_NAMES), JOINTS_PER_HAND, 3), np.nan, dtype=np.float32)
        for side, joints in sides.items():
            hands[:, HAND_NAMES.index(side)] = _joints(side, joints, frames)
        return HandObjectMotion(
            hands=hands,
            objects={name: np.array(points, dtype=np.float32) for name, points in content["objects"].items()},
            camera=Camera(**content["camera"]),
            fps=float(content["fps"]),
            prompt=content.get("prompt", ""),
            metadata=content.get("metadata", {}),
        )
    except KeyError as error:
        raise ValueError(f"{path.name} is not a SViMo motion: it lacks {error}") from error
    except (AttributeError, TypeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a SViMo motion: {error}") from error


def _joints(side: str, joints: list, frames: int) -> np.ndarray:
    """One hand's frames, N x 21 x 3; null is a frame without it."""
    absent = [[float("nan")] * 3] * JOINTS_PER_HAND
    array = np.array([absent if frame is None else frame for frame in joints], dtype=np.float32)
    if array.shape != (frames, JOINTS_PER_HAND, 3):
        raise ValueError(f"the {side} hand should be {frames} frames x 21 x 3, got {array.shape}")
    return array
