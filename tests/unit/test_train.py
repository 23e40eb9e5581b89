"""The trainer: losses against hand-computed cases, that it learns, resumes bit by bit, and stops cleanly."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from conftest import FRAMES, HEIGHT, WIDTH, moving_motion
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.amp import autocast
from transformers import PreTrainedTokenizerFast

from svimo_core.checkpoint import PARTS, init_part, load_part, read_header, save_checkpoint
from svimo_core.config import COGVIDEOX_5B_I2V, PRESETS, TINY
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.mmdit import MMDiT, SeparateMMDiT, extend_with_motion, split_streams
from svimo_core.model.text import TOKENIZER_FILE, build_text_encoder
from svimo_core.normalization import MotionNormalizer
from svimo_core.sampling.painter import MotionPainter, QuickPainter
from svimo_core.sampling.reader import MotionReader
from svimo_core.schedule import NoiseSchedule, StepLevels, ddim_step
from svimo_train import ablation, stages
from svimo_train.clips import Clip, ClipFolder, write_clip
from svimo_train.clips import main as write_clips
from svimo_train.data.synthetic import generate_clip, generate_motion
from svimo_train.encoded import Text
from svimo_train.loader import step_generator, training_data
from svimo_train.objectives import (
    DISTANCE_UNIT,
    chamfer,
    denoising_loss,
    distances,
    interaction_loss,
)
from svimo_train.recipe import load_stages
from svimo_train.settings import (
    Batch,
    DrawingObjective,
    InteractionObjective,
    JointObjective,
    Phase,
    Shape,
    Source,
    Synthetic,
    TrainConfig,
)
from svimo_train.shards import Record, Shard, write_shard
from svimo_train.stages import (
    TEACHER_SHARE,
    AlignmentStage,
    InteractionStage,
    JointStage,
    ReadingLoss,
    draw_timesteps,
)
from svimo_train.state import save_state
from svimo_train.text import with_unknown_words
from svimo_train.trainer import (
    CHECKPOINT,
    LOG,
    STATE,
    TrainingStopped,
    load_model,
    load_vae,
    train,
    trained_parameters,
)

ROOT = Path(__file__).resolve().parents[2]
LOSS_CURVE = Path(__file__).with_name("train_loss_curve.json")


@pytest.fixture
def clips(tmp_path) -> Path:
    """Two clips: a bright square that moves to the right, as does the motion."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed in range(2):
        video = np.full((FRAMES, HEIGHT, WIDTH, 3), 40 + 60 * seed, np.uint8)
        for frame in range(FRAMES):
            video[frame, 8:24, 4 + 3 * frame : 16 + 3 * frame] = (230, 180, 90)
        write_clip(folder, f"clip-{seed}", Clip(video, moving_motion(seed)))
    return folder


@pytest.fixture
def settings(tmp_path, clips, checkpoint_file) -> TrainConfig:
    return TrainConfig(
        stage="joint",
        clips=clips,
        output=tmp_path / "run",
        init=checkpoint_file,
        phases=(phase(4),),
        learning_rate=3e-3,
        clip_norm=1.0,
        warmup_steps=0,
        log_every=1,
        save_every=4,
        sheet_every=0,
    )


def phase(steps: int, batch_size: int = 1) -> Phase:
    return Phase(
        steps=steps, shapes=(Shape(frames=FRAMES, height=HEIGHT, width=WIDTH, batch_size=batch_size),)
    )


def batch_of(config: TrainConfig, indices: list[int]) -> Batch:
    """These clips as the stage gets them."""
    load = training_data(config, load_model(config), Accelerator()).load
    return load(indices, phase(1).shapes[0], step_generator(0, 0, 0))


def logged(config: TrainConfig, key: str = "loss") -> list[float]:
    return [json.loads(line)[key] for line in (config.output / LOG).read_text().splitlines()]


@contextmanager
def training(command: list[str], until: Path) -> Iterator[subprocess.Popen]:
    """A training in a process of its own, once it has written this file; killed in the end, with its children."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not until.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else ():
            child.kill()
        process.kill()


def test_chamfer_is_squared_and_two_sided():
    one = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    other = torch.tensor([[0.0, 0, 0], [0, 0, 3]])
    assert chamfer(one, other) == (0 + 1) / 2 + (0 + 9) / 2
    clouds, others = torch.randn(2, 3, 2, 5, 3).unbind(0)
    apart = torch.cdist(clouds, others).square()
    expected = apart.amin(-1).mean() + apart.amin(-2).mean()
    assert torch.allclose(chamfer(clouds, others), expected)
    far = torch.tensor([100.0, 0, 0])  # where bf16 cannot tell neighbours apart
    with autocast("cpu", torch.bfloat16):
        assert chamfer(clouds + far, others + far) == pytest.approx(expected.item(), rel=0.02)


def test_distances_are_in_metres_and_by_index():
    hands, points = torch.zeros(1, 2, 42, 3), torch.zeros(1, 2, 4, 3)
    std = torch.tensor([0.01, 0.02, 0.1])
    off = torch.tensor([3.0, 2.0, 1.2])  # 3, 4 and 12 cm: 13 cm
    moved = points.clone()
    moved[:, :, 1] = off  # one of four points
    of_hands, of_points = distances(hands + off, moved, hands, points, std.expand(42, 3), std.expand(4, 3))
    assert of_hands.item() == pytest.approx(0.13 / DISTANCE_UNIT, rel=1e-3)
    assert of_points.item() == pytest.approx(0.13 / DISTANCE_UNIT / 4, rel=0.05)  # smooth at 0
    # index k is the same spot: a cloud in another order is another motion
    assert distances(hands, moved.flip(2), hands, moved, std.expand(42, 3), std.expand(4, 3))[1] > 1


def test_interaction_loss_compares_each_object_with_its_own():
    hands, points = torch.zeros(1, 1, 42, 3), torch.tensor([[[[0.0, 0, 0], [2, 0, 0]]]])
    swapped = points.flip(2)
    assert interaction_loss(hands, points, hands, swapped, num_objects=1)[0] == 0
    assert interaction_loss(hands, points, hands, swapped, num_objects=2)[0] == 2 * 4
    assert interaction_loss(hands, points, hands, swapped, 1, point_weight=3.0)[0] == pytest.approx(3 * 8 / 6)


def test_v_weighting_is_the_error_of_the_velocity(config):
    schedule, generator = NoiseSchedule(config.schedule), torch.Generator().manual_seed(0)
    x0, noise, v = (torch.randn(3, 2, 3, 1, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    time, every = torch.tensor([10, 500, 999]), torch.ones(3, 3, dtype=torch.bool)
    clean = schedule.clean_from_velocity(schedule.add_noise(x0, noise, time), v, time)
    expected = ((v - schedule.velocity(x0, noise, time)) ** 2).mean()
    abar = schedule.abar[time]
    assert denoising_loss(clean, x0, abar, "v", every).item() == pytest.approx(expected.item())
    assert denoising_loss(clean, x0, abar, "x0", every) < expected
    some = every.clone()
    some[:, 1:] = some[0] = False
    expected = denoising_loss(clean[1:, :, :1], x0[1:, :, :1], abar[1:], "v", every[1:, :1])
    assert denoising_loss(clean, x0, abar, "v", some).item() == pytest.approx(expected.item())
    assert denoising_loss(clean, x0, abar, "v", ~every) == 0


@pytest.fixture
def another_precision():
    """A process chooses its precision once; this test has several."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("another_precision")
@pytest.mark.parametrize(
    ("stage", "precision"),
    [("vae", "no"), ("interaction", "bf16"), ("backbone", "no"), ("joint", "no"), ("alignment", "bf16")],
)
def test_a_clip_can_be_learned_by_heart(settings, stage, precision, clips, monkeypatch):
    monkeypatch.setattr("svimo_train.sheets.SAMPLING_STEPS", 3)
    (clips / "clip-1.npz").unlink()
    joint = replace(settings.joint, text_dropout=0.0, image_dropout=0.0, guidance_dropout=0.0)
    config = replace(
        settings, stage=stage, phases=(phase(24, 2),), joint=joint, save_every=24, sheet_every=24
    )
    path = train(replace(config, precision=precision))
    losses = logged(config)
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    header = read_header(path)
    assert header.parts == PARTS
    trained = {"joint": "backbone", "alignment": "interaction"}.get(stage, stage)
    assert f"{stage}: 24 steps, 48 samples" in header.provenance[trained]
    assert (config.output / "sheet-0000024.png").stat().st_size > 1000
    if stage == "vae":
        assert header.preview.shape == (17, 3)
        assert header.config.vae.scaling_factor != read_header(config.init).config.vae.scaling_factor


