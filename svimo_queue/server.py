"""One ComfyUI server: files up, prompts in, their progress and their end, files down, and prompts out again.

What goes wrong is one of three: :class:`JobFailed` is the job's fault or its end, :class:`ServerLost` the server's, and
the job may run again elsewhere; anything else is a mistake of ours.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiohttp

from svimo_core.files import DamagedFile

from .jobs import SAME_AGAIN, InputFile, Job, JobFailed, JobStalled, sha256_of, slug
from .workflow import Definitions

logger = logging.getLogger(__name__)

Progress = Callable[[str, float, float], None]
"""Called with a node's id, steps done, and steps to do (0 where it does not say)."""
POLL = 2.0
"""Seconds between looks at the queue: a message may be lost, as ComfyUI drops a new connection with an old one."""
PATIENCE = 60.0
"""Seconds that a request may take: a server at work can be slow to answer."""
SAY_WAIT = 5.0
"""Seconds of a request until the server is named that everything waits for."""
NO_SPACE = ("No space left on device", "[Errno 28]", "not enough space on the disk", "Disk quota exceeded")


class ServerLost(Exception):
    """A server does not answer, or cannot go on until someone helps it."""


class ServerStuck(ServerLost):
    """A server answers, but cannot go on until someone helps it."""


class ServerFull(ServerStuck):
    """A server has no room on its disk."""


@dataclass(frozen=True)
class Ended:
    """How a prompt ended well.

    Attributes:
        files: what it saved, each as {filename, subfolder, type}.
        started: when its execution began.
        seconds: that it took.
    """

    files: list[dict[str, str]]
    started: datetime
    seconds: float


@dataclass(frozen=True)
class Found:
    """A prompt of ours that a server has.

    Attributes:
        prompt_id: the server's name for it.
        identity: of its job.
        ended: whether it is in the history, with success; else it waits or runs.
    """

    prompt_id: str
    identity: str
    ended: bool


