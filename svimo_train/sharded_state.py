"""States of weights that are spread over processes: a folder `state-STEP` with safetensors files from each process,
which any number of processes can read (torch.distributed.checkpoint). Needs torch 2.8."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from svimo_core.files import reading

from .optimizers import in_8_bits
from .state import CHECKPOINT, EMA, FILE_BYTES, NOTES, PARTIAL, places_for, tensors_in_use


class ShardedSaves:
    """States that all processes write together, one at a time, each a folder in `output` that appears whole or not at
    all. In the background they are copied to memory of the host first, and written while training goes on."""

    def __init__(self, output: Path, background: bool):
        self.output = output
        self.background = background
        # On the CPU whatever training runs on, and apart from training's own messages.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.writing: Future | None = None

    def begin(
        self,
        step: int,
        parameters: dict[str, nn.Parameter],
        ema: EMA,
        optimizer: torch.optim.Optimizer,
        notes: dict[str, Any],
    ) -> None:
        """Write what :func:`save_state` would, or begin to in the background. The one before has to be done.

        Raises:
            OSError: it cannot be written; the folder of before is untouched.
        """
        if self.group is None or dist.get_rank() == 0:
            for left in self.output.glob(f"state-*{PARTIAL}"):
                shutil.rmtree(left)
        if self.group is not None:
            dist.barrier(self.group)  # or a file of this save may be taken for one that was left
        told = {"step": step, "processes": _processes(), "notes": notes}
        writer = _StateWriter(self.output / f"state-{step:09d}", told)
        with _of_all_processes():
            save = dcp.async_save if self.background else dcp.save
            writing = save(
                tensors_in_use(parameters, ema, optimizer), storage_writer=writer, process_group=self.group
            )
        self.writing = writing if self.background else None

    @property
    def ended(self) -> bool:
        """Whether there is news: what was begun in the background is written or has failed."""
        return self.writing is not None and self.writing.done()

    def wait(self) -> None:
        """Until what was begun in the background, if anything, is written.

        Raises:
            OSError: it could not be; the folder of before is untouched.
        """
        if self.writing is not None:
            writing, self.writing = self.writing, None
            with _of_all_processes():
                writing.result()


class _StateWriter(HuggingFaceStorageWriter):
    """Writes beside a folder's place, and moves what it wrote there, with notes, once all processes have written."""

    def __init__(self, folder: Path, told: dict[str, Any]):
        super().__init__(str(folder.with_suffix(PARTIAL)), save_distributed=True)
        self.folder = folder
        self.told = told

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        files, size = {}, 0
        for item in plan.items:
            files[item.index.fqn] = 1 + size // FILE_BYTES
            size += math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
        split = replace(plan, storage_data=plan.storage_data | {"fqn_to_index_mapping": files})
        return super().write_data(split, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        partial = self.folder.with_suffix(PARTIAL)
        files = {result.storage_data.relative_path for of_process in results for result in of_process}
        (partial / NOTES).write_text(json.dumps(self.told | {"files": len(files)}), encoding="utf-8")
        partial.rename(self.folder)
        for before in self.folder.parent.glob("state-*"):
            if before != self.folder:
                shutil.rmtree(before)


def load_sharded_state(
    folder: Path, parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """As :func:`load_state`, on any number of processes; with moments in 8 bits, on as many as wrote it.

    Raises:
        ValueError: moments in 8 bits, and another number of processes; or as there.
    """
    reader = HuggingFaceStorageReader(str(folder))
    with reading(folder, "is damaged", f"delete {folder} to start this stage anew"):
        told = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        files = len(list(folder.glob("*.safetensors")))
        if files != told["files"]:
            raise ValueError(
                f"it has {files} of the {told['files']} files that {told['processes']} processes wrote, to one disk "
                "for all"
            )
        if in_8_bits(optimizer) and told["processes"] != _processes():
            raise ValueError(
                f"{folder} was written by {told['processes']} processes, and moments in 8 bits go on with as many, got "
                f"{_processes()}: take {told['processes']}, or set init to {folder.parent / CHECKPOINT} and output to "
                "another folder, where moments start anew"
            )
        found = reader.read_metadata().state_dict_metadata
        stored = {name: tuple(tensor.size) for name, tensor in found.items()}
        tensors = places_for(folder, stored, parameters, ema, optimizer)
        with _of_all_processes():
            dcp.load(tensors, storage_reader=reader)
        return int(told["step"]), dict(told["notes"])


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _of_all_processes() -> Iterator[None]:
    """What failed in any of the processes that read or write together, as an ordinary error.

    Raises:
        OSError: it says which process met what.
    """
    try:
        yield
    except CheckpointException as error:  # a BaseException
        causes = [f"process {rank}: {cause}" for rank, (cause, _) in error.failures.items()]
        raise OSError("; ".join(causes)) from error
