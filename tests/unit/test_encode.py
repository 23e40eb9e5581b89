"""Encoded clips: made once whatever stops, refused where they do not serve, read in an order that numbers decide."""

import itertools
import json
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import FRAMES, HEIGHT, WIDTH, moving_motion
from safetensors.torch import load_file, save_file

from svimo_core.checkpoint import init_part, load_part, read_header, save_checkpoint
from svimo_train import encode
from svimo_train.__main__ import main
from svimo_train.clips import Clip, write_clip
from svimo_train.encoded import MANIFEST, EncodedFolder
from svimo_train.loader import BLOCK, Batches, MicroBatch, MicroBatches, SampleOrder, training_data
from svimo_train.settings import Phase, Shape, Source, TrainConfig
from svimo_train.shards import Record, Shard, write_shard
from svimo_train.trainer import CHECKPOINT, LOG, STATE, load_model, train


def write_clips(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in range(first, first + count):
        video = np.random.default_rng(seed).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        write_clip(folder, f"clip-{seed}", Clip(video, moving_motion(seed)))
    return folder


@pytest.fixture
def settings(tmp_path, checkpoint_file) -> TrainConfig:
    return TrainConfig(
        stage="joint",
        clips=write_clips(tmp_path / "clips", 3),
        output=tmp_path / "run",
        init=checkpoint_file,
        phases=(Phase(steps=2, shapes=(Shape(frames=FRAMES, height=HEIGHT, width=WIDTH, batch_size=2),)),),
        log_every=1,
        sheet_every=0,
    )


def run_encode(config: TrainConfig, *options: str) -> int:
    file = config.output.with_suffix(".json")
    file.write_text(json.dumps(config.to_dict()))
    return main(["encode", "--config", str(file), *options])


def losses(config: TrainConfig) -> list[float]:
    return [json.loads(line)["loss"] for line in (config.output / LOG).read_text().splitlines()]


def test_training_on_encoded_clips_is_training_on_the_plain_ones(settings, tmp_path, capsys):
    """Without workers and with them; the plain clips may be gone."""
    train(settings)
    assert run_encode(settings, "--out", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    shutil.rmtree(settings.clips)
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    for workers in (0, 2):
        run = replace(
            settings, clips=tmp_path / "elsewhere", output=tmp_path / f"run-{workers}", workers=workers
        )
        train(run)
        assert losses(run) == losses(settings)
    with pytest.raises(ValueError, match=r"elsewhere are encoded, and the vae stage learns from plain ones"):
        train(replace(run, stage="vae", workers=0))


def test_going_on_with_workers_equals_never_having_stopped(settings, tmp_path):
    """Also where steps take batches of several sizes, from several folders."""
    large, small = (Shape(frames=FRAMES, height=HEIGHT, width=WIDTH, batch_size=size) for size in (2, 1))
    other = write_clips(tmp_path / "other", 2, first=7)
    sources = (Source(folder=settings.clips, weight=2.0), Source(folder=other))
    phases = (Phase(steps=4, shapes=(large, small)),)
    run = replace(settings, stage="interaction", clips=sources, phases=phases, workers=2)
    whole, parted = (replace(run, output=tmp_path / name) for name in ("whole", "parted"))
    train(whole)
    train(replace(parted, phases=(replace(run.phases[0], steps=2),)))
    train(parted)
    for name in (STATE, CHECKPOINT):
        one, other = (load_file(run.output / name) for run in (whole, parted))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert TrainConfig.load(_written(run, tmp_path)).sources == sources


def _written(config: TrainConfig, folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder / "config.json"


def test_processes_read_different_clips_and_all_of_them(settings):
    """On any number of processes, and after going on with another number: no clip twice before all came once."""
    order = SampleOrder(0, [100], [1.0])

    def read(processes, steps, step=0, sample=0):
        config = replace(settings, phases=(replace(settings.phases[0], steps=steps),))
        work = (MicroBatches(config, step, sample, rank, processes) for rank in range(processes))
        return [[order(micro.sample + i) for micro in each for i in (0, 1)] for each in work]

    one = list(itertools.chain(*read(1, steps=50)))
    assert sorted(one) == list(range(100))
    four = read(4, steps=10)
    assert len(set(itertools.chain(*four))) == 80
    # four ranks' step is four of one's
    assert [
        x for step in zip(*(np.reshape(rank, (10, 2)).tolist() for rank in four), strict=True) for x in step
    ] == (np.reshape(one[:80], (40, 2)).tolist())
    rest = read(2, steps=15, step=10, sample=80)
    assert sorted(itertools.chain(*four, *rest)) == list(range(100))
    assert one != [SampleOrder(1, [100], [1.0])(i) for i in range(100)]
    again = [order(i) for i in range(100, 200)]
    assert sorted(again) == sorted(one)
    assert again != one


def test_folders_are_mixed_by_their_weights():
    counts, weights = [40, 5, 300], [2.0, 1.0, 5.0]
    order = SampleOrder(0, counts, weights)
    drawn = [order(sample) for sample in range(2 * BLOCK)]
    starts = np.cumsum([0, *counts])
    folders = np.searchsorted(starts, drawn, side="right") - 1
    for part in (folders[:BLOCK], folders[BLOCK:]):
        assert np.bincount(part).tolist() == [250, 125, 625]
    assert abs(np.count_nonzero(folders[:200] == 2) - 125) < 30  # mixed, not one after the other
    for folder, count in enumerate(counts):
        times = Counter(x for x, f in zip(drawn, folders, strict=True) if f == folder)
        assert len(times) == count
        assert max(times.values()) - min(times.values()) <= 1
    with pytest.raises(ValueError, match="thousandth of all weights would never be drawn"):
        SampleOrder(0, [1, 1], [1.0, 1e-4])


def test_encoding_goes_on_where_it_was_killed(settings, tmp_path, monkeypatch):
    """Shards that are there stay; new clips and clips that were written again are added, and no others made."""
    monkeypatch.setattr(encode, "SHARD_CLIPS", 1)
    made, out = [], tmp_path / "out"
    make = encode.encode_clip

    def dies_at_the_third(clips, index, *args):
        made.append(clips.names[index])
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(clips, index, *args)

    monkeypatch.setattr(encode, "encode_clip", dies_at_the_third)
    assert run_encode(settings, "--out", str(out)) == 1
    before = {path.name: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert len(before) == 2
    assert not EncodedFolder.is_one(out)
    assert run_encode(settings, "--out", str(out)) == 0
    assert made[3:] == ["clip-2"]
    after = {path.name: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert after.items() >= before.items()

    write_clips(settings.clips, 1, first=3)
    motion = replace(moving_motion(1), prompt="use whisk to stir bowl")
    write_clip(settings.clips, "clip-1", Clip(np.load(settings.clips / "clip-1.npy"), motion))
    assert run_encode(settings, "--out", str(out)) == 0
    assert made[4:] == ["clip-1", "clip-3"]
    folder, size = EncodedFolder(out), settings.phases[0].shapes[0].size
    assert folder.names == [f"clip-{i}" for i in range(4)]
    assert folder.notes("clip-1", size)["prompt"] == motion.prompt

    # another size alone has the clips of now, whatever the first one was made of
    write_clips(settings.clips, 1, first=4)
    (shape,) = settings.phases[0].shapes
    smaller = replace(shape, height=shape.height // 2, width=32)
    other = replace(settings, phases=(replace(settings.phases[0], shapes=(smaller,)),))
    assert run_encode(other, "--out", str(out)) == 0
    folder = EncodedFolder(out)
    folder.require_sizes([smaller.size])
    assert folder.names == [f"clip-{i}" for i in range(5)]
    with pytest.raises(ValueError, match="does not have all its clips"):
        folder.require_sizes([smaller.size, size])


def test_broken_clips_are_named_after_all_others_are_encoded(settings, capsys):
    for name in ("clip-0.npy", "clip-1.npz"):
        file = settings.clips / name
        file.write_bytes(file.read_bytes()[:300])
    assert run_encode(settings) == 1
    said = capsys.readouterr().err
    assert "2 clips cannot be encoded at 9x32x48 (all others are)" in said
    assert "clip-0.npy" in said
    assert "clip-1.npz" in said
    (path,) = settings.clips.rglob("encoded/**/*.safetensors")
    assert list(Shard(path).records) == ["clip-2"]


def test_damage_is_named(settings, tmp_path):
    """A shard that lacks its end, one with a changed byte, and one that is gone; by workers as well."""
    assert run_encode(settings, "--out", str(tmp_path / "out")) == 0
    run = replace(settings, stage="interaction", clips=tmp_path / "out", workers=1)
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-10] ^= 1
    for content, says in (
        (whole[:-10], "Error while deserializing|incomplete|invalid"),
        (bytes(changed), "checksum of clip-"),
        (None, "No such file"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^shard .*{path.name} is damaged or missing \(.*({says})"):
            train(run)
    (tmp_path / "out" / MANIFEST).write_text("{}")
    with pytest.raises(
        ValueError, match=rf"manifest\.json is damaged.*delete it from {tmp_path / 'out'} and"
    ):
        train(run)


def test_clips_that_do_not_serve_are_refused(settings, tmp_path, parts, config, normalizer, capsys):
    assert run_encode(settings, "--out", str(tmp_path / "out")) == 0
    run = replace(settings, clips=tmp_path / "out")
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, config, parts | {"vae": init_part(config, "vae", 9)}, normalizer)
    with pytest.raises(ValueError, match=r"out was encoded by another VAE \(\w+\) than this model's"):
        train(replace(run, init=other))
    assert run_encode(replace(settings, init=other), "--out", str(tmp_path / "out")) == 1
    assert "out was encoded by another VAE" in capsys.readouterr().err
    low = Phase(steps=1, shapes=(Shape(frames=5, height=16, width=32, batch_size=1),))
    with pytest.raises(
        ValueError, match=rf"out does not have all its clips at 5x16x32 \(it has 3 of {FRAMES}x"
    ):
        train(replace(run, phases=(low,)))
    with pytest.raises(ValueError, match=f"clip-0 has {FRAMES} frames, 17 are needed"):
        train(replace(settings, phases=(replace(low, shapes=(replace(low.shapes[0], frames=17),)),)))
    odd = Phase(steps=1, shapes=(Shape(frames=5, height=20, width=32, batch_size=1),))
    assert run_encode(replace(settings, phases=(odd,)), "--out", str(tmp_path / "odd")) == 1
    assert "height and width are multiples of 16, got 5 x 20 x 32" in capsys.readouterr().err
    assert not (tmp_path / "odd").exists()


def test_what_is_encoded(settings, tmp_path):
    """Latents of video and drawing as the VAE gives them, to half precision, and pixels and metres as they were."""
    assert run_encode(settings, "--out", str(tmp_path / "out")) == 0
    size = settings.phases[0].shapes[0].size
    clip = encode.EncodedClip.of(EncodedFolder(tmp_path / "out").record("clip-2", size))
    motion = moving_motion(2)
    np.testing.assert_array_equal(clip.motion.hands, motion.hands)
    assert {name: x.tolist() for name, x in clip.motion.objects.items()} == {
        name: x.tolist() for name, x in motion.objects.items()
    }
    assert (clip.motion.camera, clip.motion.prompt, clip.motion.fps) == (
        motion.camera,
        motion.prompt,
        motion.fps,
    )
    video = np.load(settings.clips / "clip-2.npy")
    np.testing.assert_array_equal(clip.image.numpy(), video[0])
    header = read_header(settings.init)
    frames = torch.from_numpy(np.stack([video, encode.render_motion(motion, WIDTH, HEIGHT)])).float() / 255
    with torch.no_grad():
        latents = encode.VideoVAE(load_part(header, "vae"), header.config.vae).encode(frames)
    scaled = clip.latents.float() * header.config.vae.scaling_factor
    assert torch.allclose(scaled, latents.float(), rtol=2e-3, atol=1e-4)


def test_a_worker_that_starts_anew_reads_the_same(settings):
    """Windows and macOS send it everything in a pickle of our own making."""
    model = load_model(settings)
    data = training_data(settings, model, Accelerator())
    dataset = Batches(settings, data.load, SampleOrder(0, data.counts, [1.0]))
    (one, state), (other, other_state) = (
        each[MicroBatch(1, 0, 2)]
        for each in (dataset, pickle.loads(pickle.dumps(dataset)))  # noqa: S301
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if name != "prompts")
    assert one["prompts"] == other["prompts"]
    assert torch.equal(state, other_state)


def test_only_shards_are_read(tmp_path):
    path = write_shard(tmp_path, {"one": Record({"x": torch.arange(4)}, {"said": "hello"})})
    tensors, notes = Shard(path).read("one")
    assert tensors["x"].tolist() == [0, 1, 2, 3]
    assert notes == {"said": "hello"}
    save_file({"x": torch.arange(4)}, path)
    with pytest.raises(ValueError, match="its format is None, expected 'svimo-shard-1'"):
        Shard(path)
