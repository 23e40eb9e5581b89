"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and move it into place when the block ends well.

    A block that raises (an error, a cancelled job, a full disk) leaves neither the temporary file nor a
    half-written `path`; an older file at `path` stays as it was.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        try:
            partial.touch()
        except OSError as error:
            message = (
                f"cannot write {path.name} ({error.strerror}); choose a folder that exists and is writable"
            )
            raise OSError(error.errno, message, str(path.parent)) from error
        yield partial
        partial.replace(path)
    finally:
        # A folder that cannot be written cannot be cleaned either, and its error is already on its way.
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
