"""What a training run is, as one JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svimo_core.config import PRESETS
from svimo_core.files import reading

STAGES = ("vae", "interaction", "backbone", "joint", "alignment", "drawing")
Batch = dict[str, Any]
PRECISIONS = ("auto", "no", "bf16")
READING_ERRORS = ("squared", "distance")
WEIGHTINGS = ("v", "x0")
GUIDANCE_SOURCES = ("noisy", "clean", "first")
BACKBONES = ("init", "new", "separate")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A clip size and how many of them make a batch of one process."""

    frames: int
    height: int
    width: int
    batch_size: int
    weight: float = 1.0
    """How often it is drawn, beside the other shapes of its phase."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A number of steps at one shape, or at shapes drawn step by step. Two phases make a two-resolution schedule."""

    steps: int
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, kw_only=True)
class VAEObjective:
    """Weights of the VAE's losses (means over elements) beside L1, whose weight is 1."""

    mse: float = 1.0
    """Raise it for thin lines: L1 alone prefers black to a line in an uncertain place."""
    gradient: float = 1.0
    """L1 of differences between neighbouring pixels, so that thin bones survive."""
    kl: float = 3e-4
    drawing_share: float = 0.5
    """Fraction of samples that are rendered motion instead of video."""


@dataclass(frozen=True, kw_only=True)
class InteractionObjective:
    """VID's loss: MSE of hands + Chamfer of objects (paper equation 5), or distances."""

    error: str = "squared"
    """"squared": the paper's, on normalised motion. "distance": in place of the hands' squares their mean distance in
    units of 5 cm, so that what counts is what MPJPE counts, depth as much as the sides, and a clip that is hard to read
    not more than others; and mean distances of points beside their squares."""
    points: float = 0.0
    """Weight of a plain MSE on points that keep their index over time; 0 is the paper's setting."""
    clean_share: float = 0.0
    """Fraction of warm-up samples whose latents are clean, as they are after sampling; 0 is the paper's setting."""
    sampled_share: float = 0.0
    """Fraction of the `interaction` stage's samples whose latents the MM-DiT of `init` has sampled from the clip's
    first frame and prompt: what VID reads in the end, and must not trust in every detail. 0 is the paper's setting."""
    sampled_steps: int = 6
    """Of the sampler, behind `sampled_share`. One step gives the blurred first guess that the loop starts from."""
    reading_share: float = 0.0
    """Fraction of samples, in warm-up and constraint, whose hands and points are at the last timestep, pure noise: how
    the sampler reads latents (`MotionReader.read`). 0 is the paper's setting."""
    motion_dropout: float = 0.0
    """Chance of a warm-up sample to lose its motion latent, so that VID learns to see hands and things in the video as
    well, which is nearer to the reference image. 0 is the paper's setting."""


@dataclass(frozen=True, kw_only=True)
class JointObjective:
    """Weights and switches of the joint training (paper equations 6 and 7)."""

    weighting: str = "v"
    """"x0": plain error of clean latents (paper). "v": divided by 1 - abar, the velocity's (CogVideoX trainers)."""
    denoising: float = 1.0
    interaction: float = 0.05
    guidance: bool = True
    """Feed the drawn prediction of VID back, without gradient."""
    gradient_constraint: bool = True
    """Let VID's loss reach the MM-DiT through its clean latents."""
    guidance_from: str = "noisy"
    """What VID reads for the guidance: "noisy" latents beside noisy true motion (paper), or nothing but
    the "clean" latents of a pass of the MM-DiT without guidance, or those of a pass from pure noise, with which the
    sampler's loop starts ("first"); one pass without gradient more. Whatever was noised tells of the truth, so that
    guidance is better in training than it will ever be again."""
    warm_up: float = 0.0
    """Weight of VID's warm-up loss on true latents, which goes on beside the constraint; 0 is the paper's setting.
    Without it VID and the MM-DiT may agree on latents that no true clip has."""
    start_share: float = 0.0
    """Fraction of samples at the last timestep, where the sampler starts and its first readings count as much as later
    ones; 0 is the paper's setting."""
    sampled_share: float = 0.0
    """Fraction of samples whose noisy latents are not the truth's but those that the sampler has by then, starting with
    the pass from pure noise; with `guidance_from` "first". VID's loss is all they learn from. Clips that have only a
    first frame are always such samples. 0 is the paper's setting."""
    sampled_steps: int = 1
    """Steps of the sampler from pure noise to the timestep of such a sample; each after the first is one pass without
    gradient more."""
    text_dropout: float = 0.1
    word_dropout: float = 0.0
    """Chance of each word of a prompt to become letters that mean nothing, so that a word that training never had
    leaves the rest to the image. Not with `text_model`; 0 is CogVideoX's setting."""
    image_dropout: float = 0.1
    guidance_dropout: float = 0.1
    exact_drawing: bool = False
    """Draw guidance with OpenCV and encode it with the VAE, even where the model has a drawing encoder."""
    image_noise: tuple[float, float] = (-3.0, 0.5)
    """Mean and spread of the log of the pixel noise (in [-1, 1] space) on the reference image."""


