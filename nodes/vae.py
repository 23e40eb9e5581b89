"""VAE: CogVideoX's, as diffusers or as core has it, with the methods that core's encode and decode nodes call."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from ..svimo_core.config import COGVIDEOX_5B_I2V, SViMoConfig
from ..svimo_core.model.vae import VideoVAE, build_vae
from .types import throw_if_interrupted
from .whole import load_whole, make_whole, whole_patcher

log = logging.getLogger(__name__)


class SViMoVAE:
    """A VAE as core's nodes use one (`encode`, `decode`, `decode_tiled`, ...), which always means one clip of frames.

    Latents on this side are in VAE space; those of :attr:`video_vae` and of the methods that say so are scaled, as the
    networks have them. Whatever runs out of memory whole is tried again in tiles, as core does.

    Args:
        around: makes :attr:`video_vae` of a patcher.
        patcher: holds the weights. Core's Select VAE Device, and the loop, put another in its place.
        config: of the model that it belongs to.
        native: whether that model's clip size is what an artist means who names none.
        fetches: whether the network fetches its weights where it uses them, as core's own do.
    """

    def __init__(
        self,
        around: Callable[[ModelPatcher], VideoVAE],
        patcher: ModelPatcher,
        config: SViMoConfig,
        native: bool = True,
        fetches: bool = False,
    ):
        self._around = around
        self._made: tuple[nn.Module, VideoVAE] | None = None
        self.patcher = patcher
        self.config = config
        self.native = native
        self.fetches = fetches
        self.device: torch.device = patcher.load_device  # core's Select VAE Device writes it
        self.first_stage_model: nn.Module = patcher.model

    @classmethod
    def of_svimo(
        cls, network: AutoencoderKLCogVideoX, config: SViMoConfig, preview: Tensor | None
    ) -> SViMoVAE:
        """Around the VAE of a SViMo checkpoint or a CogVideoX file."""
        patcher = whole_patcher(
            network, comfy.model_management.vae_device(), comfy.model_management.vae_offload_device()
        )
        return cls(lambda patcher: VideoVAE(patcher.model.network, config.vae, preview), patcher, config)

    @classmethod
    def of_core(cls, vae: Any) -> SViMoVAE:
        """Around core's own CogVideoX VAE (since 0.21): its layers and weights, in CogVideoX's own batches of frames.

        Core batches otherwise: it encodes the first frame alone and forgets it then, and decodes four frames at a
        time, so that group norm sees other frames than in training. CogVideoX's transformers know the latents of
        nine frames first, then eight; core's weights give exactly those in diffusers' loop.
        """
        vae_config = replace(COGVIDEOX_5B_I2V.vae, latent_channels=vae.first_stage_model.latent_channels)

        def around(patcher: ModelPatcher) -> VideoVAE:
            with torch.device("meta"):
                loop = build_vae(vae_config).eval()
            loop.encoder, loop.decoder = patcher.model.encoder, patcher.model.decoder
            return VideoVAE(loop, vae_config, device=patcher.load_device, dtype=vae.vae_dtype)

        config = replace(COGVIDEOX_5B_I2V, vae=vae_config)
        return cls(around, vae.patcher, config, native=False, fetches=True)

    def on(self, patcher: ModelPatcher) -> SViMoVAE:
        """The same VAE on the weights of another patcher."""
        other = copy.copy(self)
        other.patcher, other.device, other.first_stage_model = patcher, patcher.load_device, patcher.model
        return other

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"SViMo's video VAE has no {name!r}: it encodes and decodes clips. A node that needs more of core's VAE "
            "takes core's own, from Load VAE"
        )

    @property
    def video_vae(self) -> VideoVAE:
        """What does the work, on the weights that :attr:`patcher` holds by now."""
        if self._made is None or self._made[0] is not self.patcher.model:
            self._made = self.patcher.model, self._around(self.patcher)
        return self._made[1]

    @property
    def scale(self) -> float:
        """Factor from VAE space to the networks' latents."""
        return self.config.vae.scaling_factor

    def clip_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, height and width of a clip, where 0 means the model's own.

        Raises:
            ValueError: a size that the model cannot represent, or 0 where the VAE does not know its model.
        """
        if not self.native and not (frames and height and width):
            raise ValueError(
                "this VAE comes from core's loader and knows no clip size: set width, height and frames (SViMo: 624, "
                "416, 49; CogVideoX: 720, 480, 49), or connect the VAE of a SViMo loader"
            )
        size = frames or self.config.frames, height or self.config.height, width or self.config.width
        self.config.check_clip(*size)
        return size

    def memory_for_encode(self, frames: int, height: int, width: int, tiled: bool = False) -> int:
        """Bytes for encoding one clip, beside the weights (5.8 GB for 49 x 416 x 624 in bfloat16)."""
        return self.video_vae.encode_memory(frames, height, width, tiled)

    def memory_for_decode(self, frames: int, height: int, width: int, tiled: bool = False) -> int:
        """Bytes for decoding one clip, beside the weights (13.0 GB for 49 x 416 x 624 in bfloat16)."""
        return self.video_vae.decode_memory(frames, height, width, tiled)

    def encode_scaled(self, frames: Tensor, tiled: bool = False, loaded: bool = False) -> Tensor:
        """Frames (B N H W 3, uint8 or in [0, 1]) to the networks' latents, B C T h w float32 on the VAE's device.

        Args:
            loaded: a sampler has loaded this VAE with its model: loading again could unload the model in use.
        """

        def encode(tiled: bool) -> Tensor:
            if not loaded:
                self._load(len(frames) * self.memory_for_encode(*frames.shape[1:4], tiled))
            elif not self.fetches:
                make_whole(self.patcher)
            with self._on_device():
                return self.video_vae.encode(frames, tiled=tiled, on_work=throw_if_interrupted).float()

        return self._whole_or_tiled(encode, tiled, "encoding")

    def decode_scaled(self, latents: Tensor, tiled: bool = False) -> Tensor:
        """The networks' latents (B C T h w) to frames, B N H W 3 in [0, 1], float32 on the VAE's device."""
        vae = self.config.vae
        frames = (latents.shape[2] - 1) * vae.temporal_compression + 1
        height, width = (size * vae.spatial_compression for size in latents.shape[3:])

        def decode(tiled: bool) -> Tensor:
            self._load(len(latents) * self.memory_for_decode(frames, height, width, tiled))
            with self._on_device():
                return self.video_vae.decode(latents, tiled, throw_if_interrupted)

        return self._whole_or_tiled(decode, tiled, "decoding")

    # What core's nodes call.

    def encode(self, pixels: Tensor) -> Tensor:
        """Images of one clip (N H W 3, or B N H W 3 for several, in [0, 1]) to their latent, B C T h w, after cutting
        off, on both sides, what is beyond a multiple of 8 pixels, as core does.

        Raises:
            ValueError: a number of frames that cannot be decoded again, no RGB, or smaller than 8 pixels.
        """
        return self._encode_images(pixels, tiled=False)

    def encode_tiled(self, pixels: Tensor, **_tile_sizes: Any) -> Tensor:
        """As :meth:`encode`, in the VAE's own tile size."""
        return self._encode_images(pixels, tiled=True)

    def _encode_images(self, pixels: Tensor, tiled: bool) -> Tensor:
        clips = self.vae_encode_crop_pixels(pixels if pixels.ndim == 5 else pixels[None])
        frames, step = clips.shape[1], self.config.vae.frame_step
        if (frames - 1) % step:
            raise ValueError(
                f"SViMo's VAE takes the images for one clip and needs {step}k + 1 of them (1, {step + 1}, "
                f"{2 * step + 1}, ...), got {frames}: choose as many with core's ImageFromBatch"
            )
        latents = self.encode_scaled(clips, tiled) / self.scale
        return latents.to(comfy.model_management.intermediate_device())

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        """The middle of images (... H W C) whose sides are multiples of 8 pixels, and their first three channels.

        Raises:
            ValueError: nothing is left, or no RGB.
        """
        multiple = self.spacial_compression_encode()
        *_, height, width, channels = pixels.shape
        if min(height, width) < multiple or channels < 3:
            raise ValueError(
                f"SViMo's VAE needs RGB images of at least {multiple} x {multiple} pixels, got {width} x {height} with "
                f"{channels} channels"
            )
        top, left = height % multiple // 2, width % multiple // 2
        height, width = height - height % multiple, width - width % multiple
        return pixels[..., top : top + height, left : left + width, :3]

    def decode(self, samples: Tensor, tiled: bool = False, **_options: Any) -> Tensor:
        """Latents (B C T h w) to frames, B N H W 3; in tiles on demand, or when memory runs out as core does.

        Raises:
            ValueError: a latent of another kind of model.
        """
        if samples.is_nested:  # the video of a joint latent, which newer cores' nodes take by themselves
            samples = samples.unbind()[0]
        if samples.ndim != 5 or samples.shape[1] != self.config.vae.latent_channels:
            raise ValueError(
                f"SViMo's VAE decodes video latents of {self.config.vae.latent_channels} channels (clips x channels x "
                f"frames x height x width), got {' x '.join(map(str, samples.shape))}: connect a latent of a SViMo model"
            )
        return self.decode_scaled(samples * self.scale, tiled).to(
            comfy.model_management.intermediate_device()
        )

    def decode_tiled(self, samples: Tensor, **_tile_sizes: Any) -> Tensor:
        """As :meth:`decode`, in the VAE's own tile size."""
        return self.decode(samples, tiled=True)

    def spacial_compression_decode(self) -> int:
        """Pixels per latent cell (core's spelling)."""
        return self.config.vae.spatial_compression

    spacial_compression_encode = spacial_compression_decode
    downscale_ratio = property(spacial_compression_decode)  # the same to core's older inpainting nodes

    def temporal_compression_decode(self) -> int:
        """Frames per latent frame."""
        return self.config.vae.temporal_compression

    def throw_exception_if_invalid(self) -> None:
        """Core's VAE can be without a network; this one cannot."""

    def get_sd(self) -> dict[str, Tensor]:
        """Weights under CogVideoX's names, for core's Save VAE and Save Checkpoint.

        Raises:
            ValueError: another size than the published one, which is all that a loader assumes without being told.
        """
        if replace(self.config.vae, latent_channels=16) != COGVIDEOX_5B_I2V.vae:
            raise ValueError(
                "this VAE has another size than CogVideoX's, which core would not save with its weights: copy the "
                "SViMo checkpoint that it came from, or leave vae unconnected"
            )
        return self.video_vae.model.state_dict()

    def is_dynamic(self) -> bool:
        """Whether core pages its weights in and out by itself."""
        return self.patcher.is_dynamic()

    def _load(self, memory_required: int) -> None:
        """Bring the weights to their device, with room for so many bytes of activations."""
        if self.fetches:
            comfy.model_management.load_models_gpu([self.patcher], memory_required=memory_required)
        else:
            load_whole(self.patcher, memory_required)

    def _on_device(self) -> AbstractContextManager:
        """Core's context of a GPU that is not the first; older cores know one GPU."""
        enter = getattr(comfy.model_management, "cuda_device_context", None)
        return enter(self.patcher.load_device) if enter is not None else nullcontext()

    @staticmethod
    def _whole_or_tiled(run: Callable[[bool], Tensor], tiled: bool, what: str) -> Tensor:
        """`run(tiled)`, and once more in tiles if the whole does not fit."""
        if not tiled:
            try:
                return run(False)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("Out of memory while %s the clip whole: trying again in tiles", what)
        # Not inside of `except`: the error holds every tensor of the attempt until it is gone.
        if not tiled:
            comfy.model_management.soft_empty_cache()
        return run(True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of a device's memory, of which it tells in two ways (newer cores have this question)."""
    ask = getattr(comfy.model_management, "is_oom", None)
    if ask is not None:
        return ask(error)
    if isinstance(error, comfy.model_management.OOM_EXCEPTION):
        return True
    accelerator_error = getattr(torch, "AcceleratorError", ())
    out_of_memory = getattr(error, "error_code", None) == 2 or "out of memory" in str(error).lower()
    return isinstance(error, accelerator_error) and out_of_memory


def svimo_vae(vae: Any) -> SViMoVAE:
    """A VAE as our nodes use it: ours, or core's own CogVideoX VAE.

    Raises:
        ValueError: another kind of VAE is connected.
    """
    if isinstance(vae, SViMoVAE):
        return vae
    network = getattr(vae, "first_stage_model", None)
    if is_cores_cogvideox(network):
        return SViMoVAE.of_core(vae)
    raise ValueError(
        f"the VAE is a {type(vae if network is None else network).__name__} of another model family: connect the VAE "
        "of a SViMo checkpoint, \"Load SViMo VAE\", or core's Load VAE with CogVideoX's VAE"
    )


def is_cores_cogvideox(network: Any) -> bool:
    """Whether this is the network of core's own CogVideoX VAE, which core has since 0.21."""
    try:
        cores = importlib.import_module("comfy.ldm.cogvideo.vae")
    except ModuleNotFoundError:
        return False
    return isinstance(network, cores.AutoencoderKLCogVideoX)
