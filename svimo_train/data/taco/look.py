"""Sheets of prepared clips: the motion drawn over the frames, to see whether they fit."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from svimo_core.files import whole_file
from svimo_core.render import render_motion
from svimo_train.clips import Clip, ClipFolder

BANNER = 22
"""Pixels."""


def sheet(clip: Clip, title: str, columns: int = 4) -> np.ndarray:
    """Frames of a clip over the same frames with the motion drawn on them, H x W x 3 uint8 RGB."""
    chosen = np.linspace(0, len(clip.video) - 1, columns).astype(int)
    height, width = clip.video.shape[1:3]
    frames, drawn = clip.video[chosen], render_motion(clip.motion, width, height)[chosen]
    over = np.where(drawn.any(axis=-1, keepdims=True), frames // 4 + drawn // 4 * 3, frames)
    banner = np.full((BANNER, width * columns, 3), 245, np.uint8)
    cv2.putText(banner, title, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate([banner, *(np.concatenate(list(row), axis=1) for row in (frames, over))])


def write_sheets(out: Path, count: int = 8) -> list[Path]:
    """Write `OUT/look/NAME.png` for some clips of each part, evenly spaced over their names.

    Raises:
        FileNotFoundError: there are no clips.
        ValueError: a clip cannot be read; the message names the file.
    """
    (out / "look").mkdir(parents=True, exist_ok=True)
    written = []
    for part in ("train", "test"):
        if not any((out / part).glob("*.npz")):
            continue
        clips = ClipFolder(out / part)
        for index in np.unique(np.linspace(0, len(clips) - 1, count).astype(int)):
            clip, name = clips.clip(index), clips.names[index]
            drawn = sheet(clip, f"{part} {name}: {clip.motion.prompt}")
            path = out / "look" / f"{name}.png"
            with whole_file(path) as partial:
                partial.write_bytes(cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
            written.append(path)
    if not written:
        raise FileNotFoundError(f"no clips in {out}: fill it with `python -m svimo_train.data.taco prepare`")
    return written
