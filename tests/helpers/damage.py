"""Files as broken disks, bad copies, other programs and ill will make them: seeded changes to a sound one."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = (
    *("0", "-1", "-7.5", "1e400", "NaN", "-Infinity", "1e-300", "4294967296", "1e12", "0x10", "", "1,5"),
    *("9" * 30, "9" * 5000, "1000000000", "1000000000000000000", "2.5"),
)
"""What may stand in a number's place in a text."""
VALUES = (
    *(None, True, False, 0, -1, 3, 2.5, 2**31, 2**63, 10**12, 10**30, 1e300, float("nan"), float("inf")),
    *("", "text", "9" * 400, [], {}, [[1], [2, 3]], [None], {"a": 1}, [[[[0.0]]]], [1, "a"], "\u7897\n{}"),
)
"""What may stand in any value's place."""
BOMB = 2**34
"""Bytes that a hostile header promises."""


def damage(rng: np.random.Generator, name: str, content: bytes) -> bytes:
    """One seeded change to a file's content, of a kind that its format has."""
    kinds = list(BYTES)
    suffix = Path(name).suffix
    if suffix in STRUCTURED:
        kinds += STRUCTURED[suffix] * 2
    if suffix in (".json", ".jsonl", ".bvh", ".csv", ".obj", ".off", ".txt", ".ply"):
        kinds += TEXT
    return kinds[rng.integers(len(kinds))](rng, content)


def _span(rng: np.random.Generator, content: bytes) -> slice:
    """A stretch of it, more often short than long."""
    start = int(rng.integers(len(content) + 1))
    return slice(start, start + int(2 ** rng.uniform(0, np.log2(len(content) + 2))))


# Bytes


def flip_bits(rng, content):
    flipped = bytearray(content)
    # Headers are where formats are fragile: half of the flips are in the first 200 bytes.
    end = min(200, len(flipped)) if rng.random() < 0.5 else len(flipped)
    for _ in range(rng.integers(1, 9)):
        flipped[rng.integers(end)] ^= 1 << rng.integers(8)
    return bytes(flipped)


def truncate(rng, content):
    return content[: rng.integers(len(content))]


