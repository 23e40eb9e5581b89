"""CogVideoX's zero-terminal-SNR noise schedule and two solvers, as pure functions.

Notation: `abar` is the cumulative product of alphas (1 = clean, 0 = pure noise), so a noisy sample is
`x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise`. Networks predict v; everything else speaks x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import ScheduleConfig


class Step(NamedTuple):
    """Where a run is."""

    index: int
    """Of the step, from 0."""
    progress: float
    """Part of the noise schedule that lies behind, from 0 (pure noise) to 1: in a run from pure noise over evenly
    spaced timesteps, the part of its steps."""
    noise: float
    """Share of noise in the latents, 1 - abar."""


class NoiseSchedule:
    """Noise levels of one ScheduleConfig: scaled-linear betas, SNR shift, rescaled to zero terminal SNR."""

    def __init__(self, config: ScheduleConfig):
        steps = config.num_train_timesteps
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float64) ** 2
        abar = torch.cumprod(1.0 - betas, dim=0)
        abar = abar / (config.snr_shift_scale + (1 - config.snr_shift_scale) * abar)
        # Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891, algorithm 1): shift the last level to 0, keep the first.
        root = abar.sqrt()
        self.abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        self._levels: list[float] = self.abar.tolist()

    def timesteps(self, steps: int, denoise: float = 1.0) -> list[int]:
        """Descending training timesteps, trailing spacing: the first is pure noise. Each comes once, so that there are
        fewer than `steps` where a low `denoise` leaves fewer.

        Args:
            denoise: fraction of the schedule to run, (0, 1]; below 1 starts from a partly noised sample.

        Raises:
            ValueError: no step would be left, or more steps than the schedule has.
        """
        total = len(self.abar)
        if not 1 <= steps <= total:
            raise ValueError(f"steps must be 1 to {total}, got {steps}")
        if not 0 < denoise <= 1:
            raise ValueError(f"denoise must be above 0 and at most 1, got {denoise}")
        top = round(total * denoise)
        spaced = (max(0, round(top - i * top / steps) - 1) for i in range(steps))
        return list(dict.fromkeys(spaced))

    def step(self, index: int, timestep: int) -> Step:
        """Where a run is at a training timestep."""
        return Step(index, 1 - (timestep + 1) / len(self._levels), 1 - self._levels[timestep])

    def nearest_timestep(self, abar: float) -> int:
        """The training timestep whose level is nearest to this one by log-SNR; one beyond the ends is the end."""
        if abar <= self._levels[-2] / 2:  # the last level is pure noise, infinitely far away
            return len(self._levels) - 1
        return min(
            range(len(self._levels) - 1),
            key=lambda t: abs(_half_log_snr(self._levels[t]) - _half_log_snr(min(abar, self._levels[0]))),
        )

    def step_at(self, index: int, abar: float) -> Step:
        """Where a run is at a noise level that other code chose."""
        return self.step(index, self.nearest_timestep(abar))._replace(noise=1 - abar)

    def level(self, timestep: int | None) -> float:
        """abar at a training timestep; None is the clean end of the schedule."""
        return 1.0 if timestep is None else self._levels[timestep]

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: Tensor | int) -> Tensor:
        """Noise clean samples (B, ...) to one timestep, or to one of each batch entry (B,)."""
        signal, sigma = self._coefficients(timestep, x0)
        return signal * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, timestep: Tensor | int) -> Tensor:
        """The network's target: v = sqrt(abar) noise - sqrt(1 - abar) x0."""
        signal, sigma = self._coefficients(timestep, x0)
        return signal * noise - sigma * x0

    def clean_from_velocity(self, x_t: Tensor, v: Tensor, timestep: Tensor | int) -> Tensor:
        """x0 = sqrt(abar) x_t - sqrt(1 - abar) v (method, section 3)."""
        signal, sigma = self._coefficients(timestep, x_t)
        return signal * x_t - sigma * v

    def noise_from_clean(self, x_t: Tensor, x0: Tensor, timestep: Tensor | int) -> Tensor:
        """The noise that takes x0 to x_t: the inverse of :meth:`add_noise`."""
        signal, sigma = self._coefficients(timestep, x_t)
        return (x_t - signal * x0) / sigma

    def _coefficients(
        self, timestep: Tensor | int, like: Tensor
    ) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """Factors of signal and noise; plain numbers for one timestep, which nothing has to wait for."""
        if isinstance(timestep, int):
            abar = self._levels[timestep]
            return math.sqrt(abar), math.sqrt(1 - abar)
        abar = self.abar[timestep.cpu().reshape(-1)].reshape(-1, *[1] * (like.ndim - 1))
        return tuple(c.sqrt().to(like.device, like.dtype) for c in (abar, 1 - abar))


@dataclass(frozen=True, kw_only=True)
class StepLevels:
    """abar before, at and after one solver step; `before` is None on the first."""

    before: float | None
    now: float
    after: float


Solver = Callable[[Tensor, Tensor, Tensor | None, StepLevels, Tensor | None], Tensor]
"""step(x_t, x0, previous x0 or None, levels, fresh noise or None) -> x at the next level."""


def ddim_step(
    x: Tensor, x0: Tensor, x0_before: Tensor | None, levels: StepLevels, noise: Tensor | None
) -> Tensor:
    """Deterministic DDIM (Song et al., arXiv 2010.02502, equation 12 with sigma = 0) for x0 predictions."""
    keep = math.sqrt((1 - levels.after) / (1 - levels.now))
    return keep * x + (math.sqrt(levels.after) - math.sqrt(levels.now) * keep) * x0


def dpmpp_2m_sde_step(
    x: Tensor, x0: Tensor, x0_before: Tensor | None, levels: StepLevels, noise: Tensor | None
) -> Tensor:
    """Second-order multistep SDE-DPM-Solver++ (Lu et al., arXiv 2211.01095), as CogVideoX samples its 5b models.

    The first step has no history and the last is first order, since log-SNR is infinite at its end.
    """
    h = _half_log_snr(levels.after) - _half_log_snr(levels.now)
    direction = x0
    if x0_before is not None and levels.after < 1:
        weight = h / (_half_log_snr(levels.now) - _half_log_snr(levels.before)) / 2
        direction = (1 + weight) * x0 - weight * x0_before
    keep = math.sqrt((1 - levels.after) / (1 - levels.now)) * math.exp(-h)
    x_next = keep * x - math.expm1(-2 * h) * math.sqrt(levels.after) * direction
    return (
        x_next if levels.after == 1 else x_next + math.sqrt((1 - levels.after) * -math.expm1(-2 * h)) * noise
    )


def _half_log_snr(abar: float) -> float:
    """lambda = log(sqrt(abar / (1 - abar))); minus infinity for pure noise, infinity for clean."""
    if abar <= 0:
        return -math.inf
    return math.inf if abar >= 1 else 0.5 * math.log(abar / (1 - abar))


SOLVERS: dict[str, Solver] = {"ddim": ddim_step, "dpmpp_2m_sde": dpmpp_2m_sde_step}
STOCHASTIC_SOLVERS = frozenset({"dpmpp_2m_sde"})
"""Solvers that consume fresh noise at every step but the last."""