def test_going_on_equals_never_having_stopped(settings, monkeypatch):
    whole = replace(settings, output=settings.output / "whole")
    parted = replace(settings, output=settings.output / "parted")
    whole.output.mkdir(parents=True)
    (whole.output / LOG).write_text('{"step": 0, "loss": 9.0}\n')  # of one that was killed before it saved
    written = []
    monkeypatch.setattr("svimo_train.trainer.save_state", lambda *a: written.append(a[1]) or save_state(*a))
    train(replace(whole, save_every=2))
    assert written == [2, 4]
    train(replace(parted, phases=(phase(2),)))  # each run ends with its state saved
    with (parted.output / LOG).open("a") as file:  # of runs that were killed in the middle of step 3
        file.write('{"step": 2, "loss": 9.0}\n{"step": 3, "lo{"step": 2, "loss": 9.0}\n{"step": 3, "lo')
    train(parted)
    for name in (STATE, CHECKPOINT):
        one, other = (load_file(run.output / name) for run in (whole, parted))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert logged(whole) == logged(parted)

    (parted.output / STATE).unlink()  # anew, beside a checkpoint that somebody has: its log stays, too
    train(replace(parted, phases=(phase(1),)))
    assert len(logged(parted)) == 4 + 1


def test_clips_that_came_since_leave_the_statistics_of_a_run(settings, clips, config, parts, tmp_path):
    """They are of the clips that it began with, where `init` has none: weights have learned what they mean."""
    init = tmp_path / "vae.safetensors"
    save_checkpoint(init, config, {"vae": parts["vae"]}, None)
    run = replace(settings, stage="interaction", init=init, phases=(phase(1),))
    began = read_header(train(run)).normalizer.to_dict()
    video = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    write_clip(clips, "another", Clip(video, moving_motion(2)))
    assert read_header(train(replace(run, phases=(phase(2),)))).normalizer.to_dict() == began
    assert read_header(train(replace(run, output=tmp_path / "new"))).normalizer.to_dict() != began


@pytest.mark.parametrize("stage", ["vae", "interaction", "backbone", "joint", "alignment", "drawing"])
def test_a_stage_computes_where_its_weights_are(settings, stage, checkpoint_file):
    """As on a GPU: its tensors do not mix with the CPU's either, where noise and timesteps are drawn. The guided part
    of a joint step is left out, as it asks for values, which this device does not have."""
    gpu = torch.device("meta")
    teacher = checkpoint_file if stage == "interaction" else None
    config = replace(
        settings,
        stage=stage,
        interaction=InteractionObjective(error="distance", points=1.0, teacher=teacher),
        joint=replace(settings.joint, guidance=False, warm_up=0.1),
        drawing=DrawingObjective(motions=2),
    )
    model = load_vae(config) if stage == "drawing" else load_model(config)
    data, generator = training_data(config, model, Accelerator()), step_generator(0, 0, 0)
    module = stages.STAGE_MODULES[stage](config, model, data.clips)
    trained_parameters(model, config)
    batch = send_to_device(data.load([0, 1], phase(1).shapes[0], generator), gpu)
    for network in (*model.parts.values(), *filter(None, [model.teacher])):
        network.to(gpu)
    loss, terms = module(batch, generator)
    loss.backward()
    assert all(value.device == gpu for value in (loss, *terms.values()))


def test_what_a_stage_does_not_use_stays_as_it_is_stored(settings, config, parts, normalizer, tmp_path):
    """At full size the MM-DiT would take 24 GB of each process of VID's warm-up, of its host and of its card."""
    init = tmp_path / "half.safetensors"
    save_checkpoint(init, config, parts, normalizer, dtype=torch.bfloat16)
    for stage, share, stored in (
        ("interaction", 0.0, True),
        ("interaction", 0.5, False),
        ("joint", 0.0, False),
    ):
        objective = InteractionObjective(sampled_share=share)
        model = load_model(replace(settings, stage=stage, interaction=objective, init=init))
        types = {part: next(network.parameters()).dtype for part, network in model.parts.items()}
        assert (types["backbone"] == types["text_encoder"] == torch.bfloat16) == stored
        assert types["vae"] == types["interaction"] == torch.float32
    made = read_header(train(replace(settings, stage="interaction", init=init, phases=(phase(1),))))
    before, after = (load_part(header, "backbone").state_dict() for header in (read_header(init), made))
    assert all(torch.equal(value.float(), after[name]) for name, value in before.items())


def gradients(
    settings: TrainConfig,
    joint: JointObjective,
    prepare: Callable[[JointStage], object] = lambda stage: None,
    of_vid: bool = False,
) -> tuple[JointStage, float]:
    """The stage after one backward pass, and its loss; `prepare` is called with the stage before it.

    Args:
        of_vid: take only VID's losses, without the errors of video and motion.
    """
    config = replace(settings, joint=joint)
    model = load_model(config)
    data = training_data(config, model, Accelerator())
    stage = JointStage(config, model, data.clips)
    for part in config.trained:
        model.parts[part].requires_grad_(True)
    prepare(stage)
    generator = step_generator(0, 0, 0)
    loss, terms = stage(data.load([0, 1], phase(1).shapes[0], generator), generator)
    if of_vid:
        loss = loss - terms["video"] - terms["motion"]
    loss.backward()
    return stage, loss.item()


