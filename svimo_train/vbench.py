r"""What VBench (Huang et al., CVPR 2024) reads and answers. It measures videos in an environment of its own.

    python -m svimo_train.evaluate --json scores.json --export-vbench FOLDER
    vbench evaluate --mode custom_input --videos_path FOLDER/videos --prompt_file FOLDER/prompts.json \
        --dimension subject_consistency background_consistency motion_smoothness dynamic_degree
    python -m svimo_train.evaluate --json scores.json --vbench-results evaluation_results/results_..._eval_results.json
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svimo_core.files import reading, whole_file

DIMENSIONS = "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree"
"""The paper's four, in VBench's words. That its "temporal smoothness" is `motion_smoothness` is our reading."""


def export(
    folder: Path, names: Sequence[str], prompts: Sequence[str], videos: Sequence[np.ndarray], fps: float
) -> None:
    """Write videos and prompts as VBench's custom input takes them: `videos/NAME.mp4` (H.264, nearly without loss), and
    `prompts.json`, the prompt of each file's name.

    Args:
        videos: N x H x W x 3 uint8 RGB each, of even height and width.

    Raises:
        ValueError: see :func:`place_for_videos`.
        OSError: it cannot be written.
    """
    place = place_for_videos(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = [f"{name}.mp4" for name in names]
    for file, video in zip(files, videos, strict=True):
        with whole_file(place / file) as partial:
            _write_video(partial, video, fps)
    with whole_file(folder / "prompts.json") as partial:
        partial.write_text(json.dumps(dict(zip(files, prompts, strict=True)), indent=1), encoding="utf-8")


def place_for_videos(folder: Path) -> Path:
    """Where in a folder the videos go.

    Raises:
        ValueError: some are there already, which VBench would measure as well.
    """
    place = folder / "videos"
    if place.is_dir() and any(place.iterdir()):
        raise ValueError(
            f"{place} is not empty, and VBench measures all that is in it: choose another folder"
        )
    return place


def _write_video(path: Path, video: np.ndarray, fps: float) -> None:
    try:
        import av
    except ImportError as error:
        raise OSError("videos are written by PyAV, which is missing: pip install av") from error
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "6"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
        container.mux(stream.encode())


def read_results(paths: Sequence[str | os.PathLike]) -> dict[str, float]:
    """What VBench says of all videos, and the paper's Overall: the product of the four.

    Args:
        paths: `..._eval_results.json`; several if not all dimensions were measured at once. Each has, by dimension, a
            mean over frames or videos and a list of `{"video_path": ..., "video_results": ...}`.

    Returns:
        By dimension, with `overall` and `videos`, their number.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is something else, a dimension is missing, or dimensions are of different videos.
    """
    found: dict[str, float] = {}
    measured: dict[str, set[str]] = {}
    for path in paths:
        with reading(
            path, "is not what VBench writes (..._eval_results.json)", "give the file that it named"
        ):
            for dimension, (score, videos) in json.loads(Path(path).read_text(encoding="utf-8")).items():
                found[dimension] = float(score)
                measured[dimension] = {Path(video["video_path"]).name for video in videos}
    told = ", ".join(Path(path).name for path in paths)
    missing = [dimension for dimension in DIMENSIONS if dimension not in found]
    if missing:
        raise ValueError(
            f"{told} has nothing on {', '.join(missing)}: have VBench measure all four for Overall"
        )
    of_ours = [measured[dimension] for dimension in DIMENSIONS]
    if not of_ours[0] or any(names != of_ours[0] for names in of_ours):
        counts = ", ".join(f"{dimension} {len(measured[dimension])}" for dimension in DIMENSIONS)
        raise ValueError(
            f"{told} measures other videos in one dimension than in another ({counts}): measure anew"
        )
    scores = {dimension: found[dimension] for dimension in DIMENSIONS}
    for dimension, score in scores.items():
        if not 0 <= score <= 1:
            raise ValueError(f"{told}: {dimension} should be between 0 and 1, got {score}")
    return {**scores, "overall": math.prod(scores.values()), "videos": len(of_ours[0])}
