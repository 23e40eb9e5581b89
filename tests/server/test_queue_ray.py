"""svimo_queue on Ray: what a real server makes, without it; through a worker that is killed, and a stop."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
import requests
from helpers.read_glb import Glb

from dev.comfy import ROOT, api_workflow
from svimo_core.motion import HandObjectMotion
from svimo_queue.__main__ import main
from svimo_queue.definitions import definitions
from svimo_queue.jobs import read_jobs
from svimo_queue.outputs import Outputs, Record

pytest.importorskip("ray", reason="the extra queue-ray is not installed")
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError

from svimo_queue.cluster import Cluster, RayRun

OURS = "image_to_video_and_motion"
CHECKPOINT = ROOT / "assets" / "models" / "svimo-tiny.safetensors"
ONE = {"workflow": OURS, "image": "stir_cup.png"}


@pytest.fixture
def write(tmp_path):
    """Writes the rows of a job file beside its image, and gives its path."""
    shutil.copy(ROOT / "assets" / "stir_cup.png", tmp_path)

    def write(*rows: dict) -> Path:
        path = tmp_path / "jobs.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return write


@pytest.fixture(scope="module", autouse=True)
def token():
    """A secret of these tests alone for every Ray they start: none is left in, or taken from, the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_worker_niceness", "0")  # else `ray start` has them wait for whatever else runs here
        yield