def size_of_gradient(module: torch.nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("constrained", [True, False])
def test_gradient_constraint_reaches_the_transformer(settings, constrained):
    stage, _ = gradients(settings, JointObjective(gradient_constraint=constrained), of_vid=True)
    assert size_of_gradient(stage.interaction) > 0
    assert (size_of_gradient(stage.backbone) > 0) == constrained


def test_guidance_acts_but_carries_no_gradient(settings):
    stage, loss = gradients(settings, JointObjective(interaction=0.0, guidance_dropout=0.0))
    assert size_of_gradient(stage.interaction) == 0
    assert size_of_gradient(stage.backbone) > 0
    assert loss != gradients(settings, JointObjective(interaction=0.0, guidance=False))[1]


@pytest.mark.parametrize("painter", [MotionPainter, QuickPainter])
@pytest.mark.parametrize("source", ["noisy", "clean", "first"])
def test_guidance_reads_what_was_asked_for(settings, config, source, painter, monkeypatch):
    """With a motion kernel that hears no guidance, clean latents are the same before it and with it. As in the sampler,
    what is read off clean ones is held against the image before it is drawn."""
    heard, seen, denoised, aligned, drawn = [], [], [], [], []
    align, paint, painter = MotionReader.align, painter.__call__, painter
    monkeypatch.setattr(MotionReader, "align", lambda *args: aligned.append(align(*args)) or aligned[-1])
    monkeypatch.setattr(painter, "__call__", lambda *args: drawn.append(args[1]) or paint(*args))
    hear, read = InteractionModel.hear, InteractionModel.read
    monkeypatch.setattr(InteractionModel, "hear", lambda *args: heard.append(args[1:]) or hear(*args))
    monkeypatch.setattr(InteractionModel, "read", lambda *args: seen.append(args[2:]) or read(*args))

    def prepare(stage):
        stage.backbone.register_forward_pre_hook(lambda _, inputs: denoised.append(inputs))
        stage.backbone.patch_embed.motion_proj.weight.data[:, config.backbone.latent_channels :] = 0

    joint = JointObjective(guidance_from=source, guidance_dropout=0.0, exact_drawing=painter is MotionPainter)
    stage, _ = gradients(settings, joint, prepare)
    guiding, constraining = heard
    for one, other in zip(*seen, strict=True):
        assert torch.allclose(one, other, atol=1e-5) == (source == "clean")
        assert not one.requires_grad
        assert other.requires_grad
    # noisy true motion would tell what the sampler never knows
    assert torch.equal(guiding[0], constraining[0]) == (source == "noisy")
    assert (guiding[2] == 999).all() or source == "noisy"
    assert size_of_gradient(stage.backbone) > 0
    before, after = denoised if source != "noisy" else denoised * 2
    assert torch.equal(before[0], after[0]) == (source != "first")
    assert (before[3] == 999).all() == (source == "first")
    assert len(aligned) == (source != "noisy")
    assert all(a is b for a, b in zip(aligned[0], drawn[0], strict=True)) if aligned else drawn


def test_any_to_any_is_learned_by_shares(settings):
    """What a sample knows is clean, at timestep 0 and without a loss; a known motion guides; others are as ever."""
    tasks = {
        "independent_share": (0, 0),
        "known_video_share": (3, 0),
        "known_motion_share": (0, 3),
        "known_start_share": ({1, 2}, {1, 2}),
        "known_ends_share": (2, 2),
    }
    for share, knows in tasks.items():
        joint = JointObjective(guidance_from="first", guidance_dropout=0.0, image_dropout=0.0, **{share: 1.0})
        passes = []
        stage, _ = gradients(
            settings,
            joint,
            lambda stage: stage.backbone.register_forward_pre_hook(lambda _, seen: passes.append(seen)),  # noqa: B023
        )
        batch = batch_of(replace(settings, joint=joint), [0, 1])
        for inputs in passes:  # the first step's and the loss's
            for stream, name in enumerate(("video", "motion")):
                time, latents = inputs[3][:, stream], inputs[0 if stream == 0 else 4]
                known = time == 0
                for count in known.sum(dim=1).tolist():
                    assert (
                        count in knows[stream] if isinstance(knows[stream], set) else count == knows[stream]
                    )
                for row, frame in known.nonzero().tolist():
                    assert torch.equal(latents[row, :, frame], batch[name][row, :, frame])
        given = torch.equal(passes[-1][5], batch["motion"])
        assert given == (share == "known_motion_share")
        apart = passes[-1][3][:, 0].amax(dim=1) != passes[-1][3][:, 1].amax(dim=1)
        assert apart.any() == (share in ("independent_share", "known_video_share", "known_motion_share"))

    alone = JointObjective(known_video_share=1.0, interaction=0.0)
    stage, _ = gradients(settings, alone)
    _, terms = stage(batch, step_generator(0, 0, 0))
    assert terms["video"] == 0
    assert terms["motion"] > 0
    config = replace(settings, joint=alone, phases=(phase(1),), save_every=1)
    train(config)
    assert read_header(config.output / CHECKPOINT).config.backbone.any_to_any
    assert not read_header(settings.init).config.backbone.any_to_any
    with pytest.raises(ValueError, match=r"together at most 1, got 0\.6, 0, 0\.6, 0, 0"):
        replace(settings, joint=JointObjective(independent_share=0.6, known_motion_share=0.6))


@pytest.mark.parametrize("steps", [1, 3])
def test_latents_may_be_those_of_the_sampler(settings, config, steps):
    """They are where DDIM takes the first pass, under the guidance drawn from that; VID's loss alone is left."""
    schedule, passes = NoiseSchedule(config.schedule), []
    joint = JointObjective(
        guidance_from="first",
        sampled_share=1.0,
        sampled_steps=steps,
        image_dropout=0.0,
        text_dropout=0.0,
        guidance_dropout=0.0,
    )
    stage, loss = gradients(
        settings,
        joint,
        lambda stage: stage.backbone.register_forward_hook(lambda _, *seen: passes.append(seen)),
    )
    assert loss < joint.interaction * 10  # two denoising losses of untrained networks would be above it
    assert size_of_gradient(stage.backbone) > 0
    assert len(passes) == steps + 1
    for (before, velocities), (after, _) in itertools.pairwise(passes):
        assert (after[3] < before[3]).all()
        assert torch.equal(after[5], passes[-1][0][5])
        assert after[5].abs().sum() > 0  # guidance from the second step on
        for place, velocity in zip((0, 4), velocities, strict=True):
            for row, (now, then) in enumerate(zip(before[3].tolist(), after[3].tolist(), strict=True)):
                x, v = before[place][row], velocity[row]
                levels = StepLevels(before=None, now=schedule.level(now), after=schedule.level(then))
                expected = ddim_step(x, schedule.clean_from_velocity(x, v, now), None, levels, None)
                assert torch.allclose(after[place][row], expected, atol=1e-4)
    assert (passes[0][0][3] == 999).all()
    assert passes[0][0][5].abs().sum() == 0
    for change, says in ((dict(guidance_from="clean"), r'sampled_share needs joint\.guidance_from "first"'),):
        with pytest.raises(ValueError, match=says):
            replace(settings, joint=replace(joint, **change))


def test_clips_with_a_first_frame_only(settings, clips):
    """They teach 3D in the last stage, beside whole clips; other stages refuse them by name."""
    (clips / "clip-1.npy").unlink()
    first = ClipFolder(clips).video(0)[:1]
    np.save(clips / "clip-1.npy", first[:0])
    with pytest.raises(ValueError, match=r"clip-1\.npy must hold N x H x W x 3 uint8, got \(0,"):
        ClipFolder(clips).has_video(1)
    np.save(clips / "clip-1.npy", first)
    joint = JointObjective(guidance_from="first")
    settings = replace(settings, joint=joint)
    stage, _ = gradients(settings, joint)
    batch = batch_of(settings, [1, 0])
    assert batch["whole"].tolist() == [False, True]
    assert torch.equal(batch["images"][0], batch["images"][1])
    assert not torch.equal(batch["hands"][0], batch["hands"][1])

    passes = []
    stage.backbone.register_forward_hook(lambda _, *seen: passes.append(seen))

    def terms(indices):
        batch = batch_of(settings, indices)
        return batch, stage(batch, step_generator(0, 0, 0))[1]

    _, without = terms([1, 1])
    assert without["video"] == without["motion"] == 0
    assert without["hands"] > 0
    batch, losses = terms([1, 0])
    inputs, (velocity, _) = passes[-1]
    clean = stage.schedules["video"].clean_from_velocity(inputs[0], velocity, inputs[3])
    abar = stage.schedules["video"].abar[inputs[3]].float()
    every = torch.ones(1, clean.shape[2])
    expected = denoising_loss(clean[1:], batch["video"][1:], abar[1:], joint.weighting, every)
    assert losses["video"].item() == pytest.approx(expected.item(), rel=1e-4)

    config = replace(settings, joint=joint, phases=(phase(2, 2),), sheet_every=2, save_every=2)
    train(config)
    assert all(math.isfinite(loss) for loss in logged(config))
    for change in (
        dict(stage="backbone"),
        dict(joint=JointObjective()),
        dict(joint=JointObjective(guidance_from="first", warm_up=1.0)),
    ):
        with pytest.raises(ValueError, match=r"clip-1 of .* has only its first frame.*guidance_from"):
            train(replace(config, output=settings.output / "other", **change))


def test_joint_training_as_in_sampling(settings):
    """Some samples start at the last timestep, and VID reads some latents from pure noise."""
    denoised, read = [], []

    def prepare(stage):
        stage.backbone.register_forward_pre_hook(lambda _, inputs: denoised.append(inputs[3]))
        stage.interaction.register_forward_pre_hook(lambda _, inputs: read.append(inputs[4]))

    for share in (0.0, 1.0):
        objective = InteractionObjective(reading_share=share)
        joint = JointObjective(guidance=False, start_share=1 - share)
        gradients(replace(settings, interaction=objective), joint, prepare)
        (time,), (motion_time,) = denoised, read
        assert (time == 999).all() == (share == 0)
        assert (motion_time == 999).all()
        denoised.clear()
        read.clear()


def test_warm_up_goes_on_beside_the_constraint(settings):
    """It teaches VID true latents, and the MM-DiT nothing."""
    seen = []
    stage, _ = gradients(
        replace(settings, interaction=InteractionObjective(clean_share=1.0)),
        JointObjective(interaction=0.0, guidance=False, warm_up=1.0),
        lambda stage: stage.interaction.register_forward_pre_hook(lambda _, inputs: seen.append(inputs)),
        of_vid=True,
    )
    truth = batch_of(settings, [0, 1])
    assert torch.equal(seen[-1][2], truth["video"])
    assert torch.equal(seen[-1][3], truth["motion"])
    assert size_of_gradient(stage.interaction) > 0
    assert size_of_gradient(stage.backbone) == 0


def test_vid_learns_from_latents_that_were_sampled(settings):
    """They are the MM-DiT's for this first frame and prompt, and made only once."""
    config = replace(
        settings, stage="interaction", interaction=InteractionObjective(sampled_share=0.5, clean_share=1.0)
    )
    true = batch_of(replace(config, interaction=InteractionObjective()), [0, 1] * 4)
    mixed = batch_of(config, [0, 1] * 4)
    same = [torch.equal(a, b) for a, b in zip(mixed["video"], true["video"], strict=True)]
    assert 0 < sum(same) < 8
    assert same == [torch.equal(a, b) for a, b in zip(mixed["motion"], true["motion"], strict=True)]
    assert torch.equal(mixed["hands"], true["hands"])
    one, other = (mixed["video"][same.index(False) + i :: 2][0] for i in (0, 1))
    assert not torch.allclose(one, other, atol=1e-2)

    def sampled():
        return training_data(config, model, Accelerator()).load.sampled.folders[0]

    model = load_model(config)
    before = sampled()
    written = {path: path.stat().st_mtime_ns for path in before.folder.rglob("*.*")}
    with torch.no_grad():  # another MM-DiT has others, this one still has its own
        model.parts["backbone"].proj_out.weight.mul_(2)
    assert sampled().folder != before.folder
    model = load_model(config)
    assert sampled().folder == before.folder
    assert {path: path.stat().st_mtime_ns for path in before.folder.rglob("*.*")} == written
    prompts = ClipFolder(settings.clips)
    write_clip(
        settings.clips, "clip-0", Clip(prompts.video(0), replace(prompts.motion(0), prompt="take off lid"))
    )
    size = phase(1).shapes[0].size  # another prompt has others, though no tensor of its clip is another
    (one, same), (other, too) = (
        [folder.record(name, size).tensors["latents"] for name in folder.names]
        for folder in (before, sampled())
    )
    assert not torch.equal(one, other)
    assert torch.equal(same, too)
    train(config)
    assert math.isfinite(logged(config)[-1])
    with pytest.raises(ValueError, match=r"interaction\.sampled_steps must be at most 1000.*got 1001"):
        batch_of(replace(config, interaction=replace(config.interaction, sampled_steps=1001)), [0])
    with pytest.raises(ValueError, match="sampled_share needs a trained MM-DiT"):
        load_model(replace(config, init=None))


def test_a_sample_has_latents_of_any_step_of_the_sampler(settings, model):
    """As good as at the end of the sampler's run, and as blurred as at its first step. Nothing else is needed, so clips
    may have only their first frame."""
    folder = ClipFolder(settings.clips)
    for index, name in enumerate(folder.names):
        first = Clip(folder.video(index)[:1], folder.motion(index))
        write_clip(folder.folder, name, first)
    objective = InteractionObjective(sampled_share=1.0, sampled_steps=2, clean_share=1.0)
    config = replace(settings, stage="interaction", interaction=objective)
    read = batch_of(config, [1] * 8)
    assert not read["whole"].any()
    data = training_data(config, load_model(config), Accelerator()).load.sampled
    steps = data.folders[0].record(data.folders[0].names[1], phase(1).shapes[0].size).tensors["latents"]
    assert len(steps) == 2
    steps = steps.float() * model.config.vae.scaling_factor
    of = [[torch.equal(x, step[0]) for step in steps] for x in read["video"]]
    assert {tuple(same) for same in of} == {(True, False), (False, True)}
    of_motion = [[torch.equal(x, step[1]) for step in steps] for x in read["motion"]]
    assert of_motion == of
    with pytest.raises(
        ValueError, match=r"clip-0 of .* only its first frame.*with interaction\.sampled_share 1"
    ):
        batch_of(replace(config, interaction=replace(objective, sampled_share=0.5)), [0, 1])


def test_vid_learns_from_a_teacher(settings, monkeypatch, checkpoint_file, model):
    """Another size, from the seed; the teacher's alignment comes along, and what the two read gets nearer."""
    objective = InteractionObjective(
        teacher=checkpoint_file, sampled_share=1.0, sampled_steps=2, clean_share=1.0, reading_share=1.0
    )
    config = replace(settings, stage="interaction", interaction=objective, phases=(phase(60, 2),))
    batch = batch_of(config, [0, 1])

    def apart(pupil: InteractionModel) -> float:
        readings = [
            MotionReader(network, model.normalizer).read(batch["video"], batch["motion"]).hands
            for network in (pupil, model.interaction)
        ]
        return (readings[0] - readings[1]).square().mean().item()

    # 1. what it starts with
    start = load_model(config)
    pupil = start.parts["interaction"]
    assert pupil.config.patch == TINY.interaction.patch != model.config.interaction.patch
    assert pupil.config.points_per_object == model.config.interaction.points_per_object
    assert start.config.interaction == pupil.config
    before = model.interaction.alignment.state_dict()
    assert all(torch.equal(x, before[key]) for key, x in pupil.alignment.state_dict().items())
    image = batch["video"][:, :, 0]
    assert torch.equal(pupil.alignment.find(image), model.interaction.alignment.find(image))
    assert start.provenance["interaction"] == f"weights from seed 0, taught by {checkpoint_file.name}"

    # 2. what it learns from: the truth, and more from what the teacher makes of the same latents
    told = [
        InteractionStage(config, taught, None)(batch, step_generator(0, 0, 0))[0]
        for taught in (start, SimpleNamespace(**vars(start) | {"teacher": pupil}))
    ]
    alone = SimpleNamespace(**vars(start) | {"teacher": None})
    truth = InteractionStage(config, alone, None)(batch, step_generator(0, 0, 0))[0]
    assert told[1].item() == pytest.approx(
        (1 - TEACHER_SHARE) * truth.item(), rel=1e-4
    )  # it reads what it reads
    assert told[0] > told[1]

    # 3. what becomes of it
    monkeypatch.setattr(stages, "TEACHER_SHARE", 1.0)  # which is itself untrained, and far from the truth
    learned = load_model(replace(config, init=train(config), interaction=InteractionObjective()))
    assert apart(learned.parts["interaction"]) < 0.5 * apart(pupil)
    after = learned.parts["interaction"].alignment.state_dict()
    assert all(torch.equal(x, before[key]) for key, x in after.items())


def test_a_teacher_must_read_the_same_in_the_same_units(settings, tmp_path, config, parts, normalizer):
    objective = InteractionObjective(teacher=tmp_path / "other.safetensors")
    asked = replace(settings, stage="interaction", interaction=objective)
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors"):
        load_model(asked)
    mute = {name: part for name, part in parts.items() if name != "interaction"}
    save_checkpoint(objective.teacher, config, mute)
    with pytest.raises(ValueError, match=r"other\.safetensors has no VID to learn from"):
        load_model(asked)
    others = MotionNormalizer.fit([moving_motion(5)], config.interaction.object_names)
    save_checkpoint(objective.teacher, config, parts, others)
    with pytest.raises(ValueError, match=r"other\.safetensors has other statistics of hands and objects"):
        load_model(asked)
    with pytest.raises(ValueError, match=r"no statistics of hands and objects in init.*other\.safetensors"):
        load_model(replace(asked, init=None))
    for change, says in (
        (dict(latent_channels=4), r"other\.safetensors reads .*'latent_channels': 4.* and init .*: 16"),
        (
            dict(norm_groups=3, read_channels=(6, 4, 8), align_channels=(6, 8), denoiser_channels=(12, 12))
            | dict(pyramid_channels=(12, 12)),
            r"preset tiny cannot learn from .*other\.safetensors \(.*norm_groups",
        ),
    ):
        other = replace(config, interaction=replace(config.interaction, **change))
        save_checkpoint(
            objective.teacher, other, {"interaction": init_part(other, "interaction", 0)}, normalizer
        )
        with pytest.raises(ValueError, match=says):
            load_model(asked)
    with pytest.raises(ValueError, match="leave init_interaction away"):
        replace(asked, init_interaction=objective.teacher)


def test_vid_may_learn_from_distances(settings):
    folder = ClipFolder(settings.clips)
    normalizer = load_model(settings).normalizer
    hands, points = normalizer.normalize(folder.motion(0), points_per_object=8)
    metres = torch.tensor([0.03, 0.0, 0.04])
    per_point = normalizer.objects_std.repeat_interleave(8, dim=0)
    moved = hands + metres / normalizer.hands_std, points + metres / per_point
    loss = ReadingLoss(InteractionObjective(error="distance"), normalizer)
    batch = {"hands": hands[None], "points": points[None]}
    for index in (0, 1):
        predicted = [(moved if i == index else (hands, points))[i][None] for i in (0, 1)]
        total, *terms = loss(predicted, batch)
        assert terms[index].item() == pytest.approx(0.05 / DISTANCE_UNIT, rel=1e-3)
        assert terms[1 - index].item() < 0.04
        # clouds are held together by their squares as well
        assert (total > terms[0] + terms[1] / 2 + 0.01) == (index == 1)


def test_warm_up_as_in_sampling(settings):
    """VID hears pure noise in place of motion, and sometimes has to do without the motion latent."""
    config = replace(
        settings,
        stage="interaction",
        interaction=InteractionObjective(clean_share=1.0, reading_share=0.5, motion_dropout=0.5),
    )
    model = load_model(config)
    data = training_data(config, model, Accelerator())
    stage, seen = InteractionStage(config, model, data.clips), []
    stage.interaction.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    generator = step_generator(0, 0, 0)
    batch = data.load([0, 1] * 8, phase(1).shapes[0], generator)
    stage(batch, generator)
    hands, _, video, motion, time = seen[0]
    assert torch.equal(video, batch["video"])
    blind = [not x.any() for x in motion]
    assert 0 < sum(blind) < 16
    assert all(b or torch.equal(x, true) for b, x, true in zip(blind, motion, batch["motion"], strict=True))
    last = time == 999
    assert 0 < last.sum() < 16
    alike = (hands * batch["hands"]).mean(dim=(1, 2, 3)).abs()  # noise knows nothing of the motion
    assert alike[last].max() < 0.1


def test_unknown_words_take_the_place_of_some(settings):
    prompt, generator = "use spoon to stir cup", torch.Generator().manual_seed(0)
    assert with_unknown_words(prompt, 0.0, generator) == prompt
    assert with_unknown_words("", 1.0, generator) == ""
    changed = [with_unknown_words(prompt, 0.3, generator).split() for _ in range(200)]
    share = np.mean([[a != b for a, b in zip(words, prompt.split(), strict=True)] for words in changed])
    assert 0.25 < share < 0.35
    assert all(word.isascii() and word.islower() and word.isalpha() for words in changed for word in words)

    asked = []

    def listen(stage):
        encode = stage.encode_prompts
        stage.encode_prompts = lambda prompts: asked.extend(prompts) or encode(prompts)

    known = {clip.prompt for clip in map(ClipFolder(settings.clips).motion, (0, 1))}
    joint = JointObjective(word_dropout=1.0, text_dropout=0.0)
    gradients(settings, joint, listen)
    assert len(asked) == 2
    assert known.isdisjoint(asked)


def test_alignment_is_added_to_a_model_and_trained_alone(settings, config, parts, normalizer, tmp_path):
    """Clips may have only their first frame; the MM-DiT, VID and VAE stay as they are."""
    bare = replace(config, interaction=replace(config.interaction, align_channels=None))
    without = {**parts, "interaction": init_part(bare, "interaction", 1)}
    path = save_checkpoint(tmp_path / "bare.safetensors", bare, without, normalizer, torch.zeros(17, 3), {})
    for file in settings.clips.glob("*.npy"):
        np.save(file, np.load(file)[:1])
    run = replace(settings, stage="alignment", init=path, phases=(phase(3, 2),))
    before, after = load_file(path), load_file(train(run))
    assert all(torch.equal(after[key], value) for key, value in before.items())
    added = after.keys() - before.keys()
    assert added
    assert all(key.startswith("interaction.alignment.") for key in added)
    assert after["interaction.alignment.shift.weight"].any()
    header = read_header(run.output / CHECKPOINT)
    assert header.config.interaction.align_channels == TINY.interaction.align_channels
    assert "alignment: 3 steps" in header.provenance["interaction"]
    large = COGVIDEOX_5B_I2V
    named = replace(bare, name=large.name)  # its preset's size, whatever config.preset says
    save_checkpoint(path, named, without, normalizer, torch.zeros(17, 3), {})
    made = load_model(run).config
    assert made.interaction.align_channels == large.interaction.align_channels

    # other stages leave it alone
    go_on = replace(settings, stage="interaction", init=run.output / CHECKPOINT, output=tmp_path / "next")
    for file in settings.clips.glob("*.npy"):
        np.save(file, np.repeat(np.load(file), FRAMES, axis=0))
    last = load_file(train(go_on))
    changed = {key for key, value in after.items() if not torch.equal(last[key], value)}
    assert changed
    assert not changed & added
    model = load_model(go_on)
    learned = trained_parameters(model, go_on)
    assert not added & learned.keys()  # several processes would wait for their gradients
    assert not any(p.requires_grad for p in model.parts["interaction"].alignment.parameters())
    with pytest.raises(ValueError, match="alignment corrects what a trained MM-DiT and VID read"):
        load_model(replace(run, init=None))


def test_alignment_learns_from_what_the_sampler_reads_first(settings, monkeypatch):
    """From pure noise without guidance, and nearer to the truth in some samples."""
    run = replace(settings, stage="alignment")
    model = load_model(run)
    data = training_data(run, model, Accelerator())
    stage = AlignmentStage(run, model, data.clips)
    batch = data.load([0, 1, 0, 1], phase(1).shapes[0], step_generator(0, 0, 0))
    seen, aligned = [], []
    stage.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    stage.alignment.register_forward_pre_hook(lambda _, inputs: aligned.append(inputs))
    readings = []
    read = MotionReader.read
    monkeypatch.setattr(
        MotionReader, "read", lambda self, *z: readings.append(read(self, *z)) or readings[-1]
    )
    monkeypatch.setattr("svimo_train.stages.NEARER_SHARE", 0.0)
    loss, terms = stage(batch, step_generator(0, 0, 0))
    monkeypatch.setattr("svimo_train.stages.NEARER_SHARE", 1.0)
    stage(batch, step_generator(0, 0, 0))
    (_, _, _, time, _, guidance), _ = seen
    assert (time == 999).all()
    assert not guidance.any()
    assert torch.equal(aligned[0][1], readings[0][0])
    error = [(x[1] - batch["hands"]).square().mean(dim=(1, 2, 3)) for x in aligned]
    assert (error[1] < error[0]).all()
    places = stage.frozen.normalizer.project(batch["hands"][:, 0], batch["points"][:, 0])
    apart = stage.alignment.chosen_places(places) - aligned[0][0]
    assert terms["places"].item() == pytest.approx((apart / 0.2).norm(dim=-1).mean().item(), rel=1e-2)
    assert loss.item() > terms["places"].item()


def test_readings_are_made_once_and_are_what_the_sampler_reads(settings, monkeypatch):
    """The alignment stage learns from them without running the MM-DiT, and goes on from where it stopped."""
    objective = replace(settings.interaction, readings=2)
    run = replace(settings, stage="alignment", interaction=objective, phases=(phase(3, 2),))
    batches, passes = [], []
    forward, first_reading = AlignmentStage.forward, AlignmentStage.first_reading
    monkeypatch.setattr(
        AlignmentStage, "forward", lambda self, *given: batches.append(given[0]) or forward(self, *given)
    )
    monkeypatch.setattr(
        AlignmentStage,
        "first_reading",
        lambda self, *given: passes.append(first_reading(self, *given)) or passes[-1],
    )
    header = read_header(train(run))
    assert len(passes) == len(ClipFolder(settings.clips)) == 2
    made = [x for read in passes for x in read[0].half().float()]
    assert not torch.equal(made[0], made[1])
    for batch in batches:
        assert all(any(torch.equal(hands, x) for x in made) for hands in batch["read"][0])
    train(replace(run, output=run.output / "again"))
    assert len(passes) == 2
    shutil.copy(settings.clips / "clip-0.npz", settings.clips / "a-third.npz")
    shutil.copy(settings.clips / "clip-0.npy", settings.clips / "a-third.npy")
    train(replace(run, output=run.output / "more"))  # readings of the others stay, and are still theirs
    assert len(passes) == 3
    assert torch.equal(passes[2][0], passes[0][0])
    for suffix in (".npz", ".npy"):
        (settings.clips / f"a-third{suffix}").unlink()
    train(replace(run, output=run.output / "other", joint=replace(run.joint, image_noise=(-4.0, 0.1))))
    assert len(passes) == 5

    # what corrects may start anew and larger, and what finds stays
    for channels, kept in ((8, True), (16, False)):
        preset = replace(TINY, interaction=replace(TINY.interaction, align_channels=(channels, 24)))
        monkeypatch.setitem(PRESETS, header.config.name, preset)
        new = load_model(replace(run, init=run.output / CHECKPOINT, alignment="new"))
        assert new.config.interaction.align_channels == (channels, 24)
        alignment, before = new.parts["interaction"].alignment, load_part(header, "interaction").alignment
        assert alignment.hidden.weight.shape == (24, 24)
        assert not alignment.shift.weight.any()
        assert torch.equal(alignment.stem.bias[:8], before.stem.bias) == kept


def test_not_a_number_stops_with_a_usable_checkpoint(settings, clips):
    config = replace(settings, save_every=1, phases=(phase(1, 2),))
    train(config)  # encodes the clips
    (path,) = (clips / "encoded").rglob("*x*/*.safetensors")
    shard = Shard(path)
    broken = {}
    for name in shard.records:
        tensors, notes = shard.read(name)
        broken[name] = Record(tensors | {"latents": torch.full_like(tensors["latents"], torch.nan)}, notes)
    write_shard(path.parent, broken).replace(path)
    with pytest.raises(TrainingStopped, match=r"loss of step 1 is nan.*after step 1 in .* is good"):
        train(replace(config, phases=(phase(3, 2),)))
    weights = load_part(read_header(config.output / CHECKPOINT), "backbone").parameters()
    assert all(torch.isfinite(p).all() for p in weights)


def test_full_disk_stops_with_the_last_checkpoint(settings, monkeypatch):
    train(replace(settings, phases=(phase(2),)))
    before = (settings.output / CHECKPOINT).read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("svimo_train.trainer.save_checkpoint", full)
    with pytest.raises(TrainingStopped, match=r"No space left.*after step 2 in .* is good"):
        train(settings)
    assert (settings.output / CHECKPOINT).read_bytes() == before


def test_broken_clip_is_named(settings, clips):
    file = clips / "clip-1.npy"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"clip-1\.npy"):
        train(settings)


