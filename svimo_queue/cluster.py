"""The same jobs on Ray: workers are its actors, each with one model, and take job after job.

Where workers run, that a dead one is started anew, and that a worker on a lost machine begins on another, is Ray's. The
job that it had goes back to the others. A worker saves nothing: the files come back through Ray, and the run writes
them, so that only the checkpoint must be readable on all machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from .batch import Batch, JobsRefused, together
from .definitions import make_task
from .jobs import InputFile, Job, JobFailed, JobStalled, Problem, say_problems
from .outputs import Outputs
from .workflow import problems_of

logger = logging.getLogger(__name__)

LOCAL = "local"
"""The address of a Ray on this machine, which begins and ends with the run."""
LOOK = 0.5
"""Seconds between two looks at how far a worker is."""
SAY_WAIT = 15.0
"""Seconds between two words on workers that still load."""
GONE = RayActorError, OutOfMemoryError, ObjectLostError
"""How Ray says that a worker is gone: dead, killed for its memory, or with its machine and what it made."""
PACKAGES = [str(Path(__file__).resolve().parents[1] / name) for name in ("svimo_core", "svimo_queue")]
"""What workers on other machines get from here."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the workers are, and what each has.

    Raises:
        ValueError: shares that no worker can have.
    """

    address: str
    """As `ray.init` takes it, or "local"."""
    checkpoint: str
    """Path of the model, on the machines of the workers."""
    workers: int | None = None
    """None: as many as the cluster has room for."""
    gpus: float = 0.0
    """Share of a GPU for each worker; 0 runs on the CPU."""
    cpus: float = 1.0
    """Cores for each worker."""

    def __post_init__(self):
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"--gpus expects a share up to 1, or a whole number, got {self.gpus:g}")
        if self.cpus <= 0 or (self.workers is not None and self.workers < 1):
            raise ValueError("--cpus and --workers expect a number above zero")

    @property
    def file_name(self) -> str:
        """Of the checkpoint, as workflows name it."""
        return Path(self.checkpoint).name

    def connect(self) -> None:
        """Start Ray here, or connect to where it runs.

        Raises:
            OSError: nothing answers at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
        options: dict[str, Any] = {"runtime_env": {"py_modules": PACKAGES}}
        if self.address == LOCAL:
            options = {"include_dashboard": False}
            os.environ.setdefault("RAY_worker_niceness", "0")  # as fast as any program of this machine
        try:
            ray.init(self.address, log_to_driver=False, logging_level="warning", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OSError(
                f"no Ray at {self.address} that lets us in ({error}): expected the address of one, or local; where it "
                "asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            ) from error

    def room(self) -> int:
        """How many workers the cluster can hold.

        Raises:
            OSError: none.
        """
        there = ray.cluster_resources()
        needed = {name: share for name, share in (("GPU", self.gpus), ("CPU", self.cpus)) if share}
        room = min(int(there.get(name, 0) / share + 1e-6) for name, share in needed.items())
        if room < 1:
            wanted, found = (
                " and ".join(f"{values.get(name, 0):g} {name}" for name in needed)
                for values in (needed, there)
            )
            raise OSError(f"a worker needs {wanted}, and the Ray at {self.address} has {found} in all")
        return room

    def start_worker(self) -> Any:
        """A worker as Ray's actor, which begins to load its model."""
        device = "cuda" if self.gpus else "cpu"
        kind = ray.remote(Worker).options(
            num_gpus=self.gpus,
            num_cpus=self.cpus,
            max_restarts=-1,
            max_concurrency=2,  # one for the job, one to ask how far it is
        )
        return kind.remote(self.checkpoint, device)


class Worker:
    """A process with the model in it."""

    def __init__(self, checkpoint: str, device: str):
        from .engine import Engine  # the run itself needs no torch

        self._engine = Engine(checkpoint, device)
        self._device = device
        self._progress: tuple[str, float, float] = ("", 0, 0)

    @ray.method(max_task_retries=-1)
    def about(self) -> tuple[str, dict[str, str]]:
        """Where it runs, and versions of what runs it, as soon as it is ready."""
        import torch

        versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "diffusers")}
        device = torch.cuda.get_device_name() if self._device == "cuda" else self._device
        where = f"ray {platform.node()} process {os.getpid()}"
        return where, versions | {"python": platform.python_version(), "device": device}

    def progress(self) -> tuple[str, float, float]:
        """Node at work, steps done, and steps to do."""
        return self._progress

    def run(self, graph: dict[str, dict[str, Any]], images: dict[str, bytes]) -> list[tuple[str, bytes]]:
        """See :meth:`svimo_queue.engine.Engine.run`."""

        def remember(*progress: Any) -> None:
            self._progress = progress

        try:
            return self._engine.run(graph, images, remember)
        except JobFailed:
            import torch

            torch.cuda.empty_cache()  # the next try begins with all the memory there is; nothing without a GPU
            raise


def check(jobs: Sequence[Job], cluster: Cluster, problems: Sequence[Problem] = ()) -> None:
    """Hold all jobs against what runs without ComfyUI; needs no Ray to be there.

    Args:
        problems: what is known to be wrong before, said with the rest.

    Raises:
        JobsRefused: something is wrong with a job.
    """
    found = [problem for job in jobs for problem in problems_of(job, make_task(job, cluster.file_name))]
    if said := say_problems([*problems, *found]):
        raise JobsRefused(said)


