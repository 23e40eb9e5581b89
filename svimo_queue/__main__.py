"""`python -m svimo_queue run JOBS --server URL`: run a table of jobs on ComfyUI servers; `check` only looks at it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from .jobs import read_jobs
from .outputs import SHEET, Outputs
from .run import Run, check, default_folder
from .server import ServerLost


def main(arguments: list[str] | None = None) -> int:
    """0 when every job is done, or sound; 1 with a message on stderr otherwise; 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_queue",
        description="Run a table of jobs on ComfyUI servers. The same command again goes on after any stop.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "run what is not done yet"),
        ("check", "say all that is wrong, and run nothing"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("jobs", type=Path, help=".csv or .jsonl; see docs/queue.md")
        command.add_argument(
            "--server",
            action="append",
            metavar="URL",
            help="of a ComfyUI, several times for several (http://127.0.0.1:8188)",
        )
    run = commands.choices["run"]
    run.add_argument("--out", type=Path, help="folder for the results (JOBS_outputs beside the job file)")
    run.add_argument("--tries", type=int, default=2, help="how often a job may begin (%(default)s)")
    run.add_argument(
        "--stall",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="a job without progress for so long has failed (%(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.command == "run" and (args.tries < 1 or args.stall <= 0):
        parser.error("--tries and --stall expect a number above zero")
    args.server = args.server or ["http://127.0.0.1:8188"]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return asyncio.run(_stoppable(_run(args) if args.command == "run" else _check(args)))
    except (OSError, ValueError, ServerLost) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        return 130


async def _run(args: argparse.Namespace) -> int:
    jobs = read_jobs(args.jobs)
    with Outputs(args.out or default_folder(args.jobs), jobs) as outputs:
        run = Run(jobs, outputs, args.server, title=args.jobs.stem, tries=args.tries, stall=args.stall)
        done = len(jobs) - run.unsettled
        sys.stderr.write(f"{len(jobs)} jobs, {done} done already, {run.unsettled} to run\n")
        complete = await run.go()
        sys.stdout.write(f"{outputs.folder / SHEET}\n")
        if not complete:
            sys.stderr.write(f"{run.failed} jobs failed, {run.unsettled} did not run: see table.csv\n")
    return 0 if complete else 1


async def _check(args: argparse.Namespace) -> int:
    jobs = read_jobs(args.jobs)
    await check(jobs, args.server)
    sys.stdout.write(f"{len(jobs)} jobs, nothing wrong\n")
    return 0


async def _stoppable(work: Coroutine[Any, Any, int]) -> int:
    """Await `work`, which the signals to end cancel, so that it can clean up behind itself."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows: asyncio cancels on Ctrl-C by itself
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
    return await task


if __name__ == "__main__":
    sys.exit(main())
