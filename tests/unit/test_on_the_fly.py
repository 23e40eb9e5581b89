"""Clips that are drawn as training goes: what a folder would hold, none twice, and on from where a run stopped;
and the configuration that trains on them."""

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import FRAMES, HEIGHT, WIDTH
from safetensors.torch import load_file

from svimo_core.checkpoint import PARTS, init_part
from svimo_core.config import SMALL
from svimo_train.clips import Clip, write_clip
from svimo_train.data.synthetic import generate_clip, generate_motion
from svimo_train.loader import Batches, MicroBatches, batches, sample_order, training_data
from svimo_train.on_the_fly import SyntheticClips
from svimo_train.plan import numel
from svimo_train.recipe import load_stages
from svimo_train.settings import Batch, Phase, Shape, Source, Synthetic, TrainConfig
from svimo_train.state import CHECKPOINT, STATE
from svimo_train.trainer import load_model, train
from svimo_train.truth import FIRST_CLIP

CONFIG = Path(__file__).parents[2] / "svimo_train" / "configs" / "small.json"
SHAPE = Shape(frames=FRAMES, height=HEIGHT, width=WIDTH, batch_size=4)


@pytest.fixture
def settings(tmp_path, checkpoint_file) -> TrainConfig:
    return TrainConfig(
        stage="interaction",
        clips=(Source(synthetic=Synthetic(first_seed=40, uses=2)),),
        output=tmp_path / "run",
        init=checkpoint_file,
        phases=(Phase(steps=3, shapes=(SHAPE,)),),
        log_every=1,
        sheet_every=0,
    )


def read(config: TrainConfig, step: int = 0) -> list[Batch]:
    """What a run learns from, from a step on."""
    data = training_data(config, load_model(config), Accelerator())
    work = MicroBatches(config, step, step * SHAPE.batch_size, 0, 1)
    found = batches(Batches(config, data.load, sample_order(config, data)), work, pin_memory=False)
    return [batch for batch, _ in found]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_workers_and_a_stop_change_nothing_and_no_clip_comes_twice(settings):
    whole = read(settings)
    cv2.setNumThreads(2)
    assert same(read(replace(settings, workers=2)), whole)
    assert cv2.getNumThreads() == 1  # or a worker that is forked may wait for threads that it does not have
    assert same(read(settings, step=1), whole[1:])
    assert not same(read(replace(settings, seed=1)), whole)
    hands = [hands for batch in whole for hands in batch["hands"]]
    assert all(torch.equal(*pair) for pair in zip(hands[::2], hands[1::2], strict=True))  # two uses of each
    assert len({hands.numpy().tobytes() for hands in hands}) == len(hands) / 2
    assert [len(batch["frames"]) for batch in whole] == [2, 2, 2]  # each drawn once


def test_no_run_draws_clips_of_an_evaluation(config):
    size = dict(frames=config.frames, height=config.height, width=config.width, fps=config.fps)
    evaluated = generate_motion(FIRST_CLIP, "train", **size).hands
    assert all(
        not np.array_equal(SyntheticClips(Synthetic(), run, config).motion(0).hands, evaluated)
        for run in (0, 1, 2)
    )


def test_they_are_what_a_folder_of_the_same_seeds_holds(settings, config, tmp_path):
    """Plain and varied, whole and first frames, mixed by weight; the latents, too, but for float16."""
    kinds = {"plain": {}, "varied": {"varied": True}, "first": {"first_frames": True}}
    size = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    for kind, fields in kinds.items():
        (tmp_path / kind).mkdir()
        first_frame = slice(1) if "first_frames" in fields else slice(None)
        for seed in range(7, 11):
            made = generate_clip(seed, varied="varied" in fields, **size)
            write_clip(tmp_path / kind, f"{seed:02d}", Clip(made.video[first_frame], made.motion))
    drawn = replace(
        settings,
        stage="alignment",
        clips=tuple(Source(synthetic=Synthetic(first_seed=7, **fields)) for fields in kinds.values()),
    )
    stored = replace(drawn, clips=tuple(Source(folder=tmp_path / kind) for kind in kinds))
    model, generator = load_model(drawn), torch.Generator()
    one, other = (training_data(run, model, Accelerator()) for run in (drawn, stored))
    indices = [[source * count + 2 for source, count in enumerate(data.counts)] for data in (one, other)]
    made = one.encode(one.load(indices[0], SHAPE, generator))
    read = other.load(indices[1], SHAPE, generator)
    assert made.keys() == read.keys()
    assert made["whole"].tolist() == [True, True, False]
    for name, value in read.items():
        if name in ("video", "motion"):
            torch.testing.assert_close(made[name], value, rtol=1e-3, atol=1e-3)
        else:
            assert same([{name: made[name]}], [{name: value}]), name
    assert pickle.dumps(one.load)  # where workers are not forked
    assert [clips.motion(3).metadata["split"] for clips in one.load.sources] == ["train"] * 3
    assert one.clips.clip(0, SHAPE.size).latents is not None  # what sheets show
    assert one.clips.clips.motion(0).metadata["split"] == "test"


@pytest.mark.parametrize("stage", ["vae", "interaction", "alignment"])
def test_going_on_equals_never_having_stopped(settings, tmp_path, stage):
    phases = (Phase(steps=2, shapes=(replace(SHAPE, batch_size=1), replace(SHAPE, batch_size=2))),)
    run = replace(settings, stage=stage, phases=phases, warmup_steps=0, workers=int(stage == "vae"))
    whole, parted = (replace(run, output=tmp_path / name) for name in ("whole", "parted"))
    train(whole)
    train(replace(parted, phases=(replace(phases[0], steps=1),)))
    train(parted)
    for name in (STATE, CHECKPOINT):
        one, other = (load_file(run.output / name) for run in (whole, parted))
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": [{"weight": 2.0}]}, "either a folder or synthetic"),
        ({"clips": [{"folder": "clips", "synthetic": {}}]}, "either a folder or synthetic"),
        ({"clips": [{"folder": "clips"}, {"synthetic": {}}]}, "all in folders or all synthetic"),
        ({"clips": [{"synthetic": {"first": 3}}]}, "did you mean first_seed"),
        ({"clips": [{"synthetic": {"first_frames": True}}]}, "interaction stage needs whole clips"),
        ({"interaction": {"sampled_share": 0.5}}, "give it a folder of clips"),
        ({"seed": 2**23}, "seed must be below"),
        ({"stage": "alignment", "interaction": {"readings": 1}}, "readings are kept beside clips"),
    ],
)
def test_what_they_cannot_do_is_said(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_values(settings.to_dict() | changes, "run.json")


def test_the_small_model_has_the_size_that_is_told():
    """35 to 45 million weights, under 100 MB in float16, and each of its stages starts from the one before."""
    with torch.device("meta"):
        weights = {part: numel(init_part(SMALL, part, 0)) for part in PARTS}
    assert 35e6 < sum(weights.values()) < 45e6
    assert 2 * sum(weights.values()) < 100e6
    stages = load_stages(CONFIG)
    assert [config.stage for config in stages.values()] == [
        "vae",
        "drawing",
        "interaction",
        "backbone",
        "joint",
        "alignment",
    ]
    for before, config in zip(stages.values(), list(stages.values())[1:], strict=False):
        assert config.init == before.output / CHECKPOINT
    for config in stages.values():
        assert config.preset == "small"
        assert config.on_the_fly or config.stage == "drawing"
        assert config.checkpoint_dtype == "float16"
        SMALL.check_clip(*config.phases[0].shapes[-1].size)
