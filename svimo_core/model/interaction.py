"""VID, the vision-aware 3D interaction diffusion model (paper section 3.2).

It denoises explicit 3D motion while looking at the two latents: `(h_0, o_0) = VID((h_t, o_t), (zV, zM), t)`. The
latents may be noisy (interaction guidance in training) or clean (gradient constraint, sampling).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import InteractionConfig
from ..once import OnceForEach
from .alignment import ImageAlignment
from .layers import (
    COORDINATE_CHANNELS,
    AttentionFunction,
    CrossAttention,
    FeedForward,
    Operations,
    ResBlock2D,
    SelfAttention,
    TimestepMLP,
    cell_coordinates,
    scaled_dot_product_attention,
    timestep_embedding,
    with_coordinates,
)

POSITION_PERIOD = 200.0
"""Longest wavelength of the fixed position sinusoids, in frames (time) and in percent of the image (space)."""
TEMPORAL_COMPRESSION = 4
"""Frames per latent frame, after the first."""


def neighbours_or_patches(patch: int, kernel: tuple[int, ...]) -> dict[str, Any]:
    """What a first convolution sees at once: each cell with its neighbours, or all cells of a patch."""
    return {"kernel_size": 3, "padding": 1} if patch == 1 else {"kernel_size": kernel, "stride": kernel}


class ResBlock3D(nn.Module):
    """Two normalised 3 x 3 x 3 convolutions with a shortcut."""

    def __init__(self, in_channels: int, channels: int, groups: int, operations: Operations):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, in_channels)
        self.conv1 = operations.Conv3d(in_channels, channels, 3, padding=1)
        self.norm2 = operations.GroupNorm(groups, channels)
        self.conv2 = operations.Conv3d(channels, channels, 3, padding=1)
        self.shortcut = operations.Conv3d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class PyramidLevel(nn.Module):
    """One level: a residual block per stream, then each stream hears the other, then both are fused.

    The drawing's layers are called `motion`, as in the files of trained models.
    """

    def __init__(self, in_channels: int, channels: int, groups: int, operations: Operations):
        super().__init__()
        self.video = ResBlock3D(in_channels, channels, groups, operations)
        self.motion = ResBlock3D(in_channels, channels, groups, operations)
        self.video_from_motion = operations.Conv3d(channels, channels, 1)
        self.motion_from_video = operations.Conv3d(channels, channels, 1)
        self.fuse = operations.Conv3d(2 * channels, channels, 1)

    def forward(self, video: Tensor, drawing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both streams (B C T h w) to updated streams and the fused features of this level."""
        video, drawing = self.video(video), self.motion(drawing)
        video, drawing = video + self.video_from_motion(drawing), drawing + self.motion_from_video(video)
        return video, drawing, self.fuse(torch.cat([video, drawing], dim=1))


class LatentPyramid(nn.Module):
    """Two 3D-convolution pyramids over the latents of video and drawing, fused into one feature pyramid."""

    def __init__(self, config: InteractionConfig, operations: Operations):
        super().__init__()
        channels = config.pyramid_channels
        inputs = config.latent_channels + COORDINATE_CHANNELS
        seen = neighbours_or_patches(config.patch, (1, config.patch, config.patch))
        self.video_stem = operations.Conv3d(inputs, channels[0], **seen)
        self.motion_stem = operations.Conv3d(inputs, channels[0], **seen)
        widths = (channels[0], *channels)
        self.levels = nn.ModuleList(
            PyramidLevel(widths[i], widths[i + 1], config.norm_groups, operations)
            for i in range(len(channels))
        )
        # Halve height and width only: time is already compressed fourfold.
        self.down = nn.ModuleList(
            nn.ModuleDict(
                {
                    stream: operations.Conv3d(c, c, 3, stride=(1, 2, 2), padding=1)
                    for stream in ("video", "motion")
                }
            )
            for c in channels[:-1]
        )

    def forward(self, video: Tensor, drawing: Tensor, where: Tensor) -> list[Tensor]:
        """Latents (B C T h w each) and the coordinates of their cells (c h w) to features of each level, finest first
        (B c_l T h_l w_l)."""
        video = self.video_stem(with_coordinates(video, where))
        drawing = self.motion_stem(with_coordinates(drawing, where))
        features = []
        for i, level in enumerate(self.levels):
            if i:
                video, drawing = self.down[i - 1]["video"](video), self.down[i - 1]["motion"](drawing)
            video, drawing, fused = level(video, drawing)
            features.append(fused)
        return features


