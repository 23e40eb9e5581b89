"""The scheduler: every server takes the next job when it is free, until each job is done or has failed.

A job that failed, or was lost with its server, goes back to the others, as often as is allowed. A lost server is
asked again, after pauses that grow; what it still has of ours when it comes back is taken up, or stopped where another
server has it by now. A run that begins anew finds what an earlier one left in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import uuid
from collections.abc import Sequence

from .batch import Batch, JobsRefused, together
from .jobs import Job, JobFailed, JobStalled, Problem, say_problems
from .outputs import Outputs
from .server import Server, ServerFull, ServerLost, ServerStuck, new_prompt_id
from .workflow import make_prompt, problems_of

logger = logging.getLogger(__name__)

MANY = 10_000
"""Jobs whose check takes seconds."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds until a lost server is asked again, and how far they grow."""
HEAD_START = 10.0
"""Seconds for servers to answer after which those that have answered begin."""


async def check(jobs: Sequence[Job], urls: Sequence[str], problems: Sequence[Problem] = ()) -> None:
    """Hold all jobs against the definitions of all servers.

    Args:
        problems: what is known to be wrong before, said with the rest.

    Raises:
        JobsRefused: something is wrong with a job.
        ServerLost: a server does not answer, and nothing else is wrong.
    """
    async with contextlib.AsyncExitStack() as stack:
        servers = [Server(url, batch=new_prompt_id()) for url in dict.fromkeys(urls)]
        for server in servers:
            await stack.enter_async_context(server)
        lost = await _prepare(servers)
    said = say_problems([*problems, *_problems([s for s in servers if s.definitions], jobs)])
    if said:
        raise JobsRefused("\n".join([said, *lost.values()]))
    if lost:
        raise ServerLost("\n".join(lost.values()))


async def _prepare(servers: Sequence[Server], head_start: float | None = None) -> dict[str, str]:
    """Ask all servers what they are; address and reason of those that are lost.

    Args:
        head_start: seconds after which one that has answered is enough, and the others are left for later.
    """
    asking = {asyncio.ensure_future(server.prepare()): server.url for server in servers}
    try:
        _, waiting = await asyncio.wait(asking, timeout=head_start)
        while waiting and not any(server.definitions for server in servers):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in asking:
            task.cancel()
        ends = await asyncio.gather(*asking, return_exceptions=True)
    for error in ends:
        if isinstance(error, Exception) and not isinstance(error, ServerLost):
            raise error
    lost = zip(asking.values(), ends, strict=True)
    return {url: str(error) for url, error in lost if isinstance(error, ServerLost)}


def _problems(servers: Sequence[Server], jobs: Sequence[Job]) -> list[Problem]:
    """What is wrong with jobs on some server, and on which where it is not so on all."""
    found: dict[Problem, set[str]] = {}
    if len(jobs) * len(servers) > MANY:
        logger.info("checking %d jobs on %d server%s", len(jobs), len(servers), "s" * (len(servers) > 1))
    for server in servers:
        for job in jobs:
            for problem in problems_of(job, make_prompt(job, server.definitions)):
                found.setdefault(problem, set()).add(server.url)
    return [
        problem
        if len(urls) == len(servers)
        else problem._replace(text=f"{problem.text} (on {', '.join(sorted(urls))})")
        for problem, urls in found.items()
    ]


