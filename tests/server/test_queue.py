"""svimo_queue against real ComfyUI servers: to the end, again, through kills, faults and a stop, on one and on two."""

import _thread
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from dev.comfy import ROOT, ComfyServer
from svimo_queue.__main__ import main
from svimo_queue.outputs import Record

OURS = "image_to_video_and_motion"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


SCALE = {
    "load": node("LoadImage", image="nothing.png"),
    "scale": node(
        "ImageScale", image=["load", 0], upscale_method="area", width=60, height=40, crop="disabled"
    ),
    "save": node("SaveImage", images=["scale", 0], filename_prefix="queue/scaled"),
}
SLOW = {
    "slow": node("TestSlow", seed=0, steps=1),
    "save": node("SaveImage", images=["slow", 0], filename_prefix="queue/slow"),
}
FAIL = {
    "fail": node("TestFail", message="out of cheese", times=0, error="RuntimeError", seed=0),
    "save": node("SaveImage", images=["fail", 0], filename_prefix="queue/fail"),
}
SILENT = {
    "silent": node("TestSilent", seconds=60, deaf=False, seed=0),
    "save": node("SaveImage", images=["silent", 0], filename_prefix="queue/silent"),
}
WORKFLOWS = {"scale": SCALE, "slow": SLOW, "fail": FAIL, "silent": SILENT}


class Batch:
    """A job file in a folder of its own, and the tool to run it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tools: list[subprocess.Popen] = []
        self.out = folder / "jobs_outputs"
        for name, graph in WORKFLOWS.items():
            (folder / f"{name}.json").write_text(json.dumps(graph))
        for image in ("stir_cup.png", "coffee.png"):
            shutil.copy(ROOT / "assets" / image, folder)

    def write(self, *rows: dict) -> None:
        (self.folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(self, *options: str, command: str = "run") -> int:
        stop = threading.Timer(
            90, _thread.interrupt_main
        )  # as Ctrl-C: a run waits for a lost server without end
        stop.start()
        try:
            return main([command, str(self.folder / "jobs.jsonl"), *map(str, options)])
        finally:
            stop.cancel()

    def start(self, *options: str) -> subprocess.Popen:
        """The tool as a process of its own, that can be killed; what it says goes to a file."""
        command = [sys.executable, "-m", "svimo_queue", "run", str(self.folder / "jobs.jsonl"), *options]
        with (self.folder / "said.txt").open("wb") as said:
            self.tools.append(subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said))
        return self.tools[-1]

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(encoding="utf-8")

    def records(self) -> list[Record]:
        return [Record.model_validate_json(path.read_bytes()) for path in self.out.glob("*/job.json")]

    def left_over(self) -> list[Path]:
        return list(self.out.rglob("*.partial"))


@pytest.fixture
def batch(tmp_path):
    batch = Batch(tmp_path)
    yield batch
    for tool in batch.tools:
        tool.kill()
        tool.wait()


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def queue_of(url: str) -> list[dict]:
    """What a server runs or has waiting, of our tool's."""
    queue = requests.get(f"{url}/queue", timeout=10).json()
    items = [*queue["queue_running"], *queue["queue_pending"]]
    return [item for item in items if "svimo_queue" in item[3]]


def prompts_run(url: str, identities: set[str]) -> int:
    """How many prompts a server remembers of these jobs."""
    history = requests.get(f"{url}/history", timeout=10).json().values()
    return sum(entry["prompt"][3].get("svimo_queue") in identities for entry in history)


