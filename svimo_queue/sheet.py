"""The contact sheet: one HTML file that shows a batch, with small pictures in it and the files beside it."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import av
from PIL import Image

from svimo_core.files import whole_file

TEMPLATE = Path(__file__).with_name("sheet.html")
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
VIDEOS = {".mp4", ".webm", ".mkv", ".mov"}
SOUNDS = {".flac", ".mp3", ".wav", ".ogg", ".opus"}
SIDE = 360
"""Longer side of a small picture, in pixels."""


def write_sheet(path: Path, title: str, entries: Sequence[tuple[Mapping, Sequence[Path]]]) -> Path:
    """Write the page.

    Args:
        path: of the page; files are linked relative to its folder.
        title: of the batch.
        entries: of each job its row of the table and its files.
    """
    jobs = [
        {"row": dict(row), "files": [_file(path.parent, file) for file in files]} for row, files in entries
    ]
    # A script element ends at the first "</", wherever it stands.
    content = json.dumps({"title": title, "jobs": jobs}).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8").replace('"@BATCH@"', content)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _file(folder: Path, file: Path) -> dict:
    suffix = file.suffix.lower()
    kinds = {"image": IMAGES, "video": VIDEOS, "sound": SOUNDS}
    kind = next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "file")
    small = None
    if kind in ("image", "video") and file.is_file():
        small = _small_picture(file, kind, file.stat().st_mtime_ns)
    return {
        "name": file.name,
        "link": quote(file.relative_to(folder).as_posix()),
        "kind": kind,
        "picture": small,
    }


@functools.lru_cache(maxsize=20_000)
def _small_picture(file: Path, kind: str, _changed: int) -> dict | None:
    """A JPEG as a data address with its size, or None of a file that shows nothing."""
    with contextlib.suppress(
        Exception
    ):  # a sheet goes without the picture of a file that no library can read
        picture = Image.open(file) if kind == "image" else _middle_frame(file)
        size = picture.size
        picture = picture.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
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