def test_held_out_clips_that_are_not_there_are_named_before_others_are_encoded(settings, tmp_path):
    with pytest.raises(ValueError, match=r"no clips in .*nothing"):
        train(replace(settings, held_out=tmp_path / "nothing", sheet_every=1))
    assert not (settings.clips / "encoded").exists()


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        ("interaction", {"height": HEIGHT + 8}, "height and width are multiples of 16, got 9 x 40 x 48"),
        (
            "joint",
            {"frames": FRAMES - 1},
            r"joint stage .* takes clips of 4k \+ 1 frames .*, got 8 x 32 x 48",
        ),
        ("vae", {"width": WIDTH + 4}, "multiples of 8, got 9 x 32 x 52"),
        ("drawing", {"width": WIDTH + 4}, "multiples of 8, got 9 x 32 x 52"),
        ("vae", {"frames": 17}, r"clip-\d has 9 frames, 17 are needed: take shapes of fewer"),
        ("vae", {"height": 64}, r"clip-\d is 32 x 48 pixels, 64 x 48 are to be cut from it: take smaller"),
    ],
)
def test_sizes_that_nothing_takes_are_named(settings, stage, changes, says):
    shape = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "batch_size": 1} | changes
    with pytest.raises(ValueError, match=says):
        train(replace(settings, stage=stage, phases=(Phase(steps=1, shapes=(Shape(**shape),)),)))


