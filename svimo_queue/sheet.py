"""The contact sheet: one HTML file that shows a batch, with small pictures in it and the files beside it."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
from PIL import Image

from svimo_core.files import whole_file
from svimo_core.motion import HandObjectMotion

TEMPLATE = Path(__file__).with_name("sheet.html")
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
VIDEOS = {".mp4", ".webm", ".mkv", ".mov"}
SOUNDS = {".flac", ".mp3", ".wav", ".ogg", ".opus"}
MOTIONS = {".npz"}
SIDE = 360
"""Longer side of a small picture, in pixels."""


def write_sheet(
    path: Path,
    title: str,
    entries: Sequence[tuple[Mapping, Sequence[Path]]],
    file_columns: Collection[str] = (),
) -> Path:
    """Write the page.

    Args:
        path: of the page; files are linked relative to its folder.
        title: of the batch.
        entries: of each job its row of the table and its files.
        file_columns: of the table, whose values are files.
    """
    jobs = [{"row": dict(row), "files": _files(path.parent, files)} for row, files in entries]
    batch = {"title": title, "jobs": jobs, "file_columns": list(file_columns)}
    # A script element ends at the first "</script", wherever it stands, and behind "<!--<script" not even there.
    content = json.dumps(batch).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace('"@BATCH@"', content)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _files(folder: Path, files: Sequence[Path]) -> list[dict]:
    """What the page has of a job's files; a motion is drawn where nothing else shows it."""
    kinds = [_kind(file) for file in files]
    drawn = {"image", "video"} if {"image", "video"} & set(kinds) else {"motion"}
    return [
        {
            "name": file.name,
            "link": quote(file.relative_to(folder).as_posix()),
            "kind": kind,
            "picture": _small_picture(file, kind, file.stat().st_mtime_ns)
            if kind in drawn and file.is_file()
            else None,
        }
        for file, kind in zip(files, kinds, strict=True)
    ]


def _kind(file: Path) -> str:
    kinds = {"image": IMAGES, "video": VIDEOS, "sound": SOUNDS, "motion": MOTIONS}
    return next((kind for kind, suffixes in kinds.items() if file.suffix.lower() in suffixes), "file")


@functools.lru_cache(maxsize=20_000)
def _small_picture(file: Path, kind: str, _changed: int) -> dict | None:
    """A JPEG as a data address with its size, or None of a file that shows nothing."""
    with contextlib.suppress(
        Exception
    ):  # a sheet goes without the picture of a file that no library can read
        picture = {"image": Image.open, "video": _middle_frame, "motion": _drawn}[kind](file)
        size = picture.size
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE * (2 if kind == "motion" else 1), SIDE), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=82)
        return {
            "address": f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}",
            "width": size[0],
            "height": size[1],
        }
    return None


def _middle_frame(file: Path) -> Image.Image:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        middle = (stream.duration or 0) // 2 + (stream.start_time or 0)
        container.seek(middle, stream=stream)  # to the key frame before it
        frame = None
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts >= middle:
                break
        return frame.to_image()


def _drawn(file: Path) -> Image.Image:
    """The middle frame of a motion, through its own camera and from the side."""
    from svimo_core.render import draw_motion, draw_view  # needs OpenCV, which nothing else here does

    motion = HandObjectMotion.load(file)
    height = round(SIDE * motion.camera.height / motion.camera.width)
    views = [draw(motion, SIDE, height) for draw in (draw_motion, draw_view)]
    return Image.fromarray(np.hstack([next(islice(view, len(motion) // 2, None)) for view in views]))
