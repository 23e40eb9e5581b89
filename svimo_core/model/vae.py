"""The video VAE: diffusers' AutoencoderKLCogVideoX, with frames in and out as people hold them.

Frames are B x N x H x W x 3 in [0, 1]; latents are B C T h w, scaled to about unit variance (0.7 for CogVideoX).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor

from ..config import VAEConfig

PIECE = re.compile(r"resnets\.\d+$")
"""Names of the residual blocks, of which each is one piece of work."""


def build_vae(config: VAEConfig) -> AutoencoderKLCogVideoX:
    """An untrained VAE of this size."""
    levels = len(config.block_out_channels)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        latent_channels=config.latent_channels,
        temporal_compression_ratio=config.temporal_compression,
        scaling_factor=config.scaling_factor,
    )


class VideoVAE:
    """Encode and decode clips, whole or in tiles.

    Args:
        model: the network; it is used as it stands and left as it was found.
        config: its size and scaling factor.
        preview: 17 x 3 matrix, latent channels and 1 to RGB, for quick previews; None if there is none.
        device, dtype: where and in which type to compute, for a network that fetches and casts its weights at use;
            None: where and as they are.
    """

    def __init__(
        self,
        model: AutoencoderKLCogVideoX,
        config: VAEConfig,
        preview: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.model = model
        self.config = config
        self.preview_matrix = preview
        self._device = device
        self._dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device or next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In which type it computes."""
        return self._dtype or next(self.model.parameters()).dtype

    def encode(
        self,
        frames: Tensor,
        generator: torch.Generator | None = None,
        tiled: bool = False,
        on_work: Callable[[], None] | None = None,
    ) -> Tensor:
        """Frames (B N H W 3, uint8 or in [0, 1]) to latents (B C T h w): the distribution's mean, or a sample of it
        when a `generator` (on the CPU) is given. `on_work` is called before each piece of work; raise there to stop."""
        with self._pieces(self.model.encoder, tiled, on_work):
            distribution = self.model.encode(self._to_network(frames)).latent_dist
        if generator is None:
            latents = distribution.mode()
        else:
            noise = torch.randn(distribution.mean.shape, generator=generator).to(distribution.mean)
            latents = distribution.mean + distribution.std * noise
        return latents * self.config.scaling_factor

    def encode_memory(self, frames: int, height: int, width: int, tiled: bool = False) -> int:
        """Bytes that :meth:`encode` needs for one clip, beside the weights.

        Counted with the published network (`tests/unit/test_vae.py` counts again): where the first level's blocks
        meet the frames at full size, a block holds 5 times their first width of channels, and at the start of a clip
        17 frames' worth more; from the second batch of 8 frames on, what the causal convolutions keep of the batch
        before adds 20 frames' worth. For 49 x 416 x 624 in bfloat16 that is 5.8 GB, of which 5.2 are in use at once.
        A convolution's own workspace on a GPU comes on top.
        """
        held = 17 + 5 * min(frames, 9) + (20 if frames > 9 else 0)
        return self._memory(held, frames, height, width, tiled, 8)

    def decode_memory(self, frames: int, height: int, width: int, tiled: bool = False) -> int:
        """Bytes that :meth:`decode` needs for one clip, beside the weights; counted as for :meth:`encode_memory`.

        Twice as many as for encoding, since each norm of the decoder also blows the latent up to its own size: for
        49 x 416 x 624 in bfloat16 13.0 GB, of which 11.9 are in use at once.
        """
        held = 30 + 12 * min(frames, 9) + (50 if frames > 9 else 0)
        return self._memory(held, frames, height, width, tiled, 12)

    def _memory(
        self, held: int, frames: int, height: int, width: int, tiled: bool, bytes_of_pixel: int
    ) -> int:
        """`held` frames of the first level's width at the size of a tile, and the whole clip's pixels."""
        tile = height, width
        if tiled:
            tile = (
                min(height, self.model.tile_sample_min_height),
                min(width, self.model.tile_sample_min_width),
            )
        channels = self.config.block_out_channels[0]
        pixels = frames * height * width * 3
        return held * tile[0] * tile[1] * channels * self.dtype.itemsize + pixels * bytes_of_pixel

    def _to_network(self, frames: Tensor) -> Tensor:
        """B N H W 3 as above to B 3 N H W in [-1, 1] on the network's device, moved there as small as it came."""
        pixels = frames.to(self.device)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return rearrange(pixels * 2 - 1, "b n h w c -> b c n h w").to(self.dtype)

    def decode(
        self, latents: Tensor, tiled: bool = False, on_work: Callable[[], None] | None = None
    ) -> Tensor:
        """Latents (B C T h w) to frames (B N H W 3 in [0, 1], float32).

        Raises:
            ValueError: an even number of latent frames, which this VAE turns into too many frames.
        """
        if latents.shape[2] % 2 == 0:
            raise ValueError(
                f"the latent has {latents.shape[2]} frames; CogVideoX's VAE decodes an odd number (1, 3, 5, ...), "
                f"that is clips of {self.config.frame_step}k + 1 frames"
            )
        scaled = latents.to(self.device, self.dtype) / self.config.scaling_factor
        with self._pieces(self.model.decoder, tiled, on_work):
            pixels = self.model.decode(scaled).sample
        return rearrange(pixels.float() / 2 + 0.5, "b c n h w -> b n h w c").clamp(0, 1)

    def preview(self, latent: Tensor) -> Tensor:
        """A rough RGB image (h w 3 in [0, 1]) of one latent frame (C h w), by one matrix product."""
        assert self.preview_matrix is not None
        matrix = self.preview_matrix.to(latent.device, torch.float32)
        return (rearrange(latent.float(), "c h w -> h w c") @ matrix[:-1] + matrix[-1]).clamp(0, 1)

    @contextmanager
    def _pieces(
        self, network: torch.nn.Module, tiled: bool, on_work: Callable[[], None] | None
    ) -> Iterator[None]:
        """Tile for the duration of one call, and announce each block of each tile and batch of frames."""
        before = self.model.use_tiling
        self.model.use_tiling = tiled
        blocks = [m for name, m in network.named_modules() if PIECE.search(name)] if on_work else []
        hooks = [block.register_forward_pre_hook(lambda *_: on_work()) for block in blocks]
        try:
            yield
        finally:
            self.model.use_tiling = before
            for hook in hooks:
                hook.remove()


def fit_preview(vae: VideoVAE, frames: Tensor) -> Tensor:
    """Least-squares matrix from latents to pixels (17 x 3), from example frames (B N H W 3 in [0, 1])."""
    latents = vae.encode(frames).float().cpu()
    t, h, w = latents.shape[2:]
    step = vae.config.temporal_compression
    small = torch.nn.functional.interpolate(
        rearrange(frames[:, ::step].float().cpu(), "b t h w c -> (b t) c h w"), size=(h, w), mode="area"
    )
    assert len(small) == len(frames) * t
    inputs = rearrange(latents, "b c t h w -> (b t h w) c")
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    return torch.linalg.lstsq(inputs, rearrange(small, "n c h w -> (n h w) c"), driver="gelsd").solution
