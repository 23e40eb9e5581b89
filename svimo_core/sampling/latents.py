"""What one diffusion process makes: the latents of the video and of the drawing of its motion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class JointLatents(NamedTuple):
    """Two streams that are denoised together. In video-only mode there is no drawing."""

    video: Tensor
    """B C T h w."""
    drawing: Tensor | None = None
    """B C T h w: the rendered motion video's latent."""

    def to(self, *args) -> JointLatents:
        """`Tensor.to` on both."""
        return JointLatents(*(x if x is None else x.to(*args) for x in self))


def noise_like(latents: JointLatents, generator: torch.Generator) -> JointLatents:
    """Fresh Gaussian noise for every stream, drawn on the CPU so that a seed means the same on every device."""
    return JointLatents(
        *(
            x if x is None else torch.randn(x.shape, generator=generator).to(x.device, torch.float32)
            for x in latents
        )
    )