def test_sheets_that_cannot_be_decoded_are_refused_at_the_start(settings):
    shape = Shape(frames=5, height=HEIGHT, width=WIDTH, batch_size=1)
    config = replace(settings, phases=(Phase(steps=1, shapes=(shape,)),), sheet_every=1)
    with pytest.raises(ValueError, match=r"decodes 8k \+ 1 frames .*, got 5: set sheet_every to 0"):
        train(config)


def test_a_vae_learns_from_clips_of_several_sizes(settings, clips):
    """Its scale, preview and sheets are of the part that it takes."""
    size = dict(frames=FRAMES + 2, height=HEIGHT + 4, width=WIDTH + 12)
    other = generate_clip(0, fps=8, **size)
    write_clip(clips, "other", Clip(other.video, other.motion))
    config = replace(settings, stage="vae", phases=(phase(1),), sheet_every=1)
    header = read_header(train(config))
    assert header.preview.shape == (17, 3)
    assert (config.output / "sheet-0000001.png").stat().st_size > 1000


def test_clips_that_are_drawn_as_training_goes_are_as_large_as_the_model(settings):
    shape = Shape(frames=FRAMES + 8, height=HEIGHT, width=WIDTH, batch_size=1)
    drawn = replace(settings, stage="vae", clips=(Source(synthetic=Synthetic()),))
    with pytest.raises(ValueError, match="synthetic clip 0 has 9 frames, 17 are needed"):
        train(replace(drawn, phases=(Phase(steps=1, shapes=(shape,)),)))