def swap_chunks(rng, content):
    a, b, c = sorted(rng.integers(0, len(content) + 1, 3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def insert_bytes(rng, content):
    at = int(rng.integers(len(content) + 1))
    return content[:at] + rng.bytes(int(rng.integers(1, 64))) + content[at:]


def cut_out(rng, content):
    span = _span(rng, content)
    return content[: span.start] + content[span.stop :]


def repeat(rng, content):
    span = _span(rng, content)
    return content[: span.start] + content[span] * int(rng.integers(2, 5)) + content[span.stop :]


def overwrite(rng, content):
    changed = bytearray(content)
    span = slice(at := int(rng.integers(len(content))), at + int(rng.choice([1, 2, 4, 8, 64])))
    filler = rng.choice([0, 0x7F, 0xFF])
    changed[span] = bytes([filler]) * len(changed[span])
    return bytes(changed)


def foreign(rng, content):
    starts = (
        b"",
        b"PK\x03\x04",
        b"<html>",
        b"\x80\x04",
        b"version https://git-lfs",
        b"\x93NUMPY\x01\x00",
        b"GGUF",
    )
    return starts[rng.integers(len(starts))] + rng.bytes(int(rng.integers(0, 200)))


BYTES = (flip_bits, truncate, swap_chunks, insert_bytes, cut_out, repeat, overwrite, foreign)


# Text


def change_number(rng, content):
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?(e[+-]?\d+)?", content, re.IGNORECASE))
    if not numbers:
        return insert_bytes(rng, content)
    found = numbers[rng.integers(len(numbers))]
    number = NUMBERS[rng.integers(len(NUMBERS))].encode()
    return content[: found.start()] + number + content[found.end() :]


def change_lines(rng, content):
    lines = content.split(b"\n")
    i, j = rng.integers(len(lines), size=2)
    return b"\n".join(
        [
            lambda: lines[:i] + lines[i + 1 :],
            lambda: lines[:i] + [lines[j]] + lines[i:],
            lambda: lines[:i] + [lines[i][: len(lines[i]) // 2]] + lines[i + 1 :],
            lambda: lines[:i] + [lines[i]] * 50 + lines[i:],
        ][rng.integers(4)]()
    )


TEXT = (change_number, change_number, change_lines)


# Trees of dictionaries, lists and values


def change_tree(rng: np.random.Generator, tree: Any, leaf: Callable[[Any], Any] | None = None) -> Any:
    """The same with one part removed, renamed, doubled, nested or exchanged; `leaf` changes values that it knows."""
    inner = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    if len(inner) and rng.random() < 0.8:
        key = inner[rng.integers(len(inner))]
        changed = tree.copy()
        action = rng.integers(8)
        if action == 0:
            del changed[key]
        elif action == 1 and isinstance(tree, dict):
            changed[f"{key}_"] = changed.pop(key)
        elif action == 1:
            changed.insert(key, changed[key])
        else:
            changed[key] = change_tree(rng, tree[key], leaf)
        return changed
    changed = leaf(tree) if leaf else None
    if changed is not None and rng.random() < 0.8:
        return changed
    if rng.random() < 0.05:
        for _ in range(int(rng.integers(2, 30))):
            tree = [tree]
        return tree
    return VALUES[rng.integers(len(VALUES))]


def change_json(rng, content):
    def inner_json(text):  # a safetensors file's metadata is JSON in JSON
        if isinstance(text, str) and text.startswith(("{", "[")):
            return json.dumps(change_tree(rng, json.loads(text)))
        return None

    return json.dumps(change_tree(rng, json.loads(content), inner_json)).encode()


def nest_json(rng, content):
    depth = int(rng.choice([100, 10_000, 200_000]))
    return [b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth][rng.integers(2)]


def change_json_line(rng, content):
    lines = content.split(b"\n")
    at = int(rng.integers(len(lines)))
    return b"\n".join([*lines[:at], change_json(rng, lines[at]), *lines[at + 1 :]])


def change_safetensors(rng, content):
    (length,) = struct.unpack("<Q", content[:8])
    header = change_json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def change_tensor(rng, content):
    """Another shape, type or content of one tensor, in a file that is whole."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = sorted(header.keys() - {"__metadata__"})
    pieces = {name: data[slice(*header[name]["data_offsets"])] for name in names}
    name = names[rng.integers(len(names))]
    entry, piece, shape = header[name], pieces[name], header[name]["shape"]
    bytes_of_row = len(piece) // shape[0] if shape and shape[0] else 0
    kept = int(rng.integers(shape[0] + 1)) if shape else 0
    others = {"F32": "I32", "F16": "BF16", "BF16": "F16", "F64": "I64", "F8_E4M3": "U8"}
    entry["shape"], entry["dtype"], pieces[name] = [
        lambda: (
            [kept, *shape[1:]] if shape else [],
            entry["dtype"],
            piece[: kept * bytes_of_row] if shape else piece,
        ),
        lambda: ([2 * shape[0], *shape[1:]] if shape else [2], entry["dtype"], 2 * piece),
        lambda: (shape[::-1], entry["dtype"], piece),
        lambda: ([int(np.prod(shape))], entry["dtype"], piece),
        lambda: ([1, *shape], entry["dtype"], piece),
        lambda: ([], entry["dtype"], piece[: len(piece) // max(int(np.prod(shape)), 1)]),
        lambda: (shape, others.get(entry["dtype"], entry["dtype"]), piece),
        lambda: (shape, entry["dtype"], b"\xff" * len(piece)),  # NaN in most types
    ][rng.integers(8)]()
    if rng.random() < 0.1:
        del header[name]
    end = 0
    for name in names:
        if name in header:
            begin, end = end, end + len(pieces[name])
            header[name]["data_offsets"] = [begin, end]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(pieces[name] for name in names if name in header)


def nest_safetensors(rng, content):
    header = nest_json(rng, b"")
    return struct.pack("<Q", len(header)) + header


def change_array(rng: np.random.Generator, array: Any) -> Any:
    """Another shape, type or content."""
    if not isinstance(array, np.ndarray):
        return None
    numbers = array.dtype.kind in "biuf"
    changed = array.astype(np.float64) if numbers else array.copy()
    spot = tuple(int(rng.integers(size)) for size in array.shape) if array.size else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if numbers and array.size and rng.random() < 0.5:
            spot = spot if rng.random() < 0.7 else ...
            changed[spot] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 1e12, -1, 0, 0.5])
            return changed if rng.random() < 0.5 else changed.astype(array.dtype)
        return [
            lambda: np.atleast_1d(changed)[:0],
            lambda: changed.reshape(-1)[: rng.integers(1, 9)],
            lambda: changed.reshape(-1)[0] if array.size else changed,
            lambda: changed[None],
            lambda: changed.T,
            lambda: changed.astype("U5"),
            lambda: changed.astype("S5"),
            lambda: changed.astype(object),
            lambda: changed.astype(bool) if numbers else changed,
            lambda: changed.astype(np.complex64) if numbers else changed,
            lambda: changed.astype("M8[s]") if numbers else changed,
            lambda: changed.astype(">i2") if numbers else changed,
            lambda: np.zeros(changed.shape, [("a", "f4"), ("b", "U2")]),
            lambda: np.concatenate([changed, changed]) if changed.ndim else changed,
            lambda: np.concatenate([changed, changed], axis=-1) if changed.ndim else changed,
        ][rng.integers(15)]()


def change_npz(rng, content):
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    changed = change_tree(rng, arrays, lambda value: change_array(rng, value))
    changed = changed if isinstance(changed, dict) else arrays | {"more": changed}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(buffer, **{key: _an_array(value) for key, value in changed.items()})
    return buffer.getvalue()


def _an_array(value: Any) -> np.ndarray:
    try:
        return np.array(value)
    except (ValueError, RuntimeError):  # lists of different length, or too deep
        return np.array([repr(value)], dtype=object)


def bomb_npz(rng, content):
    """An archive of a few kilobytes that promises, or unpacks to, gigabytes."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        names = file.files
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(names):
            if i != rng.integers(len(names)):
                archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + b"\x00" * 20)
            else:
                archive.writestr(
                    f"{name}.npy", _npy_header((BOMB,), "|u1") + bytes(2 ** int(rng.integers(10, 25)))
                )
    return buffer.getvalue()


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def change_npy(rng, content):
    array = change_array(rng, np.load(io.BytesIO(content), allow_pickle=False))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def bomb_npy(rng, content):
    shape = [(BOMB,), (2**20, 2**20), (2**62, 2), (-1, 3), (0, 2**40), (2**31, 3)][rng.integers(6)]
    return _npy_header(shape, ["<f8", "|u1", "|O", "<U9", "|V0"][rng.integers(5)]) + content[-100:]


def change_pickle(rng, content):
    tree = pickle.loads(content)  # noqa: S301, a file that this test wrote
    changed = change_tree(rng, tree, lambda value: change_array(rng, value))
    return pickle.dumps(changed, int(rng.integers(pickle.HIGHEST_PROTOCOL + 1)))


class Calls:
    """Runs code when an ordinary unpickler reads it."""

    def __reduce__(self):
        import os

        return os.system, ("echo run > /dev/null",)


def hostile_pickle(rng, content):
    tree = pickle.loads(content)  # noqa: S301, a file that this test wrote
    key = list(tree)[rng.integers(len(tree))]
    return pickle.dumps(tree | {key: Calls()}, int(rng.integers(pickle.HIGHEST_PROTOCOL + 1)))


def nest_pickle(rng, content):
    """Lists in lists that name each other so often that no memory holds them written out."""
    lists = [b"(" + b"h%c" % i * 90 + b"lq%c0" % (i + 1) for i in range(6)]
    return b"\x80\x02}U\x0500001]q\x000" + b"".join(lists) + b"h\x06s."


STRUCTURED = {
    ".json": [change_json, change_json, nest_json],
    ".jsonl": [change_json_line, change_json_line, nest_json],
    ".safetensors": [change_safetensors, change_safetensors, change_tensor, change_tensor, nest_safetensors],
    ".npz": [change_npz, change_npz, bomb_npz],
    ".npy": [change_npy, bomb_npy],
    ".pkl": [change_pickle, hostile_pickle, nest_pickle],
}


def peak_memory() -> int:
    """Bytes that this process has held at most; 0 where no one counts."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
