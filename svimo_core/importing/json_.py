"""Motion out of JSON: our own, MediaPipe's results, and plain lists of numbers by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import reading
from ..motion import HAND_NAMES, JOINTS_PER_HAND, NPZ_FORMAT, NPZ_VERSION, Camera, HandObjectMotion

MEDIAPIPE_FRAMES = ("frames", "results")
MEDIAPIPE_WORLD = (
    *("worldLandmarks", "world_landmarks", "hand_world_landmarks"),
    *("multiHandWorldLandmarks", "multi_hand_world_landmarks"),
)
MEDIAPIPE_SIDES = ("handedness", "handednesses", "multiHandedness", "multi_handedness")
EXPECTED = "expected a SViMo motion, MediaPipe's world landmarks, or lists of numbers of one shape"


def read_json(path: str | os.PathLike) -> HandObjectMotion | dict[str, Any]:
    """Read a motion as :func:`svimo_core.export.json_.write_json` writes it; of any other file, its named arrays.

    MediaPipe's results are a list with one entry per frame, or such a list as `frames` or `results` beside `fps`; of
    each entry (or its `result`) world landmarks and handedness are read, under the names of the old and new interface.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, damaged, of a newer version, or without anything that could be joints.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    with reading(path, "is not a SViMo motion", "export or copy it again"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and "format" in content:
            return _own(content)
    with reading(path, "is no JSON that is known", EXPECTED):
        return _arrays(content)


def _own(content: dict[str, Any]) -> HandObjectMotion:
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
        hands[:, HAND_NAMES.index(side)] = _own_joints(side, joints, frames)
    return HandObjectMotion(
        hands=hands,
        objects={name: np.array(points, dtype=np.float32) for name, points in content["objects"].items()},
        camera=Camera(**content["camera"]),
        fps=float(content["fps"]),
        prompt=content.get("prompt") or "",
        metadata={key: str(value) for key, value in (content.get("metadata") or {}).items()},
    )


def _own_joints(side: str, joints: list, frames: int) -> np.ndarray:
    """One hand's frames, N x 21 x 3; null is a frame without it."""
    absent = [[float("nan")] * 3] * JOINTS_PER_HAND
    array = np.array([absent if frame is None else frame for frame in joints], dtype=np.float32)
    if array.shape != (frames, JOINTS_PER_HAND, 3):
        raise ValueError(f"the {side} hand should be {frames} frames x 21 x 3, got {array.shape}")
    return array


def _arrays(content: Any) -> dict[str, Any]:
    """Arrays by name, and dictionaries as they are, for MANO parameters come in them; a list alone is hands."""
    frames = content
    if isinstance(content, dict):
        frames = next((content[key] for key in MEDIAPIPE_FRAMES if key in content), None)
    if isinstance(frames, list) and any(isinstance(frame, dict) for frame in frames):
        rates = {
            key: np.array(content[key]) for key in ("fps",) if isinstance(content, dict) and key in content
        }
        return rates | _mediapipe(frames)
    named = content if isinstance(content, dict) else {"hands": content}
    return {
        key: value if isinstance(value, dict) else _array(value)
        for key, value in named.items()
        if isinstance(value, (dict, list, int, float, str))
    }


def _array(value: Any) -> np.ndarray:
    """Numbers of one shape; null among a list's entries is NaN, which JSON does not have."""
    there = [entry for entry in value if entry is not None] if isinstance(value, list) else []
    if there and len(there) < len(value):
        absent = np.full(np.shape(there[0]), np.nan)
        value = [absent if entry is None else entry for entry in value]
    return np.array(value)


def _mediapipe(frames: list[dict]) -> dict[str, np.ndarray]:
    """One row per detection out of MediaPipe's results of a video, a dictionary per frame."""
    rows: list[tuple[int, str, list]] = []
    for number, frame in enumerate(frames):
        frame = (frame or {}).get("result", frame) or {}
        world = next((frame[key] for key in MEDIAPIPE_WORLD if key in frame), None)
        sides = next((frame[key] for key in MEDIAPIPE_SIDES if key in frame), None)
        if frame and (world is None or (sides is None and world)):
            raise ValueError(
                f"frame {number} has {', '.join(frame)}; MediaPipe's world landmarks and handedness are expected, as "
                "landmarks in the image are not in metres"
            )
        rows += [(number, _label(side), hand) for side, hand in zip(sides or (), world or (), strict=True)]
    if not rows:
        raise ValueError("MediaPipe found no hand in any frame")
    hands = [hand.get("landmark", hand) if isinstance(hand, dict) else hand for _, _, hand in rows]
    points = [[[joint["x"], joint["y"], joint["z"]] for joint in hand] for hand in hands]
    return {
        "frame_count": np.array(len(frames)),
        "frame": np.array([number for number, _, _ in rows]),
        "is_right": np.array([label for _, label, _ in rows]),
        "keypoints_3d": np.array(points, dtype=np.float64),
    }


def _label(side: Any) -> str:
    """Left or Right, out of MediaPipe's several wrappings."""
    while isinstance(side, list):
        side = side[0]
    return (
        side
        if isinstance(side, str)
        else side.get("categoryName") or side.get("label") or side["category_name"]
    )
