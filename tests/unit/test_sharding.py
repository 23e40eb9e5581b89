"""Sharded training: on any number of processes it is the training of one, and what it writes is the same."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
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
from svimo_train.sharded_state import ShardedSaves, load_sharded_state
from svimo_train.state import EMA, sharded_state
from svimo_train.trainer import CHECKPOINT, LOG, TrainingStopped, load_model, train

ROOT = Path(__file__).resolve().parents[2]
TRAIN_EACH = """
import sys
from torch.distributed.launcher import LaunchConfig, elastic_launch
from svimo_train.settings import TrainConfig
from svimo_train import trainer

def train_each(files):
    for file in files:
        trainer.train(TrainConfig.load(file))

# what torchrun does, but all is imported once, and then forked
here = dict(min_nodes=1, max_nodes=1, nproc_per_node=int(sys.argv[1]), max_restarts=0, start_method="fork")
elastic_launch(LaunchConfig(**here, rdzv_backend="c10d", rdzv_endpoint="localhost:0"), train_each)(sys.argv[2:])
"""
STEPS = 20
BRANCHING = JointObjective(
    guidance_from="first", sampled_share=0.5, sampled_steps=2, guidance_dropout=0.5, warm_up=1.0
)
"""With which processes run the MM-DiT and VID more or less often in the joint stage."""
SHARDED_STAGES = "joint", "interaction", "backbone", "alignment"


@pytest.fixture(scope="module")
def settings(tmp_path_factory, checkpoint_file) -> TrainConfig:
    """Four micro-batches of one of four clips make a step."""
    folder = tmp_path_factory.mktemp("sharding")
    for seed in range(4):
        video = np.random.default_rng(seed).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        (folder / "clips").mkdir(exist_ok=True)
        write_clip(folder / "clips", f"clip-{seed}", Clip(video, moving_motion(seed)))
    return TrainConfig(
        stage="backbone",
        clips=folder / "clips",
        output=folder,
        init=checkpoint_file,
        phases=steps(STEPS),
        learning_rate=1e-4,
        clip_norm=1.0,
        warmup_steps=0,
        gradient_accumulation=4,
        gradient_checkpointing=True,
        log_every=1,
        sheet_every=0,
        joint=BRANCHING,
    )


@pytest.fixture(scope="module")
def on_one(settings) -> dict[str, TrainConfig]:
    """What one process has trained, by stage. Weights in the backbone's checkpoint are averages, in others the last."""
    runs = {
        stage: replace(
            settings,
            stage=stage,
            output=settings.output / f"{stage}-on-one",
            ema_decay=settings.ema_decay if stage == "backbone" else 0.0,
            sheet_every=STEPS if stage == "joint" else 0,
        )
        for stage in SHARDED_STAGES
    }
    for run in runs.values():
        train(run)
    return runs


def steps(count: int) -> tuple[Phase]:
    return (Phase(steps=count, shapes=(Shape(frames=FRAMES, height=HEIGHT, width=WIDTH, batch_size=1),)),)


def logged(config: TrainConfig, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (config.output / LOG).read_text().splitlines()]


def launch(
    processes: int, *configs: TrainConfig, before: str = "", **environment: str
) -> subprocess.CompletedProcess:
    """Train these runs one after the other on so many processes.

    Args:
        before: what each process runs first.
    """
    folder = configs[0].output.parent
    (folder / "script.py").write_text(before + TRAIN_EACH)
    files = [folder / f"{number}-of-{config.output.name}.json" for number, config in enumerate(configs)]
    for file, config in zip(files, configs, strict=True):
        file.write_text(json.dumps(config.to_dict()))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(folder / "script.py"), str(processes), *map(str, files)],
        env=os.environ
        | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        | environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
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


def test_two_processes_train_as_one(on_one, config):
    """The same clips, noise and dropout, hence losses, gradient norms and weights; also with whole weights. A step
    reduces gradients once, by block."""
    twos = {
        stage: replace(
            one, output=one.output.with_name(f"{stage}-on-two"), gradient_accumulation=2, sharded=True
        )
        for stage, one in on_one.items()
    }
    whole = replace(
        twos["joint"], output=twos["joint"].output.with_name("whole-on-two"), sharded=False, sheet_every=0
    )
    done = launch(2, *twos.values(), whole, before=COUNT_REDUCTIONS)
    assert done.returncode == 0, done.stderr
    groups = config.backbone.num_layers + 1
    for rank in range(2):
        counted = (twos["joint"].output / f"reductions-{rank}").read_text()
        assert counted == str(STEPS * groups)
    for stage, one in on_one.items():
        assert_same_training(one, twos[stage])
        assert sharded_state(twos[stage].output) is not None
    assert_same_training(on_one["joint"], whole)
    assert sharded_state(whole.output) is None
    of_one, of_two = (
        cv2.imread(str(run["joint"].output / f"sheet-{STEPS:07d}.png")).astype(float)
        for run in (on_one, twos)
    )
    assert np.abs(of_one - of_two).mean() < 0.1


