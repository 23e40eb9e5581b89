"""Patterns such as `images/*.png` and `clips/**/*.mp4`, as the standard library's `glob` reads them, with an end.

`glob` walks a whole disk for `/**` and cannot be told to stop.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

MOST_ENTRIES = 100_000
"""Files and folders that one pattern may look at."""


def matching(folder: Path, pattern: str, on_entry: Callable[[int], None] = lambda count: None) -> list[Path]:
    """The files that match a pattern, sorted; `**` stands for any folders, but for hidden ones, links, and
    the results of jobs.

    Args:
        folder: where a relative pattern begins.
        pattern: with forward slashes.
        on_entry: called with the number of files and folders looked at so far.

    Raises:
        ValueError: it looks at more than MOST_ENTRIES files and folders.
    """
    path = Path(pattern)
    start = Path(path.anchor) if path.is_absolute() else folder
    parts = path.parts[1:] if path.is_absolute() else path.parts
    return sorted({found for found in _Walk(pattern, on_entry).find(start, parts) if os.path.isfile(found)})


OF_JOBS = "job.json", "error.json"
"""What the folder of a job holds: its results are no input for `**`, or the same batch would grow by every run."""


class _Walk:
    def __init__(self, pattern: str, on_entry: Callable[[int], None]):
        self.pattern = pattern
        self.count = 0
        self.on_entry = on_entry

    def find(self, folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        """What matches the parts of a path below a folder; may name the same twice where `**` repeats."""
        if not parts:
            yield folder
            return
        part, rest = parts[0], parts[1:]
        if not glob.has_magic(part):
            yield from self.find(folder / part, rest)
        elif part == "**":
            yield from self.find(folder, rest or ("*",))
            for entry in self.entries(folder):
                walked = not entry.name.startswith(".") and os.path.isdir(entry) and not entry.is_symlink()
                if walked and not any(os.path.exists(folder / entry.name / name) for name in OF_JOBS):
                    yield from self.find(folder / entry.name, parts)
        else:
            for entry in self.entries(folder):
                hidden = entry.name.startswith(".") and not part.startswith(".")
                if not hidden and fnmatch.fnmatch(entry.name, part) and (not rest or os.path.isdir(entry)):
                    yield from self.find(folder / entry.name, rest)

    def entries(self, folder: Path) -> Iterator[os.DirEntry]:
        """What is in a folder; nothing where it is none, or may not be read."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self.count += 1
                    self.on_entry(self.count)
                    if self.count > MOST_ENTRIES:
                        raise ValueError(
                            f"expected a pattern that looks at no more than {MOST_ENTRIES} files and folders, "
                            f"got {self.pattern}; name a folder further down"
                        )
                    yield entry
        except OSError:
            return
