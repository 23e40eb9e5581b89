"""What a run needs on each card, held against what a run on the CPU really holds."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import moving_motion
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from svimo_core.checkpoint import init_part, save_checkpoint
from svimo_core.config import TINY
from svimo_core.model.mmdit import MMDiT
from svimo_core.normalization import MotionNormalizer
from svimo_train.__main__ import main
from svimo_train.drawing import HELD_OUT
from svimo_train.optimizers import make_optimizer, moment_tensors, start_moments
from svimo_train.plan import activation_bytes, arithmetic, encoding, numel, operations, plan
from svimo_train.settings import InteractionObjective, Phase, Shape, TrainConfig
from svimo_train.state import EMA, FILE_BYTES, host_bytes

CONFIGS = Path(__file__).parents[2] / "svimo_train" / "configs"
SHAPE = Shape(frames=9, height=64, width=96, batch_size=2)


@pytest.fixture
def joint(tmp_path) -> TrainConfig:
    return TrainConfig(
        stage="joint", clips=tmp_path, output=tmp_path, phases=(Phase(steps=1, shapes=(SHAPE,)),)
    )


def test_states_are_those_of_a_step(joint):
    """Weights, averages and moments as they lie in memory after one step."""
    backbone = MMDiT(TINY.backbone)
    parameters = dict(backbone.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [*parameters.values(), *EMA(parameters, 0.9).values.values()]
    held += [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    alone = plan(replace(joint, stage="backbone"), TINY, 1, sharded=False)
    assert alone.states == sum(tensor.nbytes for tensor in held)
    assert alone.gradients == sum(p.grad.nbytes for p in parameters.values())
    assert alone.copies == 2 * numel(backbone)
    vae = numel(init_part(TINY, "vae", 0))
    assert plan(replace(joint, stage="interaction"), TINY, 1, sharded=False).frozen == 4 * vae
    spread = plan(replace(joint, stage="backbone"), TINY, 4, sharded=True)
    assert spread.states == pytest.approx(alone.states / 4, rel=1e-3)  # rows do not always divide
    assert spread.copies == alone.copies


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_8_bit_moments_are_those_of_a_step(joint, monkeypatch):
    """But for a kilobyte of each tensor, which is the same for all."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    parameters = list(MMDiT(TINY.backbone).parameters())
    config = replace(joint, stage="backbone", optimizer="adamw8bit")
    optimizer = make_optimizer(config, parameters)
    start_moments(optimizer, range(len(parameters)))
    known = moment_tensors(optimizer)
    held = sum(t.nbytes for name, t in known.items() if not name.endswith(("step", "qmap")))
    assert plan(config, TINY, 1, sharded=False).states == held + sum(2 * p.nbytes for p in parameters)
    assert held < 0.3 * sum(2 * p.nbytes for p in parameters)


def test_host_memory_of_a_state(joint):
    """Whole, or a part of each and two of its files, or without the copy that is written in the background."""
    config = replace(joint, stage="backbone")
    alone, spread = plan(config, TINY, 1, sharded=False), plan(config, TINY, 4, sharded=True)
    assert alone.host[True] == alone.host[False] == alone.states
    assert spread.host == {True: 3 * spread.states, False: 3 * spread.states}  # a file holds all of it
    assert host_bytes(10**10, sharded=True, background=True) == 10**10 + 2 * FILE_BYTES
    assert host_bytes(10**10, sharded=True, background=False) == 3 * FILE_BYTES


def test_activations_grow_with_the_clip_and_shrink_by_checkpointing():
    large = replace(SHAPE, batch_size=4)
    kept, kept_large = (
        activation_bytes(TINY, "joint", shape, torch.bfloat16, False) for shape in (SHAPE, large)
    )
    again = activation_bytes(TINY, "joint", SHAPE, torch.bfloat16, True)
    assert kept_large == pytest.approx(2 * kept, rel=0.1)
    assert again < 0.6 * kept