KILLED_AT_THE_SECOND_SAVE = """
import os, pathlib, signal
from svimo_train import sharded_state as state
state.FILE_BYTES = 100_000  # several files of each process
write, saves = state.HuggingFaceStorageWriter.write_data, []

def dies(*args):
    saves.append(write(*args))
    if len(saves) == 2 and os.environ["RANK"] == "1":
        pathlib.Path(__file__).with_name("was-killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return saves[-1]

state.HuggingFaceStorageWriter.write_data = dies
"""


def test_what_a_killed_save_leaves_goes_on_with_any_number_of_processes(on_one):
    """As one process would have gone on; beside it, four train from the start."""
    one = on_one["backbone"]
    killed = replace(one, output=one.output.with_name("killed"), sharded=True)
    done = launch(2, replace(killed, gradient_accumulation=2, save_every=1), before=KILLED_AT_THE_SECOND_SAVE)
    assert done.returncode != 0
    # what torchrun says depends on which process it sees end first, and on what the other one was doing
    assert (killed.output.parent / "was-killed").exists(), done.stderr
    left = {path.name for path in killed.output.glob("state-*")}
    assert left == {"state-000000001", "state-000000002.partial"}
    assert len(list((killed.output / "state-000000001").glob("shard-00002-model-*.safetensors"))) > 2

    by_one, by_four = (
        replace(killed, output=one.output.with_name(f"killed-{name}")) for name in ("one", "four")
    )
    for copy in (by_one, by_four):
        shutil.copytree(killed.output, copy.output)
        (copy.output / LOG).unlink()
    train(by_one)
    joint = replace(
        on_one["joint"], output=one.output.with_name("joint-on-four"), sharded=True, sheet_every=0
    )
    done = launch(4, *(replace(run, gradient_accumulation=1) for run in (by_four, joint)))
    assert done.returncode == 0, done.stderr
    for copy in (by_one, by_four):
        assert len(logged(copy, "loss")) == STEPS - 1
        assert_same_training(one, copy)
        assert [path.name for path in copy.output.glob("state-*")] == [f"state-{STEPS:09d}"]
    assert len(logged(joint, "loss")) == STEPS
    assert_same_training(on_one["joint"], joint)

    # what four processes wrote tensor by tensor is what one writes of the same state
    written = (by_four.output / CHECKPOINT).read_bytes()
    train(by_four)
    again = (by_four.output / CHECKPOINT).read_bytes()
    assert b"4 x cpu" in written
    assert again == written.replace(b"4 x cpu", b"1 x cpu")


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_8_bit_moments_go_on_exactly_with_as_many_processes(settings):
    """The embedding of words is large enough for them on two processes, nothing is on four."""
    straight = replace(
        settings,
        output=settings.output / "8-bit",
        optimizer="adamw8bit",
        train_text=True,
        sharded=True,
        gradient_accumulation=2,
        background_saves=False,
        phases=steps(3),
    )
    stopped = replace(straight, output=settings.output / "8-bit-stopped", phases=steps(2))
    again = replace(stopped, phases=straight.phases)
    done = launch(2, straight, stopped, again, TORCHDYNAMO_DISABLE="1")
    assert done.returncode == 0, done.stderr
    states = [sharded_state(run.output) for run in (straight, again)]
    for rank in (1, 2):
        one, other = (load_file(next(state.glob(f"shard-{rank:05d}-*"))) for state in states)
        assert [name for name in one if name.endswith(f".codes.{rank}-of-2")]
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name
    with pytest.raises(
        ValueError, match="written by 2 processes, and moments in 8 bits go on with as many, got 1"
    ):
        train(again)
    with pytest.raises(
        ValueError, match=r"another optimizer \(it lacks optimizer\..*set optimizer as it was"
    ):
        train(replace(again, optimizer="adamw"))


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
    saves = ShardedSaves(tmp_path, background=True)
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


def test_full_disk_keeps_the_state_of_before(settings, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = replace(settings, output=tmp_path, sharded=True, phases=steps(1))
    train(run)
    monkeypatch.setattr("svimo_train.sharded_state.HuggingFaceStorageWriter.write_data", full)
    with pytest.raises(TrainingStopped, match=r"process 0.*No space left.*checkpoint after step 1.* is good"):
        train(replace(run, phases=steps(3), save_every=2))
    assert sharded_state(run.output).name == "state-000000001"


def test_state_that_lacks_a_part_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("svimo_train.sharded_state.FILE_BYTES", 200_000)
    run = replace(settings, output=tmp_path, sharded=True, phases=steps(1))
    train(run)
    with pytest.raises(ValueError, match="was written with sharded true: set it so again"):
        train(replace(run, sharded=False))
    files = list(sharded_state(run.output).glob("*.safetensors"))
    assert len(files) > 2
    files[0].unlink()
    with pytest.raises(ValueError, match=rf"damaged.*it has {len(files) - 1} of the {len(files)} files"):
        train(run)


def test_what_cannot_be_sharded_is_refused(settings):
    with pytest.raises(ValueError, match="vae stage trains a small network"):
        replace(settings, stage="vae", sharded=True)
