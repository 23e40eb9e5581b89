"""Motion out of JSON files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ..export.json_ import VERSION
from ..motion import HAND_NAMES, NPZ_FORMAT, Camera, HandObjectMotion


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
        if content["version"] > VERSION:
            raise ValueError(
                f"it has version {content['version']}; this version reads up to {VERSION}: update the pack"
            )
        missing = [side for side in HAND_NAMES if side not in content["hands"]]
        if missing:
            raise ValueError(f"the {missing[0]} hand is missing: both hands are needed")
        return HandObjectMotion(
            hands=np.stack(
                [np.array(content["hands"][side], dtype=np.float32) for side in HAND_NAMES], axis=1
            ),
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
