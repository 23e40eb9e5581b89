"""What guides a step: nothing, a given motion, or the closed loop (paper section 3.3).

    guidance:  (h, o) = VID((h_t, o_t), (zV, zM), t);  zG = VAE.encode(render(project(h, o)))

In the paper the latents are the noisy ones. The sampler has better: the clean latents of the steps before, whose
readings it needs anyway. And before it is drawn, what was read is held against the reference image and corrected.

All forms are one policy: the sampler asks it how often to denoise at a step and what guides that, and tells it what
came out. The same objects guide a sampler of ComfyUI's, which may call the network several times a step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule import Step
from .latents import JointLatents
from .reader import MeanReading, MotionReader, Reading


@dataclass(frozen=True, kw_only=True)
class FeedbackOptions:
    """When and how strongly the loop acts during sampling.

    Raises:
        ValueError: a value outside its range.
    """

    enabled: bool = True
    start: float = 0.2
    """Part of the noise schedule before the loop closes: the first clean latents are too blurred to be read well."""
    end: float = 1.0
    every: int = 1
    """Refresh the guidance at every k-th step; it is held in between."""
    iterations: int = 1
    """Denoising passes at a step that refreshes; further passes draw the motion just predicted and denoise again."""
    strength: float = 1.0
    """Factor on the guidance latent; 0 equals off."""
    exact: bool = False
    """Draw as people see it and encode with the VAE, even where the model has a drawing encoder."""

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"feedback needs 0 <= start <= end <= 1, got start {self.start} and end {self.end}"
            )
        if self.every < 1 or self.iterations < 1:
            raise ValueError(
                f"feedback needs every and iterations of at least 1, got {self.every} and {self.iterations}"
            )

    def active(self, step: Step) -> bool:
        """Whether the loop is closed at this step."""
        return self.enabled and self.strength != 0 and within(step.progress, self.start, self.end)


def within(progress: float, start: float, end: float) -> bool:
    """Whether a part of the schedule lies in [start, end); timesteps are whole numbers, so their thousandths are exact
    only up to rounding."""
    return start - 1e-6 <= progress < end - 1e-6


class Unguided:
    """No guidance: the video and its drawing alone, or a model without a drawing."""

    def passes(self, step: Step) -> int:
        """How often to denoise at this step."""
        return 1

    def guide(self, step: Step, noisy: JointLatents, again: bool = False) -> Tensor | None:
        """What guides the next pass, B C T h w; None: nothing. `again` after the first pass of a step."""
        return None

    def came_out(self, step: Step, clean: JointLatents) -> None:
        """Hear the clean latents that a pass predicted."""

    def reading(self) -> Reading | None:
        """The 3D motion of the run, where something read it."""
        return None

    def report(self) -> tuple[int, dict[str, float]]:
        """How often guidance was made, and wall seconds by stage."""
        return 0, {}


class GivenGuidance(Unguided):
    """A drawing that the caller gives, such as a recorded motion's, for a part of the schedule; outside of it another
    policy guides.

    Args:
        latent: B C T h w.
        start, end: parts of the schedule.
    """

    def __init__(
        self, latent: Tensor, start: float = 0.0, end: float = 1.0, otherwise: Unguided | None = None
    ):
        self.latent = latent
        self.start, self.end = start, end
        self.otherwise = otherwise or Unguided()

    def passes(self, step: Step) -> int:
        return 1 if self._holds(step) else self.otherwise.passes(step)

    def guide(self, step: Step, noisy: JointLatents, again: bool = False) -> Tensor | None:
        return self.latent if self._holds(step) else self.otherwise.guide(step, noisy, again)

    def came_out(self, step: Step, clean: JointLatents) -> None:
        self.otherwise.came_out(step, clean)

    def reading(self) -> Reading | None:
        return self.otherwise.reading()

    def report(self) -> tuple[int, dict[str, float]]:
        return self.otherwise.report()

    def _holds(self, step: Step) -> bool:
        return within(step.progress, self.start, self.end)


class FeedbackLoop(Unguided):
    """The closed loop of one run: what the latents show so far is read, drawn, and guides the next step.

    It draws the mean of all readings of clean latents, which show more than noisy ones (at first there are only those),
    held against the reference image. With the loop open the latents are still read.

    Args:
        image: latent of the reference image, 1 or B C h w, scaled.
        paint: one of the painters (`painter.py`).
    """

    def __init__(
        self,
        reader: MotionReader,
        paint: Callable[[Reading], Tensor],
        image: Tensor,
        options: FeedbackOptions | None = None,
    ):
        self.reader = reader
        self.paint = paint
        self.image = image
        self.options = options or FeedbackOptions()
        self._refreshes = 0
        self._clock = StageClock(image.device)
        self._seen: tuple[Tensor | None] | None = None
        self._readings = MeanReading()
        self._held: Tensor | None = None
        self._refreshed_at = 0

    def passes(self, step: Step) -> int:
        return self.options.iterations if self._due(step) else 1

    def guide(self, step: Step, noisy: JointLatents, again: bool = False) -> Tensor | None:
        if noisy.drawing is None or not self.options.active(step):
            return None
        if again or self._due(step):
            with self._clock("interaction"):
                read = self._readings.value or self.reader.read(*noisy)
                aligned = self._align(read)
            with self._clock("guidance"):
                self._held = self.options.strength * self.paint(aligned)
            self._refreshed_at = step.index
            self._refreshes += 1
        return self._held

    def came_out(self, step: Step, clean: JointLatents) -> None:
        if clean.drawing is not None:
            with self._clock("interaction"):
                self._readings.add(self.reader.read(*clean), weight=step.noise)

    def reading(self) -> Reading | None:
        read = self._readings.value
        return None if read is None else self._align(read)

    def report(self) -> tuple[int, dict[str, float]]:
        return self._refreshes, self._clock.seconds()

    def _align(self, reading: Reading) -> Reading:
        """The image is the same all the time, so it is looked at once."""
        if self._seen is None:
            self._seen = (self.reader.look(self.image),)
        return self.reader.align(*self._seen, reading)

    def _due(self, step: Step) -> bool:
        """Whether this step makes the guidance anew: every k-th step while the loop is closed, counted from the
        first."""
        since = step.index - self._refreshed_at
        return self.options.active(step) and (self._held is None or since >= self.options.every)


class StageClock:
    """Wall seconds by stage. On a GPU the stages are marked in its stream and measured when asked, so that the clock
    itself never waits for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.on_gpu = device.type == "cuda" and torch.cuda.is_available()
        self._marks: list[tuple[str, object, object]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count a block to a stage."""
        began = self._mark()
        yield
        self._marks.append((stage, began, self._mark()))

    def seconds(self) -> dict[str, float]:
        """So far, by stage."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        total: Counter[str] = Counter()
        for stage, began, ended in self._marks:
            total[stage] += began.elapsed_time(ended) / 1000 if self.on_gpu else ended - began
        return dict(total)

    def _mark(self) -> object:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
