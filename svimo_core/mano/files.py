"""MANO's files as people have them, read without chumpy and without running anything that is in them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import plain_arrays, reading
from ..motion import HAND_NAMES
from ..pickles import NUMPY, array_of, unpickle
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
    readers = {".npz": lambda path: plain_arrays(path, _SHAPES), ".pkl": _read_pickle}
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
            got = " x ".join(map(str, array.shape)) or "one number"
            raise ValueError(
                f"{path.name} is not a MANO hand: {name} should be {_expected(name)}, got {got}. {WHERE_TO_GET}"
            )
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path.name} is not a MANO hand: {name} holds {array.dtype} instead of numbers")
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


# Pickles


_SPARSE = ("csc", "csr", "coo")
_PICKLED = NUMPY | {
    **{
        (f"scipy.sparse.{private}{kind}", f"{kind}_{ending}"): kind
        for kind in _SPARSE
        for private in ("", "_")
        for ending in ("matrix", "array")
    },
    ("chumpy.ch", "Ch"): "chumpy",
    ("chumpy.reordering", "Select"): "select",
}
"""Everything that a MANO pickle refers to, and what :func:`_evaluate` makes of it."""


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    with reading(path, "is not a readable MANO pickle"):
        content = unpickle(io.BytesIO(path.read_bytes()), _PICKLED)
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary of arrays")
        return {name: _evaluate(content[name]) for name in _SHAPES if name in content}


def _evaluate(value: Any) -> np.ndarray:
    """The plain numeric array that a pickled value stands for."""
    kind = getattr(value, "kind", None)
    if kind == "object":  # protocol 0 and 1: _reconstructor(class, object, None), then the state
        kind = value.args[0].kind
    if kind in _SPARSE:
        return _dense(kind, value.state)
    if kind == "chumpy":
        return _evaluate(value.state["x"])
    if kind == "select":
        state = value.state
        return _evaluate(state["a"]).ravel()[_evaluate(state["idxs"])].reshape(state["preferred_shape"])
    return array_of(value)


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
