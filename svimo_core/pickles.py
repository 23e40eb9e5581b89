"""Pickles read without running anything that is in them.

An ordinary unpickler calls whatever a file names. This one knows the few names that a caller lists, and makes records
of them that remember how something would have been built; numpy's arrays are built of such records with numpy's own
reader of raw bytes, once the caller asks for one. Every other name is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMPY = {
    **{("numpy", name): f"numpy.{name}" for name in ("ndarray", "dtype", "matrix")},
    ("numpy.matrixlib.defmatrix", "matrix"): "numpy.matrix",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "buffer" for core in ("core", "_core")},
    **{(module, "_reconstructor"): "object" for module in ("copy_reg", "copyreg")},
    **{(module, "object"): "type" for module in ("__builtin__", "builtins")},
    ("_codecs", "encode"): "bytes",
}
"""Modules and names that pickles of numpy's arrays refer to, and the kinds of the records they become."""


class Record:
    """Stands for an object of a pickle: remembers how it would have been built, and builds nothing."""

    kind: str
    """What :func:`unpickle` was told to call it."""
    args: tuple
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any):
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def unpickle(stream: io.BytesIO, known: Mapping[tuple[str, str], str], *, persistent: bool = False) -> Any:
    """The next pickle of a stream: plain values, and records of the kinds that `known` gives to modules and names.

    An OrderedDict becomes a dictionary.

    Args:
        stream: stands behind the pickle afterwards.
        known: such as :data:`NUMPY`.
        persistent: whether it may refer to data beside the pickle; such a reference is given as it stands.

    Raises:
        ValueError: any other name, and sizes that the file cannot have.
        Exception: whatever else a damaged pickle leads to.
    """
    start, size = stream.tell(), len(stream.getbuffer())
    # Lengths and numbers of memory slots are checked before they are believed: C's unpickler reserves them at once.
    for opcode, argument, _ in pickletools.genops(stream):
        if "PUT" in opcode.name and int(argument) > size:
            raise ValueError(f"it numbers its parts up to {argument}")
    stream.seek(start)
    return _Unpickler(stream, known, persistent).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, known: Mapping[tuple[str, str], str], persistent: bool):
        super().__init__(stream, encoding="latin1")
        self.known, self.persistent = known, persistent

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) not in self.known:
            raise ValueError(f"it asks for {module}.{name}, which it has no use for; do not trust this file")
        return type(name, (Record,), {"kind": self.known[module, name]})

    def persistent_load(self, pid: Any) -> Any:
        if not self.persistent:
            raise ValueError("it refers to data outside of the file")
        return pid


def array_of(value: Any) -> np.ndarray:
    """The array of numbers that a record stands for.

    Raises:
        ValueError: another record, or none.
        Exception: whatever else a damaged record leads to.
    """
    if not isinstance(value, Record):
        raise ValueError(f"an entry is a {type(value).__name__} instead of an array of numbers")
    if value.kind == "array":  # state: version, shape, dtype, Fortran order, raw bytes
        _, shape, dtype, fortran, raw = value.state
        return _numbers(raw, dtype, shape, "F" if fortran else "C")
    if value.kind == "buffer":  # pickle protocol 5
        return _numbers(*value.args)
    raise ValueError(f"an entry is a {type(value).__name__} instead of numbers")


def bytes_of(raw: Any) -> bytes:
    """Bytes as they stand in a pickle, as Python 2 wrote them, or as Python 3 does for it."""
    if isinstance(raw, Record) and raw.kind == "bytes":  # _codecs.encode(text, "latin1"), up to protocol 2
        raw = raw.args[0]
    return raw.encode("latin1") if isinstance(raw, str) else raw


def _numbers(
    raw: Any, dtype: Record, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """Raw bytes of a pickled array -> the array."""
    code, byte_order = dtype.args[0], dtype.state[1]
    if not re.fullmatch("f[248]|[iu][1248]", code):
        raise ValueError(f"an array holds {code!r} instead of numbers")
    flat = np.frombuffer(bytes_of(raw), np.dtype(code).newbyteorder(byte_order))
    if axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order=order)
