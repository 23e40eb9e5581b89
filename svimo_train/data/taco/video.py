"""Frames of video files, by PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svimo_core.files import reading


class VideoSize(NamedTuple):
    """What a video file holds."""

    frames: int
    width: int
    height: int


def video_size(path: Path) -> VideoSize:
    """How many frames a video has and of what size, without decoding them.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: it cannot be read.
    """
    with _opened(path) as (container, stream):
        frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        return VideoSize(frames, stream.codec_context.width, stream.codec_context.height)


def read_frames(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of these numbers, from 0, in order: number and H x W x 3 uint8 RGB.

    Raises:
        ImportError: PyAV is not installed.
        ValueError: it cannot be read, or ends before the last of them.
    """
    left = sorted(set(wanted), reverse=True)
    if not left:
        return
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if not left:
                return
            if number == left[-1]:
                yield left.pop(), frame.to_ndarray(format="rgb24")
    if left:
        raise ValueError(f"{path.name} ends before frame {left[-1]}")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"{path.name}: videos are read by PyAV, which is missing: pip install av"
        ) from error
    with reading(path, "cannot be read as a video"), av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path.name} has no video in it")
        yield container, container.streams.video[0]
