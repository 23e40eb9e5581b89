"""Read this first: one training run from its configuration to a checkpoint.

A step depends only on the weights before it and on numbers: clips, crops, noise and dropout come from generators
seeded with (seed, step, micro-batch), and micro-batches are numbered over all processes (`loader.py`). So a run that
was killed goes on from its last state bit by bit, and what a step learns from does not depend on how many processes
share it.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, release_memory, send_to_device
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from svimo_core.checkpoint import (
    PARTS,
    CheckpointHeader,
    empty_part,
    init_part,
    load_part,
    read_header,
    save_checkpoint,
    stored_tensors,
)
from svimo_core.config import PRESETS, SViMoConfig
from svimo_core.files import reading, whole_file
from svimo_core.model.alignment import ImageAlignment, keep_finding, start_without_corrections
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.mmdit import split_streams, start_from_nothing
from svimo_core.normalization import MotionNormalizer

from .drawing import DrawingStage
from .encoded import fingerprint
from .loader import (
    Batches,
    MicroBatches,
    batches,
    draw_shape,
    require_clips,
    sample_order,
    some_motions,
    training_data,
)
from .optimizers import make_optimizer, set_learning_rate
from .parallel import clip_gradients, fill, gathered, micro_batch, precision, shard, whole
from .readings import with_readings
from .recipe import Stages
from .settings import TrainConfig
from .sheets import shown, write_sheet
from .stages import READ, STAGE_MODULES, VAEStage, with_pupil
from .state import (
    CHECKPOINT,
    EMA,
    STATE,
    load_state,
    save_state,
    sharded_state,
    steps_done,
)

try:
    from .sharded_state import ShardedSaves, load_sharded_state
except ImportError:  # torch below 2.8, which trains whole weights alone
    ShardedSaves = None

log = logging.getLogger(__name__)

LOG = "log.jsonl"


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


def train_stages(stages: Stages) -> Path:
    """Run one stage after the other, but for those that are finished; the last one's checkpoint.

    Raises:
        As :func:`train`.
    """
    to_do = {name: config for name, config in stages.items() if not finished(config)}
    require_files(stages, to_do)
    for config in to_do.values():
        require_packages(config)
        if config.stage != "drawing":
            require_clips(config)  # before days go into the stages before
    for name, config in stages.items():
        if name not in to_do:
            log.info("%s: its %d steps are done", name, config.steps)
            continue
        log.info("%s: %d steps into %s", name, config.steps, config.output)
        train(config)
        release_memory()
    return config.output / CHECKPOINT


def finished(config: TrainConfig) -> bool:
    """Whether a stage has made all its steps and its checkpoint is there."""
    done = steps_done(config.output, config.sharded)
    return done >= config.steps and (config.output / CHECKPOINT).is_file()


def train(config: TrainConfig) -> Path:
    """Run a stage to its end, from its last state if there is one.

    Returns:
        The checkpoint, with averaged weights and every part of the model.

    Raises:
        ValueError: clips, checkpoint or configuration that cannot be used.
        TrainingStopped: a loss that is not finite, a disk that cannot be written, or a worker that was killed; the last
            checkpoint is usable.
        KeyboardInterrupt: stopped by the user (Ctrl-C or SIGTERM), after the state was saved.
    """
    require_packages(config)
    accelerator = Accelerator(
        mixed_precision=precision(config.precision), log_with=config.tracker, project_dir=config.output
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            "this trainer shards weights itself: set sharded to true in the training configuration, and choose an "
            "accelerate configuration without FSDP and DeepSpeed"
        )

    # 1. model, clips, and what this stage trains
    if config.stage == "drawing":
        model = load_vae(config)
    else:
        require_clips(config)
        model = load_model(config)
    used = model.parts.keys() - set(config.idle)
    data = training_data(config, model, accelerator)
    stage = STAGE_MODULES[config.stage](config, model, data.clips)
    if config.stage == "alignment" and config.interaction.readings:
        data = with_readings(data, stage, config, model, accelerator)
    parameters = trained_parameters(model, config)
    if config.sharded:
        shard(stage, accelerator)
        for part, tensors in model.unread.items():
            fill(model.parts[part], tensors, accelerator.device)
        parameters = trained_parameters(model, config)  # each is a part of what it was
    for part in used:
        model.parts[part].to(accelerator.device)
    if model.teacher is not None:
        model.teacher.to(accelerator.device)
    optimizer = make_optimizer(config, parameters.values())
    forward = stage if config.sharded else accelerator.prepare(stage)
    ema = EMA(parameters, config.ema_decay)

    # 2. go on where a run before stopped
    sheets = shown(config, data, model, accelerator)
    run = _Run(config, accelerator, data.clips, sheets, model, stage, parameters, ema, optimizer)
    first = run.resume()
    if config.tracker is not None:
        accelerator.init_trackers(config.tracker)

    # 3. steps
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=config.stage,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    work = MicroBatches(config, first, run.samples, accelerator.process_index, accelerator.num_processes)
    order = sample_order(config, data)
    read = batches(Batches(config, data.load, order), work, pin_memory=accelerator.device.type == "cuda")
    with _StopSignal() as stop, run.losing_workers():
        for step in bar:
            began = time.perf_counter()
            set_learning_rate(optimizer, config.learning_rate_at(step))
            metrics = {}
            for micro in range(config.gradient_accumulation):
                with accelerator.autocast():  # the drawing stage encodes as it reads
                    batch, generator = next(read)
                batch = send_to_device(batch, accelerator.device)
                with micro_batch(forward, last=micro + 1 == config.gradient_accumulation):
                    with accelerator.autocast():
                        loss, terms = forward(data.encode(batch), generator)
                    accelerator.backward(loss / config.gradient_accumulation)
                for name, value in ({"loss": loss} | terms).items():
                    metrics[name] = metrics.get(name, 0) + value.detach() / config.gradient_accumulation
            metrics = over_processes(metrics, accelerator)
            run.check_finite(step, "loss", metrics["loss"])
            norm = clip_gradients(parameters.values(), config.clip_norm).item()
            run.check_finite(step, "gradient", norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(parameters, step)

            metrics["gradient_norm"] = norm
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
            stopping = anywhere(stop.asked, accelerator)
            run.after_step(step, metrics, time.perf_counter() - began, stopping)
            if stopping:
                raise KeyboardInterrupt(f"stopped after step {step + 1}; run the same command to go on")
        path = run.save(config.steps)  # a signal by now does not cut it short
        run.finish_saving()
        stopping = anywhere(stop.asked, accelerator)
    accelerator.wait_for_everyone()  # one process writes, and the next stage of all reads
    if stopping:
        raise KeyboardInterrupt(f"stopped after step {config.steps}, the last; run the same command to go on")
    return path


def require_packages(config: TrainConfig) -> None:
    """See that what only some configurations need is installed.

    Raises:
        ValueError: a package that this one needs is not there.
    """
    for asked, package, off in (
        (config.tracker == "tensorboard", "tensorboard", "tracker to null"),
        (config.optimizer == "adamw8bit", "torchao", 'optimizer to "adamw"'),
    ):
        if asked and find_spec(package) is None:
            raise ValueError(
                f"the configuration needs a package that is not there: pip install {package}, or set {off}"
            )
    if config.sharded and ShardedSaves is None:
        raise ValueError(
            f"sharded training needs torch 2.8 or newer, got {torch.__version__}: update it, or set sharded to false"
        )


def given_files(config: TrainConfig) -> dict[str, Path]:
    """The checkpoints that a stage starts or learns from, by field."""
    fields = {"init": config.init, "init_interaction": config.init_interaction}
    if config.learns_from_teacher:
        fields["interaction.teacher"] = config.interaction.teacher
    return {field: path for field, path in fields.items() if path is not None}


def require_files(stages: Stages, to_do: Stages) -> None:
    """See that the checkpoints that stages start or learn from are there, or that a stage before writes them, and that
    no stage is finished whose own is still to be written.

    Raises:
        FileNotFoundError: one is not; the message names stage and field.
        ValueError: a stage is finished that came from a checkpoint of before; the message names both stages.
    """
    lacking = [name for name, c in to_do.items() if steps_done(c.output, c.sharded) < c.steps]
    written: dict[Path, str] = {}
    for name, config in stages.items():
        for field, path in given_files(config).items():
            writer = written.get(path.resolve())
            if name not in to_do and writer in lacking:
                raise ValueError(
                    f"{name} is finished, but {writer} is not, whose checkpoint its {field} names: delete "
                    f"{config.output} to train it again after {writer}, or give back {stages[writer].output}"
                )
            if name in to_do and writer is None and not path.exists():
                raise FileNotFoundError(f"{name}: {field} names {path}, which is not there: correct it")
        written[(config.output / CHECKPOINT).resolve()] = name


def trained_parameters(model: SimpleNamespace, config: TrainConfig) -> dict[str, nn.Parameter]:
    """What a stage trains, by part and name; unfreezes it. VID's alignment has a stage of its own."""
    parameters = {}
    for path in config.trained:
        part, _, inner = path.partition(".")
        module = model.parts[part].get_submodule(inner).train()
        parameters |= {f"{path}.{name}": p for name, p in module.named_parameters()}
    if "interaction" in config.trained:
        parameters = {n: p for n, p in parameters.items() if not n.startswith("interaction.alignment.")}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def given_weights(model: SimpleNamespace, idle: Collection[str]) -> dict[str, str]:
    """A name for the weights of each part, and of a teacher, that a stage uses and leaves as they are."""
    networks = {part: network for part, network in model.parts.items() if part not in idle}
    if model.teacher is not None:
        networks["teacher"] = model.teacher
    weights = {part: network.state_dict(keep_vars=True) for part, network in networks.items()}
    return {
        part: fingerprint({name: tensor for name, tensor in of_part.items() if not tensor.requires_grad})
        for part, of_part in weights.items()
    }


