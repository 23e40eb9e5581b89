"""`python -m svimo_queue run JOBS --server URL`: run a table of jobs on ComfyUI servers; `check` only looks at it.

With `--ray ADDRESS` in place of servers the jobs run without ComfyUI, as actors of Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from .display import say_count
from .jobs import Job, Problem, read_what_can_be
from .outputs import SHEET, Outputs, default_folder
from .run import Run, check
from .server import ServerLost


def main(arguments: list[str] | None = None) -> int:
    """0 when every job is done, or sound; 1 with a message on stderr otherwise; 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_queue",
        description="Run a table of jobs on ComfyUI servers, or on Ray without ComfyUI. "
        "The same command again goes on after any stop.",
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
            type=_address,
            action="append",
            metavar="URL",
            help="of a ComfyUI, several times for several (http://127.0.0.1:8188)",
        )
        command.add_argument(
            "--ray",
            metavar="ADDRESS",
            help="of a Ray cluster, or local: run the jobs there, without ComfyUI",
        )
        command.add_argument("--checkpoint", help="with --ray: the model file, where the workers find it")
    run = commands.choices["run"]
    run.add_argument("--workers", type=int, help="with --ray: how many (as many as there is room for)")
    run.add_argument(
        "--gpus", type=float, default=0, help="with --ray: for each worker, 0.25 for a quarter (%(default)s)"
    )
    run.add_argument("--cpus", type=float, default=1, help="with --ray: cores for each worker (%(default)s)")
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
    if args.ray and (args.server or not args.checkpoint):
        parser.error("--ray expects --checkpoint, and no --server")
    if not args.ray and (
        args.checkpoint or (args.command == "run" and (args.workers or args.gpus or args.cpus != 1))
    ):
        parser.error("--checkpoint, --workers, --gpus and --cpus are for --ray")
    args.server = args.server or ["http://127.0.0.1:8188"]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        jobs, problems = read_what_can_be(args.jobs)
        runs = args.command == "run" and not problems
        return asyncio.run(_stoppable(_run(args, jobs) if runs else _check(args, jobs, problems)))
    except (OSError, ValueError, ServerLost) as error:
        bare = isinstance(error, OSError) and error.errno is not None  # not a sentence of ours
        advice = ": mend that, and the same command goes on from here" if bare else ""
        sys.stderr.write(f"{error}{advice}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        return 130


def _address(text: str) -> str:
    """The address of a server, if there can be one."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number up to 65535, or half an IPv6 address
        sound = False
    if not sound or any(sign.isspace() for sign in text):
        raise argparse.ArgumentTypeError(f"expected an address such as http://127.0.0.1:8188, got {text!r}")
    return text


async def _run(args: argparse.Namespace, jobs: Sequence[Job]) -> int:
    with Outputs(args.out or default_folder(args.jobs), jobs) as outputs:
        settings = dict(title=args.jobs.stem, tries=args.tries, stall=args.stall)
        if args.ray:
            run = _ray_engine().RayRun(jobs, outputs, _cluster(args), **settings)
        else:
            run = Run(jobs, outputs, args.server, **settings)
        done = len(jobs) - run.unsettled
        sys.stderr.write(f"{say_count(len(jobs))}, {done} done already, {run.unsettled} to run\n")
        complete = await run.go()
        sys.stdout.write(f"{outputs.folder / SHEET}\n")
        if not complete:
            sys.stderr.write(f"{say_count(run.failed)} failed, {run.unsettled} did not run: see table.csv\n")
    return 0 if complete else 1


async def _check(args: argparse.Namespace, jobs: Sequence[Job], problems: Sequence[Problem]) -> int:
    if args.ray:
        _ray_engine().check(jobs, _cluster(args), problems)
    else:
        await check(jobs, args.server, problems)
    sys.stdout.write(f"{say_count(len(jobs))}, nothing wrong\n")
    return 0


def _ray_engine() -> ModuleType:
    """The engine on Ray, which only those have who want it.

    Raises:
        OSError: Ray is not installed.
    """
    try:
        from . import cluster
    except ImportError as error:
        raise OSError(f'--ray needs Ray ({error}): pip install "ray>=2.40", the extra queue-ray') from error
    return cluster


def _cluster(args: argparse.Namespace) -> Any:
    path = Path(args.checkpoint)
    checkpoint = (
        str(path.resolve()) if path.is_file() else args.checkpoint
    )  # it may be on other machines only
    shares = {name: getattr(args, name) for name in ("workers", "gpus", "cpus") if hasattr(args, name)}
    return _ray_engine().Cluster(address=args.ray, checkpoint=checkpoint, **shares)


async def _stoppable(work: Coroutine[Any, Any, int]) -> int:
    """Await `work`, which the signals to end cancel, so that it can clean up behind itself."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            sys.stderr.write("Ending at once, without cleaning up\n")
        else:
            sys.stderr.write(
                "Stopping: taking back what waits on the servers, which may take a minute; "
                "Ctrl-C again ends at once, without that\n"
            )
        stopping = True
        task.cancel()

    with contextlib.suppress(NotImplementedError):  # Windows: asyncio cancels on Ctrl-C by itself
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    return await task


if __name__ == "__main__":
    sys.exit(main())
