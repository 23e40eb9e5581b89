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
from typing import TYPE_CHECKING, Any

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
from ..svimo_core.normalization import MotionNormalizer
from ..svimo_core.sampler import JointLatents

if TYPE_CHECKING:
    from .vae import SViMoVAE

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


def check_choice(name: str, value: str, options: Iterable[str]) -> None:
    """Refuse a value that a Combo does not offer; ComfyUI 0.3 lets API users send anything.

    Raises:
        ValueError: not one of the options.
    """
    if value not in options:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(options)}")


def throw_if_interrupted() -> None:
    """Stop here if the user cancelled. Core's layers ask by themselves; for those of other libraries, ask in between."""
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
