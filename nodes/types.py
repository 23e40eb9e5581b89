"""How things travel between nodes.

Core's own types wherever core has a word for the thing:

- MODEL: a ModelPatcher around :class:`BackboneModel`, so that core's LoRA loaders and memory management apply.
- VAE, CLIP: objects with the methods that core's encode and decode nodes call.
- CONDITIONING: text features as core encodes them; our additions are the `svimo_...` keys below.
- LATENT: video latents in VAE space (unscaled), B C T h w. After the sampler, `samples` is core's NestedTensor of
  video latent, motion latent, normalised hands and normalised points; "SViMo Split Latent" gives plain LATENTs.

Our own types only for what core has no word for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor, nn

from ..svimo_core.config import InteractionConfig, ScheduleConfig, SViMoConfig, VAEConfig
from ..svimo_core.feedback import FeedbackOptions
from ..svimo_core.model.mmdit import MMDiT
from ..svimo_core.model.text import TextEncoder
from ..svimo_core.model.vae import VideoVAE
from ..svimo_core.normalization import MotionNormalizer
from ..svimo_core.sampler import JointLatents

CATEGORY = "SViMo"

Interaction = io.Custom("SVIMO_INTERACTION")
"""VID with its motion statistics: an :class:`InteractionHandle`."""
Feedback = io.Custom("SVIMO_FEEDBACK")
"""The closed loop, ready for the sampler: a :class:`FeedbackHandle`."""
Motion = io.Custom("SVIMO_MOTION")
"""One clip of 3D motion: a `svimo_core.motion.HandObjectMotion`."""
RiggedMotionType = io.Custom("SVIMO_RIGGED_MOTION")
"""Skinned hands and rigid objects: a `svimo_core.rigged.RiggedMotion`."""

IMAGE_LATENT = "svimo_image_latent"
"""CONDITIONING key: the reference image's latent, 1 C h w, in VAE space."""
GUIDANCE = "svimo_guidance"
"""CONDITIONING key: a `svimo_core.sampler.Guidance` of a given motion, in VAE space, already scaled by its strength."""
PROMPT = "svimo_prompt"
"""CONDITIONING and LATENT key: the prompt in words, so that saved motion knows it."""


class PreviewFormat(LatentFormat):
    """Core's description of a latent for its live previews."""

    latent_dimensions = 3

    def __init__(self, matrix: Tensor):
        self.latent_channels = len(matrix) - 1
        self.latent_rgb_factors = (2 * matrix[:-1]).tolist()  # core draws [-1, 1]
        self.latent_rgb_factors_bias = (2 * matrix[-1] - 1).tolist()


class BackboneModel(nn.Module):
    """What a MODEL holds: the MM-DiT under the name that core's LoRA key maps expect, and how to use it."""

    def __init__(
        self, network: MMDiT, config: SViMoConfig, compute_dtype: torch.dtype, preview: Tensor | None
    ):
        super().__init__()
        self.diffusion_model = network
        self.config = config
        self.compute_dtype = compute_dtype
        self.latent_format = PreviewFormat(preview) if preview is not None else None
        self.model_config = SimpleNamespace(unet_config={})  # where core's LoRA loaders look for UNet sizes

    def memory_required(self, tokens: int, batch: int) -> float:
        """Bytes of activations of one forward: the widest moment holds about 16 values per token and channel."""
        return 16 * batch * tokens * self.config.backbone.dim * self.compute_dtype.itemsize


def backbone_of(model: ModelPatcher) -> BackboneModel:
    """The SViMo backbone in a MODEL.

    Raises:
        ValueError: another kind of model is connected.
    """
    if not isinstance(model.model, BackboneModel):
        raise ValueError(
            f"the model is a {type(model.model).__name__}, not a SViMo model: "
            "connect a SViMo checkpoint or diffusion model loader"
        )
    return model.model


class Held(nn.Module):
    """A network of another library for a ModelPatcher to hold: it writes `device`, which they define as read-only."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractionHandle:
    """A SVIMO_INTERACTION: VID in a patcher."""

    patcher: ModelPatcher
    config: InteractionConfig
    vae_config: VAEConfig
    """Of the latents that VID was trained on."""
    schedule: ScheduleConfig
    """Of the noise on hands and points."""
    normalizer: MotionNormalizer
    compute_dtype: torch.dtype
    fps: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FeedbackHandle:
    """A SVIMO_FEEDBACK: the models of the loop and when it acts."""

    interaction: InteractionHandle
    vae: SViMoVAE
    options: FeedbackOptions


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


class SViMoCLIP:
    """A CLIP as core's text nodes use one, around the small T5 that ships in a SViMo checkpoint."""

    def __init__(self, text_encoder: TextEncoder, patcher: ModelPatcher):
        self.text_encoder = text_encoder
        self.patcher = patcher

    def tokenize(self, text: str, **_options: Any) -> dict[str, Tensor]:
        """Token ids of one prompt."""
        return {"svimo": self.text_encoder.tokenize([text])}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Tensor], **_options: Any) -> list:
        """CONDITIONING of one prompt: text features, 1 x text_length x dim."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return [[self.text_encoder.encode_tokens(tokens["svimo"]).float().cpu(), {}]]


def check_choice(name: str, value: str, options: Iterable[str]) -> None:
    """Refuse a value that a Combo does not offer; ComfyUI 0.3 lets API users send anything.

    Raises:
        ValueError: not one of the options.
    """
    if value not in options:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(options)}")


def throw_if_interrupted() -> None:
    """Stop here if the user cancelled. Waits for the GPU first: a long queue of kernels would outlive the cancel."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    comfy.model_management.throw_exception_if_processing_interrupted()


def unpack_latents(latent: dict[str, Any], scale: float) -> JointLatents:
    """LATENT to the networks' joint latents (video and motion scaled)."""
    samples = latent["samples"]
    video, *rest = samples.unbind() if samples.is_nested else (samples,)
    if rest:
        rest[0] = rest[0] * scale
    return JointLatents(video * scale, *rest)


def check_points(latents: JointLatents, config: InteractionConfig) -> None:
    """Refuse a joint latent whose objects another interaction model made.

    Raises:
        ValueError: another number of points.
    """
    if latents.points.shape[2] != config.num_points:
        raise ValueError(
            f"the latent has {latents.points.shape[2]} object points, this interaction model {config.num_points}: "
            "use the interaction model that the latent was sampled with"
        )


def pack_latents(latents: JointLatents, scale: float, prompt: str) -> dict[str, Any]:
    """The networks' joint latents to LATENT on the CPU, as :func:`unpack_latents` reads it."""
    members = [x.cpu() for x in latents if x is not None]
    members[:2] = [x / scale for x in members[:2]]
    return {"samples": NestedTensor(members) if len(members) > 1 else members[0], PROMPT: prompt}


def frames_to_image_batch(frames: Tensor) -> Tensor:
    """B N H W C frames to core's IMAGE, (B N) H W C."""
    return rearrange(frames, "b n h w c -> (b n) h w c")
