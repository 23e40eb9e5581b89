"""TACO's pickles of torch tensors, read without running anything that is in them.

TACO pickles its tensors one by one, so that each is a call of `torch._utils._rebuild_tensor_v2` on a storage, and the
storage a call of `torch.storage._load_from_bytes` on an old torch file, which is five pickles and the numbers.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from svimo_core.files import reading
from svimo_core.pickles import NUMPY, Record, array_of, bytes_of, unpickle

TORCH_FILE = 0x1950A86A20F9469CFC6C, 1001
"""What an old torch file begins with, and the version of its form."""
STORAGES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
_STORAGE_NAMES = {("torch", f"{name}Storage"): code for name, code in STORAGES.items()}
_KNOWN = NUMPY | {
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
    ("torch.storage", "_load_from_bytes"): "storage",
}


def read_pickle(path: str | os.PathLike) -> Any:
    """Dictionaries and lists of plain values and of arrays, which tensors become as well, wherever they were.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or with anything in it that is neither a plain value nor an array or tensor of numbers.
    """
    path = Path(path)
    with reading(path, "is not a readable pickle of tensors"):
        data = path.read_bytes()
        return _Plain(len(data)).of(unpickle(io.BytesIO(data), _KNOWN))


class _Plain:
    """Makes plain values and arrays of what was unpickled, of no more bytes than the file has: parts may refer to each
    other so often that no memory holds them written out."""

    def __init__(self, left: int):
        self.left = left
        self.storages: dict[Record, np.ndarray] = {}

    def of(self, value: Any, depth: int = 0) -> Any:
        """The same, with arrays in place of records."""
        if depth > 8:
            raise ValueError("it is nested too deeply")
        if isinstance(value, Record):
            value = self._array(value)
        self.left -= value.nbytes if isinstance(value, np.ndarray) else 1
        if self.left < 0:
            raise ValueError("it holds the same parts over and over")
        if isinstance(value, dict):
            return {key: self.of(part, depth + 1) for key, part in value.items()}
        if isinstance(value, list):
            return [self.of(part, depth + 1) for part in value]
        if not isinstance(value, (np.ndarray, int, float, str)):
            raise ValueError(f"an entry is a {type(value).__name__} instead of numbers")
        return value

    def _array(self, record: Record) -> np.ndarray:
        if record.kind == "parameter":
            record = record.args[0]
        if not isinstance(record, Record) or record.kind != "tensor":
            return array_of(record)
        storage, offset, size, stride, *_ = record.args
        if storage not in self.storages:
            self.storages[storage] = _storage(bytes_of(storage.args[0]))
        return _tensor(self.storages[storage], offset, size, stride)


def _storage(data: bytes) -> np.ndarray:
    """The numbers in an old torch file that holds one storage."""
    stream = io.BytesIO(data)
    magic, version, _, stored, _ = (unpickle(stream, _STORAGE_NAMES, persistent=True) for _ in range(5))
    if (magic, version) != TORCH_FILE:
        raise ValueError("a tensor's storage is no old torch file")
    _, kind, _, _, count, _ = stored  # "storage", its type, its key, its device, how many numbers, no view
    (found,) = struct.unpack("<q", stream.read(8))
    numbers = np.frombuffer(stream.read(), kind.kind)
    if not found == count == len(numbers):
        raise ValueError(f"a tensor's storage announces {count} numbers and holds {len(numbers)}")
    return numbers


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise ValueError(f"a tensor has size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if np.prod(size, dtype=object) > len(storage) or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor of size {size} is larger than its {len(storage)} numbers")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()
