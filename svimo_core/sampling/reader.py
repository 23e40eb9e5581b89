"""The reader: from the two latents to hands and objects in 3D."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.interaction import TEMPORAL_COMPRESSION, Heard, InteractionModel
from ..motion import HandObjectMotion
from ..normalization import MotionNormalizer


class Reading(NamedTuple):
    """What is seen in latents: normalised joints and points, float32."""

    hands: Tensor
    """B N 42 3."""
    points: Tensor
    """B N P 3, all objects in order."""


class MotionReader:
    """VID with its statistics and its look at the reference image, for one run: what VID hears beside latents is kept.

    Args:
        last_timestep: of the training schedule, where there is nothing but noise.
        dtype: compute type of VID; everything outside of it is float32.
        on_work: called before the network runs; raise there to stop.
    """

    def __init__(
        self,
        interaction: InteractionModel,
        normalizer: MotionNormalizer,
        last_timestep: int = 999,
        dtype: torch.dtype = torch.float32,
        on_work: Callable[[], None] = lambda: None,
    ):
        self.interaction = interaction
        self.normalizer = normalizer
        self.last_timestep = last_timestep
        self.dtype = dtype
        self.on_work = on_work
        self._heard: dict[tuple[int, torch.device], Heard] = {}

    def read(self, video: Tensor, drawing: Tensor) -> Reading:
        """VID's motion of latents (B C T h w each), as it comes.

        From nothing but the latents: VID hears pure noise, the same in every call, in place of noisy motion. In the
        sampler that could only be its own earlier guesses, made when the latents showed little.
        """
        self.on_work()
        frames = (video.shape[2] - 1) * TEMPORAL_COMPRESSION + 1
        if (frames, video.device) not in self._heard:
            self._heard[frames, video.device] = self._hear(frames, video.device)
        heard = self._heard[frames, video.device]
        read = self.interaction.read(heard, video.to(self.dtype), drawing.to(self.dtype))
        return Reading(*(x.float() for x in read))

    def _hear(self, frames: int, device: torch.device) -> Heard:
        config = self.interaction.config
        shape = 1, frames, config.num_joints + config.num_points, 3
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, self.dtype)
        noisy = noise.split([config.num_joints, config.num_points], dim=2)
        return self.interaction.hear(*noisy, torch.full((1,), self.last_timestep, device=device))

    def look(self, image: Tensor) -> Tensor | None:
        """Where a reference image (latent, 1 or B C h w) shows joints and points, for :meth:`align`; None where VID
        has no part for that."""
        alignment = self.interaction.alignment
        if alignment is None:
            return None
        self.on_work()
        return alignment.find(image.to(self.dtype))

    def align(self, seen: Tensor | None, reading: Reading) -> Reading:
        """A reading held against what :meth:`look` found in its reference image, and corrected."""
        if seen is None:
            return reading
        self.on_work()
        hands, points = reading
        projected = self.normalizer.project(hands[:, 0], points[:, 0])
        moves = self.interaction.alignment(
            seen.expand(len(hands), -1, -1), hands.to(self.dtype), points.to(self.dtype), projected
        )
        return Reading(*self.normalizer.move(hands, points, *moves))

    def to_motions(
        self, reading: Reading, width: int, height: int, fps: float, prompt: str = ""
    ) -> list[HandObjectMotion]:
        """Each clip of a reading in metres, seen at width x height pixels."""
        return [
            self.normalizer.to_motion(hands, points, width, height, fps, prompt)
            for hands, points in zip(*reading, strict=True)
        ]


class MeanReading:
    """Running mean of readings. The noisier the latents of a step, the nearer are the clean ones predicted from them to
    the mean of what may follow, and the more their reading weighs."""

    def __init__(self):
        self.value: Reading | None = None
        """None before the first."""
        self.total = 0.0

    def add(self, reading: Reading, weight: float) -> None:
        """Count one more reading with this weight."""
        self.total += weight
        before, share = self.value or reading, weight / self.total if self.total else 1.0
        self.value = Reading(*(x.lerp(new, share) for x, new in zip(before, reading, strict=True)))