class Run(Batch):
    """One run of a batch on servers; see :class:`Batch`.

    Args:
        urls: of the servers.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        outputs: Outputs,
        urls: Sequence[str],
        *,
        title: str,
        tries: int,
        stall: float,
    ):
        super().__init__(jobs, outputs, title=title, tries=tries, stall=stall)
        self._abandoned: set[str] = set()
        self._models: dict[str, frozenset[str]] = {}
        self._loaded: dict[str, frozenset[str]] = {}
        # Prompts are ours by the folder they are for: a run that begins anew has the same.
        batch = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{platform.node()} {outputs.folder.as_uri()}"))
        self.servers = [Server(url, batch, self.say) for url in dict.fromkeys(urls)]
        self._lost: dict[str, str] = {}
        self._with: dict[str, Job] = {}  # by server, whose prompt it has as far as we know

    async def go(self) -> bool:
        """Run what is not done yet; whether every job is done at the end.

        Raises:
            JobsRefused: something is wrong with a job; nothing has run.
            OSError: results cannot be written here.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self.unsettled:
                for server in self.servers:
                    await stack.enter_async_context(server)
                await self._check_before()
            stack.enter_context(self.shown([server.url for server in self.servers]))
            try:
                await together(self._serve(server) for server in self.servers)
            except (asyncio.CancelledError, OSError):
                for url, job in self._with.items():
                    self.say(
                        f"{url} may still run {job.title}, which could not be taken back: stop it there; "
                        "the same command finds it otherwise"
                    )
                raise
        return not (self.failed or self.unsettled)

    async def _check_before(self) -> None:
        """Refuse what any server that answers cannot run."""
        self._lost = await _prepare(self.servers, HEAD_START)
        for reason in self._lost.values():
            self.say(f"{reason}; asked again until it can go on")
        answering = [server for server in self.servers if server.definitions]
        if problems := _problems(answering, self.pending):
            raise JobsRefused(say_problems(problems))

    async def _serve(self, server: Server) -> None:
        """Give one server job after job, through all that may happen to it."""
        pause, said, away = FIRST_PAUSE, self._lost.get(server.url, ""), server.url in self._lost
        while self.unsettled:
            try:
                if not server.definitions:
                    if not await self.before_all_settled(server.prepare()):
                        return
                    todo = [job for job in self.jobs if not self.outputs.is_done(job)]
                    if problems := _problems([server], todo):
                        said = say_problems(problems)
                        self.say(f"{server.url} cannot run these jobs and is left out:\n{said}")
                        return
                    if away:
                        self.say(f"{server.url} answers again")
                        said, away = "", False
                await self._take_up(server)
                self._with.pop(server.url, None)  # it has nothing of ours now
                while job := await self._next(server):
                    await self._run(server, job)
                    pause, said = FIRST_PAUSE, ""
            except ServerLost as error:
                server.definitions = {}  # it may come back as another
                away = not isinstance(error, ServerStuck)
                if str(error) != said:
                    said = str(error)
                    self.say(f"{said}; asked again until it can go on" if self.unsettled else said)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.all_settled(), pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _take_up(self, server: Server) -> None:
        """Follow what the server has of ours to its end, or stop it where it is no longer wanted."""
        for found in await server.ours():
            job = next((job for job in self.pending if job.identity == found.identity), None)
            if job and found.prompt_id not in self._abandoned:
                self.pending.remove(job)
                self.begun[job.identity] = max(self.begun[job.identity], 1)
                self.say(f"{job.title}: found on {server.url}")
                await self._run(server, job, found.prompt_id)
            elif not found.ended:
                await self._stop(server, found.prompt_id)

    async def _next(self, server: Server) -> Job | None:
        """The next job for a server, when there is one; None when all are settled."""

        def cost(job: Job) -> tuple:  # what needs no loading, here or elsewhere
            others = {models for url, models in self._loaded.items() if url != server.url}
            models = self._models_of(job, server)
            return models != self._loaded.get(server.url), models in others

        job = await self.next_job(cost)
        if job is not None:
            self._loaded[server.url] = self._models_of(job, server)
        return job

    def _models_of(self, job: Job, server: Server) -> frozenset[str]:
        if job.identity not in self._models:
            self._models[job.identity] = make_prompt(job, server.definitions).models
        return self._models[job.identity]

    async def _run(self, server: Server, job: Job, prompt_id: str | None = None) -> None:
        """Run a job, or follow one that is queued already, and keep what it made."""
        give_back = False
        try:
            if prompt_id is None:
                if self.begun[job.identity]:
                    await server.free()
                prompt_id = await self._queue(server, job)
            show = self.shower(server.url, job)
            self._with[server.url] = job
            ended = await server.follow(prompt_id, stall=self.stall, on_progress=show)
            self._with.pop(server.url)
            if not ended.files:
                raise JobFailed(
                    "it ended without a file: the workflow needs a node that saves what it makes", again=False
                )
            folder = self.outputs.begin(job)
            for file in ended.files:
                with folder.file(file["filename"]) as path:
                    await server.download(file, path)
            await asyncio.to_thread(
                folder.finish,
                started=ended.started,
                seconds=ended.seconds,
                where=server.url,
                versions=server.versions,
                tries=self.begun[job.identity],
            )
            await self.settle(f"{job.title}: done in {ended.seconds:.1f} s")
        except JobFailed as error:
            await self.job_failed(job, server.url, error)
            if isinstance(error, JobStalled):
                await self._stop(server, prompt_id)
            self._with.pop(server.url, None)
        except ServerFull:
            self._with.pop(server.url, None)
            self.begun[job.identity] -= 1
            give_back = True
            raise
        except ServerLost as error:
            if self.begun[job.identity] >= self.tries:
                lost = JobFailed(f"the server was lost each time that it ran: {error}")
                await self.job_failed(job, server.url, lost)
            else:
                give_back = True
            raise
        except asyncio.CancelledError:
            if prompt_id is not None:
                await self._take_back(server, prompt_id)
            raise
        finally:
            if give_back:
                await self.give_back(job)

    async def _queue(self, server: Server, job: Job) -> str:
        prompt = make_prompt(job, server.definitions)
        if prompt.problems:
            raise JobFailed("; ".join(prompt.problems), again=False)
        for place, file in prompt.uploads.items():
            prompt.graph[place.node]["inputs"][place.input] = await server.upload(file)
        self.begun[job.identity] += 1
        prompt_id = new_prompt_id()
        self._with[server.url] = job
        try:
            await server.queue(prompt.graph, job, prompt_id)
        except asyncio.CancelledError:  # it may have arrived
            await self._take_back(server, prompt_id)
            raise
        return prompt_id

    async def _take_back(self, server: Server, prompt_id: str) -> None:
        """Stop a prompt as far as its server lets us, because the run is stopped."""
        with contextlib.suppress(ServerLost):
            if await server.cancel(prompt_id):
                self._with.pop(server.url, None)

    async def _stop(self, server: Server, prompt_id: str) -> None:
        """Stop a prompt that nobody waits for.

        Raises:
            ServerStuck: it does not stop.
        """
        self._abandoned.add(prompt_id)
        if not await server.cancel(prompt_id):
            raise ServerStuck(f"{server.url} hangs in a job and does not stop it: restart it")
