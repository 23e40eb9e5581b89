"""The closed loop (paper section 3.3): VID reads the latents, its 3D motion is drawn, and the drawing guides.

guidance:  (h, o) = VID((h_t, o_t), (zV, zM), t);  zG = VAE.encode(render(project(h, o)))

In the paper the latents are the noisy ones. The sampler has better: the clean latents of the steps before, whose
readings it needs anyway. And before it is drawn, what was read is held against the reference image and corrected, so
that the loop tells what the latents do not (docs/results.md has the difference that each makes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .model.interaction import TEMPORAL_COMPRESSION, InteractionModel
from .model.vae import VideoVAE
from .motion import HandObjectMotion
from .normalization import MotionNormalizer
from .render import render_motion
from .schedule import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class FeedbackOptions:
    """When and how strongly the loop acts during sampling.

    Raises:
        ValueError: a value outside its range.
    """

    enabled: bool = True
    start: float = 0.2
    """Fraction of the steps before the loop closes: the first clean latents are too blurred to be read well."""
    end: float = 1.0
    every: int = 1
    """Refresh the guidance at every k-th step; it is held in between."""
    iterations: int = 1
    """Denoising passes at a step that refreshes; further passes draw the motion just predicted and denoise again."""
    strength: float = 1.0
    """Factor on the guidance latent; 0 equals off."""

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"feedback needs 0 <= start <= end <= 1, got start {self.start} and end {self.end}"
            )
        if self.every < 1 or self.iterations < 1:
            raise ValueError(
                f"feedback needs every and iterations of at least 1, got {self.every} and {self.iterations}"
            )

    def active(self, step: int, steps: int) -> bool:
        """Whether the loop is closed at this step of so many."""
        return self.enabled and self.strength != 0 and self.start <= step / steps < self.end

    def refreshes(self, step: int, steps: int) -> bool:
        """Whether this step computes a new guidance: every k-th active step, counted from the first."""
        first = next((i for i in range(steps) if self.active(i, steps)), steps)
        return self.active(step, steps) and (step - first) % self.every == 0


class InteractionFeedback:
    """VID, renderer and VAE: from latents to 3D motion, and from there to the guidance latent.

    Args:
        schedule: of hands and points.
        width, height: pixels of the clip; the rendered motion has the video's size.
        dtype: compute type of VID; everything outside of it is float32.
        on_work: called before VID and before each piece of VAE work; raise there to stop.
        tiled: encode in tiles.
    """

    def __init__(
        self,
        interaction: InteractionModel,
        vae: VideoVAE,
        normalizer: MotionNormalizer,
        schedule: NoiseSchedule,
        width: int,
        height: int,
        dtype: torch.dtype = torch.float32,
        on_work: Callable[[], None] | None = None,
        tiled: bool = False,
    ):
        self.interaction = interaction
        self.vae = vae
        self.normalizer = normalizer
        self.schedule = schedule
        self.width = width
        self.height = height
        self.dtype = dtype
        self.on_work = on_work
        self.tiled = tiled

    def read(self, video: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """VID's motion of latents (B C T h w each): hands (B N 42 3) and points (B N P 3), normalised, float32.

        From nothing but the latents: VID hears pure noise, the same in every call, in place of noisy motion. In the
        sampler that could only be its own earlier guesses, made when the latents showed little.
        """
        if self.on_work is not None:
            self.on_work()
        config = self.interaction.config
        frames = (video.shape[2] - 1) * TEMPORAL_COMPRESSION + 1
        shape = 1, frames, config.num_joints + config.num_points, 3
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(video.device, self.dtype)
        hands, points = noise.expand(len(video), -1, -1, -1).split(
            [config.num_joints, config.num_points], dim=2
        )
        time = torch.full((len(video),), len(self.schedule.abar) - 1, device=video.device)
        read = self.interaction(hands, points, video.to(self.dtype), motion.to(self.dtype), time)
        return tuple(x.float() for x in read)

    def align(self, image: Tensor, hands: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """A reading held against the reference image (latent, 1 or B C h w) and corrected; as it is where VID has no
        part for that."""
        alignment = self.interaction.alignment
        if alignment is None:
            return hands, points
        if self.on_work is not None:
            self.on_work()
        found = alignment.find(image.to(self.dtype)).expand(len(hands), -1, -1)
        projected = self.normalizer.project(hands[:, 0], points[:, 0])
        return self.normalizer.move(hands, points, *alignment(found, hands, points, projected))

    def guidance(self, hands: Tensor, points: Tensor) -> Tensor:
        """Draw normalised motion (B N 42 3, B N P 3) and encode the drawing: zG, B C T h w float32."""
        motions = [
            self.normalizer.to_motion(h, p, self.width, self.height, fps=1.0)
            for h, p in zip(hands, points, strict=True)
        ]
        return encode_motions(self.vae, motions, self.width, self.height, self.tiled, self.on_work).to(
            hands.device
        )


def encode_motions(
    vae: VideoVAE,
    motions: list[HandObjectMotion],
    width: int,
    height: int,
    tiled: bool = False,
    on_work: Callable[[], None] | None = None,
) -> Tensor:
    """Rendered motion latents (B C T h w float32) of motions of equal length."""
    frames = np.stack([render_motion(motion, width, height) for motion in motions])
    return vae.encode(torch.from_numpy(frames).float() / 255, tiled=tiled, on_work=on_work).float()