def test_a_run_goes_on_with_what_it_was_given(settings, checkpoint_file, tmp_path, config, parts, normalizer):
    """Weights that it trains are its own; those that stand still, and a teacher's, must be the same ones."""
    given = {name: tmp_path / f"{name}.safetensors" for name in ("init", "teacher")}
    for path in given.values():
        shutil.copyfile(checkpoint_file, path)
    objective = InteractionObjective(teacher=given["teacher"])
    taught = replace(settings, stage="interaction", init=given["init"], interaction=objective)
    train(replace(taught, phases=(phase(1),)))
    longer = replace(taught, phases=(phase(2),))

    def change(name: str, part: str) -> None:
        save_checkpoint(given[name], config, parts | {part: init_part(config, part, seed=9)}, normalizer)

    # the pupil has its teacher's alignment
    for name, part, says in (("init", "vae", "vae"), ("teacher", "interaction", "interaction and teacher")):
        change(name, part)
        with pytest.raises(
            ValueError, match=rf"state\.safetensors is of a run with another {says}, .* delete"
        ):
            train(longer)
        shutil.copyfile(checkpoint_file, given[name])

    # what a run trains is not read from init any more
    change("init", "interaction")
    train(longer)
    assert len(logged(longer)) == 2

    # other settings are no other weights: with these the MM-DiT, which rested, is used
    train(replace(taught, phases=(phase(3),), interaction=replace(objective, sampled_share=0.5)))

    # states of before did not say
    with safe_open(settings.output / STATE, framework="pt") as state:
        tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        metadata = state.metadata()
    notes = json.loads(metadata["notes"])
    assert notes.pop("given").keys() == {*PARTS, "teacher"}
    save_file(tensors, settings.output / STATE, metadata | {"notes": json.dumps(notes)})
    train(replace(taught, phases=(phase(4),)))


def test_a_worker_that_is_killed_is_named(settings, tmp_path):
    config = tmp_path / "config.json"
    lasting = replace(settings, phases=(phase(10_000),), save_every=1, workers=1)
    config.write_text(json.dumps(lasting.to_dict()))
    with training(["-m", "svimo_train", "--config", str(config)], settings.output / STATE) as process:
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    *_, last = errors.splitlines()
    assert re.match(
        "a process that reads clips ahead has ended.* set workers lower. The checkpoint after step", last
    )
    train(replace(lasting, phases=(phase(len(logged(settings)) + 1),), workers=0))


def test_folder_without_clips_says_how_to_fill_it(tmp_path):
    with pytest.raises(ValueError, match=r"python -m svimo_train\.clips"):
        ClipFolder(tmp_path)