def test_operations_are_those_of_a_pass_forth_and_back(joint):
    """On the CPU; the first layers' inputs need no gradient, so it is a little less than three times forward."""
    backbone, (batch, config) = MMDiT(TINY.backbone), (SHAPE.batch_size, TINY.backbone)
    latent = torch.zeros(batch, *TINY.latent_shape(*SHAPE.size))
    given = latent, latent, torch.zeros(batch, config.text_length, config.text_dim), torch.zeros(batch)
    # of the CPU's fused attention PyTorch counts no backward pass
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        video, drawing = backbone(*given, latent, latent)
        forth = counter.get_total_flops()
        (video + drawing).sum().backward()
    counted = operations(TINY, "backbone", SHAPE, False)
    assert counted == counter.get_total_flops()
    assert 2.8 * forth < counted <= 3 * forth
    assert operations(TINY, "backbone", SHAPE, True) > counted + 0.9 * forth

    phases = (
        Phase(steps=6, shapes=(SHAPE, replace(SHAPE, weight=2.0))),
        Phase(steps=1, shapes=(SHAPE,)),
    )
    drawing = replace(joint, stage="drawing", phases=phases, gradient_accumulation=2)
    one, encode = operations(TINY, "drawing", SHAPE, False), encoding(TINY, SHAPE.size)[0]
    total = 7 * 2 * one + (drawing.drawing.motions + HELD_OUT) / 2 * encode
    told = arithmetic(drawing, TINY, 2, 1e9, 0.5)
    assert "4 passes of 2 of 9 x 64 x 96" in told
    assert "8 passes of 2 of 9 x 64 x 96" in told
    assert f"{total / (1e9 * 0.5) / 3600:.2g} hours at 50% of 0.001 TFLOP/s" in told


def test_a_pupil_is_as_large_as_the_preset_and_its_teacher_is_frozen(joint, tmp_path, capsys):
    """Whatever the size of the VID in `init`."""
    wide = replace(TINY, interaction=replace(TINY.interaction, denoiser_channels=(96,)))
    statistics = MotionNormalizer.fit([moving_motion(0)], TINY.interaction.object_names)
    init, teacher = tmp_path / "init.safetensors", tmp_path / "teacher.safetensors"
    for path in (init, teacher):
        save_checkpoint(path, wide, {"interaction": init_part(wide, "interaction", 0)}, statistics)
    objective = InteractionObjective(teacher=teacher)
    config = replace(joint, stage="interaction", init=init, interaction=objective)
    pupil, large = (numel(init_part(model, "interaction", 0)) for model in (TINY, wide))
    counted = plan(config, TINY, 1, sharded=False)
    assert counted.gradients == 4 * pupil
    alone = plan(replace(config, interaction=InteractionObjective()), TINY, 1, sharded=False)
    assert counted.frozen - alone.frozen == 4 * large
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert main(["plan", "--config", str(file)]) == 0
    assert f"VID of {pupil / 1e6:.2f} M weights, which learns from {teacher};" in capsys.readouterr().out
    init.unlink()
    teacher.unlink()
    assert main(["plan", "--config", str(file)]) == 0
    assert "cogvideox-5b-i2v, the preset (no checkpoint there yet; --preset names" in capsys.readouterr().out


def test_command_says_what_each_stage_needs(capsys, tmp_path):
    """And fails where one that is configured so does not fit."""
    phases = [{"steps": 1, "shapes": [{"frames": 9, "height": 64, "width": 96, "batch_size": 2}]}]
    stages = {stage: {"stage": stage} for stage in ("vae", "drawing", "interaction", "joint")}
    recipe = {"clips": "clips", "output": "out", "sheet_every": 0, "phases": phases, "stages": stages}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    command = ["plan", "--config", str(file), "--cards", "2", "--preset", "tiny"]
    assert main([*command, "--memory", "80"]) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("## ")] == [f"## {name}" for name in stages]
    assert told.startswith(
        "## vae\n\nvae stage: not planned; the plan is for the stages drawing, interaction, "
    )
    assert (
        told.count("Whole on every card (as configured): It fits")
        == told.count("Arithmetic of each card: ")
        == 3
    )
    joint = told.partition("## joint")[2]
    whole, spread = (
        float(value) for value in re.search(r"together\*\*.*\| ([\d.]+) \| ([\d.]+) \|", joint).groups()
    )
    between = str((whole + spread) / 2 / 0.9)
    assert main([*command, "--memory", between]) == 1
    assert "Whole on every card (as configured): It does not fit" in capsys.readouterr().out
    assert main([*command, "--memory", between, "--set", "stages.joint.sharded=true"]) == 0
    assert main(["plan", "--config", str(CONFIGS / "tiny-vae.json")]) == 1
    assert "plan is for the stages drawing, interaction, backbone, joint, got vae" in capsys.readouterr().err