class LatentReader(nn.Module):
    """What each frame shows, read place by place: a small image network over one latent frame of both streams beside
    the first, which the video has almost exactly from the reference image, and a perceptron over all its places.

    Attention over places, which the denoiser has, learns to read a scene far more slowly (docs/results.md).
    """

    def __init__(self, config: InteractionConfig, channels: int, operations: Operations):
        super().__init__()
        width, places, hidden = config.read_channels
        self.grid = config.read_grid
        inputs = 4 * config.latent_channels + COORDINATE_CHANNELS
        seen = neighbours_or_patches(config.patch, (config.patch, config.patch))
        self.stem = operations.Conv2d(inputs, width, **seen)
        self.blocks = nn.ModuleList(
            ResBlock2D(width, config.norm_groups, operations) for _ in range(config.read_blocks)
        )
        self.norm = operations.GroupNorm(config.norm_groups, width)
        self.places = operations.Conv2d(width, places, 1)
        self.hidden = operations.Linear(places * self.grid[0] * self.grid[1], hidden)
        self.out = operations.Linear(hidden, TEMPORAL_COMPRESSION * channels)

    def forward(self, video: Tensor, drawing: Tensor, where: Tensor) -> Tensor:
        """Latents (B C T h w each) and the coordinates of their cells (c h w) to features of every frame,
        B channels N."""
        first = (latent[:, :, :1].expand_as(latent) for latent in (video, drawing))
        x = with_coordinates(torch.cat([video, drawing, *first], dim=1), where)
        x = self.stem(rearrange(x, "b c t h w -> (b t) c h w"))
        for block in self.blocks:
            x = block(x)
        x = pool(self.places(F.silu(self.norm(x))), self.grid)
        x = self.out(F.silu(self.hidden(x.flatten(1))))
        # a latent frame tells of four frames, the first one only of its last
        frames = rearrange(x, "(b t) (k c) -> b c (t k)", b=len(video), k=TEMPORAL_COMPRESSION)
        return frames[:, :, TEMPORAL_COMPRESSION - 1 :]


Modulation = tuple[Tensor, Tensor]
"""Shift and factor, B C 1 each."""


class Heard(NamedTuple):
    """What VID makes of noisy motion and its timestep."""

    motion: Tensor
    """B C N."""
    encoder: list[Modulation]
    middle: Modulation | None
    decoder: list[Modulation]


class TemporalBlock(nn.Module):
    """Convolution over frames, then attention over frames and to one level of the pyramid, then feed-forward."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        context_channels: int,
        time_dim: int,
        config: InteractionConfig,
        operations: Operations,
        attention: AttentionFunction,
    ):
        super().__init__()
        self.norm1 = operations.GroupNorm(config.norm_groups, in_channels)
        self.conv1 = operations.Conv1d(in_channels, channels, 3, padding=1)
        self.time = operations.Linear(time_dim, 2 * channels)
        self.norm2 = operations.GroupNorm(config.norm_groups, channels)
        self.conv2 = operations.Conv1d(channels, channels, 3, padding=1)
        self.shortcut = operations.Conv1d(in_channels, channels, 1)

        self.attention_norm = operations.LayerNorm(channels)
        self.self_attention = SelfAttention(channels, config.num_heads, operations, attention)
        self.cross_norm = operations.LayerNorm(channels)
        self.context_norm = operations.LayerNorm(context_channels)
        self.cross_attention = CrossAttention(
            channels, context_channels, config.num_heads, operations, attention
        )
        self.ff_norm = operations.LayerNorm(channels)
        self.ff = FeedForward(channels, operations, expansion=2)

    def modulation(self, time: Tensor) -> Modulation:
        """What activated timestep features (B time_dim) make of a block, as in DiT."""
        scale, shift = self.time(time)[..., None].chunk(2, dim=1)
        return shift, 1 + scale

    def forward(
        self, x: Tensor, modulation: Modulation, features: Tensor, positions: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Update x (B C N) with its modulation and one level of the pyramid (B T*h*w c).

        Args:
            positions: of the frames (N C) and of the level's cells (T*h*w c).
        """
        h = self.conv1(F.silu(self.norm1(x)))
        shift, factor = modulation
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), factor)))
        x = (self.shortcut(x) + h).mT.contiguous()  # B N C; every norm would copy it for itself

        where, cells = positions
        x = x + self.self_attention(self.attention_norm(x) + where)
        x = x + self.cross_attention(self.cross_norm(x) + where, self.context_norm(features) + cells)
        x = x + self.ff(self.ff_norm(x))
        return x.mT.contiguous()


