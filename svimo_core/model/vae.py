"""The video VAE: diffusers' AutoencoderKLCogVideoX, with frames in and out as people hold them.

Frames are B x N x H x W x 3 in [0, 1]; latents are B C T h w, scaled to about unit variance (0.7 for CogVideoX).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXResnetBlock3D
from einops import rearrange
from torch import Tensor

from ..config import VAEConfig


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
    """

    def __init__(self, model: AutoencoderKLCogVideoX, config: VAEConfig, preview: Tensor | None = None):
        self.model = model
        self.config = config
        self.preview_matrix = preview

    def encode(
        self,
        frames: Tensor,
        generator: torch.Generator | None = None,
        tiled: bool = False,
        on_work: Callable[[], None] | None = None,
    ) -> Tensor:
        """Frames (B N H W 3 in [0, 1]) to latents (B C T h w): the distribution's mean, or a sample of it when
        a `generator` (on the CPU) is given. `on_work` is called before each piece of work; raise there to stop."""
        weight = next(self.model.parameters())
        pixels = rearrange(frames, "b n h w c -> b c n h w").to(weight.device)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        pixels = pixels.to(weight.dtype) * 2 - 1
        with self._pieces(self.model.encoder, tiled, on_work):
            distribution = self.model.encode(pixels).latent_dist
        if generator is None:
            latents = distribution.mode()
        else:
            noise = torch.randn(distribution.mean.shape, generator=generator).to(distribution.mean)
            latents = distribution.mean + distribution.std * noise
        return latents * self.config.scaling_factor

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
        weight = next(self.model.parameters())
        scaled = latents.to(weight.device, weight.dtype) / self.config.scaling_factor
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
        blocks = [m for m in network.modules() if isinstance(m, CogVideoXResnetBlock3D)] if on_work else []
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
