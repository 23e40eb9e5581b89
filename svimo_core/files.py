"""Files that appear whole or not at all, and are read without running anything; a damaged one is one clear error."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


class DamagedFile(ValueError):
    """A file that cannot be read; the message names it."""


@contextmanager
def reading(path: str | os.PathLike, what: str, advice: str = "copy it again") -> Iterator[None]:
    """Make whatever a reader stumbles over in a damaged or hostile file one error that names the file.

    Errors that name it already in one line, or that came of reading another file, go on as they are; so do missing
    files and libraries.

    Args:
        path: the file or folder.
        what: is wrong with it, to stand after its name: "is a damaged SViMo motion".
        advice: what to do, to stand after the reason.

    Raises:
        OSError: it is missing, locked or the like, as the block raised it.
        ValueError: anything else; "NAME is a damaged SViMo motion: it lacks 'hands'; copy it again".
    """
    name = Path(path).name
    try:
        yield
    except (DamagedFile, FileNotFoundError, ImportError):
        raise
    except Exception as error:  # a damaged file can fail in any way; it is one error to the user
        if isinstance(error, (ValueError, OSError)) and name in str(error) and "\n" not in str(error):
            raise
        raise DamagedFile(f"{name} {what}: {reason(error)}; {advice}") from error


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    words = " ".join(str(error).split())[:300]
    if isinstance(error, KeyError):
        return f"it lacks {words}"
    return words or type(error).__name__


def plain_arrays(path: str | os.PathLike, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, or of an .npy by the file's; pickled ones are refused, never run.

    Args:
        path: the file.
        names: of the arrays to read; None for all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, with anything in it that is no plain array, or small and yet of gigabytes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    with reading(path, "cannot be read as plain arrays", "copy it again, or save it anew with numpy"):
        size = path.stat().st_size
        if path.suffix.lower() != ".npz" and not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return {path.stem: _plain_array(path.stem, file, size, size)}
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a complete archive (it may be truncated)")
        arrays, taken = {}, 0
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name, ending = os.path.splitext(entry.filename)
                if ending == ".npy" and (names is None or name in names):
                    with archive.open(entry) as file:
                        arrays[name] = _plain_array(name, file, entry.file_size, size, taken)
                    taken += _bytes(arrays[name].shape, arrays[name].dtype)
        return arrays


def _plain_array(name: str, file: BinaryIO, length: int, size: int, taken: int = 0) -> np.ndarray:
    """The array in a file or entry of so many bytes; what its header says is checked first: a file of this size, of
    whose arrays some have taken so many bytes, must be trusted with it."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > length - file.tell():
        raise ValueError(f"{name} announces an array of {shape}, which it does not hold")
    taken += _bytes(shape, dtype)
    if taken > max(LARGE, DENSEST * size):
        raise ValueError(
            f"with {name} it would unpack to {taken / 2**20:,.0f} MB, and a file of {size / 2**20:,.2f} MB is not "
            "trusted with so much: save it without compression (numpy.savez) if that is meant"
        )
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """What an array takes; numbers are computed with as float64."""
    return math.prod(shape) * max(dtype.itemsize, 8)


LARGE, DENSEST = 2**28, 50
"""Bytes that a file's arrays may take in any case (10,000 frames of two hands and 1000 points, if need be all
equal), and how many for each of its own."""
