"""The true clips that an evaluation generates anew and measures against: of the synthetic world, or of a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from svimo_core.config import SViMoConfig
from svimo_core.motion import HandObjectMotion
from svimo_core.normalization import MotionNormalizer

from .clips import ClipFolder, resize_video
from .data.synthetic import generate_clip
from .data.words import Triplet
from .metrics import moving

FIRST_CLIP = 2**40
"""Number of the first synthetic clip of evaluation seed 0: training leaves these numbers out (`on_the_fly.ENDLESS`)."""
NAMED = 20
"""Broken clips in a message."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueClip:
    """One of them, at the size that the model generates."""

    name: str
    video: np.ndarray
    """N x H x W x 3 uint8 RGB, of which generation gets the first frame."""
    motion: HandObjectMotion
    """With the prompt that generation gets."""
    seed: int
    """Of the noise that generation starts from."""
    triplet: Triplet | None = None
    """Its words in the synthetic world; None for a clip of anything else."""


def synthetic_clips(
    seed: int, count: int, split: str, config: SViMoConfig, frames: int | None = None
) -> list[TrueClip]:
    """Clips of the synthetic world at the model's native size, or longer.

    Raises:
        ValueError: an unknown split, or a negative seed or no clips.
    """
    _check(seed, count)
    size = dict(frames=frames or config.frames, height=config.height, width=config.width, fps=config.fps)
    first = seed * 2**20
    made = (generate_clip(FIRST_CLIP + number, split, **size) for number in range(first, first + count))
    return [
        TrueClip(
            name=str(clip.seed - FIRST_CLIP),
            video=clip.video,
            motion=clip.motion,
            seed=clip.seed,
            triplet=clip.triplet,
        )
        for clip in made
    ]


def folder_clips(
    folder: Path,
    seed: int,
    count: int,
    config: SViMoConfig,
    normalizer: MotionNormalizer,
    frames: int | None = None,
) -> list[TrueClip]:
    """So many clips of a folder (:mod:`svimo_train.clips`), or all there are: cut to the model's native length, or a
    longer one, and resized as for training. Clips of a first frame alone are passed over.

    The order is that of checksums of seed and name: it mixes what names sort together, and stays when clips are added.
    The noise comes from the same checksum.

    Args:
        normalizer: of the model, which says what objects it needs.

    Raises:
        ValueError: a negative seed, no clips, or some that are broken, too short, still or without a hand or an object
            that the model needs; the message names each.
    """
    _check(seed, count)
    source = ClipFolder(folder)
    checksums = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in source.names]
    clips: list[TrueClip] = []
    broken: list[str] = []
    for index in sorted(range(len(source)), key=checksums.__getitem__):
        if len(clips) + len(broken) == count:
            break
        try:
            if source.has_video(index):
                noise = int.from_bytes(checksums[index][:6], "big")
                clips.append(_fitted(source, index, noise, config, normalizer, frames or config.frames))
        except (OSError, ValueError) as error:
            broken.append(str(error))
    if broken:
        more = f"\n... and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ValueError(
            f"{len(broken)} clips of {folder} cannot be measured against: write them again, delete them, or give "
            "another folder:\n" + "\n".join(broken[:NAMED]) + more
        )
    if not clips:
        raise ValueError(
            f"the clips in {folder} have only their first frames: give a folder of clips with video"
        )
    return clips


def _fitted(
    source: ClipFolder,
    index: int,
    noise: int,
    config: SViMoConfig,
    normalizer: MotionNormalizer,
    frames: int,
) -> TrueClip:
    clip, name = source.clip(index, frames), source.names[index]
    video = resize_video(clip.video, config.height, config.width)
    try:
        normalizer.normalize(clip.motion, config.interaction.points_per_object)
        moving(video)
    except ValueError as error:
        raise ValueError(f"clip {source.folder / name}: {error}") from error
    camera = clip.motion.camera.resized(config.width, config.height)
    return TrueClip(name=name, video=video, motion=replace(clip.motion, camera=camera), seed=noise)


def _check(seed: int, count: int) -> None:
    if seed < 0 or count < 1:
        raise ValueError(f"an evaluation needs a seed from 0 and at least one clip, got {seed=} and {count=}")
