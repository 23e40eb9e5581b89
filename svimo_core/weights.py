"""Weights on disk: safetensors files opened without reading their data, read lazily, and filled in strictly.

A set of weights is one file, one shard of several (any of them stands for all), or a folder of shards. A pickle is
never opened; a foreign or damaged file is refused with a reason.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .files import reading, whole_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names of the types that weights are stored in."""

INDEX_SUFFIX = ".safetensors.index.json"
UNREADABLE, AGAIN = "has a safetensors header that cannot be read", "download or copy it again"
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
LONGEST_NAME = 255
PAGES_HELD = 2**30
"""Bytes read through one memory map when nothing keeps the map: what was read is let go after as many."""


class StoredTensor(NamedTuple):
    """Where one tensor lies, and what it is."""

    dtype: str
    """safetensors' name."""
    shape: tuple[int, ...]
    file: Path
    name: str
    begin: int
    """Where its data begins in the file."""
    scale: StoredTensor | None = None
    """fp8 files: the stored values are multiplied by it, one factor for all or one for each row."""

    @property
    def stored_dtype(self) -> torch.dtype:
        """Type of the values in the file.

        Raises:
            ValueError: one that no weights have.
        """
        if self.dtype not in DTYPES:
            raise ValueError(
                f"{self.file.name} stores {self.name} as {self.dtype}, and weights are one of {', '.join(DTYPES)}: "
                "get the file again, or another form of the same model"
            )
        return DTYPES[self.dtype]

    @property
    def loaded_dtype(self) -> torch.dtype:
        """Type it has once read: its own, or bfloat16 where a scale has to be multiplied in."""
        return self.stored_dtype if self.scale is None else torch.bfloat16

    @property
    def numel(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()


def open_weights(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """All tensors by name, and the files' metadata, of a file, a shard or a folder; no data is read.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: not safetensors, or not complete; the message says what it is and what to do.
    """
    tensors, metadata = {}, {}
    for file in weight_files(Path(path)):
        found, said = _read_header(file)
        tensors |= found
        metadata |= said
    return tensors, metadata


def weight_files(path: Path) -> list[Path]:
    """The files that belong together.

    Raises:
        FileNotFoundError: no such file or folder, or a shard is missing.
        ValueError: a folder that does not hold exactly one set of weights.
    """
    if path.name.endswith(INDEX_SUFFIX) and path.is_file():
        return _shards(path)
    if path.is_dir():
        indices = sorted(path.glob("*" + INDEX_SUFFIX))
        files = sorted(path.glob("*.safetensors"))
        if len(indices) == 1:
            return _shards(indices[0])
        if len(files) == 1 and not indices:
            return files
        if not files and any(path.glob("*.bin")):
            raise ValueError(
                f"{path.name} holds PyTorch pickles (.bin), which can run code and are never opened: "
                "download the .safetensors files of the same model"
            )
        raise ValueError(
            f"{path.name} is a folder with {len(files)} .safetensors files and {len(indices)} indices: choose the "
            "folder of one model, such as `transformer`, or the file itself"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no model file at {path}")
    shard = SHARD.fullmatch(path.name)
    if shard is None:
        return [path]
    index = path.with_name(shard["stem"] + INDEX_SUFFIX)
    if index.is_file():
        return _shards(index)
    count = int(shard["count"])
    names = [f"{shard['stem']}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    return _existing(path.parent, names)


def _shards(index: Path) -> list[Path]:
    with reading(index, "is not an index of shards", "download it again"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name or len(name) > LONGEST_NAME for name in names):
            raise ValueError("it names files outside its own folder, or with names that are too long")
    return _existing(index.parent, names, f", says {index.name}")


def _existing(folder: Path, names: list[str], said: str = "") -> list[Path]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder.name} lacks {', '.join(missing[:3])}: the model is in {len(names)} files{said}; "
            "download them all"
        )
    return [folder / name for name in names]


def _read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Parse a safetensors header and check that all its data is there, without touching the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise ValueError(f"{path.name} is {_not_safetensors(start, size)}")
        with reading(path, UNREADABLE, AGAIN):
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", None) or {}
            tensors = {
                name: StoredTensor(
                    entry["dtype"], tuple(entry["shape"]), path, name, 8 + length + entry["data_offsets"][0]
                )
                for name, entry in header.items()
            }
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(
            f"{path.name} is damaged: its header announces {8 + length + end} bytes, the file has {size}; {AGAIN}"
        )
    # All else that a header may say wrongly, such as where a tensor lies, safetensors' own reader refuses on opening.
    with reading(path, UNREADABLE, AGAIN), safe_open(path, framework="pt"):
        return tensors, metadata


def _not_safetensors(start: bytes, size: int) -> str:
    """What a file is instead, by its first bytes, and what to do."""
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return (
            "a PyTorch pickle, whatever its name says. Pickles can run code and are never opened: "
            "ask for a .safetensors file"
        )
    if start[:4] == b"GGUF":
        return "a GGUF file, which this pack does not read: use a .safetensors file"
    if start.startswith((b"version ", b"<!", b"<html")):
        return f"a Git LFS pointer or a web page saved in place of the model ({size} bytes): download the file itself"
    return f"not a complete safetensors file ({size} bytes): download or copy it again"


def read_tensors(
    tensors: dict[str, StoredTensor],
    dtype: torch.dtype | None = None,
    stream: bool = False,
    rows: Mapping[str, slice] = MappingProxyType({}),
) -> Iterator[tuple[str, Tensor]]:
    """Read tensors one by one, file by file.

    A tensor in the asked type stays memory-mapped; others are cast, with their scale multiplied in.

    Args:
        dtype: type to cast to; None keeps the stored one.
        stream: the caller keeps no tensor, so file pages already read are let go along the way.
        rows: of tensors that are not to be read whole, these of their first axis.
    """

    def mapped(key: str) -> bool:
        stored = tensors[key]
        return not stream and stored.scale is None and dtype in (None, stored.loaded_dtype)

    for file, keys in groupby(
        sorted(tensors, key=lambda key: tensors[key].file), lambda key: tensors[key].file
    ):
        keys = list(keys)
        batches = [
            [key for key in keys if mapped(key)],
            *_batches([key for key in keys if not mapped(key)], tensors),
        ]
        for batch in filter(None, batches):
            mapping = _map_file(file)
            for key in batch:
                value = _read(mapping, tensors[key], rows.get(key))
                yield key, value if dtype is None else value.to(dtype)


def _batches(keys: list[str], tensors: dict[str, StoredTensor]) -> Iterator[list[str]]:
    batch, size = [], 0
    for key in keys:
        batch.append(key)
        size += tensors[key].numel * tensors[key].stored_dtype.itemsize
        if size >= PAGES_HELD:
            yield batch
            batch, size = [], 0
    yield batch


def _map_file(file: Path) -> torch.UntypedStorage:
    """A file as memory that is read when it is looked at, as safetensors itself maps it."""
    with reading(file, UNREADABLE, AGAIN):
        return torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)


def _values(mapping: torch.UntypedStorage, stored: StoredTensor) -> Tensor:
    """A tensor of a mapped file, as it is stored.

    safetensors' `get_tensor` does the same, and leaves two integers behind each time, 64 bytes that no program gets
    back (0.4.5 to 0.8.0, torch 2.11): a server that loads models for weeks grows by them.
    """
    end = stored.begin + stored.numel * stored.stored_dtype.itemsize
    values = torch.asarray(mapping[stored.begin : end], dtype=torch.uint8)
    return values.view(stored.stored_dtype).reshape(stored.shape)


def _read(mapping: torch.UntypedStorage, stored: StoredTensor, rows: slice | None) -> Tensor:
    """A tensor, or some of its rows, in its loaded type."""
    value = _values(mapping, stored)
    if rows is not None:
        value = value[rows]
    if stored.scale is None:
        return value
    factor = _factor(stored.scale, value.ndim)
    if rows is not None and len(factor) > 1:
        factor = factor[rows]
    return (value.float() * factor).to(stored.loaded_dtype)


def _factor(scale: StoredTensor, dimensions: int) -> Tensor:
    """The scale of an fp8 tensor, shaped to multiply it."""
    return _values(_map_file(scale.file), scale).float().reshape(-1, *[1] * (dimensions - 1))


def fill(
    module: nn.Module,
    tensors: dict[str, StoredTensor],
    source: str,
    dtype: torch.dtype | None = None,
    shared: dict[str, str] | None = None,
    expected: dict[str, tuple[int, ...]] | None = None,
) -> nn.Module:
    """Give a module built on the meta device its weights, strictly: each must be there, fit, and be used.

    Args:
        source: what to call the file in an error.
        dtype: storage type of the loaded weights; None keeps the file's, memory-mapped.
        shared: further names of a weight in the module, to the name it is stored under.
        expected: names and shapes of the module's weights, where it is not to be asked.

    Raises:
        ValueError: the tensors do not match the module.
    """
    if expected is None:
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shared = {name: original for name, original in (shared or {}).items() if name in expected}
    expected = {name: shape for name, shape in expected.items() if name not in shared}
    check_match(expected, {name: stored.shape for name, stored in tensors.items()}, source)
    state = dict(read_tensors(tensors, dtype))
    state |= {name: state[original] for name, original in shared.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module


def check_match(expected: dict[str, tuple], found: dict[str, tuple], source: str) -> None:
    """Refuse weights that are not exactly the expected ones.

    Raises:
        ValueError: names three of the weights that are missing, unknown or of another shape.
    """
    problems = [f"lacks {name}" for name in expected.keys() - found.keys()]
    problems += [f"has an unknown {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(
            f"{source} does not match its own configuration: {'; '.join(sorted(problems)[:3])}{more}. "
            "It is damaged, or of another version of this pack: take the file of this version, or train anew"
        )


def write_weights(
    path: str | os.PathLike,
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, str],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write one safetensors file tensor by tensor, holding one at a time; it appears whole or not at all.

    safetensors' own writer wants all tensors in memory at once.

    Args:
        shapes: of all tensors.
        dtype: type to write them all in.
        tensors: all of them, in any order.
        on_bytes: told the size of each piece written; raise there to stop.
    """
    stored = next(name for name, known in DTYPES.items() if known == dtype)
    header, end = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns its data
    written = set()
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, tensor in tensors:
            assert tuple(tensor.shape) == tuple(shapes[name])
            data = tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy()
            file.seek(8 + len(encoded) + header[name]["data_offsets"][0])
            file.write(data)
            written.add(name)
            on_bytes(data.nbytes)
        assert written == shapes.keys()
