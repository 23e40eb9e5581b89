"""What a training run is, as one JSON file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from svimo_core.config import PRESETS, ClipSize, SViMoConfig
from svimo_core.files import reading

Batch = dict[str, Any]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Preset = Literal[tuple(PRESETS)]


class Checked:
    """Fields are those that are declared, of their types and within their ranges, when they are read from JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True)
class Shape(Checked):
    """A clip size and how many of them make a batch of one process."""

    frames: Number
    height: Number
    width: Number
    batch_size: Number
    weight: Above0 = 1.0
    """How often it is drawn, beside the other shapes of its phase."""

    @property
    def size(self) -> ClipSize:
        """Of one clip."""
        return ClipSize(self.frames, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Phase(Checked):
    """A number of steps at one shape, or at shapes drawn step by step. Two phases make a two-resolution schedule."""

    steps: Number
    shapes: tuple[Shape, ...]


MOST_SEEDS = 2**22
"""Runs whose synthetic clips have seeds of their own."""


@dataclass(frozen=True, kw_only=True)
class Synthetic(Checked):
    """Clips of the synthetic world's training split that are drawn as training goes
    (:mod:`svimo_train.on_the_fly`), none of them twice."""

    first_seed: Count = 0
    """Of the first clip; the others follow. Another `seed` of the run has other clips."""
    varied: bool = False
    """Tools, motions and targets that no word has, under made-up words (:mod:`svimo_train.data.synthetic`)."""
    first_frames: bool = False
    """No video but the first frame: a fifth of the work."""
    uses: Number = 1
    """Samples that each clip makes, one after the other, with noise, timesteps and dropout of their own: drawing a
    clip takes a core longer than a GPU takes to learn from it."""


@dataclass(frozen=True, kw_only=True)
class Source(Checked):
    """Where clips come from: a folder of them, plain (:mod:`svimo_train.clips`) or encoded
    (:mod:`svimo_train.encode`), or the synthetic world.

    Raises:
        ValueError: both, or neither.
    """

    folder: Path | None = None
    synthetic: Synthetic | None = None
    weight: Above0 = 1.0
    """How often a sample is one of its clips, beside the other sources."""

    def __post_init__(self):
        if (self.folder is None) == (self.synthetic is None):
            raise ValueError("each member of clips needs either a folder or synthetic, got " + str(self))


PATH, FOLDERS = "<path>", "<folders>"
Clips = Annotated[
    Annotated[Path, Tag(PATH)] | Annotated[tuple[Source, ...], Tag(FOLDERS)],
    Discriminator(lambda clips: FOLDERS if isinstance(clips, list | tuple) else PATH),
]
"""A folder, or sources."""


@dataclass(frozen=True, kw_only=True)
class VAEObjective(Checked):
    """The VAE's losses and what they are of."""

    mse: Weight = 1.0
    """Weight of it beside L1 and L1 of differences between neighbouring pixels, so that thin bones survive. Raise it
    for thin lines: L1 alone prefers black to a line in an uncertain place."""
    drawing_share: Share = 0.5
    """Fraction of samples that are rendered motion instead of video."""


@dataclass(frozen=True, kw_only=True)
class InteractionObjective(Checked):
    """VID's loss: MSE of hands + Chamfer of objects (paper equation 5), or distances."""

    error: Literal["squared", "distance"] = "squared"
    """"squared": the paper's, on normalised motion. "distance": in place of the hands' squares their mean distance in
    units of 5 cm, so that what counts is what MPJPE counts, depth as much as the sides, and a clip that is hard to read
    not more than others; and mean distances of points beside their squares."""
    points: Weight = 0.0
    """Weight of a plain MSE on points that keep their index over time; 0 is the paper's setting."""
    clean_share: Share = 0.0
    """Fraction of warm-up samples whose latents are clean, as they are after sampling; 0 is the paper's setting."""
    sampled_share: Share = 0.0
    """Fraction of the `interaction` stage's samples whose latents the MM-DiT of `init` has sampled from the clip's
    first frame and prompt: what VID reads in the end, and must not trust in every detail. With all of them clips may
    have only their first frame. 0 is the paper's setting."""
    sampled_steps: Number = 6
    """Of the sampler, behind `sampled_share`: each gives latents, the first one the blurred guess that the loop starts
    from, and a sample has those of one."""
    teacher: Path | None = None
    """Checkpoint whose VID teaches the `interaction` stage's own, on the same latents and beside the truth (Hinton et
    al. 2015, distillation). That one then starts from the seed, as large as in the preset, with its teacher's
    alignment. None is the paper's setting."""
    readings: Count = 0
    """Of each clip, that the `alignment` stage makes beforehand and keeps beside the encoded clips, each with noise and
    a task of its own: the MM-DiT and VID are most of a step and learn nothing in it. 0 makes one anew at each use."""
    reading_share: Share = 0.0
    """Fraction of samples, in warm-up and constraint, whose hands and points are at the last timestep, pure noise: how
    the sampler reads latents (`MotionReader.read`). 0 is the paper's setting."""
    motion_dropout: Share = 0.0
    """Chance of a warm-up sample to lose its motion latent, so that VID learns to see hands and things in the video as
    well, which is nearer to the reference image. 0 is the paper's setting."""


@dataclass(frozen=True, kw_only=True)
class JointObjective(Checked):
    """Switches of the joint training, and weights of VID's losses beside the MM-DiT's (paper equations 6 and 7)."""

    weighting: Literal["v", "x0"] = "v"
    """"x0": plain error of clean latents (paper). "v": divided by 1 - abar, the velocity's (CogVideoX trainers)."""
    interaction: Weight = 0.05
    """Of VID's loss on the MM-DiT's clean latents; that of the errors of video and motion is 1."""
    guidance: bool = True
    """Feed the drawn prediction of VID back, without gradient."""
    gradient_constraint: bool = True
    """Let VID's loss reach the MM-DiT through its clean latents."""
    guidance_from: Literal["noisy", "clean", "first"] = "noisy"
    """What VID reads for the guidance: "noisy" latents beside noisy true motion (paper), or nothing but
    the "clean" latents of a pass of the MM-DiT without guidance, or those of a pass from pure noise, with which the
    sampler's loop starts ("first"); one pass without gradient more. Whatever was noised tells of the truth, so that
    guidance is better in training than it will ever be again."""
    warm_up: Weight = 0.0
    """Weight of VID's warm-up loss on true latents, which goes on beside the constraint; 0 is the paper's setting.
    Without it VID and the MM-DiT may agree on latents that no true clip has."""
    start_share: Share = 0.0
    """Fraction of samples at the last timestep, where the sampler starts and its first readings count as much as later
    ones; 0 is the paper's setting."""
    sampled_share: Share = 0.0
    """Fraction of samples whose noisy latents are not the truth's but those that the sampler has by then, starting with
    the pass from pure noise; with `guidance_from` "first". VID's loss is all they learn from. Clips that have only a
    first frame are always such samples. 0 is the paper's setting."""
    sampled_steps: Number = 1
    """Steps of the sampler from pure noise to the timestep of such a sample; each after the first is one pass without
    gradient more."""
    independent_share: Share = 0.0
    """Fraction of samples whose video and motion are at timesteps of their own. With this and the four shares below a
    model learns any direction between the two (method, section 12); all 0, the paper's setting, is one direction only.
    Clips that have only a first frame take no part."""
    known_video_share: Share = 0.0
    """Fraction of samples whose video is given, clean at timestep 0: video to motion."""
    known_motion_share: Share = 0.0
    """Fraction of samples whose motion is given, clean, and guides: motion to video."""
    known_start_share: Share = 0.0
    """Fraction of samples whose first latent frames are given, of both: clips that go on."""
    known_ends_share: Share = 0.0
    """Fraction of samples whose first latent frames and whose last one are given, of both."""
    text_dropout: Share = 0.1
    word_dropout: Share = 0.0
    """Chance of each word of a prompt to become letters that mean nothing, so that a word that training never had
    leaves the rest to the image. Not with `text_model`; 0 is CogVideoX's setting."""
    image_dropout: Share = 0.1
    guidance_dropout: Share = 0.1
    exact_drawing: bool = False
    """Draw guidance with OpenCV and encode it with the VAE, even where the model has a drawing encoder."""
    image_noise: tuple[float, float] = (-3.0, 0.5)
    """Mean and spread of the log of the pixel noise (in [-1, 1] space) on the reference image."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Of samples with own timesteps, known video, known motion, known start, known ends."""
        return (
            self.independent_share,
            self.known_video_share,
            self.known_motion_share,
            self.known_start_share,
            self.known_ends_share,
        )


@dataclass(frozen=True, kw_only=True)
class DrawingObjective(Checked):
    """The drawing encoder's training."""

    motions: Number = 4000
    """Random motions, whose drawings the VAE encodes once."""


TRAINED = {
    "vae": ("vae",),
    "interaction": ("interaction",),
    "backbone": ("backbone",),
    "joint": ("backbone", "interaction"),
    "alignment": ("interaction.alignment",),
    "drawing": ("drawing_encoder",),
}
"""What each stage trains: parts of the model, or a module in one."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """One run: one stage over some phases.

    Raises:
        ValueError: fields that do not go together.
    """

    stage: Literal["vae", "interaction", "backbone", "joint", "alignment", "drawing"]
    """"vae", "interaction" (VID's warm-up), "backbone" (MM-DiT alone), "joint" (both), "alignment" (what holds the
    sampler's readings against the reference image, of a model that is trained otherwise) or "drawing" (the drawing
    encoder of a trained VAE)."""
    clips: Clips
    """Folder of clips, or sources mixed by weight. The drawing encoder needs none: its random motions and their latents
    are kept there."""
    held_out: Path | None = None
    """Folder of clips that the sheets show; None shows the first training clips, or where those are drawn as training
    goes, the synthetic world's first held-out ones. Clips that have only their first frame are passed over: of such
    alone there is no sheet."""
    output: Path
    """Folder for the checkpoint, the state to resume from, the log and the sheets."""
    init: Path | None = None
    """Checkpoint to start from. Parts that it lacks, or everything without it, start from seeds."""
    init_interaction: Path | None = None
    """Checkpoint whose VID takes the place of the one in `init`, for stages that were trained side by side."""
    backbone: Literal["init", "new", "separate"] = "init"
    """Where the MM-DiT starts: "init", as far as that has one; "new", from the seed; "separate", as from "init", but as
    two networks, one for the video and one for the motion (the paper's ablation)."""
    alignment: Literal["init", "new"] = "init"
    """Where VID's alignment starts: "init", as far as that has one; "new", what corrects a reading from the seed, as
    large as in the preset, and what finds places in the image from "init" where that is as large."""
    preset: Preset = "tiny"
    """Model size when there is no `init`."""
    text_model: Path | None = None
    """T5 folder in transformers' form, for a model without a text encoder of its own."""
    phases: tuple[Phase, ...]
    seed: Count = 0

    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """"adamw8bit": moments take a quarter of the memory (torchao's AdamW8bit; that package has to be there). A sharded
    run then goes on only with as many processes as before."""
    learning_rate: Above0 = 1e-5
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Weight = 1e-4
    clip_norm: Above0 = 0.1
    warmup_steps: Count = 100
    cooldown_steps: Count = 0
    """The learning rate falls linearly to 0 over the last steps."""
    ema_decay: Decay = 0.999
    high_noise: Above0 = 1.0
    """How much training prefers high noise, where layout and motion are decided: the density of a timestep grows with
    its power of this less 1. 1 is uniform, as published."""
    gradient_accumulation: Number = 1
    gradient_checkpointing: bool = False
    sharded: bool = False
    """Spread weights, gradients, averages and moments over all processes instead of keeping them whole on each: for an
    MM-DiT that no single GPU can train."""
    background_saves: bool = True
    """Sharded states are copied to memory of the host and written from there while training goes on. False: training
    waits, and the host needs no room for the copy."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Of the networks' activations: "auto" is bf16 on a GPU that has it, float32 ("no") otherwise."""
    workers: Count = 0
    """Processes that read clips ahead, for each that trains; 0 reads them in between. What is learned is the same."""

    log_every: Number = 10
    tracker: Literal["tensorboard"] | None = None
    """"tensorboard": what the log says also goes to a folder `tensorboard` beside it, for which that package has to be
    there."""
    save_every: Number = 500
    sheet_every: Count = 500
    """Also after the last step; 0 draws none."""
    train_text: bool = False
    """Train the model's own text encoder along with the MM-DiT."""
    checkpoint_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    vae: VAEObjective = field(default_factory=VAEObjective)
    interaction: InteractionObjective = field(default_factory=InteractionObjective)
    joint: JointObjective = field(default_factory=JointObjective)
    drawing: DrawingObjective = field(default_factory=DrawingObjective)

    def __post_init__(self):
        if not self.sources or not self.phases or not all(phase.shapes for phase in self.phases):
            raise ValueError(
                "a run needs at least one folder of clips and one phase, each phase at least one shape"
            )
        self._check_synthetic()
        if self.stage == "drawing" and (self.workers or not isinstance(self.clips, Path)):
            raise ValueError(
                "the drawing stage makes what it learns from as it goes, in one folder: set workers to 0 and "
                "clips to a path"
            )
        if self.joint.sampled_share and self.joint.guidance_from != "first":
            raise ValueError(
                'joint.sampled_share needs joint.guidance_from "first", whose first pass the sampler goes on from, '
                f"got {self.joint.guidance_from!r}"
            )
        if self.learns_from_teacher and self.init_interaction is not None:
            raise ValueError(
                "a VID that learns from interaction.teacher starts from the seed: leave init_interaction away"
            )
        if sum(self.joint.shares) > 1:
            raise ValueError(
                "joint.independent_share and the four joint.known_..._share are parts of all samples: "
                f"together at most 1, got {', '.join(f'{share:g}' for share in self.joint.shares)}"
            )
        if self.sharded and self.stage in ("vae", "drawing"):
            raise ValueError(
                f"the {self.stage} stage trains a small network that needs no sharding: set sharded to false"
            )
        for shape in (shape for phase in self.phases for shape in phase.shapes):
            # the VAE's decoder works in pairs of latent frames
            if self.stage in ("vae", "drawing") and shape.frames % 8 != 1:
                raise ValueError(f"the VAE works on 8k + 1 frames (1, 9, 17, ...), got {shape.frames}")

    def _check_synthetic(self) -> None:
        """Refuse what clips that are drawn as training goes cannot do."""
        if self.on_the_fly and any(source.synthetic is None for source in self.sources):
            raise ValueError(
                "clips are all in folders or all synthetic: write synthetic ones to a folder to mix them"
            )
        if self.on_the_fly and self.stage == "interaction" and self.interaction.sampled_share:
            raise ValueError(
                "interaction.sampled_share keeps what it samples beside clips: give it a folder of clips"
            )
        if self.on_the_fly and self.stage == "alignment" and self.interaction.readings:
            raise ValueError(
                "interaction.readings are kept beside clips: give it a folder of clips, or set readings to 0"
            )
        if self.on_the_fly and self.seed >= MOST_SEEDS:
            raise ValueError(f"seed must be below {MOST_SEEDS} with synthetic clips, got {self.seed}")
        first_frames = any(source.synthetic and source.synthetic.first_frames for source in self.sources)
        if first_frames and not self.takes_first_frames:
            raise ValueError(
                'first_frames serves the alignment stage, and a joint stage with joint.guidance_from "first" and '
                f"without joint.warm_up; the {self.stage} stage needs whole clips"
            )

    def check_sizes(self, model: SViMoConfig) -> None:
        """See that a model takes the clips of all phases.

        Raises:
            ValueError: it does not; the message says what it would.
        """
        # without the MM-DiT, whose patches are larger than the VAE's cells
        alone = self.stage in ("vae", "drawing")
        multiple = model.vae.spatial_compression if alone else model.pixel_multiple
        step = model.vae.temporal_compression
        for frames, height, width in (shape.size for phase in self.phases for shape in phase.shapes):
            if (frames - 1) % step or height % multiple or width % multiple:
                raise ValueError(
                    f"the {self.stage} stage of this model takes clips of {step}k + 1 frames (1, {step + 1}, ...) "
                    f"whose height and width are multiples of {multiple}, got {frames} x {height} x {width}"
                )
        shown, step = self.phases[-1].shapes[0], model.vae.frame_step
        if (
            self.sheet_every
            and self.stage in ("backbone", "joint", "alignment")
            and (shown.frames - 1) % step
        ):
            raise ValueError(
                f"sheets show clips of the last phase's first shape, and the VAE decodes {step}k + 1 frames (1, "
                f"{step + 1}, ...), got {shown.frames}: set sheet_every to 0, or choose such a shape"
            )

    @property
    def on_the_fly(self) -> bool:
        """Whether clips are drawn as training goes."""
        return any(source.synthetic is not None for source in self.sources)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether VID has another one to learn from."""
        return self.stage == "interaction" and self.interaction.teacher is not None

    @property
    def takes_first_frames(self) -> bool:
        """Whether clips may have only their first frame, as nothing needs true latents."""
        if self.stage == "interaction":
            return self.interaction.sampled_share == 1
        first = self.joint.guidance_from == "first" and not self.joint.warm_up
        return self.stage == "alignment" or (self.stage == "joint" and first)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where clips come from."""
        return self.clips if isinstance(self.clips, tuple) else (Source(folder=self.clips),)

    @property
    def trained(self) -> tuple[str, ...]:
        """Parts of the model that the stage trains, or a module in one."""
        first, *others = TRAINED[self.stage]
        text = ("text_encoder",) * (self.train_text and first == "backbone")
        return (first, *text, *others)

    @property
    def idle(self) -> tuple[str, ...]:
        """Parts of the model that the stage does not use: they only go into its checkpoint."""
        if self.stage == "vae":
            return "backbone", "interaction", "text_encoder", "drawing_encoder"
        if self.stage == "drawing":
            return "backbone", "interaction", "text_encoder"
        if self.stage == "interaction" and not self.interaction.sampled_share:
            return "backbone", "text_encoder", "drawing_encoder"
        return ()

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
        return cls.from_values(read_json(path) | changes, Path(path).name)

    @classmethod
    def from_values(cls, values: dict[str, Any], name: str) -> TrainConfig:
        """What a JSON file says.

        Args:
            name: of the file, for messages.

        Raises:
            ValueError: unknown, missing or impossible fields.
        """
        try:
            return TypeAdapter(cls).validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            mistakes = dict.fromkeys(_mistake(each) for each in error.errors())
            told = "; ".join(mistakes)
            raise ValueError(f"{name} is not a training configuration: {told}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The fields of a configuration file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a JSON object.
    """
    with reading(path, "is not a training configuration", "correct it"):
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _mistake(error: dict[str, Any]) -> str:
    """One line for people about what pydantic found."""
    path = [str(part) for part in error["loc"] if part not in (PATH, FOLDERS)]
    field, given = ".".join(path), error["input"]
    if error["type"] == "unexpected_keyword_argument":
        known = {field.name for kind in Checked.__subclasses__() for field in dataclasses.fields(kind)}
        close = difflib.get_close_matches(path[-1], sorted(known), n=1)
        return f"unknown field {field}" + "".join(f" (did you mean {name}?)" for name in close)
    if error["type"] == "missing":
        return f"{field} is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    should = error["msg"].partition(" should ")[2]
    return f"{field} should {should}, got {json.dumps(given)}"
