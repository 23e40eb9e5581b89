"""Pieces that the networks share: timestep embedding, attention, feed-forward, rotary positions.

Every weight sits in a leaf built from `operations` (default `torch.nn`), so that ComfyUI's own leaf classes can cast
and offload it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Operations = Any
"""A namespace with Linear, LayerNorm, GroupNorm, Conv1d, Conv2d, Conv3d, Embedding: torch.nn or comfy.ops."""

COORDINATE_CHANNELS = 10
"""Of :func:`cell_coordinates`: row and column, and two sines and cosines of each."""

AttentionFunction = Callable[..., Tensor]
"""(q, k, v, **options), each of the three batch x heads x tokens x head_dim, to batch x tokens x (heads head_dim).
What options there are, is between whoever calls the network and whoever brings the function."""


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
    """PyTorch's attention in the AttentionFunction form."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def timestep_embedding(timestep: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of timesteps: (...) to (... dim) float32, cosines first (DDPM's, as CogVideoX orders them)."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) / half * torch.arange(half, device=timestep.device, dtype=torch.float32)
    )
    angles = timestep.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepMLP(nn.Module):
    """Linear, SiLU, linear on the sinusoids of the timestep."""

    def __init__(self, in_dim: int, out_dim: int, operations: Operations = nn):
        super().__init__()
        self.linear_1 = operations.Linear(in_dim, out_dim)
        self.linear_2 = operations.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResBlock2D(nn.Module):
    """Two normalised 3 x 3 convolutions with a shortcut."""

    def __init__(self, channels: int, groups: int, operations: Operations):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels)
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = operations.GroupNorm(groups, channels)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class FeedForward(nn.Module):
    """Linear x4, tanh-GELU, linear. `net.0.proj` and `net.2` are CogVideoX's published weight names."""

    def __init__(self, dim: int, operations: Operations = nn, expansion: int = 4):
        super().__init__()
        up = nn.Module()
        up.proj = operations.Linear(dim, expansion * dim)
        self.net = nn.ModuleList([up, nn.Identity(), operations.Linear(expansion * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


class SelfAttention(nn.Module):
    """Multi-head attention with layer-normed queries and keys, and rotary positions on the last tokens."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        operations: Operations = nn,
        attention: AttentionFunction = scaled_dot_product_attention,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.to_q = operations.Linear(dim, dim)
        self.to_k = operations.Linear(dim, dim)
        self.to_v = operations.Linear(dim, dim)
        self.norm_q = operations.LayerNorm(dim // num_heads, eps=1e-6)
        self.norm_k = operations.LayerNorm(dim // num_heads, eps=1e-6)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim)])

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, options: dict[str, Any] | None = None
    ) -> Tensor:
        """Attend x (B N dim) to itself; `rotary` (cos, sin) of M x head_dim turns the last M tokens. `options` go to
        the attention function."""
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.to_q, self.to_k, self.to_v)
        )
        q, k = self.norm_q(q), self.norm_k(k)  # before the heads move, which would cost a copy
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if rotary is not None:
            q, k = rotate_last(q, *rotary), rotate_last(k, *rotary)
        return self.to_out[0](self.attention(q, k, v, **(options or {})))


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context of another width."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        num_heads: int,
        operations: Operations = nn,
        attention: AttentionFunction = scaled_dot_product_attention,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.to_q = operations.Linear(dim, dim)
        self.to_k = operations.Linear(context_dim, dim)
        self.to_v = operations.Linear(context_dim, dim)
        self.to_out = operations.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend x (B N dim) to context (B M context_dim)."""
        q, k, v = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(self.attention(q, k, v))


def cell_coordinates(
    height: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Where every cell of a latent frame is, as COORDINATE_CHANNELS h w: row and column in [-1, 1], sines and cosines
    of them. With these a convolution can tell what is where (Liu et al. 2018, CoordConv)."""
    channels = []
    for axis, size in ((0, height), (1, width)):
        place = (2 * torch.arange(size, device=device) + 1) / size - 1
        waves = [place, *(f(k * torch.pi * place) for k in (1, 2) for f in (torch.sin, torch.cos))]
        shape = (size, 1) if axis == 0 else (1, size)
        channels += [wave.view(shape).expand(height, width) for wave in waves]
    return torch.stack(channels).to(dtype)


def with_coordinates(x: Tensor, where: Tensor) -> Tensor:
    """Features (B C ... h w) with the coordinates of their cells as further channels."""
    where = where.to(x).view(1, -1, *[1] * (x.ndim - 4), *x.shape[-2:])
    return torch.cat([x, where.expand(len(x), -1, *x.shape[2:])], dim=1)


def rotary_3d(
    frames: int,
    height: int,
    width: int,
    head_dim: int,
    device: torch.device,
    fit_to: tuple[int, int] | None = None,
    theta: float = 10000.0,
) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines of a token grid, in (t, y, x) order of CogVideoX: 2:3:3 of the head dimension.

    Args:
        fit_to: height and width of the grid to place rows and columns in (see `BackboneConfig.rotary_grid`).

    Returns:
        cos and sin, each (frames height width) x head_dim float32, pairs of channels sharing an angle.
    """
    positions = [torch.arange(size, dtype=torch.float32) for size in (frames, height, width)]
    if fit_to is not None:
        positions[1:] = _fitted_positions((height, width), fit_to)
    axes = []
    for position, dim in zip(positions, (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3), strict=True):
        frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        axes.append(torch.outer(position.to(device), frequencies).repeat_interleave(2, dim=1))
    t, y, x = axes
    angles = torch.cat(
        [
            t[:, None, None].expand(-1, height, width, -1),
            y[None, :, None].expand(frames, -1, width, -1),
            x[None, None, :].expand(frames, height, -1, -1),
        ],
        dim=-1,
    )
    angles = rearrange(angles, "t y x d -> (t y x) d")
    return angles.cos(), angles.sin()


def _fitted_positions(grid: tuple[int, int], fit_to: tuple[int, int]) -> list[Tensor]:
    """Rows and columns of a grid scaled to fit into another, centred, in whole tokens, as diffusers computes them."""
    factor = min(to / size for to, size in zip(fit_to, grid, strict=True))
    positions = []
    for to, size in zip(fit_to, grid, strict=True):
        fitted = round(factor * size)
        start = round((to - fitted) / 2)
        positions.append(torch.linspace(start, (start + fitted) * (size - 1) / size, size))
    return positions


def rotate_last(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of the last M tokens of x (B heads N d) by the angles of M x d tables."""
    kept, turned = x[:, :, : -len(cos)], x[:, :, -len(cos) :].float()
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    quarter = torch.stack([-odd, even], dim=-1).flatten(-2)
    return torch.cat([kept, torch.addcmul(turned * cos, quarter, sin).to(x.dtype)], dim=2)
