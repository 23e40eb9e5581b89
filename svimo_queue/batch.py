"""A batch at work, whoever runs its jobs: which of them wait, which failed and may try again, and what is shown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .display import Display
from .jobs import Job, JobFailed
from .outputs import OF_ALL, SHEET, TABLE, Outputs

logger = logging.getLogger(__name__)

TABLE_EVERY, SHEET_EVERY = 5.0, 60.0
"""Seconds between two tables, and two contact sheets, while jobs run; both take longer the more jobs there are."""


class JobsRefused(ValueError):
    """Jobs that cannot run; the message names every problem."""


class Batch:
    """The jobs of one run and how they stand; an engine takes them and says what came of them.

    Args:
        jobs: all of the batch; finished ones are left out.
        outputs: its folder, entered.
        title: of the contact sheet.
        tries: how often a job may begin.
        stall: seconds without progress after which a job counts as failed.

    Attributes:
        pending: jobs that nobody runs.
        unsettled: how many are neither done nor failed.
        failed: how many failed for good.
        begun: how often each job was begun, by identity.
    """

    def __init__(self, jobs: Sequence[Job], outputs: Outputs, *, title: str, tries: int, stall: float):
        self.jobs = jobs
        self.outputs = outputs
        self.title = title
        self.tries = tries
        self.stall = stall
        self.pending = [job for job in jobs if not outputs.is_done(job)]
        self.unsettled = len(self.pending)
        self.failed = 0
        self.begun: Counter[str] = Counter()
        self._order = {job.identity: place for place, job in enumerate(jobs)}
        self._changed = asyncio.Condition()
        self._display: Display | None = None
        self._unwritten: set[str] = set()
        self._table_at = self._sheet_at = time.monotonic()

    @contextmanager
    def shown(self, names: list[str]) -> Iterator[None]:
        """Show the run while the block lasts, with a bar for each who works at it; the table and the sheet follow."""
        try:
            with Display(self.unsettled, names) as self._display:
                yield
        finally:
            self._display = None
            self._write_table()
            self._write_sheet()

    async def next_job(self, cost: Callable[[Job], tuple] = lambda job: ()) -> Job | None:
        """The next job, when there is one: the least begun, then the cheapest, then the first; None when all are
        settled."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.pending or not self.unsettled)
            if not self.unsettled:
                return None
            job = min(
                self.pending,
                key=lambda job: (self.begun[job.identity], *cost(job), self._order[job.identity]),
            )
            self.pending.remove(job)
            return job

    async def job_failed(self, job: Job, where: str, error: JobFailed) -> None:
        """A job failed: it tries again after the others, unless that was its last try or another would fail, too."""
        begun = self.begun[job.identity]
        if error.again and begun < self.tries:
            self.say(f"{job.title}: {error}; tried again later")
            await self.give_back(job)
            return
        self.failed += 1
        self.outputs.fail(job, str(error), details=error.details, where=where, tries=begun)
        await self.settle(f"{job.title}: FAILED: {error}")

    async def settle(self, text: str) -> None:
        """A job is done or has failed for good; say so."""
        self.unsettled -= 1
        self.say(text)
        self._display.settled()
        if time.monotonic() - self._table_at > TABLE_EVERY:
            self._table_at = time.monotonic()
            await asyncio.to_thread(self._write_table)
        if time.monotonic() - self._sheet_at > SHEET_EVERY:
            self._sheet_at = time.monotonic()
            await asyncio.to_thread(self._write_sheet)
        async with self._changed:
            self._changed.notify_all()

    async def give_back(self, job: Job) -> None:
        """A job that was taken waits again."""
        async with self._changed:
            self.pending.append(job)
            self._changed.notify_all()

    async def all_settled(self) -> None:
        """Wait until every job is."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.unsettled)

    async def before_all_settled(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await work that is of use only while jobs are left; whether it ended first, else it is cancelled."""
        working, settled = asyncio.ensure_future(work), asyncio.ensure_future(self.all_settled())
        try:
            await asyncio.wait([working, settled], return_when=asyncio.FIRST_COMPLETED)
            ended = working.done()
            if ended:
                await working  # its error, if it has one
            return ended
        finally:
            working.cancel()
            settled.cancel()
            await asyncio.gather(working, settled, return_exceptions=True)

    def shower(self, name: str, job: Job) -> Callable[[str, float, float], None]:
        """What shows how far someone is with a job: called with a node's id, steps done, and steps to do."""

        def show(node: str, value: float, maximum: float) -> None:
            kind = job.graph.get(node, {}).get("class_type", "")
            self._display.step(name, f"{job.name}  {kind}", value, maximum)

        return show

    def _write_table(self) -> None:
        with self._for_people(TABLE):
            self.outputs.write_table()

    def _write_sheet(self) -> None:
        with self._for_people(SHEET):
            self.outputs.write_sheet(self.title)

    @contextmanager
    def _for_people(self, name: str) -> Iterator[None]:
        """What only people read may wait: a spreadsheet that has the table open keeps it on Windows."""
        try:
            yield
        except OSError as error:
            if error.errno in OF_ALL:
                raise
            if name not in self._unwritten:
                self.say(f"{name} cannot be written now ({error.strerror or error}): is it open? Jobs go on")
            self._unwritten.add(name)
        else:
            self._unwritten.discard(name)

    def say(self, text: str) -> None:
        """A line that stays, also before and after the run is shown."""
        if self._display:
            self._display.say(text)
        else:
            logger.info(text)


async def together(coroutines: Iterable) -> None:
    """Await all; when one fails or this is cancelled, cancel the others and wait until they have ended."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