def over_processes(metrics: dict[str, torch.Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Means over all processes, the same on each."""
    values = torch.stack([value.float() for value in metrics.values()])
    return dict(zip(metrics, accelerator.reduce(values, "mean").tolist(), strict=True))


def anywhere(asked: bool, accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop: all have to stop after the same step, or the others wait for ever."""
    if accelerator.num_processes == 1:
        return asked
    return accelerator.reduce(torch.tensor(int(asked), device=accelerator.device)).item() > 0


# --- the model ---


def load_model(config: TrainConfig) -> SimpleNamespace:
    """All parts of the model: from the initial checkpoint as far as it has them, the rest from seeds. In float32; those
    that the stage leaves idle as they are stored, mapped into memory.

    Returns:
        config, parts (name to module), normalizer, preview, provenance; and unread: stored tensors of the parts on the
        meta device, which a sharded stage trains and of which each process is to read its own part (name to tensor).
    """
    header = read_header(config.init) if config.init is not None else None
    size = header.config if header is not None else PRESETS[config.preset]
    found = set(header.parts if header is not None else ())
    if config.backbone == "new":
        found.discard("backbone")
    if config.learns_from_teacher:
        found.discard("interaction")
    if config.stage == "interaction" and config.interaction.sampled_share and "backbone" not in found:
        raise ValueError(
            "interaction.sampled_share needs a trained MM-DiT to sample with: set init to a checkpoint that has one"
        )
    provenance = dict(header.provenance) if header is not None else {}
    sources = dict.fromkeys(found, header)
    if config.init_interaction is not None:
        sources["interaction"] = other = read_header(config.init_interaction)
        size = replace(size, interaction=other.config.interaction)
        provenance["interaction"] = other.provenance.get("interaction", "")
    later = {"backbone", "interaction"} & set(config.trained) if config.sharded else set()
    if config.backbone == "separate":
        later.discard("backbone")  # two networks are made of its weights
    unread = {part: source.part_tensors(part) for part, source in sources.items() if part in later}
    parts = {
        part: empty_part(source, part)
        if part in unread
        else load_part(source, part, None if part in config.idle else torch.float32)
        for part, source in sources.items()
    }
    if config.backbone == "separate":
        size = replace(size, backbone=replace(size.backbone, separate=True))
        if "backbone" in parts:
            weights = dict(split_streams(parts["backbone"].state_dict().items(), size.backbone))
            parts["backbone"] = init_part(size, "backbone", config.seed).requires_grad_(False)
            parts["backbone"].load_state_dict(weights)
    if config.stage in ("backbone", "joint") and not _uses_position_table(size, config):
        size = _without_position_table(size, parts.get("backbone"))
    teacher = None
    if config.learns_from_teacher:
        teacher = _teacher(config.interaction.teacher, header)
        parts["interaction"] = _pupil(teacher, size, config)
        size = replace(size, interaction=parts["interaction"].config)
        provenance["interaction"] = (
            f"weights from seed {config.seed}, taught by {config.interaction.teacher.name}"
        )
    if config.stage == "alignment":
        if not {"backbone", "interaction"} <= set(parts):
            raise ValueError(
                "alignment corrects what a trained MM-DiT and VID read: set init to a checkpoint that has both"
            )
        size = _with_alignment(size, parts["interaction"], config)
    for number, part in enumerate(PARTS):
        has_none = (part == "text_encoder" and size.text is None) or part == "drawing_encoder"
        if part not in parts and not has_none:
            parts[part] = init_part(size, part, config.seed + number).requires_grad_(False)
            if part == "backbone":
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(config.seed + number)
                    start_from_nothing(parts[part])
            provenance[part] = f"weights from seed {config.seed + number}"
            log.info("%s: %s", part, provenance[part])
    normalizer = header.normalizer if header is not None else None
    if normalizer is None:
        normalizer = _statistics(config, size)
    return SimpleNamespace(
        config=size,
        parts=parts,
        normalizer=normalizer,
        preview=header.preview if header is not None else None,
        provenance=provenance,
        unread=unread,
        teacher=teacher,
    )


def _statistics(config: TrainConfig, size: SViMoConfig) -> MotionNormalizer:
    """Of hands and objects in a run's clips; where it goes on those that it began with, whatever clips came since."""
    begun = config.output / CHECKPOINT
    if steps_done(config.output, config.sharded) and begun.is_file():
        return read_header(begun).normalizer
    return MotionNormalizer.fit(some_motions(config, size), size.interaction.object_names)


def _uses_position_table(size: SViMoConfig, config: TrainConfig) -> bool:
    """Whether any clip of a run has the grid for which the MM-DiT has learned positions."""
    if size.backbone.position_table is None:
        return True
    grids = set()
    for shape in (shape for phase in config.phases for shape in phase.shapes):
        _, t, h, w = size.vae.latent_shape(shape.frames, shape.height, shape.width)
        grids.add((t, h // size.backbone.patch_size, w // size.backbone.patch_size))
    return tuple(size.backbone.position_table) in grids


def _without_position_table(size: SViMoConfig, backbone: nn.Module | None) -> SViMoConfig:
    """A model whose learned positions would never be used nor trained: off its grid it does without them anyway, and
    processes that share gradients wait for each weight's."""
    size = replace(size, backbone=replace(size.backbone, position_table=None))
    if backbone is not None:
        del backbone.patch_embed.position_table
        backbone.config = backbone.patch_embed.config = size.backbone
    log.info("no clip has the grid of the position table, so the model goes on without it")
    return size


def load_vae(config: TrainConfig) -> SimpleNamespace:
    """A trained VAE and its drawing encoder, from the seed if there is none yet; what else the file holds goes into the
    new one as it is (in `checkpoint_dtype`).

    Returns:
        As :func:`load_model`.

    Raises:
        ValueError: no VAE.
    """
    header = read_header(config.init) if config.init is not None else None
    if header is None or "vae" not in header.parts:
        raise ValueError(
            "a drawing encoder learns from a trained VAE: set init to a checkpoint that has one, or to CogVideoX's VAE"
        )
    size = header.config
    if size.drawing is None:
        size = replace(size, drawing=PRESETS.get(size.name, PRESETS[config.preset]).drawing)
    parts = {
        part: load_part(header, part, None if part in config.idle else torch.float32) for part in header.parts
    }
    provenance = dict(header.provenance)
    if "drawing_encoder" not in parts:
        parts["drawing_encoder"] = init_part(size, "drawing_encoder", config.seed).requires_grad_(False)
        provenance["drawing_encoder"] = f"weights from seed {config.seed}"
    return SimpleNamespace(
        config=size,
        parts=parts,
        normalizer=header.normalizer,
        preview=header.preview,
        provenance=provenance,
        teacher=None,
    )


def _with_alignment(size: SViMoConfig, interaction: nn.Module, config: TrainConfig) -> SViMoConfig:
    """Give a VID what holds readings against the image, as large as in the preset of its name (or the one asked for),
    from the seed, where it has none or is to have a new one; the configuration with it."""
    before = interaction.alignment
    if before is not None and config.alignment == "init":
        return size
    preset = PRESETS.get(size.name, PRESETS[config.preset]).interaction
    points = min(preset.align_points, size.interaction.points_per_object)
    added = replace(size.interaction, align_channels=preset.align_channels, align_points=points)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        interaction.alignment = ImageAlignment(added).requires_grad_(False)
    start_without_corrections(interaction.alignment)
    if before is not None:
        keep_finding(before, interaction.alignment)
    return replace(size, interaction=added)


def _teacher(path: Path, init: CheckpointHeader | None) -> InteractionModel:
    """The VID of a checkpoint.

    Raises:
        ValueError: there is none, or its latents, hands or objects are others than those of `init`.
    """
    header = read_header(path)
    if "interaction" not in header.parts:
        raise ValueError(
            f"{path} has no VID to learn from: set interaction.teacher to a checkpoint that has one"
        )
    units = [
        None if each is None or each.normalizer is None else each.normalizer.to_dict()
        for each in (header, init)
    ]
    if units[1] is None:
        raise ValueError(
            f"there are no statistics of hands and objects in init, with which to compare those of {path}: set init to "
            "a checkpoint that has a VID, such as interaction.teacher itself"
        )
    if units[0] != units[1]:
        raise ValueError(
            f"{path} has other statistics of hands and objects than init, so that its readings mean something else: "
            "set interaction.teacher to a checkpoint that comes from the same training, such as init itself"
        )
    read, expected = (
        {name: getattr(each.config.interaction, name) for name in READ} for each in (header, init)
    )
    if read != expected:
        raise ValueError(
            f"{path} reads {read}, and init {expected}: set interaction.teacher to a checkpoint that reads the same"
        )
    return load_part(header, "interaction", torch.float32)


def _pupil(teacher: InteractionModel, size: SViMoConfig, config: TrainConfig) -> InteractionModel:
    """A VID from the seed, with its teacher's alignment."""
    size, path = with_pupil(size, teacher.config, config), config.interaction.teacher
    with reading(path, "cannot teach a VID of this size", "set interaction.teacher to another checkpoint"):
        pupil = init_part(size, "interaction", config.seed)
    if teacher.alignment is not None:
        pupil.alignment.load_state_dict(teacher.alignment.state_dict())
    return pupil.requires_grad_(False)


class _Run:
    """Files of one run, and when they are written."""

    def __init__(self, config, accelerator, clips, shown, model, stage, parameters, ema, optimizer):
        self.config = config
        self.accelerator = accelerator
        self.clips = clips
        self.shown = shown
        self.model = model
        self.stage = stage
        self.parameters = parameters
        self.ema = ema
        self.optimizer = optimizer
        self.saved = self.begun = 0
        self.saves = ShardedSaves(config.output, config.background_saves) if config.sharded else None
        self.seconds = 0.0
        self.samples = 0
        self.given = given_weights(model, config.idle)
        if accelerator.is_main_process:
            config.output.mkdir(parents=True, exist_ok=True)

    def resume(self) -> int:
        """Restore the last state, if any; the number of steps done."""
        file, folder = self.config.output / STATE, sharded_state(self.config.output)
        path, other = (folder, file) if self.config.sharded else (file, folder)
        if path is None or not path.exists():
            if other is not None and other.exists():
                raise ValueError(
                    f"{other} was written with sharded {json.dumps(not self.config.sharded)}: set it so again, "
                    "or choose another output folder"
                )
            if not (self.config.output / CHECKPOINT).exists():
                self._shorten_log(0)  # of a run that was killed before it saved; any other log is somebody's
            return 0
        load = load_sharded_state if self.config.sharded else load_state
        with reading(path, "is damaged", f"delete {path} to start this stage anew"):
            step, notes = load(path, self.parameters, self.ema, self.optimizer)
            self.saved = self.begun = step
            self.seconds, self.samples = float(notes["seconds"]), int(notes["samples"])
            before = dict(notes.get("given", {}))
        # settings may let a part rest that was used before, or use another one
        others = sorted(part for part, name in self.given.items() if before.get(part, name) != name)
        if others:
            raise ValueError(
                f"{path} is of a run with another {' and '.join(others)}, and init, init_interaction, "
                "interaction.teacher or seed has changed since: set it as it was, give back the file of before, or "
                f"delete {path} to start this stage anew"
            )
        self._shorten_log(step)
        log.info("going on after step %d", step)
        return step

    def _shorten_log(self, done: int) -> None:
        """Leave the steps that the state has: those after it are made, and logged, again."""
        path, kept = self.config.output / LOG, []
        if not self.accelerator.is_main_process or not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the end of a line is lost where a run was killed
                if json.loads(line)["step"] < done:
                    kept.append(line + "\n")
        with self._writing(done), whole_file(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def check_finite(self, step: int, what: str, value: float) -> None:
        """Stop before a broken number reaches the weights."""
        if not math.isfinite(value):
            raise TrainingStopped(
                f"the {what} of step {step} is {value}: lower the learning rate, or look for broken clips. "
                f"{self._last_good()}"
            )

    def after_step(self, step: int, metrics: dict[str, float], seconds: float, stopping: bool) -> None:
        """Log, draw and save when it is time."""
        config, done = self.config, step + 1
        self.seconds += seconds
        processes = self.accelerator.num_processes
        self.samples += draw_shape(config, step).batch_size * config.gradient_accumulation * processes
        if self.accelerator.is_main_process:
            self._report(step, metrics, seconds)
        if config.sheet_every and (done % config.sheet_every == 0 or done == config.steps):
            self._draw(done)
        if self.saves is not None and self.saves.ended:
            self.finish_saving()
        if (done % config.save_every == 0 and done < config.steps) or stopping:  # the end saves by itself
            self.save(done)
        if stopping:
            self.finish_saving()

    def _report(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Log when it is time."""
        config = self.config
        with self._writing(step + 1):
            if step % config.log_every == 0:
                line = {"step": step, **metrics, "lr": config.learning_rate_at(step), "seconds": seconds}
                with (config.output / LOG).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                self.accelerator.log({**metrics, "lr": line["lr"], "seconds": seconds}, step=step)

    def _draw(self, done: int) -> None:
        """The main process draws a sheet. Where weights are spread over processes, all give it theirs, and wait."""
        main, config = self.accelerator.is_main_process, self.config
        if not main and not config.sharded:
            return
        with self.averaged_weights(), gathered(self.stage):
            if main:
                path = config.output / f"sheet-{done:07d}.png"
                with self._writing(done), self.accelerator.autocast():
                    write_sheet(path, config, self.shown, self.model, self.stage)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A block in which the trained parts carry their moving averages."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            _assign(self.parameters, self.ema.values)
            yield
        finally:
            _assign(self.parameters, kept)

    def save(self, done: int) -> Path:
        """Write the checkpoint (averaged weights) and the state; each appears whole or not at all. The main process
        writes; where weights are spread over processes, all take part, and the state is written in the background."""
        config, path = self.config, self.config.output / CHECKPOINT
        if self.accelerator.is_main_process or config.sharded:
            notes = {"seconds": self.seconds, "samples": self.samples, "given": self.given}
            training = (self.parameters, self.ema, self.optimizer, notes)
            with self._writing(done):
                with self.averaged_weights():
                    if self.accelerator.is_main_process:
                        self._save_checkpoint(path, done)
                    else:
                        for tensor in stored_tensors(self.model.parts).values():
                            whole(tensor)
                if not config.sharded:
                    save_state(config.output / STATE, done, *training)
                elif self.begun != done:
                    self.finish_saving()  # of the one before
                    self.saves.begin(done, *training)
                self.begun = done
        if self.saves is None or self.saves.writing is None:
            self.saved = done
        return path

    def finish_saving(self) -> None:
        """Wait for a state that is written in the background."""
        if self.saves is not None:
            with self._writing(self.begun):
                self.saves.wait()
            self.saved = self.begun

    def _save_checkpoint(self, path: Path, done: int) -> None:
        """What the trained parts hold now, and all others."""
        config, model = self.config, self.model
        training = (
            f"{config.stage}: {done} steps, {self.samples} samples, {self.seconds / 60:.0f} minutes on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}, seed {config.seed}"
        )
        parts = [path.partition(".")[0] for path in config.trained]
        before = {part: model.provenance.get(part, "") for part in parts}
        if isinstance(self.stage, VAEStage):
            self.stage.finish(model, self.clips)
        if isinstance(self.stage, DrawingStage):
            errors = self.stage.finish(self.clips, config.phases[-1].shapes[0])
            training += "; " + ", ".join(f"{name} {value}" for name, value in errors.items())
            log.info("after step %d: %s", done, errors)
        told = {part: f"{text}; {training}" if text else training for part, text in before.items()}
        save_checkpoint(
            path,
            model.config,
            model.parts,
            model.normalizer,
            model.preview,
            model.provenance | told,
            getattr(torch, config.checkpoint_dtype),
            whole,
        )

    @contextmanager
    def _writing(self, done: int) -> Iterator[None]:
        """Explain a disk that cannot be written."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise TrainingStopped(
                f"{self.config.output} cannot be written after step {done} ({error}): make room on the disk. "
                f"{self._last_good()}"
            ) from error

    @contextmanager
    def losing_workers(self) -> Iterator[None]:
        """Explain that a process that reads ahead is gone, which PyTorch's signal handler says wherever training is."""
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise TrainingStopped(
                f"a process that reads clips ahead has ended ({str(error).strip()}), maybe for want of memory: set "
                f"workers lower. {self._last_good()}"
            ) from error

    def _last_good(self) -> str:
        if not self.saved:
            return "No checkpoint had been written yet."
        return f"The checkpoint after step {self.saved} in {self.config.output} is good: the same command resumes it"


@torch.no_grad()
def _assign(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


class _StopSignal:
    """Ctrl-C and SIGTERM ask for a stop at the end of the step, and a second Ctrl-C for one at once. SIGTERM comes
    twice by itself: `timeout` and Slurm signal a process and all around it, such as torchrun, which passes it on."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self.before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for s in self.before:
            signal.signal(s, self._ask)
        return self

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
