"""`make soak`: a thousand prompts of every sort through a real ComfyUI, and what they leave behind.

Sound ones, some of them again, hostile ones, cancelled ones; and servers that are stopped, or killed in the middle.
Each prompt must come to the end that its sort has, with one clear sentence where that is an error; after the first
fifty of each server, memory in use, files and threads must stay. The table goes to `output/soak/report.md`, and beside
it what the server held after each prompt (`prompts.csv`) and what it could not do without (`weighed.csv`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests

from dev.comfy import ROOT, ComfyClient, ComfyError, ComfyServer, Usage, WorkflowRefused, api_workflow
from tests.helpers.damage import damage

OUTPUT = ROOT / "output" / "soak"
WARM_UP, WINDOW = 50, 20
"""Prompts of a server before its memory counts, and how many make one measurement (the median)."""
FORGET = 10
"""Prompts between two times that ComfyUI's history is cleared, so that what it keeps by design does not count."""
WEIGHINGS, TRIES = 4, 3
"""Of a server's memory in use, evenly from the end of the first measurement to the end of its prompts, and of which the
least counts each time: what is still to be freed by another thread is not needed."""
MOST_GROWTH = 0.01
LONGEST = 600
"""Characters of an error that is still one sentence."""
MODEL, MOTION = "damaged.safetensors", "damaged.npz"

FINE, WRONG, REFUSED = "success", "error", "refused"
INTERRUPTED, DELETED = "interrupted", "deleted"
SORTS = {
    "changed seed": (6, {FINE}),
    "the shipped model's own size": (1, {FINE}),
    "core's sampler": (1, {FINE}),
    "a given motion": (2, {FINE}),
    "a motion in other forms": (1, {FINE}),
    "the same once more": (3, {FINE}),
    "a value that is out of range": (1, {REFUSED}),
    "a node that does not exist": (1, {REFUSED}),
    "a link of another type": (1, {REFUSED}),
    "a clip that no model can make": (1, {WRONG}),
    "an image with NaN": (1, {WRONG}),
    "a damaged checkpoint": (1, {FINE, WRONG}),
    "a damaged motion": (1, {FINE, WRONG}),
    "cancelled while running": (1, {INTERRUPTED}),
    "deleted while waiting": (1, {DELETED}),
}
"""How many of each sort there are in a round, and how one may end: not all damage makes a file unreadable."""


class Prompts:
    """Makes prompts of every sort, in a seeded order."""

    def __init__(self, base: Path, seed: int = 0):
        self.base = base
        self.rng = np.random.default_rng(seed)
        self.seed = 0
        self.last = self.small("image_to_video_and_motion")

    def sorts(self) -> Iterator[str]:
        """Sorts without end, each round in an order of its own."""
        round_ = [sort for sort, (count, _) in SORTS.items() for _ in range(count)]
        while True:
            yield from self.rng.permutation(round_).tolist()

    def make(self, sort: str) -> dict:
        """A workflow of one sort."""
        if sort == "the same once more":
            return self.last
        workflow = self.small(
            {
                "core's sampler": "image_to_video_and_motion_with_core_sampler",
                "a given motion": "motion_to_video",
                "a damaged motion": "motion_to_video",
                "a motion in other forms": "retarget_and_export",
            }.get(sort, "image_to_video_and_motion")
        )
        nodes = {content["class_type"]: content["inputs"] for content in workflow.values()}
        if sort == "the shipped model's own size":
            nodes["SViMoImageEncode"].update(width=0, height=0)
        elif sort == "a value that is out of range":
            nodes["SViMoSampler"]["steps"] = int(self.rng.choice([-1, 0, 10**9]))
        elif sort == "a node that does not exist":
            workflow["extra"] = {"class_type": "NoSuchNode", "inputs": {}}
            nodes["SViMoFeedbackLoop"]["model"] = ["extra", 0]
        elif sort == "a link of another type":
            nodes["SViMoSampler"]["model"] = nodes["SViMoImageEncode"]["image"]
        elif sort == "a clip that no model can make":
            nodes["SViMoImageEncode"]["width"] = 49
        elif sort == "an image with NaN":
            workflow["broken"] = {
                "class_type": "TestBrokenImage",
                "inputs": {"batch": 1, "variant": self.seed},
            }
            nodes["SViMoImageEncode"]["image"] = ["broken", 0]
        elif sort == "a damaged checkpoint":
            sound = ROOT / "assets" / "models" / "svimo-tiny.safetensors"
            self.damaged(self.base / "models" / "svimo" / MODEL, sound)
            nodes["SViMoCheckpointLoader"]["ckpt_name"] = MODEL
        elif sort == "a damaged motion":
            self.damaged(self.base / "input" / MOTION, ROOT / "assets" / "motions" / "stir_cup.npz")
            nodes["SViMoLoadMotion"]["motion"] = MOTION
        elif sort == "cancelled while running":
            nodes["SViMoSampler"]["steps"] = 500
        elif SORTS[sort][1] == {FINE}:
            self.last = workflow
        return workflow

    def small(self, name: str) -> dict:
        """One of our workflows with a seed of its own, and few steps of few pixels where it samples."""
        self.seed += 1
        workflow = api_workflow(name)
        for content in workflow.values():
            inputs = content["inputs"]
            for key, value in {"seed": self.seed, "noise_seed": self.seed, "steps": 2}.items():
                if isinstance(inputs.get(key), int):
                    inputs[key] = value
            if content["class_type"] == "SViMoImageEncode":
                inputs.update(width=48, height=32)
            elif content["class_type"] == "SViMoRigMotion":
                inputs["smoothness"] = 1 + self.seed / 1e6  # so that there is work where nothing is sampled
        return workflow

    def damaged(self, path: Path, sound: Path) -> None:
        """A new file in place of the one before, as a program that was stopped or a bad disk would leave it."""
        beside = path.with_name("beside")
        beside.write_bytes(damage(self.rng, sound.name, sound.read_bytes()))
        beside.replace(path)