def test_to_the_end_and_not_again(server, batch, capsys):
    batch.write(
        {"workflow": "scale.json", "image": "*.png", "width": "30, 60"},
        {"workflow": OURS, "image": "stir_cup.png", "prompt": "use spoon to stir cup", "steps": 2, "seed": 3},
    )
    assert batch.run("--server", server.url) == 0
    records = batch.records()
    assert len(records) == 5
    ours = next(record for record in records if record.workflow == OURS)
    assert [file.name for file in ours.files] == ["motion.npz", "motion.glb", "video.mp4", "motion_video.mp4"]
    assert ours.values["prompt"] == "use spoon to stir cup"
    assert ours.versions.keys() >= {"comfyui", "torch", "python", "device"}
    assert 0 < ours.seconds < 60
    assert "jobs" in (batch.out / "contact_sheet.html").read_text()
    assert (batch.out / "table.csv").read_text(encoding="utf-8-sig").count("\ndone,") == 5
    uploads = requests.get(f"{server.url}/object_info/LoadImage", timeout=10).json()["LoadImage"]["input"]
    assert sum(name.startswith("stir_cup-") for name in uploads["required"]["image"][0]) == 1

    identities = {record.identity for record in records}
    assert prompts_run(server.url, identities) == 5
    before = {path: path.stat().st_mtime_ns for path in batch.out.glob("*/*")}
    capsys.readouterr()
    assert batch.run("--server", "http://127.0.0.1:9") == 0  # needs no server, as nothing is left to run
    assert "5 done already, 0 to run" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in batch.out.glob("*/*")}


def test_check_says_all_problems_at_once_and_nothing_runs(server, batch, capsys):
    batch.write(
        {"workflow": "scale.json", "image": "coffee.png", "width": [30, -1]},
        {"workflow": "scale.json"},
        {"workflow": "slow.json", "seed": "0-1", "step": 3},
        {"workflow": OURS, "image": "coffee.png", "ckpt_name": "none.safetensors", "steps": "few"},
        {
            "workflow": "scale.json",
            "image": "none.png",
            "height": -1,
        },  # known without a server, and only with one
        {"image": "coffee.png"},
    )
    for command in ("check", "run"):
        assert batch.run("--server", server.url, command=command) == 1
        said = capsys.readouterr().err.splitlines()
        expected = (
            "jobs.jsonl, row 1, scale.json: column width: scale.width (ImageScale) expects a whole number from 0 to",
            "jobs.jsonl, row 2, scale.json: load.image (LoadImage) expects a file beside the job file or on",
            "jobs.jsonl, row 3, slow.json: column step: the workflow has no such input; did you mean steps",
            f"jobs.jsonl, row 4, {OURS}.json: column ckpt_name: 1.ckpt_name (SViMoCheckpointLoader",
            f'jobs.jsonl, row 4, {OURS}.json: column steps: 8.steps (SViMoSampler "SViMo Sampler") expects a whole',
            "jobs.jsonl, row 5, column image: there is no file none.png",
            "jobs.jsonl, row 5, scale.json: column height: scale.height (ImageScale) expects a whole number",
            "jobs.jsonl, row 6, column workflow: expected an API-format file",
        )
        assert len(said) == len(expected)
        for line, start in zip(said, expected, strict=True):
            assert line.startswith(start)
    assert batch.records() == []
    assert batch.run("--server", "http://127.0.0.1:9", command="check") == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said[:2]] == [
        "jobs.jsonl, row 5, column image",
        "jobs.jsonl, row 6, column workflow",
    ]
    assert said[2].startswith("http://127.0.0.1:9 does not answer")


