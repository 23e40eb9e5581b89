"""What a killed run needs to go on as if nothing had happened: no pickles.

One safetensors file; or, of weights that are spread over processes, a folder `state-STEP` with one such file from each,
which any number of processes can read (torch.distributed.checkpoint).
"""

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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from svimo_core.files import reading, whole_file

from .optimizers import in_8_bits, moment_tensors, start_moments

CHECKPOINT, STATE = "model.safetensors", "state.safetensors"
"""What a run leaves in its folder: for others, and for itself."""
NOTES, PARTIAL, OPTIMIZER = "notes.json", ".partial", "optimizer."


class EMA:
    """Exponential moving average of parameters, in float32; early steps average over fewer."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.decay = decay
        self.values = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, nn.Parameter], step: int) -> None:
        """Move towards the parameters after optimizer step number `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters.items():
            self.values[name].lerp_(parameter.detach().float(), 1 - decay)


def save_state(
    path: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    notes: dict[str, Any],
) -> None:
    """Write everything that changes during training; the file appears whole or not at all.

    Args:
        step: optimizer steps done.
        notes: JSON-able values to give back on loading.

    Raises:
        OSError: it cannot be written, such as to a full disk; the file of before is untouched.
    """
    tensors = _tensors(parameters, ema, optimizer)
    metadata = {"step": str(step), "notes": json.dumps(notes)}
    with whole_file(path) as partial:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, partial, metadata)


def load_state(
    path: Path, parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Restore what :func:`save_state` wrote, in place.

    Returns:
        Optimizer steps done, and the notes.

    Raises:
        ValueError: a damaged state, or one of another model or optimizer.
    """
    with (
        reading(path, "is damaged", f"delete {path} to start this stage anew"),
        safe_open(path, framework="pt") as file,
    ):
        metadata = file.metadata()
        step, notes = int(metadata["step"]), dict(json.loads(metadata["notes"]))
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, tensor in _places(path, stored, parameters, ema, optimizer).items():
            tensor.copy_(file.get_tensor(name))
    return step, notes


def steps_done(output: Path, sharded: bool) -> int:
    """How many steps the run in a folder has behind it, by its last state; 0 without one.

    Raises:
        ValueError: a damaged state.
    """
    path = sharded_state(output) if sharded else output / STATE
    if path is None or not path.exists():
        return 0
    with reading(path, "is damaged", f"delete {path} to start this stage anew"):
        if sharded:
            return int(json.loads((path / NOTES).read_text(encoding="utf-8"))["step"])
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["step"])


def sharded_state(output: Path) -> Path | None:
    """The last folder that :class:`ShardedSaves` wrote in this one, if any."""
    return max((path for path in output.glob("state-*") if path.suffix != PARTIAL), default=None)


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
                _tensors(parameters, ema, optimizer), storage_writer=writer, process_group=self.group
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


FILE_BYTES = 2**28
"""Size of the files of a sharded state, about. One after the other is made in memory, which takes it twice."""


def host_bytes(state: int, *, sharded: bool, background: bool) -> int:
    """Memory of its host that a process needs on top to write a state on a GPU.

    Args:
        state: bytes of what the process writes: weights, averages and moments, or its part of them.
    """
    if not sharded:
        return state
    file = min(FILE_BYTES, state)
    return state + 2 * file if background else 3 * file


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
        tensors = _places(folder, stored, parameters, ema, optimizer)
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


def _tensors(
    parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that changes during training, by name; no copies."""
    tensors = {f"weights.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"ema.{name}": value for name, value in ema.values.items()}
    return tensors | {f"{OPTIMIZER}{name}": value for name, value in moment_tensors(optimizer).items()}


def _places(
    path: Path,
    stored: dict[str, tuple[int, ...]],
    parameters: dict[str, nn.Parameter],
    ema: EMA,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """The tensors in use that what is stored (name to shape) goes into, by its names.

    Raises:
        ValueError: it is of other weights or of another optimizer.
    """
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    expected = {f"{kind}.{name}": shape for kind in ("weights", "ema") for name, shape in shapes.items()}
    found = {name: shape for name, shape in stored.items() if not name.startswith(OPTIMIZER)}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise ValueError(
            f"{path} was written by a run that trained other weights (such as {odd[0]} {odd[1]}): "
            "choose another output folder or delete it"
        )
    # weights that never had a gradient have no moments
    start_moments(optimizer, {int(name.split(".")[1]) for name in stored.keys() - found.keys()})
    tensors = _tensors(parameters, ema, optimizer)
    for name, tensor in tensors.items():
        if name not in stored:
            raise ValueError(
                f"{path} was written with another optimizer (it lacks {name}): set optimizer as it was, or choose "
                "another output folder"
            )
        if stored[name] != tuple(tensor.shape):
            raise ValueError(f"{name} is {stored[name]}, expected {tuple(tensor.shape)}")
    return tensors