class Weighed(NamedTuple):
    """What a server holds after the same prompt each time, with garbage collected and free memory given back."""

    server: int
    prompts: int
    memory: int
    """Bytes of main memory (resident set)."""
    heap: int
    """Bytes of the C heap in use."""
    free: int
    """Bytes of the C heap that were free and yet held."""
    blocks: int
    """Of Python objects."""


@dataclass
class Life:
    """One server from its start to its end."""

    ends: str
    usage: list[Usage] = field(default_factory=list)
    """After each prompt."""
    temporary: list[int] = field(default_factory=list)
    """Files in the folder for temporary files after each prompt, ComfyUI's own previews aside."""
    weighed: list[Weighed] = field(default_factory=list)

    def growth(self, name: str) -> tuple[float, float]:
        """Medians of one number after the warm-up and at the end, of which free memory may be a part."""
        values = [getattr(usage, name) for usage in self.usage]
        return statistics.median(values[WARM_UP : WARM_UP + WINDOW]), statistics.median(values[-WINDOW:])

    def grown(self) -> float:
        """How much more memory is in use at the end than after the warm-up, as a share of that."""
        return self.weighed[-1].memory / self.weighed[0].memory - 1


class Ending(NamedTuple):
    """What became of a prompt."""

    status: str
    message: str = ""


def send(client: ComfyClient, sort: str, workflow: dict) -> Ending:
    """One prompt, followed to its end."""
    try:
        prompt = client.queue(workflow)
    except WorkflowRefused as refused:
        return Ending(REFUSED, str(refused).splitlines()[-1].strip())
    if sort == "deleted while waiting":
        waiting = client.queue(workflow)
        client.delete(waiting)
        began = not client.knows(waiting)
        client.wait(prompt, timeout=120)
        return Ending(DELETED if began else "still there")
    cancel = lambda progress: progress.value >= 2 and client.interrupt(prompt)  # noqa: E731
    result = client.wait(
        prompt, on_progress=cancel if sort == "cancelled while running" else None, timeout=120
    )
    return Ending(result.status, result.error["exception_message"].strip() if result.error else "")


def complaint(sort: str, ending: Ending) -> str | None:
    """What is wrong with the end of a prompt, if anything."""
    if ending.status not in SORTS[sort][1]:
        return f"{sort} ended with {ending.status}: {ending.message}"
    if ending.status in (WRONG, REFUSED) and not (
        0 < len(ending.message) < LONGEST and "\n" not in ending.message
    ):
        return f"{sort}: no sentence: {ending.message}"
    return None


