"""The synchronized sampler: the latents of video and drawing take every step together, and what guides a step hears
what came out of it (method, section 5)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..model.mmdit import MMDiT
from ..schedule import SOLVERS, STOCHASTIC_SOLVERS, NoiseSchedule, StepLevels
from .guidance import StageClock, Unguided
from .latents import JointLatents, Known, noise_like


@dataclass(frozen=True, kw_only=True)
class SamplerReport:
    """What one run did and where its time went."""

    steps: int = 0
    feedback_passes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds by stage: `denoise` (MM-DiT), `interaction` (VID), `guidance` (draw and encode), `total`."""


def guidance_scales(scale: float, timesteps: list[int], schedule: str = "dynamic") -> list[float]:
    """Classifier-free guidance scale of every step.

    Args:
        timesteps: of the run, descending.
        schedule: "dynamic" is CogVideoX's, which grows from 1 to `scale` + 1 over the steps; "constant" stays;
            "dynamic_diffusers" grows over the timestep, as diffusers' pipelines have it by mistake, where the scale
            jumps up and down from step to step: only for comparing.

    Raises:
        ValueError: an unknown schedule.
    """
    steps = len(timesteps)
    if schedule == "constant":
        return [scale] * steps
    if schedule == "dynamic":
        over = [i / steps for i in range(steps)]
    elif schedule == "dynamic_diffusers":
        over = [(steps - timestep) / steps for timestep in timesteps]
    else:
        raise ValueError(
            f'the schedule of the guidance scale must be "dynamic", "constant" or "dynamic_diffusers", got {schedule!r}'
        )
    return [1 + scale * (1 - math.cos(math.pi * x**5)) / 2 for x in over]


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoiser:
    """The MM-DiT with its conditions and classifier-free guidance, as a predictor of clean latents.

    The unconditional branch drops the text only: image and guidance stay.
    """

    model: MMDiT
    schedule: NoiseSchedule
    image: Tensor
    """Reference image latent, B C h w."""
    text: Tensor
    """B L text_dim."""
    negative_text: Tensor
    batched: bool = True
    """Both branches in one forward; False runs them one after the other and needs half the memory."""
    dtype: torch.dtype = torch.float32
    """Compute type of the network; latents stay float32 outside of it."""
    known: Known | None = None
    """What is given and comes out as it went in."""

    def __call__(
        self, noisy: JointLatents, guidance: Tensor | None, timestep: int, scale: float
    ) -> JointLatents:
        """Noisy latents and guidance (B C T h w; None: none) to clean latents, at a guidance scale."""
        if guidance is None and noisy.drawing is not None:
            guidance = torch.zeros_like(noisy.drawing)
        inputs = (*noisy, guidance)
        if scale == 1:
            velocities = self._forward(self.text, *inputs, timestep)
        elif self.batched:
            doubled = (x if x is None else torch.cat([x, x]) for x in inputs)
            both = self._forward(torch.cat([self.text, self.negative_text]), *doubled, timestep)
            velocities = [x if x is None else _guide(*x.chunk(2), scale) for x in both]
        else:
            positive = self._forward(self.text, *inputs, timestep)
            negative = self._forward(self.negative_text, *inputs, timestep)
            velocities = [
                p if p is None else _guide(p, n, scale) for p, n in zip(positive, negative, strict=True)
            ]
        clean = JointLatents(
            *(
                v if v is None else self.schedule.clean_from_velocity(x, v, timestep)
                for x, v in zip(noisy, velocities, strict=True)
            )
        )
        return clean if self.known is None else self.known.put_into(clean)

    def _forward(
        self, text: Tensor, video: Tensor, drawing: Tensor | None, guidance: Tensor | None, timestep: int
    ) -> tuple[Tensor, Tensor | None]:
        image = self.model.image_condition(self.image, video.shape[2])
        image = image.repeat(len(video) // len(image), 1, 1, 1, 1)  # again for the unconditional branch
        inputs = (x if x is None else x.to(self.dtype) for x in (video, image, text))
        streams = (x if x is None else x.to(self.dtype) for x in (drawing, guidance))
        time = torch.full((len(video),), timestep, device=video.device)
        if self.known is not None:
            time = self.known.timesteps(time)
        return tuple(x if x is None else x.float() for x in self.model(*inputs, time, *streams))


def _guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    return negative + scale * (positive - negative)


def sample(
    denoise: Denoiser,
    start: JointLatents,
    timesteps: list[int],
    generator: torch.Generator,
    solver: str = "ddim",
    guidance: Unguided | None = None,
    scales: list[float] | None = None,
    on_step: Callable[[int, JointLatents], None] = lambda step, clean: None,
) -> tuple[JointLatents, SamplerReport]:
    """Run the synchronized reverse process.

    Args:
        start: video and drawing at the first timestep; pure noise, or noised latents to start further down.
        timesteps: descending training timesteps (:meth:`NoiseSchedule.timesteps`).
        generator: CPU generator of the noise that stochastic solvers add.
        guidance: what guides each step; after the run it has the 3D motion, if it read any. None, or no drawing:
            nothing guides.
        scales: classifier-free guidance scale of every step (:func:`guidance_scales`); None: 1 at all.
        on_step: called after each step with its index and the predicted clean latents.

    Raises:
        ValueError: unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
    if guidance is None or start.drawing is None:
        guidance = Unguided()
    steps = len(timesteps)
    scales = scales or [1.0] * steps
    clock, began = StageClock(start.video.device), time.perf_counter()
    latents, clean_before = start, JointLatents(None)

    for i, timestep in enumerate(timesteps):
        # 1. clean latents, guided; what guides hears what came out
        if denoise.known is not None:
            latents = denoise.known.put_into(latents)
        step = denoise.schedule.step(i, timestep)
        for iteration in range(guidance.passes(step)):
            guiding = guidance.guide(step, latents, again=iteration > 0)
            with clock("denoise"):
                clean = denoise(latents, guiding, timestep, scales[i])
            guidance.came_out(step, clean)

        # 2. both latents step together
        levels = step_levels(denoise.schedule, timesteps, i)
        noise = JointLatents(None)
        if solver in STOCHASTIC_SOLVERS and i + 1 < steps:
            noise = noise_like(latents, generator)
        latents = JointLatents(
            *(
                x if x is None else SOLVERS[solver](x, x0, x0_before, levels, fresh)
                for x, x0, x0_before, fresh in zip(latents, clean, clean_before, noise, strict=True)
            )
        )
        clean_before = clean
        on_step(i, clean)

    passes, inside = guidance.report()
    seconds = {**clock.seconds(), **inside, "total": time.perf_counter() - began}
    return latents, SamplerReport(steps=steps, feedback_passes=passes, seconds=seconds)


def step_levels(schedule: NoiseSchedule, timesteps: list[int], i: int) -> StepLevels:
    """Noise levels around step i of a run over these timesteps."""
    return StepLevels(
        before=schedule.level(timesteps[i - 1]) if i else None,
        now=schedule.level(timesteps[i]),
        after=schedule.level(timesteps[i + 1] if i + 1 < len(timesteps) else None),
    )
