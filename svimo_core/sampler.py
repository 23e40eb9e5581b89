"""The synchronized sampler: the latents of video and motion take every step together, and VID reads hands and objects
off both at every step (method, section 5)."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .feedback import FeedbackOptions, InteractionFeedback
from .model.mmdit import MMDiT
from .schedule import SOLVERS, STOCHASTIC_SOLVERS, NoiseSchedule, StepLevels


class JointLatents(NamedTuple):
    """What one diffusion process makes. In video-only mode everything but the video is None."""

    video: Tensor
    """B C T h w."""
    motion: Tensor | None = None
    """B C T h w, the latent of the rendered motion."""
    hands: Tensor | None = None
    """B N 42 3, normalised; None before VID has read them."""
    points: Tensor | None = None
    """B N P 3, normalised, all objects in order."""

    def to(self, *args) -> JointLatents:
        """`Tensor.to` on every member."""
        return JointLatents(*(x if x is None else x.to(*args) for x in self))


class Guidance(NamedTuple):
    """A guidance latent that the caller gives, such as a recorded motion, and when it holds."""

    latent: Tensor
    """B C T h w."""
    start: float = 0.0
    end: float = 1.0
    """Fractions of the steps. Outside of them the loop takes over."""

    def active(self, step: int, steps: int) -> bool:
        """Whether the given guidance holds at this step of so many."""
        return self.start <= step / steps < self.end


@dataclass(frozen=True, kw_only=True)
class SamplerReport:
    """What one run did and where its time went."""

    steps: int = 0
    feedback_passes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds by stage: `denoise` (MM-DiT), `interaction` (VID), `guidance` (draw and encode), `total`."""


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
    guidance_scale: float = 6.0
    dynamic: bool = True
    """CogVideoX's dynamic scale, which grows from 1 over the steps; False keeps it constant."""
    dynamic_over: str = "step"
    """What the dynamic scale grows over: "step", the index of the step, as CogVideoX was made; or "timestep", as
    diffusers' pipelines have it by mistake, where the scale jumps up and down from step to step. Only for comparing."""
    batched: bool = True
    """Both branches in one forward; False runs them one after the other and needs half the memory."""
    dtype: torch.dtype = torch.float32
    """Compute type of the network; latents stay float32 outside of it."""
    on_block: Callable[[int], None] | None = None

    def __post_init__(self):
        if self.dynamic_over not in ("step", "timestep"):
            raise ValueError(f'dynamic_over must be "step" or "timestep", got {self.dynamic_over!r}')

    def scale(self, step: int, steps: int) -> float:
        """Classifier-free guidance scale at a step; the dynamic form is CogVideoX's, over the step index."""
        if not self.dynamic:
            return self.guidance_scale
        return 1 + self.guidance_scale * (1 - math.cos(math.pi * (step / steps) ** 5)) / 2

    def __call__(
        self,
        video: Tensor,
        motion: Tensor | None,
        guidance: Tensor | None,
        timestep: int,
        step: int,
        steps: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Noisy latents (B C T h w) and guidance to clean video and motion latents."""
        scale = self.scale(steps - timestep if self.dynamic_over == "timestep" else step, steps)
        if scale == 1:
            velocities = self._forward(self.text, video, motion, guidance, timestep)
        elif self.batched:
            doubled = (x if x is None else torch.cat([x, x]) for x in (video, motion, guidance))
            both = self._forward(torch.cat([self.text, self.negative_text]), *doubled, timestep)
            velocities = [x if x is None else _guide(*x.chunk(2), scale) for x in both]
        else:
            positive = self._forward(self.text, video, motion, guidance, timestep)
            negative = self._forward(self.negative_text, video, motion, guidance, timestep)
            velocities = [
                p if p is None else _guide(p, n, scale) for p, n in zip(positive, negative, strict=True)
            ]
        return tuple(
            v if v is None else self.schedule.clean_from_velocity(x, v, timestep)
            for x, v in zip((video, motion), velocities, strict=True)
        )

    def _forward(
        self, text: Tensor, video: Tensor, motion: Tensor | None, guidance: Tensor | None, timestep: int
    ) -> tuple[Tensor, Tensor | None]:
        image = self.model.image_condition(self.image, video.shape[2])
        image = image.repeat(len(video) // len(image), 1, 1, 1, 1)  # again for the unconditional branch
        inputs = (x if x is None else x.to(self.dtype) for x in (video, image, text))
        streams = (x if x is None else x.to(self.dtype) for x in (motion, guidance))
        time = torch.full((len(video),), timestep, device=video.device)
        outputs = self.model(*inputs, time, *streams, on_block=self.on_block)
        return tuple(x if x is None else x.float() for x in outputs)


def _guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    return negative + scale * (positive - negative)


def sample(
    denoise: Denoiser,
    start: JointLatents,
    timesteps: list[int],
    generator: torch.Generator,
    solver: str = "ddim",
    feedback: InteractionFeedback | None = None,
    options: FeedbackOptions | None = None,
    given: Guidance | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> tuple[JointLatents, SamplerReport]:
    """Run the synchronized reverse process.

    Args:
        start: video and motion at the first timestep; pure noise, or noised latents to start further down.
        timesteps: descending training timesteps (:meth:`NoiseSchedule.timesteps`).
        generator: CPU generator of the noise that stochastic solvers add.
        feedback: VID with renderer and VAE; None leaves hands and points out.
        options: when the loop is closed; it never is without `feedback`.
        given: guidance that takes the place of the loop's while it holds.
        on_step: called after each step with its index and the predicted clean video latent.

    Raises:
        ValueError: unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
    options = options or FeedbackOptions()
    steps, clock, passes = len(timesteps), _Clock(start.video.device), 0
    state, clean_before, looped, readings = JointLatents(start.video, start.motion), None, None, _Mean()
    began = time.perf_counter()

    def drawn(hands: Tensor, points: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        with clock("interaction"):
            motion = feedback.align(denoise.image, hands, points)
        with clock("guidance"):
            return options.strength * feedback.guidance(*motion)

    for i, timestep in enumerate(timesteps):
        # 1. guidance: given, or from the loop (fresh, or held until its next turn), or none. What the loop draws is the
        #    mean of all readings of clean latents, which show more than noisy ones (at first there are only those),
        #    held against the reference image.
        closed = feedback is not None and options.active(i, steps)
        refresh = closed and (looped is None or options.refreshes(i, steps))
        if state.motion is None:
            guidance = None
        elif given is not None and given.active(i, steps):
            refresh, guidance = False, given.latent
        elif refresh:
            with clock("interaction"):
                read = readings.mean or feedback.read(state.video, state.motion)
            guidance = looped = drawn(*read)
        else:
            guidance = looped if closed else torch.zeros_like(state.motion)

        # 2. clean latents, and VID's reading of them: one more noisy view of the same 3D motion. More passes close the
        #    loop again at this step.
        for iteration in range(options.iterations if refresh else 1):
            if iteration:
                guidance = looped = drawn(*readings.mean)
            with clock("denoise"):
                clean = JointLatents(*denoise(state.video, state.motion, guidance, timestep, i, steps))
            if feedback is not None:
                with clock("interaction"):
                    noise = 1 - denoise.schedule.level(timestep)
                    readings.add(feedback.read(clean.video, clean.motion), weight=noise)

        # 3. both latents step together
        levels = step_levels(denoise.schedule, timesteps, i)
        fresh = (
            noise_like(state, generator)
            if solver in STOCHASTIC_SOLVERS and i + 1 < steps
            else JointLatents(None)
        )
        before = clean_before or JointLatents(None)
        state = JointLatents(
            *(
                x if x is None else SOLVERS[solver](x, x0, x0_before, levels, noise)
                for x, x0, x0_before, noise in zip(state, clean, before, fresh, strict=True)
            )
        )
        clean_before = clean
        if on_step is not None:
            on_step(i, clean.video)

    hands, points = readings.mean or (None, None)
    if passes:
        with clock("interaction"):
            hands, points = feedback.align(denoise.image, hands, points)
    seconds = {**clock.seconds, "total": time.perf_counter() - began}
    report = SamplerReport(steps=steps, feedback_passes=passes, seconds=seconds)
    return state._replace(hands=hands, points=points), report


def step_levels(schedule: NoiseSchedule, timesteps: list[int], i: int) -> StepLevels:
    """Noise levels around step i of a run over these timesteps."""
    return StepLevels(
        before=schedule.level(timesteps[i - 1]) if i else None,
        now=schedule.level(timesteps[i]),
        after=schedule.level(timesteps[i + 1] if i + 1 < len(timesteps) else None),
    )


def noised(
    latents: JointLatents, noise: JointLatents, timestep: int, schedule: NoiseSchedule
) -> JointLatents:
    """Every member at the noise level of a timestep."""
    return JointLatents(
        *(x if x is None else schedule.add_noise(x, n, timestep) for x, n in zip(latents, noise, strict=True))
    )


def noise_like(latents: JointLatents, generator: torch.Generator) -> JointLatents:
    """Fresh Gaussian noise for every member, drawn on the CPU so that a seed means the same on every device."""
    return JointLatents(
        *(
            x if x is None else torch.randn(x.shape, generator=generator).to(x.device, torch.float32)
            for x in latents
        )
    )


class _Mean:
    """Running mean of VID's readings, None before the first. The noisier the latents of a step, the nearer are the
    clean ones predicted from them to the mean of what may follow, and the more their reading weighs."""

    def __init__(self):
        self.mean: tuple[Tensor, Tensor] | None = None
        self.total = 0.0

    def add(self, reading: tuple[Tensor, Tensor], weight: float) -> None:
        self.total += weight
        before = self.mean or reading
        self.mean = tuple(x + weight / self.total * (new - x) for x, new in zip(before, reading, strict=True))


class _Clock:
    """Wall seconds by stage; waits for the GPU at the edges of a stage so that they are its own."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] += time.perf_counter() - began
