"""What ComfyUI asks, before a graph runs, of nodes that read files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

Find = Callable[..., Iterable[Path]]
"""Names as a node's inputs have them to files; OSError or ValueError where there is none."""


def accept_files(find: Find, *names: str | None) -> bool | str:
    """For `validate_inputs`: True, or what is wrong; also for files that came after the list of choices was made. A name
    that another node gives is not known yet (None)."""
    if None in names:
        return True
    try:
        find(*names)
    except (OSError, ValueError) as error:
        return str(error)
    return True


def written_when(find: Find, *names: str | None) -> str | float:
    """For `fingerprint_inputs`: another value when a file was written again, and always where a name is not known yet."""
    if None in names:
        return float("nan")  # a new one: in a key of core's cache, math.nan equals itself
    states = [path.stat() for path in find(*names)]
    return " ".join(f"{state.st_mtime_ns} {state.st_size}" for state in states)
