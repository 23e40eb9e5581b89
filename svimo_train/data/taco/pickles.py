"""TACO's pickles of torch tensors, read without running anything that is in them.

TACO pickles its tensors one by one, so that each is a call of `torch._utils._rebuild_tensor_v2` on a storage, and the
storage a call of `torch.storage._load_from_bytes` on an old torch file. Here these names, and numpy's of arrays, stand
for functions that do nothing but copy numbers; every other name is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch


def read_pickle(path: str | os.PathLike) -> Any:
    """Dictionaries and lists of plain values and of arrays, which tensors become as well, wherever they were.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or with anything in it that is neither a plain value nor an array or tensor of numbers.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        # C's unpickler reserves as many memory slots as a file says it has.
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and int(argument) > len(data):
                raise ValueError(f"it numbers its parts up to {argument}")
        return _arrays(_InertUnpickler(io.BytesIO(data), encoding="latin1").load())
    except Exception as error:  # a hostile or damaged pickle can fail in any way; it is one error to the user
        raise ValueError(
            f"{path.name} is not a readable pickle of tensors: {error or repr(error)}"
        ) from error


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            message = f"it asks for {module}.{name}, which no array of numbers has a use for; do not trust this file"
            raise ValueError(message) from None

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to data outside of the file")


def _storage(data: bytes) -> np.ndarray:
    """The numbers in an old torch file that holds one storage; torch itself refuses whatever else is in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are deprecated, and these files have them
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped()).numpy()


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise ValueError(f"a tensor has size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if np.prod(size, dtype=object) > len(storage) or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor of size {size} is larger than its {len(storage)} numbers")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


class _Dtype:
    def __init__(self, code: str, *_: Any):
        if not re.fullmatch("f[248]|[iu][1248]", code):
            raise ValueError(f"an array holds {code!r} instead of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A numpy array on its way: named first, filled afterwards."""

    def __init__(self, *_: Any):
        self.array = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _frombuffer(raw, dtype, shape, "F" if fortran else "C")


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)


def _bytes(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 pickles them for Python 2."""
    if encoding != "latin1":
        raise ValueError(f"it has text in {encoding!r}")
    return text.encode("latin1")


def _arrays(value: Any, depth: int = 0) -> Any:
    """The value with arrays that are on their way replaced by what they have become."""
    if depth > 8:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        return {key: _arrays(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_arrays(part, depth + 1) for part in value]
    if isinstance(value, _Array):
        value = value.array
    if not isinstance(value, (np.ndarray, int, float, str)):
        raise ValueError(f"an entry is a {type(value).__name__} instead of numbers")
    return value


_KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
"""Everything that these pickles refer to, and what stands in its place."""
