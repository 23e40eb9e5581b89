"""Files that appear whole or not at all, and arrays that are read without running anything."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


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


def plain_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, or of an .npy by the file's; pickled ones are refused, never run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or with anything in it that is no plain array.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    if path.suffix.lower() == ".npz" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name} is not a complete .npz archive (it may be truncated): copy it again")
    try:
        if zipfile.is_zipfile(path):
            _check_unpacked(path)
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {path.stem: content}
        with content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # a hostile or damaged file can fail in any way; it is one error to the user
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(
            f"{path.name} cannot be read as plain arrays ({reason}): copy it again, or save it anew with numpy"
        ) from error


def _check_unpacked(path: Path) -> None:
    """Refuse a small archive that unpacks to something huge."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGE and size > DENSEST * path.stat().st_size:
        raise ValueError(f"it would unpack to {size / 2**30:.1f} GB")


LARGE, DENSEST = 2**28, 50
"""Bytes from which an archive is looked at, and how many of them may come out of one."""
