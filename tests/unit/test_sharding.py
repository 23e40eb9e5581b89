"""Sharded training: on any number of processes it is the training of one, and what it writes is the same."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import FRAMES, HEIGHT, WIDTH, moving_motion
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from svimo_train.clips import Clip, write_clip
from svimo_train.settings import JointObjective, Phase, Shape, TrainConfig
from svimo_train.state import EMA, BackgroundSaves, load_sharded_state, sharded_state
from svimo_train.trainer import CHECKPOINT, LOG, TrainingStopped, load_model, train

ROOT = Path(__file__).resolve().parents[2]
TRAIN_EACH = """
import sys
from svimo_train.settings import TrainConfig
from svimo_train.trainer import train
for file in sys.argv[1:]:
    train(TrainConfig.load(file))
"""


@pytest.fixture
def settings(tmp_path, checkpoint_file) -> TrainConfig:
    """Four micro-batches of one of four clips make a step."""
    for seed in range(4):
        video = np.random.default_rng(seed).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        (tmp_path / "clips").mkdir(exist_ok=True)
        write_clip(tmp_path / "clips", f"clip-{seed}", Clip(video, moving_motion(seed)))
    return TrainConfig(
        stage="joint",
        clips=tmp_path / "clips",
        output=tmp_path / "run",
        init=checkpoint_file,
        phases=steps(3),
        learning_rate=1e-4,
        clip_norm=1.0,
        warmup_steps=0,
        gradient_accumulation=4,
        gradient_checkpointing=True,
        log_every=1,
        sheet_every=0,
    )


def steps(count: int) -> tuple[Phase]:
    return (Phase(steps=count, shapes=(Shape(frames=FRAMES, height=HEIGHT, width=WIDTH, batch_size=1),)),)


def logged(config: TrainConfig, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (config.output / LOG).read_text().splitlines()]


def launch(processes: int, *configs: TrainConfig, script: str = TRAIN_EACH) -> subprocess.CompletedProcess:
    """Train these runs one after the other on so many processes."""
    folder = configs[0].output.parent
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(script)
    files = [folder / f"{config.output.name}-{processes}.json" for config in configs]
    for file, config in zip(files, configs, strict=True):
        file.write_text(json.dumps(config.to_dict()))
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return subprocess.run(
        [*run, str(folder / "script.py"), *map(str, files)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )


def test_weights_to_be_spread_are_not_read_whole(settings):
    for stage, left in (("joint", {"backbone", "interaction"}), ("interaction", {"interaction"})):
        model = load_model(replace(settings, stage=stage, sharded=True))
        assert {p for p, module in model.parts.items() if next(module.parameters()).is_meta} == left
        assert model.unread.keys() == left


UNHEARD = ("attention.norm_k.bias", "attention.to_k.bias")
"""Attention is the same whatever is added to all keys: these weights get rounding for a gradient, and Adam makes full
steps of it."""


def assert_same_training(one: TrainConfig, other: TrainConfig) -> None:
    """To rounding, as far as the other's log goes back."""
    count = len(logged(other, "loss"))
    for key in ("loss", "gradient_norm"):
        assert logged(other, key) == pytest.approx(logged(one, key)[-count:], rel=2e-6, abs=1e-6)
    weights, others = (load_file(config.output / CHECKPOINT) for config in (one, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        if not name.endswith(UNHEARD):
            assert torch.allclose(weight, others[name], rtol=0, atol=1e-5), name


COUNT_REDUCTIONS = """
import os
from torch.utils._python_dispatch import TorchDispatchMode
from svimo_train import trainer

class Reductions(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in function.name()
        return function(*args, **(kwargs or {}))

def train_counted(config, uncounted=trainer.train):
    with Reductions() as reductions:
        uncounted(config)
    (config.output / f"reductions-{os.environ['RANK']}").write_text(str(reductions.count))

trainer.train = train_counted
"""


def test_two_processes_train_as_one(settings, config):
    """The same clips, noise and dropout, hence losses, gradient norms and averaged weights; also with whole weights. In
    the joint stage, processes run the MM-DiT and VID more or less often. A step reduces gradients once, by block."""
    branching = JointObjective(
        guidance_from="first", sampled_share=0.5, sampled_steps=2, guidance_dropout=0.5, warm_up=1.0
    )
    ones = [
        replace(settings, stage=stage, joint=branching, sheet_every=sheets, output=settings.output / stage)
        for stage, sheets in (("joint", 3), ("interaction", 0), ("alignment", 0))
    ]
    twos = [
        replace(one, output=settings.output / f"{one.stage}-on-two", gradient_accumulation=2, sharded=True)
        for one in ones
    ]
    ones.append(ones[0])
    twos.append(replace(twos[0], output=settings.output / "whole-on-two", sharded=False, sheet_every=0))
    done = launch(2, *twos, script=COUNT_REDUCTIONS + TRAIN_EACH)
    assert done.returncode == 0, done.stderr
    groups = config.backbone.num_layers + 1
    for rank in range(2):
        assert (twos[0].output / f"reductions-{rank}").read_text() == str(twos[0].steps * groups)
    for one, two in zip(ones, twos, strict=True):
        train(one)
        assert_same_training(one, two)
        assert (sharded_state(two.output) is not None) == two.sharded
    of_one, of_two = (
        cv2.imread(str(run.output / "sheet-0000003.png")).astype(float) for run in (ones[0], twos[0])
    )
    assert np.abs(of_one - of_two).mean() < 0.1


KILLED_AT_THE_SECOND_SAVE = """
import os, signal
from svimo_train import state
write, saves = state.HuggingFaceStorageWriter.write_data, []

def dies(*args):
    saves.append(write(*args))
    if len(saves) == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return saves[-1]

state.HuggingFaceStorageWriter.write_data = dies
"""


def test_what_a_killed_save_leaves_goes_on_with_any_number_of_processes(settings):
    whole = replace(settings, output=settings.output / "whole")
    run = replace(settings, output=settings.output / "killed", sharded=True)
    killed = replace(run, gradient_accumulation=2, save_every=1)
    done = launch(2, killed, script=KILLED_AT_THE_SECOND_SAVE + TRAIN_EACH)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    left = {path.name for path in run.output.glob("state-*")}
    assert left == {"state-000000001", "state-000000002.partial"}

    train(whole)
    on_one, on_four = (replace(run, output=settings.output / name) for name in ("on-one", "on-four"))
    for copy in (on_one, on_four):
        shutil.copytree(run.output, copy.output)
        (copy.output / LOG).unlink()
    train(on_one)
    done = launch(4, replace(on_four, gradient_accumulation=1))
    assert done.returncode == 0, done.stderr
    for copy in (on_one, on_four):
        assert len(logged(copy, "loss")) == 2
        assert_same_training(whole, copy)
        assert [path.name for path in copy.output.glob("state-*")] == ["state-000000003"]

    # what four processes wrote tensor by tensor is what one writes of the same state
    written = (on_four.output / CHECKPOINT).read_bytes()
    train(on_four)
    again = (on_four.output / CHECKPOINT).read_bytes()
    assert b"4 x cpu" in written
    assert again == written.replace(b"4 x cpu", b"1 x cpu")


def test_a_state_is_of_the_step_after_which_it_was_begun(tmp_path, monkeypatch):
    """Though it is written while training goes on; until then the one before stands."""
    write, may_write = HuggingFaceStorageWriter.write_data, threading.Event()

    def waits(*args):
        assert may_write.wait(60)
        return write(*args)

    def training():
        parameters = dict(torch.nn.PReLU(3).named_parameters())
        return parameters, EMA(parameters, 0.5), torch.optim.AdamW(parameters.values(), lr=0.1)

    def values(parameters, ema, optimizer):
        moments = [dict(sorted(optimizer.state[p].items())) for p in parameters.values()]
        tensors = [
            *parameters.values(),
            *ema.values.values(),
            *(t for each in moments for t in each.values()),
        ]
        return [tensor.tolist() for tensor in tensors]

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", waits)
    parameters, ema, optimizer = training()
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    saves = BackgroundSaves(tmp_path)
    for step in (1, 2):
        may_write.clear()
        optimizer.step()
        ema.update(parameters, step)
        expected = values(parameters, ema, optimizer)
        saves.begin(step, parameters, ema, optimizer, {})
        optimizer.step()
        ema.update(parameters, step)
        assert not saves.ended
        assert sharded_state(tmp_path) == (tmp_path / "state-000000001" if step == 2 else None)
        may_write.set()
        saves.wait()

    read = training()
    assert load_sharded_state(sharded_state(tmp_path), *read) == (2, {})
    assert values(*read) == expected


def test_full_disk_keeps_the_state_of_before(settings, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = replace(settings, sharded=True, phases=steps(1))
    train(run)
    monkeypatch.setattr("svimo_train.state.HuggingFaceStorageWriter.write_data", full)
    with pytest.raises(TrainingStopped, match=r"process 0.*No space left.*checkpoint after step 1.* is good"):
        train(replace(run, phases=steps(3), save_every=2))
    assert sharded_state(run.output).name == "state-000000001"


def test_state_that_lacks_a_part_is_refused(settings):
    run = replace(settings, sharded=True, phases=steps(1))
    train(run)
    with pytest.raises(ValueError, match="was written with sharded true: set it so again"):
        train(replace(run, sharded=False))
    (file,) = sharded_state(run.output).glob("*.safetensors")
    file.unlink()
    with pytest.raises(ValueError, match=r"damaged.*it has 0 of the 1 files"):
        train(run)


def test_what_cannot_be_sharded_is_refused(settings):
    with pytest.raises(ValueError, match="vae stage trains a small network"):
        replace(settings, stage="vae", sharded=True)
