"""JSON: the same content as the native .npz for programs and people without numpy."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..files import whole_file
from ..motion import COMPLETE_VERSION, HAND_NAMES, JOINT_NAMES, NPZ_FORMAT, NPZ_VERSION, HandObjectMotion

DECIMALS = 6
"""Micrometres: far finer than any motion here, and a third of the size of full floats."""
MAX_NUMBERS = 10_000_000
"""About 100 MB of text; beyond that JSON is the wrong format."""


def write_json(
    path: str | os.PathLike,
    motion: HandObjectMotion,
    *,
    metadata: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a motion as JSON; `docs/motion-format.md` has the schema.

    Raises:
        ValueError: a motion too large for JSON.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    present = motion.present
    clouds = {
        **{("hands", side): motion.hands[:, i] for i, side in enumerate(HAND_NAMES) if present[:, i].any()},
        **{("objects", name): points for name, points in motion.objects.items()},
    }
    numbers = sum(points.size for points in clouds.values())
    if numbers > MAX_NUMBERS:
        raise ValueError(
            f"{numbers:,} numbers are too many for JSON (at most {MAX_NUMBERS:,}): save as .npz instead"
        )
    header = {
        "format": NPZ_FORMAT,
        "version": COMPLETE_VERSION if present.all() else NPZ_VERSION,
        "units": "metres",
        "axes": "camera space: x right, y down, z forward",
        "fps": motion.fps,
        "frames": len(motion),
        "camera": dataclasses.asdict(motion.camera),
        "joint_names": JOINT_NAMES,
        "prompt": motion.prompt,
        "metadata": {**motion.metadata, **(metadata or {})},
        "hands": {},
        "objects": {},
    }
    for i, ((kind, name), points) in enumerate(clouds.items(), start=1):
        frames = np.round(points.astype(np.float64), DECIMALS).tolist()
        absent = np.isnan(points[:, 0, 0])
        header[kind][name] = [None if gone else frame for gone, frame in zip(absent, frames, strict=True)]
        if on_progress is not None:
            on_progress(i, len(clouds) + 1)
    with whole_file(path) as partial:
        text = json.dumps(header, allow_nan=False, separators=(",", ":"))  # far faster than json.dump
        partial.write_text(text, encoding="utf-8", newline="\n")
        if on_progress is not None:
            on_progress(len(clouds) + 1, len(clouds) + 1)
    return path