def _reads_answers(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Make valid JSON of another shape than ComfyUI's a :class:`ServerLost`: whoever answers so is another program."""

    @functools.wraps(method)
    async def reading(self: Server, *args: Any, **options: Any) -> Any:
        try:
            return await method(self, *args, **options)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise ServerLost(_no_comfyui(self.url, "an answer of another form")) from error

    return reading


class Server:
    """A server by its address. Use it in an `async with` block.

    Args:
        url: such as http://127.0.0.1:8188.
        batch: names the batch; prompts of the same batch are ours, whoever queued them.
        say: told, once for each silence, that it takes long to answer.

    Attributes:
        definitions: of the server's nodes, after `prepare`.
        versions: of the server's parts, after `prepare`.
    """

    def __init__(self, url: str, batch: str, say: Callable[[str], None] = logger.info):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.client_id = batch
        self.definitions: Definitions = {}
        self.versions: dict[str, str] = {}
        self._there: set[str] = set()
        self._say = say
        self._silent = False
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Server:
        # No limit of its own: each request sets one. A file of hours may take hours.
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=PATIENCE))
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    @_reads_answers
    async def prepare(self) -> None:
        """Learn what the server is and which nodes it has."""
        self._there.clear()
        stats = await self._json("GET", "/system_stats")
        system = stats.get("system", {})
        names = {"comfyui_version": "comfyui", "python_version": "python", "pytorch_version": "torch"}
        self.versions = {
            short: str(system[name]).split()[0] for name, short in names.items() if system.get(name)
        }
        if devices := stats.get("devices"):
            self.versions["device"] = str(devices[0].get("name", ""))
        definitions = await self._json("GET", "/object_info")
        if not _are_definitions(definitions):
            raise TypeError("/object_info defines no nodes")
        self.definitions = definitions

    async def upload(self, file: InputFile) -> str:
        """Bring a file into the server's input folder, once for the same content; its name there."""
        path = file.path
        stem = slug(path.stem.encode("ascii", "ignore").decode(), 40)
        name = f"{stem}-{file.sha256[:12]}{path.suffix.lower()}"
        if name in self._there:
            return name
        try:
            size, digest = path.stat().st_size, await asyncio.to_thread(sha256_of, path)
        except OSError as error:
            raise JobFailed(f"{file.text} cannot be read: {error.strerror or error}", again=False) from error
        if digest != file.sha256:
            changed = f"{file.text} changed since the run began; run again for what it is now"
            raise JobFailed(changed, again=False)
        async with self._request("HEAD", "/view", params={"filename": name, "type": "input"}) as reply:
            there = reply.status == 200 and reply.content_length == size
        if not there:
            with path.open("rb") as content:
                form = aiohttp.FormData(
                    {"overwrite": "true"}
                )  # whatever of another size has this name is cut
                form.add_field("image", content, filename=name)
                async with self._request("POST", "/upload/image", data=form, seconds=None) as reply:
                    if reply.status == 413:
                        large = f"{self.url} takes no file as large as {file.text}"
                        raise JobFailed(f"{large}: start it with --max-upload-size", again=False)
                    await self._good(reply)
        self._there.add(name)
        return name

    @_reads_answers
    async def queue(self, graph: dict, job: Job, prompt_id: str) -> None:
        """Queue a workflow, whole or not at all.

        Raises:
            JobFailed: the server refuses it.
        """
        content = {
            "prompt": graph,
            "prompt_id": prompt_id,
            "client_id": self.client_id,
            "extra_data": {"svimo_queue": job.identity},
        }
        async with self._request("POST", "/prompt", json=content) as reply:
            if reply.status != 400:
                await self._good(reply)
            body = await _read_json(reply)
        if reply.status == 400 or body.get("node_errors"):
            await self.cancel(
                prompt_id
            )  # ComfyUI runs what is sound of a workflow; here it is all or nothing
            raise JobFailed(_describe_refusal(body), again=False)

    async def follow(self, prompt_id: str, *, stall: float, on_progress: Progress) -> Ended:
        """Wait until a queued prompt has ended.

        Args:
            prompt_id: of a prompt in the server's queue or history.
            stall: seconds without any progress after which to give up.
            on_progress: called at each step of each node.

        Raises:
            JobFailed: it failed, was interrupted, or is gone.
            JobStalled: it runs, but makes no progress.
            ServerFull: it failed because the server's disk is full.
        """
        clock = asyncio.get_running_loop().time
        heard, socket = clock(), None
        try:
            while True:
                if socket is None or socket.closed:  # before looking at the queue, so that no end is missed
                    socket = await self._socket()
                running, waiting, _ = await self._queue()
                if prompt_id in waiting:
                    heard = clock()  # it is someone else's turn
                elif prompt_id not in running:
                    return await self._end_of(prompt_id)
                elif clock() - heard > stall:
                    raise JobStalled(f"no progress for {stall:.0f} s on {self.url}")
                if await self._listen(socket, prompt_id, on_progress, min(POLL, stall)):
                    heard = clock()
        finally:
            if socket is not None:
                await socket.close()

    @_reads_answers
    async def ours(self) -> list[Found]:
        """Prompts of this batch that the server has: waiting, running, or ended with success."""
        running, waiting, items = await self._queue()
        found = [
            Found(key, identity, False)
            for key in [*running, *waiting]
            if (identity := self._job_of(items[key]))
        ]
        history = await self._json("GET", "/history")
        for key, entry in history.items():
            if entry.get("status", {}).get("status_str") == "success" and (
                identity := self._job_of(entry["prompt"])
            ):
                found.append(Found(key, identity, True))
        return found

    async def download(self, file: dict[str, str], path: Path) -> None:
        """Fetch a file that a prompt saved."""
        params = {key: str(file.get(key) or "") for key in ("filename", "subfolder", "type")}
        async with self._request("GET", "/view", params=params, seconds=None) as reply:
            if reply.status == 404:
                raise JobFailed(f"{file['filename']} is no longer in the output folder of {self.url}")
            await self._good(reply)
            with path.open("wb") as content:
                async for block in reply.content.iter_chunked(2**20):
                    content.write(block)

    async def cancel(self, prompt_id: str, *, seconds: float = 5) -> bool:
        """Take a prompt out of the queue, or stop it where it runs; whether it is gone in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        await self._json("POST", "/queue", json={"delete": [prompt_id]})
        while True:
            running, waiting, _ = await self._queue()
            if prompt_id not in (running | waiting):
                return True
            if asyncio.get_running_loop().time() > deadline:
                return False
            # More than once: one that comes while a prompt is about to begin is forgotten.
            await self._json("POST", "/interrupt", json={"prompt_id": prompt_id})
            await asyncio.sleep(0.2)

    async def free(self) -> None:
        """Make the server forget its models and results, for a fresh start of the next prompt."""
        self._there.clear()
        await self._json("POST", "/free", json={"unload_models": True, "free_memory": True})
        await asyncio.sleep(0.5)  # else the next prompt may come before it

    async def _socket(self) -> aiohttp.ClientWebSocketResponse | None:
        """A websocket with the progress of our prompts, whoever queued them; None where the server gives none."""
        try:
            connecting = self._session.ws_connect(
                f"{self.url.replace('http', 'ws', 1)}/ws",
                params={"clientId": self.client_id},
                heartbeat=PATIENCE,
                max_msg_size=0,
            )
            return await asyncio.wait_for(connecting, SAY_WAIT)
        except (aiohttp.ClientError, asyncio.TimeoutError):
            return None  # the queue tells when a prompt has ended, and that a server is gone

    @_reads_answers
    async def _listen(
        self,
        socket: aiohttp.ClientWebSocketResponse | None,
        prompt_id: str,
        on_progress: Progress,
        seconds: float,
    ) -> bool:
        """Pass progress on, until the prompt ends or for some seconds; whether anything was heard of it."""
        if socket is None:
            await asyncio.sleep(1)
            return False
        clock = asyncio.get_running_loop().time
        deadline, heard = clock() + seconds, False
        while (left := deadline - clock()) > 0:
            try:
                message = await socket.receive(timeout=left)
            except asyncio.TimeoutError:
                break
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
                await asyncio.sleep(1)
                break
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event.get("type"), event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            heard = True
            if kind == "executing" and data.get("node") is None:
                break
            if kind in ("executing", "progress"):
                on_progress(str(data.get("node")), data.get("value", 0), data.get("max", 0))
        return heard

    @_reads_answers
    async def _end_of(self, prompt_id: str) -> Ended:
        entry = (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)
        if entry is None:
            raise JobFailed(f"{self.url} no longer has it: it restarted, or someone took it out of the queue")
        events = dict(entry["status"]["messages"])
        if error := events.get("execution_error"):
            message = f"{error['node_type']} (node {error['node_id']}): {error['exception_message'].strip()}"
            if any(sign in message for sign in NO_SPACE):
                raise ServerFull(f"{self.url} has no room on its disk ({message}): make some")
            again = not _comes_again(str(error.get("exception_type")))
            raise JobFailed(message, "".join(error.get("traceback") or []), again=again)
        if "execution_interrupted" in events or entry["status"]["status_str"] != "success":
            raise JobFailed(f"someone interrupted it on {self.url}")
        # Milliseconds since 1970.
        began, ended = (events.get(f"execution_{name}", {}).get("timestamp") for name in ("start", "success"))
        now = datetime.now(timezone.utc)
        started = datetime.fromtimestamp(began / 1000, timezone.utc) if began else now
        seconds = (ended - began) / 1000 if began and ended else 0.0
        outputs = entry["outputs"]  # in the order of execution, which changes; the graph's does not
        ordered = [outputs[node] for node in entry["prompt"][2] if node in outputs]
        return Ended(_files_of(ordered), started, seconds)

    @_reads_answers
    async def _queue(self) -> tuple[set[str], set[str], dict[str, list]]:
        """Ids of what runs, ids of what waits, and both by id."""
        queue = await self._json("GET", "/queue")
        running, waiting = queue["queue_running"], queue["queue_pending"]
        return {p[1] for p in running}, {p[1] for p in waiting}, {p[1]: p for p in [*running, *waiting]}

    def _job_of(self, item: list) -> str | None:
        """The identity of the job behind an item of the queue, if it is of this batch."""
        extra = item[3] if len(item) > 3 and isinstance(item[3], dict) else {}
        return extra.get("svimo_queue") if extra.get("client_id") == self.client_id else None

    async def _json(self, method: str, path: str, **content) -> Any:
        async with self._request(method, path, **content) as reply:
            await self._good(reply)
            return await _read_json(reply)

    async def _good(self, reply: aiohttp.ClientResponse) -> None:
        if reply.status >= 400:
            text = (await reply.text(errors="replace"))[:200].strip()
            if reply.status == 404 and reply.url.path.endswith("/system_stats"):
                raise ServerLost(_no_comfyui(self.url, "404 Not Found"))
            if "html" in reply.content_type:
                text = ""
            raise ServerLost(f"{self.url} answers {reply.status} {reply.reason} {text}".strip())

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, *, seconds: float | None = PATIENCE, **content
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose every failure to get an answer is a :class:`ServerLost`."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_read=PATIENCE)
        loop = asyncio.get_running_loop()
        began, waiting = loop.time(), loop.call_later(SAY_WAIT, self._say_silent) if seconds else None
        try:
            async with self._session.request(method, self.url + path, timeout=timeout, **content) as reply:
                yield reply
            self._silent = self._silent and loop.time() - began > SAY_WAIT
        except asyncio.TimeoutError as error:
            silent = f"{self.url} took over {PATIENCE:.0f} s to answer"
            raise ServerLost(f"{silent}: it is busy or hangs, or this is not its address") from error
        except aiohttp.ClientError as error:
            raise ServerLost(f"{self.url} does not answer ({error})") from error
        finally:
            if waiting is not None:
                waiting.cancel()

    def _say_silent(self) -> None:
        if not self._silent:
            self._silent = True
            self._say(f"waiting for {self.url} to answer, for up to {PATIENCE:.0f} s")


def new_prompt_id() -> str:
    """An id for a prompt, in the form that every ComfyUI takes."""
    return str(uuid.uuid4())


async def _read_json(reply: aiohttp.ClientResponse) -> Any:
    body = await reply.read()
    try:
        return json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ServerLost(_no_comfyui(str(reply.url), f"expected JSON, got {body[:60]!r}")) from error


def _no_comfyui(url: str, reason: str) -> str:
    return f"{url} answers what no ComfyUI does: {reason}; is this the right address?"


def _are_definitions(content: Any) -> bool:
    def is_node(node: Any) -> bool:
        inputs = node.get("input") if isinstance(node, dict) else None
        return isinstance(inputs, dict) and all(
            isinstance(inputs.get(kind, {}), dict) for kind in ("required", "optional")
        )

    return isinstance(content, dict) and bool(content) and all(is_node(node) for node in content.values())


def _files_of(outputs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The files that nodes saved; what they only showed, where none saved any."""
    entries = [
        entry for node in outputs for value in node.values() if isinstance(value, list) for entry in value
    ]
    files = [
        entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str) and entry["filename"]
    ]
    saved = [file for file in files if file.get("type") == "output"] or files
    return list(
        {(file["filename"], file.get("subfolder"), file.get("type")): file for file in saved}.values()
    )


def _comes_again(exception_type: str) -> bool:
    """Whether an error would come again, by its type as ComfyUI says it: with its module, but for Python's own."""
    ours = exception_type.endswith(
        (f".{DamagedFile.__name__}", ".UnidentifiedImageError")
    )  # of Pillow: no image
    kind = DamagedFile if ours else getattr(builtins, exception_type, None)
    return isinstance(kind, type) and issubclass(kind, SAME_AGAIN)


def _describe_refusal(body: dict) -> str:
    error = body.get("error") or {"message": "part of the workflow is invalid"}
    if not isinstance(error, dict):
        error = {"message": str(error)}
    lines = [f"the server refuses it: {error.get('message', '')} {error.get('details', '')}".strip()]
    for node, entry in (body.get("node_errors") or {}).items():
        lines += [
            f"{entry['class_type']} (node {node}): {e['message']}: {e.get('details', '')}"
            for e in entry["errors"]
        ]
    return "; ".join(lines)