@pytest.mark.parametrize("of", [None, 17])
def test_first_frames_are_those_of_whole_clips(tmp_path, of):
    """Also of clips that begin amid the action, of which only what is kept is drawn."""
    cut = [] if of is None else ["--of", str(of)]
    for options in ([], ["--first-frames"]):
        write_clips(["--out", str(tmp_path), "--count", "1", "--first", "5", *cut, *options])
    folder = ClipFolder(tmp_path)
    by_video = {folder.has_video(i): i for i in range(2)}
    whole, first = by_video[True], by_video[False]
    size = dict(height=TINY.height, width=TINY.width, fps=TINY.fps)
    all_of_it = generate_clip(5, frames=of or TINY.frames, **size).video
    start = 5 if of else 0
    np.testing.assert_array_equal(folder.video(whole), all_of_it[start : start + TINY.frames])
    np.testing.assert_array_equal(folder.video(first), folder.video(whole)[:1])
    np.testing.assert_array_equal(folder.motion(first).hands, folder.motion(whole).hands)


def test_varied_clips_lie_beside_plain_ones(tmp_path):
    for options in ([], ["--varied"]):
        write_clips(["--out", str(tmp_path), "--count", "1", "--first", "3", *options])
    folder = ClipFolder(tmp_path)
    assert folder.names == ["train-000003", "train-varied-000003"]
    size = dict(frames=TINY.frames, height=TINY.height, width=TINY.width, fps=TINY.fps)
    for index, varied in enumerate((False, True)):
        expected = generate_motion(3, "train", varied=varied, **size)
        assert np.array_equal(folder.motion(index).hands, expected.hands)


def test_state_of_another_stage_is_refused(settings):
    train(replace(settings, phases=(phase(1),), save_every=1))
    with pytest.raises(ValueError, match="other weights"):
        train(replace(settings, stage="interaction"))


def test_a_new_transformer_starts_as_nothing(settings):
    """Zero output, and guidance that changes nothing until it is trained; a seed of its own makes another one."""
    one, other = (
        load_model(replace(settings, backbone="new", seed=seed)).parts["backbone"] for seed in (0, 1)
    )
    assert not torch.equal(one.patch_embed.proj.weight, other.patch_embed.proj.weight)
    assert one.patch_embed.motion_proj.weight.any()
    channels = one.config.latent_channels
    assert not one.patch_embed.motion_proj.weight[:, channels:].any()
    z, text = torch.randn(1, channels, 3, 4, 6), torch.randn(1, 8, 16)
    assert not any(v.any() for v in one(z, z, text, torch.tensor([500]), z, z))
    init = load_model(settings).parts["backbone"]
    assert init.proj_out.weight.any()


def test_separate_networks_hear_nothing_of_each_other(settings):
    """The paper's ablation: trained and saved as any other model."""
    config = replace(settings, backbone="separate", phases=(phase(2),), sheet_every=2)
    header = read_header(train(config))
    assert header.config.backbone.separate
    network = load_part(header, "backbone")
    z, other, text = torch.randn(3, 1, 16, 3, 4, 6)[0], torch.randn(1, 16, 3, 4, 6), torch.randn(1, 8, 16)
    time = torch.tensor([500])
    video, motion = network(z, z, text, time, z)
    assert torch.equal(network(z, z, text, time, other)[0], video)
    assert torch.equal(network(other, z, text, time, z)[1], motion)
    assert not torch.equal(network(z, z, text, time, other)[1], motion)


def test_separate_networks_start_from_the_joint_ones_streams(config):
    """Where the motion stream is a copy of the video's, both networks are the video-only one."""
    size = config.backbone
    video_only = MMDiT(replace(size, motion=False))
    with torch.no_grad():
        for weight in video_only.parameters():
            weight.normal_(std=0.1)
        joint = dict(extend_with_motion(video_only.state_dict().items(), size))
        both = SeparateMMDiT(replace(size, separate=True))
        both.load_state_dict(dict(split_streams(joint.items(), size)))
        shape = 1, size.latent_channels, 3, 4, 6
        z, image, text = torch.randn(shape), torch.randn(shape), torch.randn(1, 8, size.text_dim)
        time = torch.tensor([500])
        expected = video_only(z, image, text, time)[0]
        assert all(torch.equal(v, expected) for v in both(z, image, text, time, z))
        for key in ("transformer_blocks.0.norm1.linear.bias", "patch_embed.motion_proj.bias"):
            other = joint | {key: joint[key].clone()}
            other[key][-1] += 1  # of the motion stream
            both.load_state_dict(dict(split_streams(other.items(), size)))
            video, motion = both(z, image, text, time, z)
            assert torch.equal(video, expected)
            assert not torch.equal(motion, expected)


def test_high_noise_is_preferred_when_asked_for(config):
    schedule, generator = NoiseSchedule(config.schedule), torch.Generator().manual_seed(0)
    for power in (1.0, 2.0):
        last = draw_timesteps(20_000, schedule, power, 0.25, generator) == len(schedule.abar) - 1
        assert last.float().mean().item() == pytest.approx(0.25, rel=0.05)
        time = draw_timesteps(20_000, schedule, power, 0.0, generator)
        assert 0 <= time.min() < 50
        assert time.max() == len(schedule.abar) - 1
        assert time.float().mean().item() == pytest.approx(1000 * power / (power + 1), rel=0.02)


def test_vid_of_a_side_run_takes_the_place_of_the_first(settings):
    side = replace(settings, stage="interaction", output=settings.output / "side", phases=(phase(2),))
    path = train(side)
    header = read_header(path)
    other = replace(header.config, interaction=replace(header.config.interaction, snr_shift=7.0))
    parts = {"interaction": load_part(header, "interaction")}
    save_checkpoint(path, other, parts, header.normalizer, None, header.provenance, torch.float32)
    joined = load_model(replace(settings, init_interaction=path))
    assert joined.config.interaction.snr_shift == 7.0
    expected = load_part(read_header(path), "interaction").state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in joined.parts["interaction"].state_dict().items()
    )
    assert "interaction: 2 steps" in joined.provenance["interaction"]


def test_all_processes_stop_after_the_same_step(settings, tmp_path):
    """Told to one that does not save: were it to leave alone, the one that saves would wait for it and be killed. And
    told as torchrun tells it, to its workers as well, twice."""
    config = tmp_path / "config.json"
    lasting = replace(settings, phases=(phase(10_000),), save_every=10_000, workers=1)
    config.write_text(json.dumps(lasting.to_dict()))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    with training([*launch, "-m", "svimo_train", "--config", str(config)], settings.output / LOG) as process:
        ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
        for process_or_worker in [ranks["1"], *ranks["1"].children(), ranks["1"]]:
            process_or_worker.terminate()
            time.sleep(0.02)  # or one of two signals is lost
        _, errors = process.communicate(timeout=60)
    assert errors.count("stopped after step") == 2
    with safe_open(settings.output / STATE, framework="pt") as state:
        assert int(state.metadata()["step"]) == len(logged(settings))


@pytest.fixture
def with_table(config, parts, normalizer, tmp_path) -> Path:
    """A model that has learned positions for five frames of 16 x 32, as CogVideoX has them for one size."""
    size = replace(config, backbone=replace(config.backbone, position_table=(2, 1, 2)))
    backbone = init_part(size, "backbone", 0)
    path = tmp_path / "table.safetensors"
    save_checkpoint(path, size, parts | {"backbone": backbone}, normalizer)
    return path


def test_a_position_table_that_is_never_used_is_left_out(settings, with_table):
    run = replace(settings, init=with_table, stage="joint", phases=(phase(1),), sheet_every=0)
    header = read_header(train(run))
    assert header.config.backbone.position_table is None
    before, after = (load_part(read_header(p), "backbone").state_dict() for p in (with_table, train(run)))
    assert before.keys() - after.keys() == {"patch_embed.position_table.weight"}
    on_its_grid = Phase(steps=1, shapes=(Shape(frames=5, height=16, width=32, batch_size=1),))
    model = load_model(replace(run, phases=(phase(1), on_its_grid)))
    assert tuple(model.config.backbone.position_table) == (2, 1, 2)