@pytest.fixture(scope="module")
def cluster(token, tmp_path_factory):
    """A Ray that was there before: its process, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    start = ["start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    with log.open("wb") as said:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *start, "--include-dashboard=false"],
            cwd=log.parent,
            stdout=said,
            stderr=said,
        )
    try:
        wait_for(lambda: head.poll() is not None or b"runtime started" in log.read_bytes())
        assert head.poll() is None, log.read_text()
        yield head, address
    finally:
        head.terminate()
        head.wait(timeout=30)


@contextlib.contextmanager
def tool(jobs: Path, *options: object):
    """The tool as a process; what it says goes to a file."""
    said = jobs.with_name("said.txt")
    command = [sys.executable, "-m", "svimo_queue", "run", jobs, "--checkpoint", CHECKPOINT, *options]
    with said.open("wb") as out:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def records(out: Path) -> dict[str, Record]:
    found = [Record.model_validate_json(path.read_bytes()) for path in out.glob("*/job.json")]
    return {record.identity: record for record in found}


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)


def wait_for(condition, seconds: float = 300, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it did not happen in time"
        time.sleep(0.05)


def workers(head: subprocess.Popen) -> set[int]:
    """Processes of our workers in a Ray."""
    found = set()
    for process in psutil.Process(head.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended by now
            if " ".join(process.cmdline()).startswith("ray::Worker"):
                found.add(process.pid)
    return found


def test_the_nodes_are_the_servers(server):
    """Same inputs of the same types and limits, and outputs in the same order, as far as there are any here."""
    there = requests.get(f"{server.url}/object_info", timeout=30).json()
    for name, node in definitions("svimo-tiny.safetensors").items():
        real = there[name]
        assert node["output"] == real["output"][: len(node["output"])], name
        assert node["output_node"] == real["output_node"], name
        inputs = {**real["input"]["required"], **real["input"].get("optional", {})}
        for entry, (kind, options) in {**node["input"]["required"], **node["input"]["optional"]}.items():
            if entry in ("ckpt_name", "image", "format", "format.codec", "codec") and kind != "IMAGE":
                continue  # a server's own files, and what newer servers made of Save Video
            real_kind, real_options = [*inputs[entry], {}][:2]
            choices = real_kind if isinstance(real_kind, list) else real_options.get("options")
            assert kind == (real_kind if choices is None else choices), (name, entry)
            assert {key: real_options[key] for key in options} == options, (name, entry)


def test_ray_makes_what_a_server_makes(server, write, tmp_path, capsys):
    plain = api_workflow(OURS)  # without the loop
    plain["8"]["inputs"]["model"] = ["1", 0]
    plain["6"]["inputs"]["noise_augmentation"] = 0.05
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    jobs = write(
        ONE | {"prompt": "use knife to cut apple", "seed": 2**64 - 1, "steps": 4},
        ONE | {"name": "strong", "steps": 4, "cfg": 3, "cfg_schedule": "dynamic", "refine": True},
        ONE | {"workflow": "plain.json", "steps": 5, "cfg_schedule": "dynamic", "width": 144, "height": 96},
    )
    there, here = tmp_path / "there", tmp_path / "here"
    assert main(["run", str(jobs), "--server", server.url, "--out", str(there)]) == 0
    with tool(jobs, "--ray", "local", "--workers", 2, "--cpus", 0.25, "--out", here) as process:
        assert process.wait(timeout=300) == 0, (tmp_path / "said.txt").read_text()
    by_server, by_ray = records(there), records(here)
    assert by_server.keys() == by_ray.keys()
    assert len(by_ray) == 3
    for identity, record in by_server.items():
        other = by_ray[identity]
        assert (other.name, other.values, other.input_files) == (
            record.name,
            record.values,
            record.input_files,
        )
        assert [file.name for file in other.files] == [file.name for file in record.files]
        folders = [root / f"{record.name}-{identity[:8]}" for root in (there, here)]
        first, second = (HandObjectMotion.load(folder / "motion.npz") for folder in folders)
        assert np.abs(first.hands - second.hands).max() < 2e-4, record.name  # metres
        assert first.objects.keys() == second.objects.keys()
        assert all(np.abs(first.objects[n] - second.objects[n]).max() < 2e-4 for n in first.objects)
        assert (second.prompt, second.fps, second.camera) == (first.prompt, first.fps, first.camera)
        assert json.loads(second.metadata["prompt"]).keys() == json.loads(first.metadata["prompt"]).keys()
        for name in ("video.mp4", "motion_video.mp4"):
            shown = [frames(folder / name) for folder in folders]
            assert shown[0].shape == shown[1].shape
            # What the encoder loses is another loss each time; before it, they are the same to 1 of 255.
            assert np.abs(shown[0] - shown[1]).mean() < 0.1 * shown[0].std(), (record.name, name)
        scenes = [Glb(folder / "motion.glb") for folder in folders]
        assert [n.get("name") for n in scenes[0].json["nodes"]] == [
            n.get("name") for n in scenes[1].json["nodes"]
        ]

    capsys.readouterr()
    ray = ["--ray", "local", "--checkpoint", str(CHECKPOINT)]
    assert main(["run", str(jobs), *ray, "--out", str(there)]) == 0  # whoever ran a job, it is done
    assert "3 done already, 0 to run" in capsys.readouterr().err


def test_four_workers_one_killed_and_a_stop(cluster, write, tmp_path):
    head, address = cluster
    small = ONE | {"width": 48, "height": 32}
    jobs = write(
        small | {"name": "odd", "frames": 10},
        small | {"seed": "0-6", "steps": 30},
        ONE | {"name": "endless", "steps": 1000},
    )
    out, said = tmp_path / "jobs_outputs", tmp_path / "said.txt"
    with tool(jobs, "--ray", address, "--workers", 4, "--cpus", 0.25) as process:
        going = lambda condition: wait_for(lambda: condition() or process.poll() is not None, log=said)  # noqa: E731
        going(lambda: records(out))
        assert process.poll() is None, said.read_text()
        before = workers(head)
        killed = next(iter(records(out).values())).where
        time.sleep(0.7)  # a job takes seconds: it has the next one
        os.kill(int(killed.rpartition(" ")[2]), signal.SIGKILL)
        going(lambda: workers(head) - before)  # Ray starts another in its place
        going(lambda: len(records(out)) == 7 and list(out.glob("odd-*/error.json")))
        assert process.poll() is None, said.read_text()
        if os.name == "nt":  # Ctrl-C cannot be sent to one process there
            process.kill()
        else:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
            assert "Stopped" in said.read_text()
    wait_for(lambda: not workers(head), 30)
    assert "died as it ran; tried again later" in said.read_text()
    made = records(out).values()
    assert sorted(record.tries for record in made) == [1] * 6 + [2]
    (again,) = (record for record in made if record.tries == 2)
    assert again.where != killed
    assert len({record.where for record in made}) >= 4
    (error,) = out.glob("odd-*/error.json")
    error = json.loads(error.read_text())
    assert "SViMoImageEncode (node 6): frames must be 8k + 1" in error["message"]
    assert (error["tries"], "engine.py" in error["details"]) == (1, True)  # it would come again
    table = (out / "table.csv").read_text(encoding="utf-8-sig")
    assert [table.count(f"\n{status},") for status in ("done", "failed", "waiting")] == [7, 1, 1]
    assert list(out.rglob("*.partial")) == []


@pytest.mark.parametrize(
    "error", [ActorDiedError(), OutOfMemoryError("node ran out"), ObjectLostError("a1", None, "")]
)
def test_a_worker_that_is_gone_costs_a_try_and_not_the_run(write, tmp_path, error):
    """Killed for the memory it took, or with its machine: Ray has an error for each."""

    async def gone():
        raise error

    worker = SimpleNamespace(run=SimpleNamespace(remote=lambda *_: gone()))

    async def go(outputs):
        run = RayRun(
            jobs, outputs, Cluster(address="local", checkpoint=CHECKPOINT), title="", tries=2, stall=9
        )
        await run._run("worker 1", worker, "here", {}, await run.next_job())
        assert run.pending == jobs

    jobs = read_jobs(write(ONE))
    with Outputs(tmp_path / "out", jobs) as outputs:
        asyncio.run(go(outputs))


def test_what_cannot_begin_is_said_at_once(write, tmp_path, capsys):
    jobs = write(ONE | {"workflow": "motion_to_video"}, ONE | {"solver": "dpmpp_2m_sde"})
    for command in ("check", "run"):
        assert main([command, str(jobs), "--ray", "local", "--checkpoint", str(CHECKPOINT)]) == 1
        said = capsys.readouterr().err
        assert "row 1, motion_to_video.json: node 6 (SViMoMotionToVideo) does not run without ComfyUI" in said
        assert (
            'row 2, image_to_video_and_motion.json: 8.solver (SViMoSampler "SViMo Sampler") expects' in said
        )
    assert records(tmp_path / "jobs_outputs") == {}