class RayRun(Batch):
    """One run of a batch on Ray; see :class:`Batch`."""

    def __init__(
        self, jobs: Sequence[Job], outputs: Outputs, cluster: Cluster, *, title: str, tries: int, stall: float
    ):
        super().__init__(jobs, outputs, title=title, tries=tries, stall=stall)
        self.cluster = cluster
        self._ready = False  # any worker

    async def go(self) -> bool:
        """Run what is not done yet; whether every job is done at the end.

        Raises:
            JobsRefused: something is wrong with a job; nothing has run.
            OSError: no Ray there, no room in it, or results cannot be written here.
        """
        check(self.pending, self.cluster)
        names: list[str] = []
        try:
            if self.unsettled:
                logger.info("starting Ray" if self.cluster.address == LOCAL else "connecting to Ray")
                self.cluster.connect()
                room = self.cluster.room()
                count = min(self.cluster.workers or room, self.unsettled)
                names = [f"worker {number}" for number in range(1, count + 1)]
            with self.shown(names):
                waiting = asyncio.ensure_future(self._say_waiting(len(names)))
                try:
                    await together(self._serve(name) for name in names)
                finally:
                    waiting.cancel()
        finally:
            ray.shutdown()  # ends the workers, whatever they do
        return not (self.failed or self.unsettled)

    async def _say_waiting(self, workers: int) -> None:
        """Say how long it takes until the first worker is ready."""
        began = asyncio.get_running_loop().time()
        while workers and not self._ready:
            await asyncio.sleep(SAY_WAIT)
            if not self._ready:
                seconds = asyncio.get_running_loop().time() - began
                self.say(f"waiting for workers to load the checkpoint ({seconds:.0f} s)")

    async def _serve(self, name: str) -> None:
        """Give one worker job after job, through all its deaths."""
        worker = self.cluster.start_worker()
        try:
            # Asked before each job: a worker that died is another process when it answers.
            while about := await self._unless_settled(worker.about.remote()):
                self._ready = True
                if (job := await self.next_job()) is None:
                    return
                await self._run(name, worker, *about, job)
        except ActorDiedError as error:  # for good: it cannot be made
            reason = str(error).strip().splitlines()[-1]
            self.say(f"{name} cannot start and is left out: {reason}")

    async def _unless_settled(self, reference: Any) -> Any:
        """What Ray gives, or None where the others did everything before: a worker may wait for room without end."""
        made = asyncio.ensure_future(_awaited(reference))
        settled = asyncio.ensure_future(self.all_settled())
        try:
            await asyncio.wait({made, settled}, return_when=asyncio.FIRST_COMPLETED)
            return await made if made.done() else None
        finally:
            made.cancel()
            settled.cancel()

    async def _run(self, name: str, worker: Any, where: str, versions: dict[str, str], job: Job) -> None:
        """Run a job and keep what it made."""
        self.begun[job.identity] += 1
        started = datetime.now(timezone.utc)
        try:
            task = make_task(job, self.cluster.file_name)
            images = {place.node: _read(file) for place, file in task.uploads.items()}
            made = await self._follow(name, worker, job, worker.run.remote(task.graph, images))
            folder = self.outputs.begin(job)
            for file, content in made:
                with folder.file(file) as path:
                    path.write_bytes(content)
            seconds = (datetime.now(timezone.utc) - started).total_seconds()
            finish = dict(started=started, seconds=seconds, where=where, versions=versions)
            await asyncio.to_thread(folder.finish, **finish, tries=self.begun[job.identity])
            await self.settle(f"{job.title}: done in {seconds:.1f} s")
        except RayTaskError as error:
            again = getattr(error.cause, "again", True)
            await self.job_failed(job, where, JobFailed(str(error.cause), details=str(error), again=again))
        except GONE:
            await self.job_failed(job, where, JobFailed(f"{name} died as it ran"))
        except JobStalled as error:
            ray.kill(worker, no_restart=False)
            await self.job_failed(job, where, error)
        except JobFailed as error:
            await self.job_failed(job, where, error)

    async def _follow(self, name: str, worker: Any, job: Job, reference: Any) -> list[tuple[str, bytes]]:
        """Wait for a job's files and show how far it is.

        Raises:
            JobStalled: no progress for too long.
        """
        clock, show = asyncio.get_running_loop().time, self.shower(name, job)
        made = asyncio.ensure_future(_awaited(reference))
        last, moved = None, clock()
        try:
            while not (await asyncio.wait({made}, timeout=LOOK))[0]:
                with contextlib.suppress(asyncio.TimeoutError, *GONE):  # of its end the job itself tells
                    progress = await asyncio.wait_for(_awaited(worker.progress.remote()), self.stall)
                    if progress != last:
                        last, moved = progress, clock()
                        show(*progress)
                if clock() - moved > self.stall:
                    raise JobStalled(f"no progress for {self.stall:.0f} s in {name}")
            return await made
        finally:
            made.cancel()


async def _awaited(reference: Any) -> Any:
    return await reference


def _read(file: InputFile) -> bytes:
    """The content of an input file, if it still is what the job says.

    Raises:
        JobFailed: it is not.
    """
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise JobFailed(f"{file.text} cannot be read: {error.strerror or error}", again=False) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        changed = f"{file.text} changed since the run began; run again for what it is now"
        raise JobFailed(changed, again=False)
    return content
