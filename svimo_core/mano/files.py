"""MANO's files as people have them, read without chumpy and without running anything that is in them."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..motion import HAND_NAMES
from .model import NUM_BETAS, NUM_JOINTS, NUM_VERTICES, POSE_SIZE, ManoModel

WHERE_TO_GET = (
    "MANO's files are free for research: register at https://mano.is.tue.mpg.de, download 'Models & Code', take "
    "MANO_LEFT.pkl and MANO_RIGHT.pkl (or .npz files with the same arrays) and put them in models/svimo/mano"
)

_SHAPES = {
    "v_template": (NUM_VERTICES, 3),
    "shapedirs": (NUM_VERTICES, 3, range(NUM_BETAS, 1001)),
    "posedirs": (NUM_VERTICES, 3, 9 * (NUM_JOINTS - 1)),
    "J_regressor": (NUM_JOINTS, NUM_VERTICES),
    "weights": (NUM_VERTICES, NUM_JOINTS),
    "hands_mean": (POSE_SIZE,),
    "kintree_table": (2, NUM_JOINTS),
    "f": (range(1, 10_001), 3),
    "hands_components": (range(1, POSE_SIZE + 1), POSE_SIZE),
}
"""The arrays of a MANO file, by name; a range stands where the number may vary."""
_OPTIONAL = ("hands_components",)


def load_mano(path: str | os.PathLike, side: str) -> ManoModel:
    """Read MANO_LEFT / MANO_RIGHT: an .npz, or the official .pkl without chumpy and without running its code.

    A regressor of joints may be dense or any of scipy's sparse kinds, numbers may be of any size, and of more than ten
    shape directions the first ten are taken, as smplx does. The left hand is read as its file has it: other programs
    use the official file as it is, and betas have a meaning only with it. :func:`svimo_core.mano.model.left_shape` says
    whether its shape directions are at fault, :func:`svimo_core.mano.model.with_left_shape` turns them round.

    Args:
        path: the file.
        side: which hand it is, "left" or "right".

    Raises:
        FileNotFoundError: no such file; says where MANO comes from.
        ValueError: not a MANO file, damaged, or a pickle that asks for anything a MANO file has no use for.
    """
    path = Path(path)
    if side not in HAND_NAMES:
        raise ValueError(f'side must be "left" or "right", got {side!r}')
    if not path.is_file():
        raise FileNotFoundError(f"no MANO file at {path}. {WHERE_TO_GET}")
    readers = {".npz": _read_npz, ".pkl": _read_pickle}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path.name}: MANO comes as .pkl or .npz. {WHERE_TO_GET}")
    arrays = readers[path.suffix.lower()](path)

    for name in _SHAPES:
        if name not in arrays and name not in _OPTIONAL:
            raise ValueError(
                f"{path.name} is not a MANO hand: {name} should be {_expected(name)}, got nothing. {WHERE_TO_GET}"
            )
    for name, array in arrays.items():
        if not _fits(name, array.shape):
            raise ValueError(f"{_wrong_shape(path, name, array.shape)}. {WHERE_TO_GET}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path.name} is damaged: {name} has values that are not finite")
    parents = arrays.pop("kintree_table")[0].astype(np.int64)
    parents[0] = -1  # stored as 2^32 - 1
    faces = arrays.pop("f").astype(np.int64)
    if (parents[1:] >= np.arange(1, NUM_JOINTS)).any() or (parents[1:] < 0).any():
        raise ValueError(f"{path.name} is damaged: a joint comes before its parent")
    if faces.min() < 0 or faces.max() >= NUM_VERTICES:
        raise ValueError(f"{path.name} is damaged: its faces f do not index {NUM_VERTICES} vertices")
    fields = {name: array.astype(np.float64) for name, array in arrays.items()}
    fields["shapedirs"] = fields["shapedirs"][..., :NUM_BETAS]
    return ManoModel(side=side, parents=parents, faces=faces, **fields)


def _fits(name: str, shape: tuple[int, ...]) -> bool:
    wanted = _SHAPES[name]
    return len(shape) == len(wanted) and all(
        size in want if isinstance(want, range) else size == want
        for size, want in zip(shape, wanted, strict=True)
    )


def _expected(name: str) -> str:
    """A shape in words."""
    sizes = (f"({w.start} to {w.stop - 1})" if isinstance(w, range) else str(w) for w in _SHAPES[name])
    return " x ".join(sizes)


def _wrong_shape(path: Path, name: str, shape: tuple[int, ...]) -> str:
    got = " x ".join(map(str, shape)) or "one number"
    return f"{path.name} is not a MANO hand: {name} should be {_expected(name)}, got {got}"


# Arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name in _SHAPES:
                if f"{name}.npy" not in file.namelist():
                    continue
                # What a header promises is looked at first: a few bytes can promise, and unpack to, any size.
                with file.open(f"{name}.npy") as member:
                    shape, dtype = _npy_header(member)
                if dtype.kind not in "fiu":
                    raise ValueError(f"{name} holds {dtype} instead of numbers")
                if not _fits(name, shape):
                    raise ValueError(f"{name} should be {_expected(name)}, got {' x '.join(map(str, shape))}")
                with file.open(f"{name}.npy") as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except (
        Exception
    ) as error:  # a hostile or damaged archive can fail in any way; it is one error to the user
        raise ValueError(
            f"{path.name} cannot be read as plain arrays of a MANO hand: {_reason(error)}"
        ) from error
    return arrays


def _npy_header(member: io.BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _reason(error: Exception) -> str:
    """What an error says, or its name if it says nothing."""
    return str(error) or type(error).__name__


# Pickles


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        data = path.read_bytes()
        # Lengths and numbers of memory slots are checked before they are believed: C's unpickler reserves them at once.
        for opcode, argument, _ in pickletools.genops(data):
            if "PUT" in opcode.name and int(argument) > len(data):
                raise ValueError(f"it numbers its parts up to {argument}")
        content = _InertUnpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary of arrays")
        return {name: _evaluate(content[name]) for name in _SHAPES if name in content}
    except Exception as error:  # a hostile or damaged pickle can fail in any way; it is one error to the user
        raise ValueError(f"{path.name} is not a readable MANO pickle: {_reason(error)}") from error


class _Record:
    """Stands for an object of a pickle: remembers how it would have been built and builds nothing."""

    global_name: str

    def __new__(cls, *args: Any, **kwargs: Any):
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


_SPARSE = ("csc", "csr", "coo")
_PICKLED = {
    **{("numpy", name): f"numpy.{name}" for name in ("ndarray", "dtype", "matrix")},
    ("numpy.matrixlib.defmatrix", "matrix"): "numpy.matrix",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "buffer" for core in ("core", "_core")},
    **{
        (f"scipy.sparse.{private}{kind}", f"{kind}_{ending}"): kind
        for kind in _SPARSE
        for private in ("", "_")
        for ending in ("matrix", "array")
    },
    ("chumpy.ch", "Ch"): "chumpy",
    ("chumpy.reordering", "Select"): "select",
    ("copy_reg", "_reconstructor"): "object",
    ("copyreg", "_reconstructor"): "object",
    ("__builtin__", "object"): "type",
    ("builtins", "object"): "type",
    ("_codecs", "encode"): "bytes",
}
"""Everything that a MANO pickle refers to, and what :func:`_evaluate` makes of it."""


class _InertUnpickler(pickle.Unpickler):
    """An unpickler that resolves no global to real code: the few names MANO uses become inert records."""

    def find_class(self, module: str, name: str) -> type:
        kind = _PICKLED.get((module, name))
        if kind is None:
            raise ValueError(
                f"it asks for {module}.{name}, which a MANO file has no use for; do not trust this file"
            )
        return type(name, (_Record,), {"global_name": kind})

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to data outside the file")


def _evaluate(value: Any) -> np.ndarray:
    """The plain numeric array that a pickled value stands for."""
    if not isinstance(value, _Record):  # a nest of lists may refer to itself so often that no memory holds it
        raise ValueError(f"an entry is a {type(value).__name__} instead of an array of numbers")
    kind, state = value.global_name, value.state
    if kind == "object":  # protocol 0 and 1: _reconstructor(class, object, None), then the state
        kind = value.args[0].global_name
    if kind == "array":  # state: version, shape, dtype, Fortran order, raw bytes
        _, shape, dtype, fortran, raw = state
        return _numbers(raw, dtype, shape, "F" if fortran else "C")
    if kind == "buffer":  # pickle protocol 5
        return _numbers(*value.args)
    if kind in _SPARSE:
        return _dense(kind, state)
    if kind == "chumpy":
        return _evaluate(state["x"])
    if kind == "select":
        return _evaluate(state["a"]).ravel()[_evaluate(state["idxs"])].reshape(state["preferred_shape"])
    raise ValueError(f"an entry is a {type(value).__name__} instead of numbers")


def _dense(kind: str, state: Mapping[str, Any]) -> np.ndarray:
    """The array that scipy's attributes of a sparse one stand for. Only the regressor of joints is ever sparse."""
    shape = tuple(state["_shape"] if "_shape" in state else state["shape"])
    if not _fits("J_regressor", shape):
        raise ValueError(f"a sparse array should be {_expected('J_regressor')}, got {shape}")
    if kind == "coo":
        both = state["coords"] if "coords" in state else (state["row"], state["col"])
        rows, columns = (_evaluate(index) for index in both)
    else:  # compressed columns or rows
        along = _evaluate(state["indices"])
        counts = np.diff(_evaluate(state["indptr"]))
        if len(counts) != shape[kind == "csc"] or counts.min() < 0 or counts.sum() != len(along):
            raise ValueError("a sparse array's numbers are not where its index says")
        across = np.repeat(np.arange(len(counts)), counts)
        rows, columns = (along, across) if kind == "csc" else (across, along)
    for index, size in zip((rows, columns), shape, strict=True):
        if index.min(initial=0) < 0 or index.max(initial=0) >= size:
            raise ValueError(f"a sparse array has a number outside of its {shape[0]} x {shape[1]}")
    dense = np.zeros(shape)
    np.add.at(dense, (rows, columns), _evaluate(state["data"]))
    return dense


def _numbers(
    raw: Any, dtype: _Record, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """Raw bytes of a pickled array -> the array."""
    code, byte_order = dtype.args[0], dtype.state[1]
    if not re.fullmatch("f[248]|[iu][1248]", code):
        raise ValueError(f"an array holds {code!r} instead of numbers")
    if isinstance(raw, _Record):  # Python 3 writes bytes as _codecs.encode(text, "latin1") up to protocol 2
        raw = raw.args[0]
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    flat = np.frombuffer(raw, np.dtype(code).newbyteorder(byte_order))
    if axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order=order)
