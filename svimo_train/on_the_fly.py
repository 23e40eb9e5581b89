"""Clips of the synthetic world that are drawn as training goes: none comes twice, and nothing is stored.

The seed of a clip is a number of the run, its source and the clip, so any worker draws the same one, and a run goes on
where it stopped. Workers draw pixels; latents are made of them where the frozen VAE is (:class:`LatentEncoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svimo_core.config import ClipSize, SViMoConfig
from svimo_core.model.vae import VideoVAE
from svimo_core.motion import HandObjectMotion
from svimo_core.normalization import MotionNormalizer
from svimo_core.render import render_motion

from .clips import Clip
from .data.synthetic import generate_clip, generate_motion
from .encode import encode_clip
from .encoded import EncodedClip
from .settings import Batch, Shape, Synthetic

ENDLESS = 2**40
"""Clips of a source, and seeds from one run's first to the next run's."""


class SyntheticClips:
    """The clips of one source, with what :class:`svimo_train.clips.ClipFolder` has of its own.

    Args:
        run: seed of the run.
        model: whose clip size and rate they have.
    """

    def __init__(self, source: Synthetic, run: int, model: SViMoConfig, split: str = "train"):
        self.source = source
        self.run = run
        self.split = split
        self.size = ClipSize(model.frames, model.height, model.width)
        self.fps = model.fps

    def __len__(self) -> int:
        return ENDLESS

    def name(self, index: int) -> str:
        """Of one clip, for messages."""
        return f"synthetic clip {index}"

    def length(self, index: int) -> int:
        """Frames of one clip."""
        return self.size.frames

    def has_video(self, index: int) -> bool:
        """Whether a clip has more than the first frame of its motion."""
        return not self.source.first_frames

    def motion(self, index: int, frames: int | None = None, start: int = 0) -> HandObjectMotion:
        """The motion of one clip, or so many frames of it."""
        return generate_motion(**self._options(index, self.size)).take(_part(frames, start))

    def video(self, index: int) -> np.ndarray:
        """The video of one clip: N x H x W x 3 uint8."""
        return self.clip(index).video

    def clip(self, index: int, frames: int | None = None, start: int = 0) -> Clip:
        """One clip, or so many frames of it, which are all that is drawn."""
        part = _part(frames, start)
        made = generate_clip(**self._options(index, self.size), drawn=part)
        return Clip(made.video, made.motion.take(part))

    def drawing(self, index: int, frames: int, start: int = 0) -> np.ndarray:
        """So many frames of a clip's motion, drawn at the size of its video: N x H x W x 3 uint8."""
        return render_motion(self.motion(index, frames, start), self.size.width, self.size.height)

    def at(self, index: int, size: ClipSize) -> Clip:
        """One clip at a size of one's own, its video no more than its first frame where the source has it so."""
        drawn = slice(1) if self.source.first_frames else slice(None)
        made = generate_clip(**self._options(index, size), drawn=drawn)
        return Clip(made.video, made.motion)

    def _options(self, index: int, size: ClipSize) -> dict[str, Any]:
        stretch = self.run + (self.run > 0)  # the second one is the evaluations'
        seed = stretch * ENDLESS + self.source.first_seed + index
        return {
            "seed": seed,
            "split": self.split,
            **size._asdict(),
            "fps": self.fps,
            "varied": self.source.varied,
        }


def _part(frames: int | None, start: int) -> slice:
    return slice(start, None if frames is None else start + frames)


def held_out(model: SViMoConfig) -> SyntheticClips:
    """Clips for a run's sheets."""
    return SyntheticClips(Synthetic(), 0, model, "test")


class HeldOutClips:
    """Held-out clips with their latents, as :class:`svimo_train.encoded.EncodedClips` gives them."""

    def __init__(self, model: SViMoConfig, vae: VideoVAE):
        self.clips = held_out(model)
        self.vae = vae

    def __len__(self) -> int:
        return len(self.clips)

    def has_latents(self, index: int, size: ClipSize) -> bool:
        """Whether a clip has more than its first frame."""
        return True

    def clip(self, index: int, size: ClipSize) -> EncodedClip:
        """One clip."""
        return EncodedClip.of(encode_clip(self.clips, index, size, self.vae))


@dataclass(frozen=True, kw_only=True)
class SyntheticBatches:
    """Pixels, normalised motion and prompts."""

    sources: Sequence[SyntheticClips]
    normalizer: MotionNormalizer
    points: int
    """Of each object."""

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """Clips as tensors, each drawn once however often it comes.

        Returns:
            frames: video and drawing of C clips that have a video, C 2 N H W 3 uint8.
            row: which of those each sample has, B; -1: none.
            whole, hands, points, images, prompts: as :class:`svimo_train.loader.EncodedBatches` gives them.
        """
        clips = {index: self._clip(index, shape.size) for index in indices}
        whole = [index for index, clip in clips.items() if len(clip.video) == len(clip.motion)]
        frames = np.empty((len(whole), 2, *shape.size, 3), np.uint8)
        for both, index in zip(frames, whole, strict=True):
            both[0] = clips[index].video
            both[1] = render_motion(clips[index].motion, shape.width, shape.height)
        motions = {
            index: self.normalizer.normalize(clip.motion, self.points) for index, clip in clips.items()
        }
        hands, points = zip(*(motions[index] for index in indices), strict=True)
        row = torch.tensor([whole.index(index) if index in whole else -1 for index in indices])
        return {
            "frames": torch.from_numpy(frames),
            "row": row,
            "whole": row >= 0,
            "hands": torch.stack(hands),
            "points": torch.stack(points),
            "images": torch.from_numpy(np.stack([clips[index].video[0] for index in indices])),
            "prompts": [clips[index].motion.prompt for index in indices],
        }

    def _clip(self, index: int, size: ClipSize) -> Clip:
        source, number = divmod(index, ENDLESS)
        return self.sources[source].at(number, size)


@dataclass(frozen=True)
class LatentEncoder:
    """Makes of what :class:`SyntheticBatches` gave what :class:`svimo_train.loader.EncodedBatches` gives."""

    vae: VideoVAE

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """video, motion in place of frames and row: latents, B C T h w float32; zero where a clip has no video."""
        others = {name: value for name, value in batch.items() if name not in ("frames", "row")}
        latents = self._latents(batch["frames"])[batch["row"]]
        return others | {"video": latents[:, 0], "motion": latents[:, 1]}

    def _latents(self, frames: Tensor) -> Tensor:
        """Scaled latents of video and drawing of each clip, and zeros at last, C+1 2 c T h w."""
        count, _, *size, _ = frames.shape
        latents = torch.zeros(count + 1, 2, *self.vae.config.latent_shape(*size), device=frames.device)
        if count:
            latents[:-1] = self.vae.encode(frames.flatten(0, 1)).float().unflatten(0, (count, 2))
        return latents