class Soak:
    """All lives, and the ends that prompts came to."""

    def __init__(self, base: Path, temporary: Path, *, keep_history: bool = False):
        self.base, self.temporary, self.keep_history = base, temporary, keep_history
        self.prompts = Prompts(base)
        self.sorts = self.prompts.sorts()
        self.standard = self.prompts.small("image_to_video_and_motion")
        self.lives: list[Life] = []
        self.ends: dict[str, Counter] = defaultdict(Counter)
        self.problems: list[str] = []
        self.rows: list[tuple] = []
        self.again = 0

    def live(self, count: int, ends: str, unfinished: list[dict]) -> list[dict]:
        """One server for so many prompts; what it was killed in the middle of is given back, for the next one."""
        life = Life(ends)
        self.lives.append(life)
        log = OUTPUT / f"comfyui-{len(self.lives)}.log"
        weighings = np.linspace(WARM_UP + WINDOW, count, WEIGHINGS).astype(int)
        with ComfyServer(self.base, log=log) as server, ComfyClient(server.url) as client:
            for workflow in unfinished:
                self.book(server, life, "changed seed", send(client, "changed seed", workflow))
                self.again += 1
            for done in range(count):
                if done % FORGET == 0 and not self.keep_history:
                    client.clear_history()
                sort = next(self.sorts)
                self.book(server, life, sort, send(client, sort, self.prompts.make(sort)))
                if done + 1 in weighings:
                    life.weighed.append(self.weigh(server, client, done + 1))
                if (done + 1) % WARM_UP == 0:
                    memory = life.usage[-1].memory / 2**20
                    print(
                        f"{time.strftime('%H:%M:%S')} server {len(self.lives)}: {done + 1} prompts, {memory:.0f} MB"
                    )
            if ends == "stopped":
                return []
            unfinished = [self.prompts.small("image_to_video_and_motion") for _ in range(3)]
            for workflow in unfinished:
                client.queue(workflow)
            server.kill()
            return unfinished

    def book(self, server: ComfyServer, life: Life, sort: str, ending: Ending) -> None:
        """Keep what became of a prompt and what the server holds now."""
        self.ends[sort][ending.status] += 1
        if wrong := complaint(sort, ending):
            self.problems.append(wrong)
            print(wrong)
        life.usage.append(server.usage())
        self.rows.append((len(self.lives), sort, ending.status, *life.usage[-1]))
        left = [path for path in self.temporary.rglob("*") if path.is_file()]
        life.temporary.append(len([*left, *self.base.rglob("*.partial")]))

    def weigh(self, server: ComfyServer, client: ComfyClient, done: int) -> Weighed:
        """What the server cannot do without after so many prompts; see `memory_route.py`."""
        tries = []
        for _ in range(TRIES):
            client.run(self.standard, timeout=120)
            if not self.keep_history:
                client.clear_history()
            counted = requests.get(f"{server.url}/soak/memory", timeout=60).json()
            tries.append(Weighed(len(self.lives), done, server.usage().memory, **counted))
        return min(tries, key=lambda weighed: weighed.memory)

    def report(self) -> str:
        """Markdown."""
        total = sum(sum(ends.values()) for ends in self.ends.values())
        lines = [
            f"{total} prompts, {len(self.lives)} servers; {self.again} prompts were run again that a killed server had",
            f"not finished; {len(self.problems)} came to no end of their sort. ComfyUI's history was "
            f"{'kept' if self.keep_history else f'cleared every {FORGET} prompts'}.",
            "",
            "| server | prompts | memory in use, MB | growth | resident set after 50, MB | at the end, MB | growth "
            "| files | threads | temporary files |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for number, life in enumerate(self.lives, start=1):
            before, after = (value / 2**20 for value in life.growth("memory"))
            files, threads = ("{:.0f} to {:.0f}".format(*life.growth(name)) for name in ("files", "threads"))
            lines.append(
                f"| {number}, {life.ends} | {len(life.usage)} "
                f"| {', '.join(f'{w.memory / 2**20:.1f} ({w.prompts})' for w in life.weighed)} | {life.grown():+.2%} "
                f"| {before:.0f} | {after:.0f} | {after / before - 1:+.2%} "
                f"| {files} | {threads} | {life.temporary[0]} to {life.temporary[-1]} |"
            )
        lines += ["", "| prompt | ended |", "|---|---|"]
        for sort in SORTS:
            ends = ", ".join(f"{count} {status}" for status, count in self.ends[sort].most_common())
            lines.append(f"| {sort} | {ends} |")
        return "\n".join([*lines, "", *(f"- {problem}" for problem in self.problems)]).rstrip() + "\n"

    def write(self) -> None:
        """The report, and every prompt's numbers."""
        (OUTPUT / "report.md").write_text(self.report(), encoding="utf-8")
        with (OUTPUT / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("server", "prompt", "ended", *Usage._fields), *self.rows])
        with (OUTPUT / "weighed.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([Weighed._fields, *(w for life in self.lives for w in life.weighed)])


def main(arguments: list[str] | None = None) -> int:
    """0 when every prompt came to its end and nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m dev.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=4, help="every other one is killed at its end")
    parser.add_argument(
        "--keep-history", action="store_true", help="count what ComfyUI remembers of each prompt, too"
    )
    args = parser.parse_args(arguments)
    if args.prompts < args.servers * (WARM_UP + 2 * WINDOW):
        parser.error(f"a server needs at least {WARM_UP + 2 * WINDOW} prompts to be measured")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        base, temporary = Path(folder) / "base", Path(folder) / "temporary"
        for place in (base / "custom_nodes", base / "input", base / "models" / "svimo", temporary):
            place.mkdir(parents=True)
        for pack in (ROOT / "tests" / "server" / "broken_image.py", ROOT / "dev" / "memory_route.py"):
            shutil.copy(pack, base / "custom_nodes")
        shutil.copy(ROOT / "assets" / "stir_cup.png", base / "input")
        os.environ["TMPDIR"] = str(temporary)  # where ComfyUI and its libraries leave what they forget
        soak, unfinished = Soak(base, temporary, keep_history=args.keep_history), []
        for number in range(args.servers):
            killed = number % 2 and number < args.servers - 1
            unfinished = soak.live(
                args.prompts // args.servers, "killed" if killed else "stopped", unfinished
            )
            soak.write()  # after each, so that a soak that is stopped has told what it knows
    print(soak.report())
    kept = all(life.grown() <= MOST_GROWTH for life in soak.lives)
    return 0 if kept and not soak.problems else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            sys.exit(main())
        except ComfyError as error:
            sys.exit(str(error))
    sys.exit("stopped")
