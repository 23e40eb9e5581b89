"""The closed loop as a patch of MODEL, so that it acts under every sampler, and classifier-free guidance that grows.

A wrapper around each prediction of core's guider sets what guides the network and hears the clean latents that come
out: the policy of `svimo_core.sampling.guidance`, as in the library's own sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import comfy.conds
import comfy.model_patcher
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..svimo_core.config import ClipSize, InteractionConfig, VAEConfig
from ..svimo_core.normalization import MotionNormalizer
from ..svimo_core.sampling.guidance import FeedbackLoop, FeedbackOptions
from ..svimo_core.sampling.latents import JointLatents
from ..svimo_core.sampling.painter import MotionPainter, QuickPainter
from ..svimo_core.sampling.reader import MotionReader, Reading
from ..svimo_core.sampling.sampler import SamplerReport, guidance_scales
from ..svimo_core.schedule import NoiseSchedule, Step
from .backbone import GUIDANCE, LOOP_MEMORY, SViMoModel, backbone_of, known_of
from .types import throw_if_interrupted
from .vae import SViMoVAE

LOOP = "svimo_feedback"
"""Key of the loop's wrappers and models in a patcher, and of a run in its transformer options."""
GROWING_CFG = "svimo_growing_cfg"
ONE_BY_ONE = "svimo_sequential_cfg"
LISTENER = "svimo_listener"
"""Transformer option: a :class:`Listener`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawingHandle:
    """The drawing encoder in a patcher."""

    patcher: ModelPatcher
    compute_dtype: torch.dtype

    def painter(self, normalizer: MotionNormalizer, width: int, height: int) -> QuickPainter:
        """From 3D motion to the drawing's latent, once the patcher is loaded."""
        return QuickPainter(
            self.patcher.model, normalizer, width, height, self.compute_dtype, throw_if_interrupted
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractionHandle:
    """A SVIMO_INTERACTION: VID in a patcher, and what else of a checkpoint only the loop needs."""

    patcher: ModelPatcher
    config: InteractionConfig
    vae_config: VAEConfig
    """Of the latents that VID was trained on."""
    last_timestep: int
    """Of the training schedule, where there is nothing but noise."""
    normalizer: MotionNormalizer
    compute_dtype: torch.dtype
    fps: float
    drawing: DrawingHandle | None
    """What encodes drawings for the loop in place of the VAE."""

    def check_drawing(self, vae: VAEConfig) -> None:
        """Refuse a drawing encoder for latents that another kind of VAE makes.

        Raises:
            ValueError: it is one.
        """
        if self.drawing is not None and vae != self.vae_config:
            raise ValueError(
                "the interaction model's drawing encoder belongs to another VAE than the one that is connected: take both "
                "from the same checkpoint"
            )

    def reader(self) -> MotionReader:
        """From latents to 3D motion, once the patcher is loaded."""
        return MotionReader(
            self.patcher.model, self.normalizer, self.last_timestep, self.compute_dtype, throw_if_interrupted
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the loop has at the end of a run."""

    reading: Reading | None
    report: SamplerReport


@dataclass(eq=False)
class Listener:
    """Hears what the loop has when a run ends."""

    outcome: Outcome | None = None

    def on(self, model: ModelPatcher) -> ModelPatcher:
        """A MODEL whose loop, if it has one, tells this listener."""
        model = model.clone()
        model.model_options["transformer_options"][LISTENER] = self
        return model


@dataclass(frozen=True, kw_only=True, eq=False)
class FeedbackPatch:
    """The loop's models and when it acts."""

    interaction: InteractionHandle
    vae: SViMoVAE
    options: FeedbackOptions

    @property
    def drawing(self) -> DrawingHandle | None:
        """What encodes drawings; None: the VAE."""
        return None if self.options.exact else self.interaction.drawing

    def apply(self, model: ModelPatcher) -> ModelPatcher:
        """A MODEL with this loop, in place of any it had. Core loads VID and VAE with it.

        Raises:
            ValueError: not a SViMo model with a drawing, or a VID for other latents.
        """
        config = backbone_of(model).config
        if not config.backbone.motion:
            raise ValueError(
                "this model makes video only, without motion: leave the feedback out, or load a SViMo model"
            )
        vae, expected = self.vae.config.vae, config.vae
        if (vae.latent_channels, vae.scaling_factor) != (expected.latent_channels, expected.scaling_factor):
            raise ValueError(
                f"the VAE makes latents of {vae.latent_channels} channels scaled by {vae.scaling_factor:g}, this model "
                f"needs {expected.latent_channels} scaled by {expected.scaling_factor:g}: take both from the same "
                "checkpoint"
            )
        if self.interaction.config.latent_channels != config.backbone.latent_channels:
            raise ValueError(
                f"the interaction model reads latents of {self.interaction.config.latent_channels} channels, this model "
                f"makes {config.backbone.latent_channels}: take both from the same checkpoint"
            )
        if not self.options.exact:
            self.interaction.check_drawing(vae)
        wrappers = {WrappersMP.OUTER_SAMPLE: self._around_run, WrappersMP.PREDICT_NOISE: _predict_with_loop}
        patched = wrapped(model, LOOP, wrappers)
        encoder = self.vae if self.drawing is None else self.drawing
        patched.set_additional_models(LOOP, [self.interaction.patcher, encoder.patcher])
        return patched

    def with_models_of(self, model: ModelPatcher) -> FeedbackPatch:
        """This loop on what core loads with a MODEL that has it: VID and encoder as :meth:`apply` gave them, or copies of
        them, which core's Select Model Device makes."""
        vid, encoder = model.get_additional_models_with_key(LOOP)
        interaction = replace(self.interaction, patcher=vid)
        if self.drawing is None:
            return replace(self, interaction=interaction, vae=self.vae.on(encoder))
        drawing = replace(self.drawing, patcher=encoder)
        return replace(self, interaction=replace(interaction, drawing=drawing))

    def _memory(self, size: ClipSize) -> int:
        """Bytes that drawing and encoding one clip need, beside the weights."""
        if self.drawing is None:
            return self.vae.memory_for_encode(*size)
        painter = self.drawing.painter(self.interaction.normalizer, size.width, size.height)
        return painter.memory(size.frames)

    def _around_run(
        self,
        executor: Callable,
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """A fresh state of the loop for each run of a guider."""
        guider, shapes = executor.class_obj, kwargs.get("latent_shapes") or [noise.shape]
        if len(shapes) != 2:
            raise ValueError(
                "SViMo Feedback needs a latent of video and drawing: take it from SViMo Image Encode with the model "
                "connected, or use SViMo Sampler"
            )
        patch = self.with_models_of(guider.model_patcher)
        run = LoopRun(patch, guider.model_patcher, [tuple(shape) for shape in shapes], sigmas)
        needed = patch._memory(run.size) * shapes[0][0]
        for conds in guider.conds.values():
            for cond in conds:
                cond[LOOP_MEMORY] = needed
        listener = guider.model_options["transformer_options"].get(LISTENER)
        with transformer_option(guider, LOOP, run):
            made = executor(noise, latent, sampler, sigmas, *args, **kwargs)
        if listener is not None:
            listener.outcome = run.outcome()
        return made


@dataclass(eq=False)
class LoopRun:
    """The loop during one run of a guider."""

    patch: FeedbackPatch
    patcher: ModelPatcher
    shapes: list[tuple[int, ...]]
    """Of video and drawing."""
    sigmas: Tensor
    loop: FeedbackLoop | None = field(default=None, init=False)

    def __post_init__(self):
        config = backbone_of(self.patcher).config
        self.size = config.vae.clip_size(self.shapes[0])
        self.clock = SigmaClock(self.sigmas, NoiseSchedule(config.schedule))
        self.device = self.patch.interaction.patcher.load_device
        """VID's, which need not be the model's where there are several."""

    def predict(self, executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One prediction of the guider: clean packed latents of noisy ones, with the loop closed."""
        guider = executor.class_obj
        model: SViMoModel = guider.inner_model
        conds = [cond for entries in guider.conds.values() for cond in entries or ()]
        positive = guider.conds.get("positive") or ()
        if not positive:
            raise ValueError("SViMo Feedback needs a positive prompt with the reference image: connect one")
        self.loop = self.loop or self._start(positive)
        step = self.clock.step(sigma)
        given = any(GUIDANCE in cond and _holds(cond, sigma) for cond in positive)
        noisy = self._unpacked(model.model_sampling.calculate_input(sigma, x))
        conds_of_first = {name: cond.cond for name, cond in positive[0]["model_conds"].items()}
        if "known" in conds_of_first:
            noisy = known_of(conds_of_first, noisy.video.shape[2]).put_into(noisy)
        noisy = noisy.to(self.device)
        for i in range(1 if given else self.loop.passes(step)):
            drawn = None if given else self.loop.guide(step, noisy, again=i > 0)
            drawn = torch.zeros_like(noisy.drawing) if drawn is None else drawn
            for cond in conds:
                if GUIDANCE not in cond:
                    cond["model_conds"]["guidance"] = comfy.conds.CONDRegular(drawn.to(x.device))
            clean = executor(x, sigma, *args, **kwargs)
            self.loop.came_out(step, self._unpacked(clean).to(self.device))
        return clean

    def outcome(self) -> Outcome:
        """What was read, and where the time went."""
        if self.loop is None:
            return Outcome(reading=None, report=SamplerReport())
        passes, seconds = self.loop.report()
        steps = len(self.clock.sigmas)
        return Outcome(
            reading=self.loop.reading(),
            report=SamplerReport(steps=steps, feedback_passes=passes, seconds=seconds),
        )

    def _start(self, positive: list[dict]) -> FeedbackLoop:
        patch = self.patch
        image = positive[0]["model_conds"]["image"].cond[:, :, 0].to(self.device)
        of_clip = patch.interaction.normalizer, self.size.width, self.size.height
        if patch.drawing is None:
            paint = MotionPainter(partial(patch.vae.encode_scaled, loaded=True), *of_clip)
        else:
            paint = patch.drawing.painter(*of_clip)
        return FeedbackLoop(patch.interaction.reader(), paint, image, patch.options)

    def _unpacked(self, packed: Tensor) -> JointLatents:
        batch = packed.shape[0]
        shapes = [(batch, *shape[1:]) for shape in self.shapes]
        return JointLatents(*comfy.utils.unpack_latents(packed, shapes))


def _predict_with_loop(executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    options = args[0] if args else kwargs["model_options"]
    run: LoopRun = options["transformer_options"][LOOP]
    return run.predict(executor, x, sigma, *args, **kwargs)


def _holds(cond: dict, sigma: Tensor) -> bool:
    """Whether core uses a prompt at this noise level."""
    level = float(sigma.max())
    return cond.get("timestep_end", 0.0) <= level <= cond.get("timestep_start", float("inf"))


class SigmaClock:
    """Where a run of one of core's samplers is, told by the noise level that it asks for. That is the one number of a
    step that the host needs; everything else about the steps is known beforehand."""

    def __init__(self, sigmas: Tensor, schedule: NoiseSchedule):
        self.sigmas = sigmas.tolist()[:-1]
        self.schedule = schedule

    def step(self, sigma: Tensor) -> Step:
        """The step that a noise level (B,) belongs to."""
        level = float(sigma.max())
        index = sum(known >= level * (1 - 1e-4) for known in self.sigmas) - 1
        return self.schedule.step_at(max(0, index), 1 / (1 + level**2))

    def timesteps(self) -> list[int]:
        """Of all steps."""
        return [self.schedule.nearest_timestep(1 / (1 + level**2)) for level in self.sigmas]


# --- classifier-free guidance ---


def grow_cfg(model: ModelPatcher, schedule: str) -> ModelPatcher:
    """A MODEL whose classifier-free guidance grows over the steps, from 1 to the guider's scale + 1."""
    noise_schedule = NoiseSchedule(backbone_of(model).config.schedule)

    def around_run(
        executor: Callable, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args, **kwargs
    ):
        guider = executor.class_obj
        if hasattr(guider, "cfg1"):
            raise ValueError(
                "SViMo Growing CFG acts on a guider with one cfg (CFGGuider, KSampler), and this one has two: leave it out"
            )
        if guider.cfg <= 1:  # off, as for core, which then leaves the negative prompt out
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        clock = SigmaClock(sigmas, noise_schedule)
        scales = guidance_scales(guider.cfg, clock.timesteps(), schedule)
        with transformer_option(guider, GROWING_CFG, (clock, scales)):
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)

    def predict(executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        guider, options = executor.class_obj, args[0] if args else kwargs["model_options"]
        if GROWING_CFG not in options["transformer_options"]:
            return executor(x, sigma, *args, **kwargs)
        clock, scales = options["transformer_options"][GROWING_CFG]
        before, guider.cfg = guider.cfg, scales[clock.step(sigma).index]
        try:
            return executor(x, sigma, *args, **kwargs)
        finally:
            guider.cfg = before

    return wrapped(
        model, GROWING_CFG, {WrappersMP.OUTER_SAMPLE: around_run, WrappersMP.PREDICT_NOISE: predict}
    )


def wrapped(model: ModelPatcher, key: str, wrappers: dict[str, Callable]) -> ModelPatcher:
    """A MODEL with these wrappers under a key, in place of any it had there."""
    patched = model.clone()
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, key)
        patched.add_wrapper_with_key(kind, key, wrapper)
    return patched


@contextmanager
def transformer_option(guider: Any, key: str, value: Any) -> Iterator[None]:
    """A run of a guider with one more transformer option; those of the model stay as they are."""
    before = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    guider.model_options["transformer_options"][key] = value
    try:
        yield
    finally:
        guider.model_options = before


def one_prompt_at_a_time(model: ModelPatcher) -> ModelPatcher:
    """A MODEL that runs the branches of classifier-free guidance one after the other, in half the memory."""

    def each(executor: Callable, inner: Any, conds: list, *args: Any, **kwargs: Any) -> list[Tensor]:
        alone = ([c if i == j else None for j, c in enumerate(conds)] for i in range(len(conds)))
        return [executor(inner, only, *args, **kwargs)[i] for i, only in enumerate(alone)]

    return wrapped(model, ONE_BY_ONE, {WrappersMP.CALC_COND_BATCH: each})


def report_of(outcome: Outcome | None, steps: int) -> dict[str, Any]:
    """What a run did, for the page and the API."""
    return asdict(outcome.report if outcome is not None else SamplerReport(steps=steps))
