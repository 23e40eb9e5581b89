"""`python -m benchmarks.gpu` at its reduced size: every part runs and says numbers, and none takes another down."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.vae import VideoVAE


@pytest.fixture
def measure(tmp_path: Path):
    """The command on the CPU: its parts, as --json writes them."""

    def run(*arguments: str) -> dict:
        file = tmp_path / "gpu.json"
        gpu.main(["--device", "cpu", "--size", "tiny", "--rounds", "1", "--json", str(file), *arguments])
        return json.loads(file.read_text())["parts"]

    return run


def numbers(part: dict) -> list[float]:
    return [cell for row in part["rows"] for cell in row.values() if not isinstance(cell, str)]


def column(part: dict, name: str, value: str) -> list:
    """Cells of one column, by the names of the rows in another."""
    return {row[name]: row.get(value) for row in part["rows"]}


def test_every_part_measures(measure, capsys):
    parts = measure()
    assert list(parts) == list(gpu.PARTS)
    printed = capsys.readouterr().out
    for name, part in parts.items():
        assert part["problem"] is None, (name, part["problem"])
        assert part["rows"], name
        assert all(number >= 0 for number in numbers(part)), name
        assert f"### {name}\n" in printed
    for name in parts.keys() - {"kernels"}:
        for row in parts[name]["rows"]:
            if row["seconds"] != "not there":  # a way to attend that this device lacks
                assert row["seconds"] > 0, (name, row)

    # both networks have the same tokens and about the same work to do
    for part in ("forward", "compile"):
        assert len({row["clip"] for row in parts[part]["rows"]}) == 3
    assert set(column(parts["forward"], "network", "seconds")) == {"ours", "diffusers"}
    assert set(column(parts["compile"], "network", "seconds")) == set(
        column(parts["kernels"], "network", "kernels")
    )
    stored = column(parts["fp8"], "stored", "weights, GiB")
    assert stored["fp8"] < 0.3 * stored["as computed"]
    assert {"sampler: denoise", "sampler: interaction", "sampler: guidance", "decode the video"} < set(
        column(parts["run"], "part", "seconds")
    )
    assert sum(row["share"] for row in parts["run"]["rows"][:-1]) == pytest.approx(1)
    skipped = column(parts["skip"], "network", "skipped")
    assert skipped["every step"] == 0
    assert 0 < skipped["skipping"] < gpu.STEPS


def test_compiling_leaves_the_shared_backbone_as_it_was():
    bench = gpu.Bench(torch.device("cpu"), gpu.SCALES["tiny"], 1)
    blocks = bench.backbone.transformer_blocks
    with gpu.eager_and_compiled(bench) as ways:
        bench.backbone.transformer_blocks = ways["ours, compiled"][1]
    assert bench.backbone.transformer_blocks is blocks


def test_what_does_not_fit_is_told_and_the_rest_still_measured(measure, monkeypatch, capsys):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(VideoVAE, "decode", full)
    parts = measure("--only", "run", "rate")
    assert list(parts) == ["run", "rate"]
    assert parts["run"]["problem"] == "out of memory"
    assert parts["run"]["rows"] == []
    assert parts["rate"]["problem"] is None
    assert "**out of memory**" in capsys.readouterr().out


def test_one_job_that_does_not_fit_leaves_the_others_of_its_part(measure, monkeypatch):
    forward = MMDiT.forward

    def one_sequence(network, video, *args):
        if len(video) > 1:
            raise torch.OutOfMemoryError("no room")
        return forward(network, video, *args)

    monkeypatch.setattr(MMDiT, "forward", one_sequence)
    part = measure("--only", "cfg")["cfg"]
    assert part["problem"] is None
    seconds = column(part, "branches", "seconds")
    assert seconds["batched"] == "does not fit"
    assert seconds["sequential"] > 0


def test_a_part_that_fails_says_why(measure, monkeypatch):
    def broken(*_args):
        raise ValueError("no such network")

    monkeypatch.setattr(gpu.Bench, "diffusers_backbone", broken)
    assert measure("--only", "kernels")["kernels"]["problem"] == "ValueError: no such network"


def test_the_budget_ends_a_part_after_what_is_measured_and_leaves_the_next_out(measure, monkeypatch):
    race = gpu.Bench.race

    def last_race(bench, jobs):
        found = race(bench, jobs)
        bench.deadline = 0
        return found

    monkeypatch.setattr(gpu.Bench, "race", last_race)
    parts = measure("--only", "fp8", "cfg")
    assert parts["fp8"]["problem"] == "ended here: the time is used up"
    assert len(parts["fp8"]["rows"]) == 2  # both of the first clip
    assert parts["cfg"] == {"rows": [], "seconds": 0, "problem": "left out: the time is used up"}