@dataclass(frozen=True, kw_only=True)
class DrawingObjective:
    """The drawing encoder's training."""

    motions: int = 4000
    """Random motions, whose drawings the VAE encodes once."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run: one stage over some phases.

    Raises:
        ValueError: an unknown name, or a number outside its range.
    """

    stage: str
    """"vae", "interaction" (VID's warm-up), "backbone" (MM-DiT alone), "joint" (both), "alignment" (what holds the
    sampler's readings against the reference image, of a model that is trained otherwise) or "drawing" (the drawing
    encoder of a trained VAE)."""
    clips: Path
    """Folder of clips (:mod:`svimo_train.clips`). The drawing encoder needs none: its random motions and their
    latents are kept there."""
    held_out: Path | None = None
    """Folder of clips that the sheets show; None shows the first training clips."""
    output: Path
    """Folder for the checkpoint, the state to resume from, the log and the sheets."""
    init: Path | None = None
    """Checkpoint to start from. Parts that it lacks, or everything without it, start from seeds."""
    init_interaction: Path | None = None
    """Checkpoint whose VID takes the place of the one in `init`, for stages that were trained side by side."""
    backbone: str = "init"
    """Where the MM-DiT starts: "init", as far as that has one; "new", from the seed; "separate", as from "init", but as
    two networks, one for the video and one for the motion (the paper's ablation)."""
    preset: str = "tiny"
    """Model size when there is no `init`."""
    text_model: Path | None = None
    """T5 folder in transformers' form, for a model without a text encoder of its own."""
    phases: tuple[Phase, ...]
    seed: int = 0

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    warmup_steps: int = 100
    cooldown_steps: int = 0
    """The learning rate falls linearly to 0 over the last steps."""
    ema_decay: float = 0.999
    high_noise: float = 1.0
    """How much training prefers high noise, where layout and motion are decided: the density of a timestep grows with
    its power of this less 1. 1 is uniform, as published."""
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    sharded: bool = False
    """Spread weights, gradients, averages and moments over all processes instead of keeping them whole on each: for an
    MM-DiT that no single GPU can train. Sheets, which one process draws, are not to be had (`sheet_every` 0)."""
    precision: str = "auto"
    """Of the networks' activations: "auto" is bf16 on a GPU that has it, float32 ("no") otherwise."""
    threads: int | None = None
    """CPU threads; None leaves PyTorch's choice."""

    log_every: int = 10
    save_every: int = 500
    sheet_every: int = 500
    """Also after the last step; 0 draws none."""
    statistics_clips: int = 512
    """Clips behind the motion statistics of a model that has none."""
    train_text: bool = False
    """Train the model's own text encoder along with the MM-DiT."""
    checkpoint_dtype: str = "float32"

    vae: VAEObjective = field(default_factory=VAEObjective)
    interaction: InteractionObjective = field(default_factory=InteractionObjective)
    joint: JointObjective = field(default_factory=JointObjective)
    drawing: DrawingObjective = field(default_factory=DrawingObjective)

    def __post_init__(self):
        for name, value, choices in (
            ("stage", self.stage, STAGES),
            ("precision", self.precision, PRECISIONS),
            ("interaction.error", self.interaction.error, READING_ERRORS),
            ("joint.weighting", self.joint.weighting, WEIGHTINGS),
            ("joint.guidance_from", self.joint.guidance_from, GUIDANCE_SOURCES),
            ("backbone", self.backbone, BACKBONES),
            ("preset", self.preset, tuple(PRESETS)),
            ("checkpoint_dtype", self.checkpoint_dtype, ("float32", "bfloat16", "float16")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if not self.phases or not all(phase.shapes and phase.steps > 0 for phase in self.phases):
            raise ValueError("a run needs at least one phase, each with steps above 0 and at least one shape")
        if not isinstance(self.drawing.motions, int) or self.drawing.motions < 1:
            raise ValueError(f"drawing.motions must be a whole number from 1, got {self.drawing.motions}")
        if self.joint.word_dropout and self.text_model is not None:
            raise ValueError(
                "joint.word_dropout needs the model's own text encoder: features of text_model are computed once"
            )
        if self.joint.sampled_share and self.joint.guidance_from != "first":
            raise ValueError(
                'joint.sampled_share needs joint.guidance_from "first", whose first pass the sampler goes on from, '
                f"got {self.joint.guidance_from!r}"
            )
        if self.joint.sampled_steps < 1:
            raise ValueError(f"joint.sampled_steps must be at least 1, got {self.joint.sampled_steps}")
        if self.sharded and self.stage in ("vae", "drawing"):
            raise ValueError(
                f"the {self.stage} stage trains a small network that needs no sharding: set sharded to false"
            )
        if self.sharded and self.sheet_every:
            raise ValueError(
                "one process draws the sheets, and has only a part of sharded weights: set sheet_every to 0"
            )
        for shape in (shape for phase in self.phases for shape in phase.shapes):
            # the VAE's decoder works in pairs of latent frames
            if self.stage in ("vae", "drawing") and shape.frames % 8 != 1:
                raise ValueError(f"the VAE works on 8k + 1 frames (1, 9, 17, ...), got {shape.frames}")

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, plateau, linear cool-down."""
        rise = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        fall = (self.steps - step) / self.cooldown_steps if self.cooldown_steps else 1.0
        return self.learning_rate * min(1.0, rise, fall)

    @classmethod
    def load(cls, path: str | os.PathLike, **changes: Any) -> TrainConfig:
        """Read a JSON file; paths in it are relative to the working directory.

        Args:
            changes: fields to set in place of the file's.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or unknown, missing or impossible fields.
        """
        with reading(path, "is not a training configuration", "correct it"):
            values = json.loads(Path(path).read_text(encoding="utf-8")) | changes
            values["phases"] = tuple(
                Phase(steps=phase["steps"], shapes=tuple(Shape(**shape) for shape in phase["shapes"]))
                for phase in values["phases"]
            )
            for name in ("clips", "held_out", "output", "init", "init_interaction", "text_model"):
                if values.get(name) is not None:
                    values[name] = Path(values[name])
            for name, kind in (
                ("vae", VAEObjective),
                ("interaction", InteractionObjective),
                ("joint", JointObjective),
                ("drawing", DrawingObjective),
            ):
                if name in values:
                    values[name] = kind(**_with_tuples(values[name]))
            return cls(**_with_tuples(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
