"""What a run tells: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Display:
    """One bar for the batch and one for each server or worker. Use it in a `with` block."""

    def __init__(self, total: int, names: list[str]):
        shown = sys.stderr.isatty()
        style = dict(file=sys.stderr, dynamic_ncols=True, disable=not shown)
        self._all = tqdm(total=total, position=0, unit="job", **style)
        self._bars = {
            name: tqdm(total=1, position=row, bar_format="  {desc} {bar:20} {n_fmt}/{total_fmt}", **style)
            for row, name in enumerate(names, 1)
        }

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_) -> None:
        for bar in [*self._bars.values(), self._all]:
            bar.leave = bar is self._all
            bar.close()

    def say(self, text: str) -> None:
        """A line that stays."""
        tqdm.write(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)

    def step(self, name: str, text: str, value: float, maximum: float) -> None:
        """How far a server or worker is with its job."""
        bar = self._bars[name]
        bar.total, bar.n = maximum or 1, value
        bar.set_description_str(f"{name.rpartition('://')[2]}  {text[:50]}", refresh=False)
        bar.refresh()

    def settled(self) -> None:
        """One more job is done or has failed."""
        self._all.update()


def say_count(jobs: int) -> str:
    """So many jobs, in words."""
    return "1 job" if jobs == 1 else f"{jobs} jobs"