def test_a_failing_job_is_tried_again_and_the_others_go_on(server, batch, capsys):
    batch.write(
        {"workflow": "fail.json", "name": "flaky", "times": 1, "seed": 1},
        {"workflow": "fail.json", "name": "hopeless", "times": 9, "seed": 2},
        {
            "workflow": "fail.json",
            "name": "same",
            "message": "no such cheese",
            "error": "ValueError",
            "times": 1,
        },
        {"workflow": "silent.json", "name": "silent", "seconds": 30, "seed": 1},
        {
            "workflow": "fail.json",
            "name": "full",
            "message": "[Errno 28] No space left",
            "times": 1,
            "seed": 3,
        },
        {"workflow": "slow.json", "seed": "10-12"},
    )
    assert batch.run("--server", server.url, "--stall", "4") == 1
    records = {record.name: record for record in batch.records()}
    assert set(records) == {"flaky", "full", "seed-10-slow", "seed-11-slow", "seed-12-slow"}
    assert (records["flaky"].tries, records["seed-10-slow"].tries, records["full"].tries) == (2, 1, 1)
    table = (batch.out / "table.csv").read_text(encoding="utf-8-sig")
    assert "TestFail (node fail): out of cheese" in table
    (error,) = batch.out.glob("hopeless-*/error.json")
    error = json.loads(error.read_text())
    assert (error["tries"], "queue_nodes.py" in error["details"]) == (2, True)
    assert "no progress for 4 s" in table
    said = capsys.readouterr().err
    assert "3 jobs failed, 0 did not run" in said
    assert "same (jobs.jsonl, row 3): FAILED: TestFail (node fail): no such cheese" in said
    (error,) = batch.out.glob("same-*/error.json")
    assert json.loads(error.read_text())["tries"] == 1  # what would come again is not tried again
    assert "has no room on its disk (TestFail (node fail): [Errno 28] No space left): make some" in said
    assert queue_of(server.url) == []


def test_a_killed_tool_goes_on_where_it_was(server, batch):
    batch.write({"workflow": "slow.json", "seed": "20-23", "steps": 8})
    tool = batch.start("--server", server.url)
    wait_for(lambda: len(batch.records()) == 1 and queue_of(server.url))
    tool.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    tool.wait()
    (running,) = queue_of(server.url)

    assert batch.run("--server", server.url) == 0
    records = batch.records()
    assert len(records) == 4
    assert (
        prompts_run(server.url, {record.identity for record in records}) == 4
    )  # the one that ran was taken up
    assert running[3]["svimo_queue"] in {record.identity for record in records}
    assert batch.left_over() == []


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_leaves_the_server_clean(server, batch):
    batch.write({"workflow": "slow.json", "seed": "30-33", "steps": 300})
    tool = batch.start("--server", server.url)
    wait_for(lambda: queue_of(server.url))
    tool.send_signal(signal.SIGINT)
    assert tool.wait(timeout=15) == 130
    assert "Stopped" in batch.said()
    assert queue_of(server.url) == []
    assert (batch.out / "table.csv").read_text(encoding="utf-8-sig").count("\nwaiting,") == 4


def test_a_server_that_hangs_and_restarts_and_dies_beside_another(server, batch, tmp_path_factory):
    base = tmp_path_factory.mktemp("second")
    pack = base / "pack"
    pack.mkdir()
    shutil.copy(Path(__file__).with_name("queue_nodes.py"), pack / "__init__.py")
    second = ComfyServer(base / "comfyui", pack=pack)

    # Alone, in a job that cannot be stopped, until it is killed: the rest goes on when it is there again.
    batch.write({"workflow": "silent.json", "deaf": True}, {"workflow": "slow.json", "seed": 50})
    with second:
        tool = batch.start("--server", second.url, "--tries", "1", "--stall", "1")
        wait_for(lambda: "hangs in a job and does not stop it: restart it" in batch.said())
        second._process.kill()
    with second:
        assert tool.wait(timeout=60) == 1
        assert f"{second.url} does not answer" in batch.said()
        assert [record.name for record in batch.records()] == ["seed-50-slow"]

        # Two servers share a batch; one of them is killed in the middle of a job, which the other takes over.
        batch.write({"workflow": "slow.json", "seed": "40-47", "steps": 10})
        tool = batch.start("--server", server.url, "--server", second.url, "--tries", "3")
        wait_for(
            lambda: {r.where for r in batch.records() if r.values["seed"] < 50} == {server.url, second.url}
        )
        wait_for(lambda: queue_of(second.url))
        second._process.kill()
        assert tool.wait(timeout=60) == 0, batch.said()
    assert len(batch.records()) == 9
    assert batch.left_over() == []
