"""Read this first: one reference image and a prompt become a video and the 3D motion in it.

:func:`generate` is the whole method in one screen; the stages it calls are the ones the ComfyUI nodes call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..checkpoint import PARTS, load_part, read_header
from ..config import ClipSize, SViMoConfig
from ..model.drawing import DrawingEncoder
from ..model.interaction import InteractionModel
from ..model.mmdit import MMDiT
from ..model.text import TextEncoder
from ..model.vae import VideoVAE
from ..motion import HandObjectMotion
from ..normalization import MotionNormalizer
from ..schedule import NoiseSchedule
from .guidance import FeedbackLoop, FeedbackOptions, GivenGuidance, Unguided
from .latents import JointLatents, Known, known_frames, noise_like
from .painter import MotionPainter, QuickPainter, draw_motions, quickly_encoded
from .reader import MotionReader, Reading
from .sampler import Denoiser, SamplerReport, guidance_scales, sample


@dataclass(frozen=True, kw_only=True, eq=False)
class SViMo:
    """A complete model: its networks, and how they work together."""

    config: SViMoConfig
    backbone: MMDiT
    vae: VideoVAE
    interaction: InteractionModel | None = None
    """None: there is no 3D motion."""
    text_encoder: TextEncoder | None = None
    """None: prompts are given as features."""
    normalizer: MotionNormalizer | None = None
    drawing_encoder: DrawingEncoder | None = None
    """None: the VAE encodes drawings."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: TextEncoder | None = None,
    ) -> SViMo:
        """Load a checkpoint that holds all parts; it may lack the drawing encoder.

        Args:
            text_encoder: for a checkpoint that has none, or anything else that encodes like one.

        Raises:
            FileNotFoundError, ValueError: see :func:`svimo_core.checkpoint.read_header` and `load_part`.
        """
        header = read_header(path)
        parts = {
            part: load_part(header, part, dtype).to(device)
            for part in PARTS
            if (part in header.parts or part != "drawing_encoder")
            and (part != "text_encoder" or text_encoder is None)
        }
        if text_encoder is None:
            text_encoder = TextEncoder(parts["text_encoder"], header.config.text)
        return cls(
            config=header.config,
            backbone=parts["backbone"],
            interaction=parts["interaction"],
            vae=VideoVAE(parts["vae"], header.config.vae, header.preview),
            text_encoder=text_encoder,
            normalizer=header.normalizer,
            drawing_encoder=parts.get("drawing_encoder"),
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return next(self.backbone.parameters()).dtype

    def reader(self) -> MotionReader:
        """From latents to 3D motion."""
        last = self.config.schedule.num_train_timesteps - 1
        return MotionReader(self.interaction, self.normalizer, last, self.dtype)

    def painter(self, size: ClipSize, exact: bool = False) -> MotionPainter | QuickPainter:
        """From 3D motion to the drawing's latent; see `FeedbackOptions.exact`."""
        if self.drawing_encoder is None or exact:
            return MotionPainter(self.vae.encode, self.normalizer, size.width, size.height)
        return QuickPainter(self.drawing_encoder, self.normalizer, size.width, size.height, self.dtype)

    def known(
        self,
        size: ClipSize,
        video: Tensor | None = None,
        motion: HandObjectMotion | None = None,
        first: int | None = None,
        last: int = 0,
    ) -> Known:
        """What a run shall take as given: the streams that there are, whole; or with `first` and `last` so many latent
        frames of both at the beginning and the end.

        Args:
            video: N H W 3 in [0, 1], of the clip's size.
            motion: of as many frames.
        """
        config, given = self.config, (video is not None, motion is not None)
        empty = empty_latents(config, *size).to(self.device)
        streams = JointLatents(empty, empty)
        if video is not None:
            streams = streams._replace(video=self.vae.encode(video[None]).float().to(self.device))
        if motion is not None:
            streams = streams._replace(drawing=self._drawn(motion, size))
        whole = given if first is None else (False, False)
        frames = known_frames(empty.shape[2], *whole, first=first or 0, last=last)
        return Known(streams, frames.to(self.device))

    def _drawn(self, motion: HandObjectMotion, size: ClipSize) -> Tensor:
        """The drawing's latent of a motion, 1 C T h w."""
        if self.drawing_encoder is not None:
            shape = size.width, size.height, self.device, self.dtype
            return quickly_encoded(self.drawing_encoder, motion, *shape)
        return self.vae.encode(draw_motions([motion], size.width, size.height)).float().to(self.device)

    def denoise(
        self,
        image: Tensor,
        text: Tensor,
        negative_text: Tensor,
        size: ClipSize,
        generator: torch.Generator,
        steps: int = 50,
        guidance_scale: float = 6.0,
        guidance_schedule: str = "dynamic",
        solver: str = "ddim",
        options: FeedbackOptions | None = None,
        on_step: Callable[[int, JointLatents], None] = lambda step, clean: None,
        known: Known | None = None,
    ) -> tuple[JointLatents, Reading | None, SamplerReport]:
        """Latents of a clip and the reading of it, from conditions: the reference image's latent (1 C h w), features of
        both prompts (1 L text_dim each), and what is known. A drawing that is known guides."""
        device, config = self.device, self.config
        schedule = NoiseSchedule(config.schedule)
        timesteps = schedule.timesteps(steps)
        image = image.to(device)
        denoiser = Denoiser(
            model=self.backbone,
            schedule=schedule,
            image=image,
            text=text.to(device, torch.float32),
            negative_text=negative_text.to(device, torch.float32),
            dtype=self.dtype,
            known=known,
        )
        empty = empty_latents(config, *size)
        streams = JointLatents(empty, empty if config.backbone.motion else None)
        guidance = Unguided()
        if self.interaction is not None:
            options = options or FeedbackOptions()
            guidance = FeedbackLoop(self.reader(), self.painter(size, options.exact), image, options)
        if known is not None and known.drawing:
            guidance = GivenGuidance(known.latents.drawing, otherwise=guidance)
        latents, report = sample(
            denoiser,
            noise_like(streams, generator).to(device),
            timesteps,
            generator,
            solver,
            guidance,
            guidance_scales(guidance_scale, timesteps, guidance_schedule),
            on_step,
        )
        return latents, guidance.reading(), report


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """What one run makes, on the CPU."""

    video: Tensor
    """N H W 3 in [0, 1]."""
    drawing: Tensor
    """The rendered motion as the model generated it, N H W 3 in [0, 1]."""
    motion: HandObjectMotion
    report: SamplerReport


@torch.inference_mode()
def generate(
    model: SViMo,
    image: Tensor,
    prompt: str,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 6.0,
    guidance_schedule: str = "dynamic",
    solver: str = "ddim",
    options: FeedbackOptions | None = None,
    on_step: Callable[[int, JointLatents], None] = lambda step, clean: None,
    known: Known | None = None,
) -> Generation:
    """One reference image (H W 3 in [0, 1]) and a prompt to a video and 3D motion, at the model's native size; and what
    is known of them (:meth:`SViMo.known`)."""
    config = model.config
    size = ClipSize(config.frames, config.height, config.width)
    generator = torch.Generator("cpu").manual_seed(seed)

    # 1. conditions
    text, negative_text = model.text_encoder.encode([prompt, ""]).chunk(2)
    image_latent = encode_image(model.vae.encode, image, size.width, size.height, generator=generator)

    # 2. noise to latents of video and drawing, with the loop closed
    latents, reading, report = model.denoise(
        image_latent,
        text,
        negative_text,
        size,
        generator,
        steps,
        guidance_scale,
        guidance_schedule,
        solver,
        options,
        on_step,
        known,
    )

    # 3. decode
    (motion,) = model.reader().to_motions(reading, size.width, size.height, config.fps, prompt)
    return Generation(
        video=model.vae.decode(latents.video)[0].cpu(),
        drawing=model.vae.decode(latents.drawing)[0].cpu(),
        motion=motion,
        report=report,
    )


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames in [0, 1] to uint8."""
    return (frames.float().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)


def encode_image(
    encode: Callable[[Tensor], Tensor],
    image: Tensor,
    width: int,
    height: int,
    noise: float = 0.02,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A reference image (H W 3 in [0, 1]), resized and cropped, to its latent (1 C h w float32).

    Args:
        encode: of the video VAE: frames (B N H W 3) to scaled latents.
        noise: standard deviation of the pixel noise in [-1, 1] space; training draws it from exp(N(-3, 0.5)), so a
            small amount is what the model expects.
    """
    return encode_fitted(encode, fit_image(image, width, height)[None], noise, generator)


def encode_fitted(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    noise: float = 0.02,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Reference images of the clip's size (B H W 3 in [0, 1]) to their latents (B C h w float32), all with the same
    noise; see :func:`encode_image`."""
    drawn = torch.randn(images.shape[1:], generator=generator)
    pixels = images + noise / 2 * drawn  # [-1, 1] is twice as wide as [0, 1]
    return encode(pixels[:, None])[:, :, 0].float()


def fit_image(image: Tensor, width: int, height: int) -> Tensor:
    """Scale an image (H W 3) to cover width x height and cut off what hangs over, equally on both sides.

    Raises:
        ValueError: not an RGB image, or values that are not finite.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or not image.numel():
        raise ValueError(f"an image must be height x width x 3 (RGB), got {tuple(image.shape)}")
    scale = max(width / image.shape[1], height / image.shape[0])
    size = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    pixels = rearrange(image.float().cpu(), "h w c -> 1 c h w")
    pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    if not torch.isfinite(pixels).all():  # any that is not spreads; there are fewer to look at than before
        raise ValueError(
            "an image has values that are not finite (NaN or infinity): fix the node that made it"
        )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return rearrange(pixels[0, :, top : top + height, left : left + width], "c h w -> h w c").clamp(0, 1)


def empty_latents(config: SViMoConfig, frames: int, height: int, width: int) -> Tensor:
    """Zero video latents of a clip, 1 C T h w.

    Raises:
        ValueError: a size that the model cannot represent.
    """
    return torch.zeros(1, *config.latent_shape(frames, height, width))
