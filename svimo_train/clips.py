"""Training clips on disk: a folder with `NAME.npy` (video) and `NAME.npz` (motion) for every clip.

The video is N x H x W x 3 uint8 RGB and the motion is :class:`~svimo_core.motion.HandObjectMotion`, whose prompt is the
clip's. Any data set in this form can be trained on. Fill a folder from the synthetic world:

    python -m svimo_train.clips --out FOLDER --count 600

A clip may have its first frame only, as a video of one frame beside the whole motion: a tenth of the work, and enough
for `tiny-loop.json`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from svimo_core.clean import trim
from svimo_core.config import PRESETS, VAEConfig
from svimo_core.files import reading, whole_file
from svimo_core.motion import HandObjectMotion
from svimo_core.render import render_motion

from .data.synthetic import generate_clip

log = logging.getLogger(__name__)

FIRST_FRAMES_SERVE = (
    'the alignment stage, a joint stage with joint.guidance_from "first" and without joint.warm_up, and an '
    "interaction stage with interaction.sampled_share 1"
)
"""Stages for which clips may have only their first frame."""


class Clip(NamedTuple):
    """One clip in memory."""

    video: np.ndarray
    """N x H x W x 3 uint8."""
    motion: HandObjectMotion


class ClipFolder:
    """The clips of a folder, in the order of their names.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.names = sorted(path.stem for path in self.folder.glob("*.npz"))
        if not self.names:
            raise ValueError(
                f"no clips in {self.folder}: fill it with `python -m svimo_train.clips --out {self.folder}`"
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Of one clip, for messages."""
        return f"clip {self.folder / self.names[index]}"

    def motion(self, index: int, frames: int | None = None, start: int = 0) -> HandObjectMotion:
        """The motion of one clip, or so many frames of it.

        Raises:
            ValueError: it cannot be read or is too short; the message names the file.
        """
        path = self.folder / f"{self.names[index]}.npz"
        motion = HandObjectMotion.load(path)
        if frames is None:
            return motion
        return _part(motion, path, start, frames)

    def length(self, index: int) -> int:
        """Frames of one clip.

        Raises:
            ValueError: it cannot be read; the message names the file.
        """
        return len(self.motion(index))

    def drawing(self, index: int, frames: int, start: int = 0) -> np.ndarray:
        """So many frames of a clip's motion, drawn at the size of its video: N x H x W x 3 uint8.

        Raises:
            As :meth:`clip`.
        """
        clip = self.clip(index, frames, start)
        return render_motion(clip.motion, width=clip.video.shape[2], height=clip.video.shape[1])

    def video(self, index: int) -> np.ndarray:
        """The video of one clip, memory-mapped: N x H x W x 3 uint8.

        Raises:
            ValueError: it cannot be read; the message names the file.
        """
        path = self.folder / f"{self.names[index]}.npy"
        with reading(
            path, "cannot be read as a clip's video", f"delete {path} and its .npz, or write them again"
        ):
            video = np.load(path, mmap_mode="r", allow_pickle=False)
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
            raise ValueError(f"clip {path} must hold N x H x W x 3 uint8, got {video.shape} {video.dtype}")
        return video

    def stamp(self, index: int) -> list[int]:
        """Sizes and times of a clip's files: others when it is written again.

        Raises:
            ValueError: one is missing.
        """
        stamp = []
        for path in (self.folder / f"{self.names[index]}{suffix}" for suffix in (".npz", ".npy")):
            try:
                status = path.stat()
            except OSError as error:
                raise ValueError(f"clip {path} cannot be read ({error}): write it again") from error
            stamp += [status.st_size, status.st_mtime_ns]
        return stamp

    def has_video(self, index: int) -> bool:
        """Whether a clip has more than the first frame of its motion."""
        return len(self.video(index)) > 1

    def clip(self, index: int, frames: int | None = None, start: int = 0) -> Clip:
        """One clip, or so many frames of it.

        Raises:
            ValueError: it is broken, too short or without video; the message names the file.
        """
        video, motion = self.video(index), self.motion(index)
        if len(video) == 1 < len(motion):
            raise ValueError(
                f"{self.name(index)} has only its first frame, which serves only "
                f"{FIRST_FRAMES_SERVE}: train on another folder"
            )
        if len(video) != len(motion):
            raise ValueError(
                f"{self.name(index)} has {len(video)} frames of video and "
                f"{len(motion)} of motion: write it again"
            )
        if frames is None:
            return Clip(np.array(video), motion)
        part = _part(motion, self.folder / self.names[index], start, frames)
        return Clip(np.array(video[start : start + frames]), part)


def _part(motion: HandObjectMotion, path: Path, start: int, frames: int) -> HandObjectMotion:
    if len(motion) < start + frames:
        raise ValueError(f"clip {path} has {len(motion)} frames, {start + frames} are needed")
    return motion.take(slice(start, start + frames))


def resize_video(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames (N H W 3 uint8) scaled to another size of the same shape."""
    if video.shape[1:3] == (height, width):
        return video
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in video])


def part_for_vae(videos: Sequence[np.ndarray], vae: VAEConfig) -> list[np.ndarray]:
    """Of each video (N H W 3) its first frames and upper left corner: as much as all of them have and the VAE takes."""
    frames, height, width = (min(sizes) for sizes in zip(*(video.shape[:3] for video in videos), strict=True))
    frames -= (frames - 1) % vae.frame_step
    height, width = (size - size % vae.spatial_compression for size in (height, width))
    return [video[:frames, :height, :width] for video in videos]


def write_clip(folder: Path, name: str, clip: Clip) -> None:
    """Add one clip to a folder; its files appear whole or not at all, the motion last."""
    with whole_file(folder / f"{name}.npy") as partial, partial.open("wb") as file:
        np.save(file, clip.video)
    clip.motion.save(folder / f"{name}.npz")


def main(arguments: list[str] | None = None) -> None:
    """Fill a folder with synthetic training clips; those already there are kept."""
    parser = argparse.ArgumentParser(prog="python -m svimo_train.clips", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--first", type=int, default=0, help="seed of the first clip")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument(
        "--varied",
        action="store_true",
        help="unknown tools, motions and targets under made-up words (synthetic.py)",
    )
    parser.add_argument("--first-frames", action="store_true", help="no video but the first frame")
    parser.add_argument(
        "--of",
        type=int,
        metavar="FRAMES",
        help="cut clips out of longer ones, so that they begin amid the action",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny", help="whose clip size to use")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    preset = PRESETS[args.preset]
    size = dict(height=preset.height, width=preset.width, fps=preset.fps, varied=args.varied)
    longer = args.of or preset.frames
    if longer < preset.frames:
        parser.error(f"clips of {preset.frames} frames cannot be cut out of {longer}")
    kind = "varied-" * args.varied + "first-" * args.first_frames + f"of-{longer}-" * bool(args.of)
    for seed in tqdm(range(args.first, args.first + args.count), unit="clip"):
        name = f"{args.split}-{kind}{seed:06d}"
        if not (args.out / f"{name}.npz").is_file():
            start = seed % (longer - preset.frames + 1)
            stop = start + preset.frames
            drawn = slice(start, start + 1 if args.first_frames else stop)
            made = generate_clip(seed, args.split, frames=longer, drawn=drawn, **size)
            write_clip(args.out, name, Clip(made.video, trim(made.motion, start, stop - 1)))


if __name__ == "__main__":
    main()
