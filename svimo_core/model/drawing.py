"""The drawing encoder: from rendered motion to the latent that one VAE has of it.

Drawings are a small part of what a video VAE can encode. What it makes of them, a network of a few thousandths of its
operations learns from random motions (`svimo_train/drawing.py`). The loop draws and encodes at every step, so this
is what makes it cheap; the VAE stays the reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import DrawingConfig, VAEConfig
from .layers import Operations

NORM_GROUPS = 8


class DrawingBlock(nn.Module):
    """A convolution over each latent frame, then one over it and the one before, as the VAE's are causal, with a
    shortcut."""

    def __init__(self, channels: int, operations: Operations):
        super().__init__()
        self.norm = operations.GroupNorm(NORM_GROUPS, channels)
        self.space = operations.Conv2d(channels, channels, 3, padding=1)
        self.time = operations.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor, clips: int) -> Tensor:
        """Features of every latent frame, (B T) C h w."""
        h = F.silu(self.space(F.silu(self.norm(x))))
        frames = h.unflatten(0, (clips, -1))
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1).flatten(0, 1)
        return x + self.time(torch.cat([h, before], dim=1))


class DrawingEncoder(nn.Module):
    """Four frames of a latent cell's pixels are one vector; residual blocks over the cells do the rest."""

    def __init__(self, config: DrawingConfig, vae: VAEConfig, operations: Operations = nn):
        super().__init__()
        self.config = config
        self.frames = vae.temporal_compression
        self.side = vae.spatial_compression // config.pixel
        inputs = 3 * self.frames * self.side**2
        self.stem = operations.Conv2d(inputs, config.channels, 1)
        self.blocks = nn.ModuleList(DrawingBlock(config.channels, operations) for _ in range(config.blocks))
        self.out = operations.Conv2d(config.channels, vae.latent_channels, 1)

    def memory(self, frames: int, height: int, width: int) -> int:
        """Bytes that :meth:`forward` needs for one clip of this size in float32, beside the weights: of every cell of
        the latent its pixels twice, and six times the blocks' features."""
        cell = self.side * self.config.pixel
        cells = ((frames - 1) // self.frames + 1) * (height // cell) * (width // cell)
        return 4 * cells * (2 * self.stem.in_channels + 6 * self.config.channels)

    def forward(self, drawing: Tensor) -> Tensor:
        """Drawings (B N 3 H W in [0, 1], at the fraction of their size that the config says, N one more than a multiple
        of 4) to scaled latents, B C T h w."""
        first = drawing[:, :1].expand(-1, self.frames - 1, -1, -1, -1)
        cells = rearrange(
            torch.cat([first, drawing], dim=1),
            "b (t k) c (h p) (w q) -> (b t) (k c p q) h w",
            k=self.frames,
            p=self.side,
            q=self.side,
        )
        x = self.stem(cells)
        for block in self.blocks:
            x = block(x, len(drawing))
        return rearrange(self.out(F.silu(x)), "(b t) c h w -> b c t h w", b=len(drawing))
