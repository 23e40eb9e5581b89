"""Several stages in one file: each goes on from the one before, and what is done is not done again."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import FRAMES, HEIGHT, WIDTH, moving_motion
from safetensors.torch import load_file

from svimo_core.checkpoint import read_header, save_checkpoint
from svimo_train import trainer
from svimo_train.__main__ import main
from svimo_train.clips import Clip, write_clip
from svimo_train.recipe import load_stages
from svimo_train.state import CHECKPOINT
from svimo_train.trainer import train

SHAPE = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "batch_size": 1}


@pytest.fixture
def recipe(tmp_path, checkpoint_file) -> Path:
    (tmp_path / "clips").mkdir()
    for seed in range(2):
        video = torch.randint(0, 255, (FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8).numpy()
        write_clip(tmp_path / "clips", f"clip-{seed}", Clip(video, moving_motion(seed)))
    fields = {
        "init": str(checkpoint_file),
        "clips": str(tmp_path / "clips"),
        "output": str(tmp_path / "out"),
        "sheet_every": 0,
        "warmup_steps": 0,
        "phases": [{"steps": 2, "shapes": [SHAPE]}],
        "stages": {
            "warm-up": {"stage": "interaction", "learning_rate": 1e-3},
            "joint": {
                "stage": "joint",
                "phases": [{"steps": 1, "shapes": [SHAPE]}, {"steps": 1, "shapes": [SHAPE]}],
            },
        },
    }
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(fields))
    return file


def test_stages_follow_each_other_and_go_on_after_a_stop(recipe, tmp_path, capsys, monkeypatch):
    """As if each had been trained by itself; what is finished is not touched again, and a later change goes on."""
    warm_up, joint = load_stages(recipe).values()
    command = ["--config", str(recipe)]

    def stopped(*checkpoint):
        signal.raise_signal(
            signal.SIGTERM
        )  # when the last step is done, so that there is no other to stop after
        return save_checkpoint(*checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "save_checkpoint", stopped)
        assert main(command) == 1
    assert "stopped after step 2, the last" in capsys.readouterr().err
    assert not joint.output.exists()
    first = (warm_up.output / CHECKPOINT).read_bytes()
    (warm_up.output / CHECKPOINT).touch()
    written = (warm_up.output / CHECKPOINT).stat().st_mtime_ns
    assert main(command) == 0
    assert capsys.readouterr().out == f"{joint.output / CHECKPOINT}\n"
    assert (warm_up.output / CHECKPOINT).stat().st_mtime_ns == written
    assert joint.init == warm_up.output / CHECKPOINT
    assert "interaction: 2 steps" in read_header(joint.output / CHECKPOINT).provenance["interaction"]

    alone = [
        replace(warm_up, output=tmp_path / "a"),
        replace(joint, output=tmp_path / "b", init=tmp_path / "a" / CHECKPOINT),
    ]
    for config in alone:
        train(config)
    assert _weights(alone[0].output) == _weights(warm_up.output)
    assert _weights(alone[1].output) == _weights(joint.output)

    # a lost checkpoint is written again from the state, and more steps are made
    (joint.output / CHECKPOINT).unlink()
    assert main(command) == 0
    assert _weights(joint.output) == _weights(alone[1].output)
    assert main([*command, "--set", "stages.joint.phases.1.steps=2"]) == 0
    assert "joint: 3 steps" in read_header(joint.output / CHECKPOINT).provenance["backbone"]
    assert (warm_up.output / CHECKPOINT).read_bytes() == first

    # what came of a stage that would be trained anew is not taken for what comes of it
    shutil.rmtree(warm_up.output)
    assert main(command) == 1
    assert "joint is finished, but warm-up is not, whose checkpoint its init names" in capsys.readouterr().err
    assert not warm_up.output.exists()

    shutil.rmtree(tmp_path / "clips")
    assert main([*command, "--set", f"output={tmp_path / 'new'}"]) == 1
    assert "clips" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("stage", "field"),
    [("joint", "init"), ("joint", "init_interaction"), ("interaction", "interaction.teacher")],
)
def test_checkpoints_that_are_not_there_are_named_before_anything_is_trained(
    recipe, tmp_path, capsys, stage, field
):
    """But for those that a stage before writes."""
    missing = tmp_path / "no.safetensors"
    changes = [f"stages.joint.stage={stage}", f"stages.joint.{field}={missing}"]
    assert main(["--config", str(recipe), *(word for change in changes for word in ("--set", change))]) == 1
    assert capsys.readouterr().err == f"joint: {field} names {missing}, which is not there: correct it\n"
    assert not (tmp_path / "out").exists()


def _weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / CHECKPOINT).items()}


def test_encode_makes_all_that_the_stages_read(recipe, tmp_path, capsys):
    """Before any of them has run."""
    larger = json.dumps([{"steps": 1, "shapes": [SHAPE | {"height": 2 * HEIGHT, "width": 2 * WIDTH}]}])
    command = ["--config", str(recipe), "--set", f"stages.joint.phases={larger}"]
    assert main(["encode", *command, "--out", str(tmp_path / "encoded")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'encoded'}\n"
    shutil.rmtree(tmp_path / "clips")
    assert main([*command, "--set", f"clips={tmp_path / 'encoded'}"]) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("stages.joint.joint.weighting=x0", None),
        (
            "stages.joint.joint.wieghting=x0",
            r"stages\.joint is not .*: unknown field joint\.wieghting \(did you mean w",
        ),
        ("stages.jiont.seed=1", r"--set stages\.jiont\.seed=1: .*'jiont'.* Stages: warm-up, joint"),
        ("phases.3.steps=1", r"--set phases\.3\.steps=1: .*index out of range"),
        ("seed", "it has no ="),
        ("learning_rat=1", r"unknown field learning_rat "),
        ("stage=joint", "stage beside stages acts on nothing"),
        ("stages=[]", 'stages should be {"NAME"'),
        ('stages={"../a": {}}', "is that of a folder"),
        ("stages.joint.precision=bf16", "precision is one for all stages"),
        ("stages.joint.sharded=1", r"stages\.joint is not .*: sharded should be a valid boolean"),
    ],
)
def test_changes_and_mistakes(recipe, change, says):
    if says is None:
        warm_up, joint = load_stages(recipe, [change]).values()
        assert (warm_up.joint.weighting, joint.joint.weighting) == ("v", "x0")
        return
    with pytest.raises(ValueError, match=says):
        load_stages(recipe, [change])