def test_ablation_trains_evaluates_and_goes_on(settings, tmp_path, capsys):
    config, out = tmp_path / "config.json", tmp_path / "ablation"
    config.write_text(json.dumps(replace(settings, phases=(phase(4),)).to_dict()))
    command = ["--config", str(config), "--out", str(out), "--seeds", "0", "--count", "2", "--steps", "3"]
    assert ablation.main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results) == list(ablation.VARIANTS)
    table = capsys.readouterr().out
    assert all(name in table for name in ablation.VARIANTS)
    backbones = {
        name: read_header(out / ablation.run_folder(name, 0) / CHECKPOINT).config.backbone for name in results
    }
    assert [name for name, backbone in backbones.items() if backbone.separate] == [list(results)[-1]]
    # none knew guidance at the start
    started = load_part(read_header(out / "start.safetensors"), "backbone").patch_embed.motion_proj.weight
    given = load_part(read_header(settings.init), "backbone").patch_embed.motion_proj.weight
    noisy, guidance = started.chunk(2, dim=1)
    assert not guidance.any()
    assert given.chunk(2, dim=1)[1].any()
    assert torch.equal(noisy, given.chunk(2, dim=1)[0])
    # without guidance in training there is none in the evaluation
    for name, variant in ablation.VARIANTS.items():
        assert (results[name]["0"]["feedback_passes"] > 0) == variant.guidance
    (out / "full-loop-0" / CHECKPOINT).unlink()  # what is done is not done again
    assert ablation.main(command) == 0
    assert not (out / "full-loop-0" / CHECKPOINT).exists()
    # nor taken for what another configuration would have done
    capsys.readouterr()
    assert ablation.main([*command[:-1], "4"]) == 1
    assert "runs of another configuration" in capsys.readouterr().err
    config.write_text(json.dumps(replace(settings, phases=(phase(4),), stage="interaction").to_dict()))
    assert ablation.main(command) == 1
    assert "joint stage" in capsys.readouterr().err


def test_packages_that_are_not_there_are_named(settings, monkeypatch):
    monkeypatch.setattr("svimo_train.trainer.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard, or set tracker to null"):
        train(replace(settings, tracker="tensorboard"))
    with pytest.raises(ValueError, match='pip install torchao, or set optimizer to "adamw"'):
        train(replace(settings, optimizer="adamw8bit"))


def test_a_torch_without_sharded_states_trains_whole_weights(settings):
    """Before 2.8 it has no storage of safetensors files for them."""
    (settings.output.parent / "config.json").write_text(json.dumps(settings.to_dict()))
    script = """
import sys
import torch.distributed.checkpoint as checkpoint
del checkpoint.HuggingFaceStorageReader, checkpoint.HuggingFaceStorageWriter
from svimo_train.__main__ import main
sys.exit(10 * main(sys.argv[1:] + ["--set", "sharded=true"]) + main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "--config", str(settings.output.parent / "config.json")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 10, done.stderr
    assert "sharded training needs torch 2.8 or newer, got " in done.stderr
    assert (settings.output / CHECKPOINT).is_file()


def test_tensorboard_has_what_the_log_has(settings):
    run = replace(settings, tracker="tensorboard", phases=(phase(2),))
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(run)
    train(replace(run, phases=(phase(3),)))
    found = events.EventAccumulator(str(run.output / "tensorboard")).Reload()
    for name in ("loss", "hands", "gradient_norm", "lr"):
        assert [event.step for event in found.Scalars(name)] == [0, 1, 2]
        assert [event.value for event in found.Scalars(name)] == pytest.approx(logged(run, name))


def test_two_resolutions(settings):
    low = Phase(steps=1, shapes=(Shape(frames=5, height=16, width=32, batch_size=2),))
    config = replace(settings, phases=(low, phase(1)), gradient_checkpointing=True, gradient_accumulation=2)
    train(config)
    assert [config.phase_at(step).shapes[0].height for step in range(config.steps)] == [16, HEIGHT]
    cached = {file.parent.name for file in (settings.clips / "encoded").rglob("*.safetensors")}
    assert cached == {"5x16x32", f"{FRAMES}x{HEIGHT}x{WIDTH}"}


def test_model_without_a_text_encoder_of_its_own(settings, config, parts, normalizer, tmp_path, monkeypatch):
    """As at full size, where T5 lies in a folder of its own."""
    bare = replace(config, text=None)
    init = tmp_path / "bare.safetensors"
    save_checkpoint(init, bare, {k: v for k, v in parts.items() if k != "text_encoder"}, normalizer)
    run = replace(settings, init=init, phases=(phase(1),), sheet_every=0)
    with pytest.raises(ValueError, match="set text_model"):
        train(run)
    with pytest.raises(FileNotFoundError, match=r"text_model names .*nothing, which is not there"):
        train(replace(run, text_model=tmp_path / "nothing"))
    assert not (settings.clips / "encoded").exists()
    folder = tmp_path / "t5"
    build_text_encoder(config.text).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER_FILE), pad_token="<pad>").save_pretrained(folder)
    header = read_header(train(replace(run, text_model=folder)))
    assert header.parts == ("backbone", "interaction", "vae", "drawing_encoder")
    # a new prompt's come to those that are there, in a file that Windows replaces only where nobody has it open
    video, motion = ClipFolder(settings.clips).clip(0)
    write_clip(settings.clips, "new", Clip(video, replace(motion, prompt="other words")))
    mapped, save = [], Text.save

    def watched(*args):
        mapped.extend(m.path for m in psutil.Process().memory_maps() if m.path.endswith("text.safetensors"))
        save(*args)

    monkeypatch.setattr(Text, "save", watched)
    train(replace(run, text_model=folder, output=tmp_path / "added"))
    assert not mapped

    shutil.rmtree(folder)  # features are stored beside the clips
    train(replace(run, output=tmp_path / "again"))
    for change in (dict(joint=JointObjective(word_dropout=0.1)), dict(train_text=True)):
        with pytest.raises(ValueError, match="word_dropout and train_text need the model's own text encoder"):
            train(replace(run, output=tmp_path / "other", **change))


def test_loss_curve(settings):
    """The committed curve of a short joint run. Written anew by deleting its file, for a change that explains it."""
    joint = replace(settings.joint, exact_drawing=True)
    config = replace(settings, phases=(phase(6, 2),), save_every=1000, joint=joint)
    train(config)
    if not LOSS_CURVE.exists():
        LOSS_CURVE.write_text(json.dumps(logged(config), indent=1) + "\n")
        pytest.fail(f"wrote {LOSS_CURVE.name}: look at it and commit it")
    assert logged(config) == pytest.approx(json.loads(LOSS_CURVE.read_text()), rel=2e-3)


def test_committed_configurations_are_complete():
    files = sorted((Path(__file__).parents[2] / "svimo_train" / "configs").glob("*.json"))
    assert files
    for file in files:
        for config in load_stages(file).values():
            assert config.steps > 0
            assert config.learning_rate_at(0) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stage": "all"}, "stage should be 'vae', .* or 'drawing', got \"all\""),
        (
            {"joint": {"guidance_from": "nowhere"}},
            r"joint\.guidance_from should be 'noisy', 'clean' or 'first'",
        ),
        ({"interaction": {"error": "metres"}}, r"interaction\.error should be 'squared' or 'distance'"),
        ({"joint": {"guidence": True}}, r"unknown field joint\.guidence \(did you mean guidance\?\)"),
        ({"joint": {"text_dropout": 2}}, r"joint\.text_dropout should be less than or equal to 1, got 2"),
        ({"joint": {"sampled_steps": 0}}, r"joint\.sampled_steps should be greater than or equal to 1"),
        ({"learning_rate": "1e-5"}, 'learning_rate should be a valid number, got "1e-5"'),
        (
            {"clips": [{"folder": "a", "wieght": 2}]},
            r"unknown field clips\.0\.wieght \(did you mean weight\?\)",
        ),
        ({"clips": []}, "at least one folder of clips"),
        (
            {"phases": [{"steps": 1, "shapes": [{"frame": 9}]}]},
            r"0\.frames is missing[^$]*unknown field .*\.frame ",
        ),
        ({"workers": 1, "stage": "drawing"}, "set workers to 0"),
    ],
)
def test_configuration_mistakes_are_named(tmp_path, settings, change, says):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings.to_dict()))
    assert TrainConfig.load(path) == settings
    with pytest.raises(ValueError, match=rf"config\.json is not a training configuration: .*{says}"):
        TrainConfig.load(path, **change)
