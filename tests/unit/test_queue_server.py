"""What a program that is no ComfyUI may answer: it counts as a lost server, in one sentence."""

import asyncio

import pytest
from aiohttp import web

from svimo_queue.jobs import read_jobs
from svimo_queue.server import Server, ServerLost, _comes_again

NODE = '{"X": {"input": {"required": {}}}}'
DEEP = "[" * 100_000
NOT_FOUND = "404"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        *(("/system_stats", answer) for answer in ("[]", "null", '"hello"', '{"system": 1}', DEEP, "<html>")),
        ("/system_stats", NOT_FOUND),
        *(("/object_info", answer) for answer in ("[]", "null", "{}", '{"X": 1}', '{"X": {"input": []}}')),
        *(("/queue", answer) for answer in ("[]", "{}", '{"queue_running": 1, "queue_pending": []}')),
        *(("/history", answer) for answer in ("[]", '{"a": 1}')),
        ("/prompt", "[1]"),
    ],
)
def test_who_answers_what_no_comfyui_does_is_lost(path, answer, job):
    answers = {
        "/system_stats": "{}",
        "/object_info": NODE,
        "/queue": '{"queue_running": [], "queue_pending": []}',
        "/history": "{}",
        "/prompt": "{}",
    }

    async def reply(request: web.Request) -> web.Response:
        text = (answers | {path: answer})[request.path]
        return web.Response(text=text, status=404 if text == NOT_FOUND else 200)

    async def ask() -> None:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", reply)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with Server(f"http://127.0.0.1:{runner.addresses[0][1]}", "batch") as server:
                await server.prepare()
                await server.ours()
                await server.queue({}, job, "id")
        finally:
            await runner.cleanup()

    with pytest.raises(ServerLost, match=r"answers what no ComfyUI does: .*; is this the right address\?"):
        asyncio.run(ask())


@pytest.fixture
def job(tmp_path):
    (tmp_path / "jobs.csv").write_text("workflow\nimage_to_video_and_motion\n")
    return read_jobs(tmp_path / "jobs.csv")[0]


def test_what_is_no_image_would_be_none_again():
    assert _comes_again("PIL.UnidentifiedImageError")
    assert _comes_again("ValueError")
    assert not _comes_again("torch.OutOfMemoryError")
    assert not _comes_again("RuntimeError")
