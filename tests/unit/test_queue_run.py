"""Which server takes which job."""

import asyncio
import json
from pathlib import Path

import pytest

from svimo_queue.__main__ import main
from svimo_queue.jobs import Job
from svimo_queue.outputs import Outputs
from svimo_queue.run import Run

DEFINITIONS = json.loads((Path(__file__).parents[1] / "helpers" / "definitions.json").read_text())


def job(number: int, model: str) -> Job:
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}}}
    return Job(
        identity=f"{number:064}",
        name=str(number),
        job_file="jobs.csv",
        row=2,
        workflow=Path("w.json"),
        graph=graph,
        values={"n": number},
    )


def test_servers_keep_the_models_that_they_have_loaded(tmp_path):
    jobs = [job(number, "ab"[number % 2] + ".safetensors") for number in range(8)]
    with Outputs(tmp_path, jobs) as outputs:
        run = Run(jobs, outputs, ["one", "two", "three"], title="", tries=2, stall=1)
        one, two, three = run.servers
        for server in run.servers:
            server.definitions = DEFINITIONS

        run.begun[jobs[5].identity] = 1  # it failed: after the others, though the model is at hand

        async def take(*servers) -> list[str]:
            return [(await run._next(server)).name for server in servers]

        assert asyncio.run(take(one, two, one, two, one, two, one, three)) == [*"01234", "7", "6", "5"]


def test_a_table_that_is_open_elsewhere_stops_nothing(tmp_path, capsys, monkeypatch):
    """On Windows a spreadsheet keeps it; here a folder in its place does."""
    monkeypatch.setattr("svimo_queue.batch.TABLE_EVERY", 0.0)
    (tmp_path / "table.csv").mkdir()
    jobs = [job(number, "a.safetensors") for number in range(2)]
    with Outputs(tmp_path, jobs) as outputs:
        run = Run(jobs, outputs, ["one"], title="", tries=2, stall=1)

        async def settle() -> None:
            with run.shown(["one"]):
                await run.settle("one is done")
                (tmp_path / "table.csv").rmdir()
                await run.settle("two is done")

        asyncio.run(settle())
    assert capsys.readouterr().err.count("table.csv cannot be written now") == 1
    assert (tmp_path / "table.csv").is_file()


@pytest.mark.parametrize(
    "address", ["ftp://host", "http://", "http://host:99999", "host:port", "http://[::1"]
)
def test_an_address_that_cannot_be_is_refused_at_once(address, capsys):
    with pytest.raises(SystemExit):
        main(["run", "jobs.csv", "--server", address])
    assert f"expected an address such as http://127.0.0.1:8188, got '{address}'" in capsys.readouterr().err