class InteractionModel(nn.Module):
    """VID: a temporal UNet whose frames carry all joints and points as channels, reading the latent pyramid."""

    def __init__(
        self,
        config: InteractionConfig,
        operations: Operations = nn,
        attention: AttentionFunction = scaled_dot_product_attention,
    ):
        super().__init__()
        self.config = config
        widths, contexts = config.denoiser_channels, config.pyramid_channels
        time_dim = 2 * widths[0]
        coordinates = 3 * (config.num_joints + config.num_points)

        def block(in_channels: int, level: int) -> TemporalBlock:
            return TemporalBlock(
                in_channels,
                widths[level],
                contexts[level],
                time_dim,
                config,
                operations,
                attention,
            )

        levels = range(len(widths))
        self.reader = LatentReader(config, widths[0], operations)
        self.pyramid = LatentPyramid(config, operations)
        self.time_embedding = TimestepMLP(widths[0], time_dim, operations)
        self.stem = operations.Conv1d(coordinates, widths[0], 1)
        self.trust = operations.Linear(time_dim, widths[0])
        self.encoder = nn.ModuleList(block(widths[max(i - 1, 0)], i) for i in levels)
        self.down = nn.ModuleList(
            operations.Conv1d(widths[i], widths[i], 3, stride=2, padding=1) for i in levels[:-1]
        )
        self.middle = block(widths[-1], levels[-1]) if len(levels) > 1 else None
        """None: of a single level its one block is all there is."""
        self.up = nn.ModuleList(
            operations.Conv1d(widths[i + 1], widths[i], 3, padding=1) for i in levels[:-1]
        )
        self.decoder = nn.ModuleList(block(2 * widths[i], i) for i in levels[:-1])
        self.norm_out = operations.GroupNorm(config.norm_groups, widths[0])
        self.proj_out = operations.Conv1d(widths[0], coordinates, 1)
        self.alignment = ImageAlignment(config, operations) if config.align_channels else None
        """Holds a reading against the reference image; no part of `forward`."""
        self.coordinates = OnceForEach(cell_coordinates)
        self.positions = OnceForEach(self._positions)

    def _positions(
        self, frames: int, shapes: tuple[tuple[int, int, int], ...], device: torch.device, dtype: torch.dtype
    ) -> list[tuple[Tensor, Tensor]]:
        """Of the frames and of the pyramid's cells at each level, whose frames are every second of those before."""
        times = torch.arange(frames, device=device)
        levels = zip(self.config.denoiser_channels, self.config.pyramid_channels, shapes, strict=True)
        return [
            (
                timestep_embedding(times[:: 2**i], width, POSITION_PERIOD).to(dtype),
                cell_positions(*shape, channels, device).to(dtype),
            )
            for i, (width, channels, shape) in enumerate(levels)
        ]

    def forward(
        self, hands: Tensor, points: Tensor, video: Tensor, drawing: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict clean motion from noisy motion and the latents.

        Args:
            hands: normalised noisy joints, B x N x 42 x 3.
            points: normalised noisy points of all objects in order, B x N x P x 3.
            video, drawing: latents, noisy or clean, B C T h w.
            timestep: (B,) training timesteps of the noise of hands and points.

        Returns:
            Normalised clean hands and points, shaped as given.
        """
        return self.read(self.hear(hands, points, timestep), video, drawing)

    def hear(self, hands: Tensor, points: Tensor, timestep: Tensor) -> Heard:
        """All of :meth:`forward` that does not look at latents. A sampler asks once: what it lets VID hear is the same
        at every step."""
        time = F.silu(
            self.time_embedding(
                timestep_embedding(timestep, self.config.denoiser_channels[0]).to(hands.dtype)
            )
        )
        x = self.stem(rearrange(torch.cat([hands, points], dim=2), "b n p xyz -> b (p xyz) n"))
        return Heard(
            motion=x * self.trust(time)[..., None],  # the noisier the motion, the less it counts
            encoder=[block.modulation(time) for block in self.encoder],
            middle=None if self.middle is None else self.middle.modulation(time),
            decoder=[block.modulation(time) for block in self.decoder],
        )

    def read(self, heard: Heard, video: Tensor, drawing: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of :meth:`forward`; what was heard may be one for all latents."""
        num_frames = heard.motion.shape[-1]
        where = self.coordinates(*video.shape[-2:], video.device, video.dtype)
        read = self.reader(video, drawing, where)[:, :, :num_frames]
        pyramid = self.pyramid(video, drawing, where)
        shapes = tuple(tuple(features.shape[2:]) for features in pyramid)
        positions = self.positions(num_frames, shapes, video.device, video.dtype)
        pyramid = [features.flatten(2).mT.contiguous() for features in pyramid]  # B T*h*w c

        x = heard.motion + read
        skips = []
        for i, block in enumerate(self.encoder):
            if i:
                x = self.down[i - 1](x)
            x = block(x, heard.encoder[i], pyramid[i], positions[i])
            skips.append(x)
        if self.middle is not None:
            x = self.middle(x, heard.middle, pyramid[-1], positions[-1])
        for i in reversed(range(len(self.decoder))):
            x = self.up[i](F.interpolate(x, size=skips[i].shape[-1], mode="nearest"))
            x = self.decoder[i](torch.cat([x, skips[i]], dim=1), heard.decoder[i], pyramid[i], positions[i])
        # what was read is a first estimate that the denoiser only has to correct
        out = (
            self.proj_out(F.silu(self.norm_out(x)) + read).mT.contiguous().unflatten(-1, (-1, 3))
        )  # B N 42+P 3
        return out.split([self.config.num_joints, self.config.num_points], dim=2)


def cell_positions(frames: int, height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Fixed sinusoids of where each cell of a pyramid level is, T*h*w x channels float32.

    Time is in frames (four per latent frame) so that it compares with the denoiser's; height and width are in
    percent of the image so that another resolution keeps its meaning.
    """
    axes = [
        TEMPORAL_COMPRESSION * torch.arange(frames, device=device).float(),
        100.0 * (torch.arange(height, device=device) + 0.5) / height,
        100.0 * (torch.arange(width, device=device) + 0.5) / width,
    ]
    widths = (channels // 2, channels // 4, channels // 4)
    grid = torch.meshgrid(*axes, indexing="ij")
    return torch.cat(
        [timestep_embedding(g.flatten(), c, POSITION_PERIOD) for g, c in zip(grid, widths, strict=True)],
        dim=-1,
    )


def pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of images (B C h w) to a grid of rows and columns, as a matrix product where the grid
    does not divide the size: Apple's GPUs have no kernel for that."""
    if x.shape[-2:] == grid:
        return x
    if x.shape[-2] % grid[0] == 0 and x.shape[-1] % grid[1] == 0:
        return F.adaptive_avg_pool2d(x, grid)
    rows, columns = (_pooling(size, cells, x) for size, cells in zip(x.shape[-2:], grid, strict=True))
    return torch.einsum("rh,bchw,qw->bcrq", rows, x, columns)


def _pooling(size: int, cells: int, like: Tensor) -> Tensor:
    """Shares of each place in each cell's mean (cells x size), as adaptive pooling has them."""
    cell, place = torch.arange(cells, device=like.device)[:, None], torch.arange(size, device=like.device)
    begin, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    inside = ((place >= begin) & (place < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
