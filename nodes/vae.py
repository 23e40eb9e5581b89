"""VAE: diffusers' CogVideoX VAE with the methods that core's encode and decode nodes call."""

from __future__ import annotations

from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..svimo_core.config import SViMoConfig
from ..svimo_core.model.vae import VideoVAE
from .types import throw_if_interrupted


class SViMoVAE:
    """A VAE as core's nodes use one (`encode`, `decode`, `decode_tiled`, ...), around diffusers' CogVideoX VAE.

    Latents on this side are in VAE space; :attr:`video_vae` speaks scaled latents, as the networks do.
    """

    def __init__(self, video_vae: VideoVAE, patcher: ModelPatcher, config: SViMoConfig):
        self.video_vae = video_vae
        self.patcher = patcher
        self.config = config

    @property
    def scale(self) -> float:
        """Factor from VAE space to the networks' latents."""
        return self.config.vae.scaling_factor

    def load(self, frames: int, height: int, width: int, tiled: bool = False) -> VideoVAE:
        """Bring the weights to their device, with room for a clip of this size, and return the working VAE."""
        widest = max(self.config.vae.block_out_channels)
        area = 240 * 360 if tiled else height * width
        needed = 4 * min(frames, 8) * area * widest * self.video_vae.model.dtype.itemsize
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed, force_full_load=True)
        return self.video_vae

    def memory_for_encode(self, frames, height, width):
        return 0

    def encode_scaled(self, frames):
        return self.load(*frames.shape[1:4]).encode(frames).float()

    def encode(self, pixels: Tensor) -> Tensor:
        """One clip of frames (N H W 3 in [0, 1]) to its latent, 1 C T h w."""
        self.config.check_clip(*pixels.shape[:3])
        vae = self.load(*pixels.shape[:3])
        return vae.encode(pixels[None, ..., :3], on_work=throw_if_interrupted).float().cpu() / self.scale

    def decode(self, samples: Tensor, tiled: bool = False, **_options: Any) -> Tensor:
        """Latents (B C T h w) to frames, B N H W 3; in tiles on demand, or when memory runs out as core does."""
        if samples.is_nested:
            raise ValueError(
                'this latent carries video and motion together: use "SViMo Decode Video", '
                'or "SViMo Split Latent" in front of core nodes'
            )
        frames = (samples.shape[2] - 1) * self.config.vae.temporal_compression + 1
        size = (
            samples.shape[3] * self.spacial_compression_decode(),
            samples.shape[4] * self.spacial_compression_decode(),
        )
        vae = self.load(frames, *size, tiled)
        try:
            return vae.decode(samples * self.scale, tiled, throw_if_interrupted).cpu()
        except comfy.model_management.OOM_EXCEPTION:
            if tiled:
                raise
        comfy.model_management.soft_empty_cache()
        return self.decode(samples, tiled=True)

    def decode_tiled(self, samples: Tensor, **_tile_sizes: Any) -> Tensor:
        """As :meth:`decode`, in the VAE's own tile size."""
        return self.decode(samples, tiled=True)

    def spacial_compression_decode(self) -> int:
        """Pixels per latent cell (core's spelling)."""
        return self.config.vae.spatial_compression

    def temporal_compression_decode(self) -> int:
        """Frames per latent frame."""
        return self.config.vae.temporal_compression


def svimo_vae(vae: Any) -> SViMoVAE:
    """Check that a VAE is ours.

    Raises:
        ValueError: another kind of VAE is connected.
    """
    if not isinstance(vae, SViMoVAE):
        raise ValueError(
            f"the VAE is a {type(vae).__name__} of another model family: connect the VAE of a SViMo checkpoint or "
            '"Load SViMo VAE"'
        )
    return vae
