"""Named records of tensors in shards: safetensors files of some hundred MB, written once and read at random.

A shard is named by what it holds, so that processes which write the same records write the same file. Its metadata
list its records, each with notes (JSON), the names of its tensors, and a checksum of their bytes, which every read
checks.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from svimo_core.files import reason, whole_file

FORMAT = "svimo-shard-1"
SUFFIX = ".safetensors"


class Record(NamedTuple):
    """What a shard holds under a name."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any]
    """JSON-able."""


def write_shard(folder: Path, records: dict[str, Record]) -> Path:
    """Write these records, on the CPU and contiguous, to a file of its own, which appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    listed = {
        name: {"notes": record.notes, "tensors": sorted(record.tensors), "crc32": checksum(record.tensors)}
        for name, record in records.items()
    }
    text = json.dumps(listed, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}{SUFFIX}"
    tensors = {
        f"{name}/{key}": tensor for name, record in records.items() for key, tensor in record.tensors.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file(tensors, partial, {"format": FORMAT, "records": text})
    return path


def checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of the bytes of all tensors, in the order of their names."""
    crc = 0
    for _, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), crc)
    return crc


class Shard:
    """One file, mapped into memory.

    Raises:
        ValueError: it is missing, damaged or no shard; the message names it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, framework="pt")
            metadata = self._file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
            self.records = _checked_records(json.loads(metadata["records"]))
        except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
            raise self._damaged(reason(error)) from error

    def read(self, name: str) -> Record:
        """One record.

        Raises:
            ValueError: it is damaged.
        """
        listed = self.records[name]
        try:
            tensors = {key: self._file.get_tensor(f"{name}/{key}") for key in listed["tensors"]}
        except SafetensorError as error:
            raise self._damaged(reason(error)) from error
        if checksum(tensors) != listed["crc32"]:
            raise self._damaged(f"the checksum of {name} is not that of its bytes")
        return Record(tensors, listed["notes"])

    def __reduce__(self):
        return Shard, (self.path,)  # another process maps the file itself

    def _damaged(self, why: str) -> ValueError:
        return ValueError(
            f"shard {self.path} is damaged or missing ({why}): copy it again, or delete it and encode the clips again"
        )


def _checked_records(records: Any) -> dict[str, dict[str, Any]]:
    """What the metadata list, if it has the form that :func:`write_shard` gives it."""
    forms = {"notes": dict, "tensors": list, "crc32": int}
    for listed in records.values() if isinstance(records, dict) else [None]:
        if not (
            isinstance(listed, dict) and all(isinstance(listed.get(k), form) for k, form in forms.items())
        ):
            raise ValueError("its list of records is no such list")
    return records
