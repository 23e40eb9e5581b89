"""Which server takes which job."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from svimo_queue.__main__ import _stoppable, main
from svimo_queue.jobs import Job
from svimo_queue.outputs import Outputs
from svimo_queue.run import Run, check
from svimo_queue.server import ServerLost

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


def sound_job() -> Job:
    """One that the definitions of nodes have nothing against."""
    nodes = {
        "model": ("CheckpointLoaderSimple", {"ckpt_name": "sd15.safetensors"}),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "decode": ("VAEDecode", {"samples": ["empty", 0], "vae": ["model", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "x"}),
    }
    graph = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    return job(0, "").model_copy(update={"graph": graph, "values": {}})


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


@contextlib.asynccontextmanager
async def site(reply: Callable[[web.Request], Awaitable[web.Response]], port: int = 0) -> AsyncIterator[int]:
    """A program that answers on a port of this machine, which may be no more than taking the connection."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", reply)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class AtWork:
    """What a ComfyUI answers that runs the one prompt it gets until somebody takes it back."""

    def __init__(self):
        self.prompts: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "POST" and request.path == "/prompt":
            self.prompts.append((await request.json())["prompt_id"])
        elif request.method == "POST" and request.path == "/queue":
            self.prompts.clear()
        running = [[0, prompt, {}, {}] for prompt in self.prompts]
        answers = {"/object_info": DEFINITIONS, "/queue": {"queue_running": running, "queue_pending": []}}
        return web.json_response(answers.get(request.path, {}))


async def say_nothing(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def test_who_takes_the_connection_and_is_silent_is_named(caplog, monkeypatch):
    monkeypatch.setattr("svimo_queue.server.SAY_WAIT", 0.2)
    monkeypatch.setattr("svimo_queue.server.PATIENCE", 0.6)
    caplog.set_level(logging.INFO)

    async def ask() -> str:
        async with site(say_nothing) as port:
            url = f"http://127.0.0.1:{port}"
            with pytest.raises(ServerLost) as lost:
                await check([], [url])
            return str(lost.value).replace(url, "URL") + "".join(caplog.messages).replace(url, "URL")

    assert asyncio.run(ask()) == (
        "URL took over 1 s to answer: it is busy or hangs, or this is not its address"
        "waiting for URL to answer, for up to 1 s"
    )


def test_a_silent_server_holds_no_other_up_and_is_heard_again(tmp_path, capsys, monkeypatch):
    """The first takes the connection and is silent, and later another program has its address, which answers."""
    for name in ("HEAD_START", "FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(f"svimo_queue.run.{name}", 0.1)
    monkeypatch.setattr("svimo_queue.server.PATIENCE", 1.5)
    one, first, second = sound_job(), AtWork(), AtWork()
    lines: list[str] = []

    def said(words: str) -> int:
        lines.extend(capsys.readouterr().err.splitlines())
        return sum(words in line for line in lines)

    async def until(condition: Callable[[], object]) -> None:
        for _ in range(400):
            if condition():
                return
            await asyncio.sleep(0.05)
        raise AssertionError(lines)

    async def batch() -> None:
        async with contextlib.AsyncExitStack() as stack:
            silence = contextlib.AsyncExitStack()
            port = await silence.enter_async_context(site(say_nothing))
            ports = port, await stack.enter_async_context(site(second.answer))
            outputs = stack.enter_context(Outputs(tmp_path, [one]))
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            going = asyncio.ensure_future(Run([one], outputs, urls, title="", tries=2, stall=60).go())
            await until(lambda: second.prompts)
            assert not said("took over")
            await until(lambda: said("took over"))
            await silence.aclose()
            await stack.enter_async_context(site(first.answer, port))
            await until(lambda: said("answers again"))
            await asyncio.sleep(0.3)
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)

    asyncio.run(batch())
    assert not first.prompts
    assert said("took over 2 s to answer") == said("answers again") == 1


@pytest.mark.parametrize(("silent", "patience"), [("/", 60.0), ("/queue", 0.6)])
def test_a_silent_server_holds_no_end_up(tmp_path, capsys, monkeypatch, silent, patience):
    """Silent from the beginning it is left; one that falls silent later is named, but not asked again."""
    monkeypatch.setattr("svimo_queue.server.PATIENCE", patience)
    one, comfy = sound_job(), AtWork()

    async def answer(request: web.Request) -> web.Response:
        return await (say_nothing if request.path.startswith(silent) else comfy.answer)(request)

    async def batch() -> None:
        with Outputs(tmp_path, [one]) as outputs:
            async with site(answer) as port:
                run = Run([one], outputs, [f"http://127.0.0.1:{port}"], title="", tries=2, stall=60)
                (server,) = run.servers
                with run.shown([server.url]):
                    async with server:
                        serving = asyncio.ensure_future(run._serve(server))
                        await asyncio.sleep(0.2)
                        await run.settle("the other is done")
                        await asyncio.wait_for(serving, 5)

    asyncio.run(batch())
    said = capsys.readouterr().err
    assert ("took over" in said) == (silent == "/queue")
    assert "asked again" not in said


@pytest.mark.parametrize("hangs", [False, True])
def test_what_cannot_be_taken_back_is_said(tmp_path, capsys, monkeypatch, hangs):
    monkeypatch.setattr("svimo_queue.server.PATIENCE", 1.0)
    one, comfy = sound_job(), AtWork()

    async def answer(request: web.Request) -> web.Response:
        return await (say_nothing if hangs and comfy.prompts else comfy.answer)(request)

    async def batch() -> str:
        with Outputs(tmp_path, [one]) as outputs:
            async with site(answer) as port:
                url = f"http://127.0.0.1:{port}"
                going = asyncio.ensure_future(Run([one], outputs, [url], title="", tries=2, stall=60).go())
                while not comfy.prompts:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.2)
                going.cancel()
                await asyncio.gather(going, return_exceptions=True)
                return f"{url} may still run {one.title}, which could not be taken back"

    expected = asyncio.run(batch())
    assert capsys.readouterr().err.count(expected) == hangs


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio handles no signals there")
def test_a_second_signal_says_that_it_ends_at_once(capsys):
    async def work() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(5)
        return 0

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_stoppable(work()))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("Stopping: ")
    assert "Ctrl-C again ends at once" in first
    assert second == "Ending at once, without cleaning up"


@pytest.mark.parametrize(
    "address", ["ftp://host", "http://", "http://host:99999", "host:port", "http://[::1"]
)
def test_an_address_that_cannot_be_is_refused_at_once(address, capsys):
    with pytest.raises(SystemExit):
        main(["run", "jobs.csv", "--server", address])
    assert f"expected an address such as http://127.0.0.1:8188, got '{address}'" in capsys.readouterr().err
