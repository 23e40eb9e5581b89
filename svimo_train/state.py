"""What a killed run needs to go on as if nothing had happened: no pickles.

One safetensors file; or, of weights that are spread over processes, a folder `state-STEP` with one such file from each,
which any number of processes can read (torch.distributed.checkpoint).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
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
from torch.distributed.checkpoint.storage import WriteResult

from svimo_core.files import reading, whole_file

CHECKPOINT, STATE = "model.safetensors", "state.safetensors"
"""What a run leaves in its folder: for others, and for itself."""
NOTES, PARTIAL = "notes.json", ".partial"


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
        ValueError: a damaged state, or one of another model.
    """
    with reading(path, "is damaged", f"delete {path} to start this stage anew"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, notes = int(metadata["step"]), dict(json.loads(metadata["notes"]))
        _check_same_weights(path, parameters, {name: tuple(t.shape) for name, t in tensors.items()})
        _restore(tensors, parameters, ema, optimizer)
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
    """The last folder that :class:`BackgroundSaves` wrote in this one, if any."""
    return max((path for path in output.glob("state-*") if path.suffix != PARTIAL), default=None)


class BackgroundSaves:
    """States that all processes write together while training goes on: one at a time, each a folder in `output` that
    appears whole or not at all."""

    def __init__(self, output: Path):
        self.output = output
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
        """Copy what :func:`save_state` would write to memory of the host, from where it is written. The one before has
        to be done."""
        main, processes = (True, 1) if self.group is None else (dist.get_rank() == 0, dist.get_world_size())
        if main:
            for left in self.output.glob(f"state-*{PARTIAL}"):
                shutil.rmtree(left)
        if self.group is not None:
            dist.barrier(self.group)  # or a file of this save may be taken for one that was left
        told = {"step": step, "processes": processes, "notes": notes}
        self.writing = dcp.async_save(
            _tensors(parameters, ema, optimizer),
            storage_writer=_StateWriter(self.output / f"state-{step:09d}", told),
            process_group=self.group,
        )

    @property
    def ended(self) -> bool:
        """Whether there is news: what was begun is written or has failed."""
        return self.writing is not None and self.writing.done()

    def wait(self) -> None:
        """Until what was begun, if anything, is written.

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

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        partial = self.folder.with_suffix(PARTIAL)
        (partial / NOTES).write_text(json.dumps(self.told), encoding="utf-8")
        partial.rename(self.folder)
        for before in self.folder.parent.glob("state-*"):
            if before != self.folder:
                shutil.rmtree(before)


def load_sharded_state(
    folder: Path, parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """As :func:`load_state`, on any number of processes."""
    reader = HuggingFaceStorageReader(str(folder))
    with reading(folder, "is damaged", f"delete {folder} to start this stage anew"):
        told = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        files = len(list(folder.glob("*.safetensors")))
        if files != told["processes"]:
            raise ValueError(
                f"it has {files} of the {told['processes']} files that as many processes wrote, to one disk for all"
            )
        found = reader.read_metadata().state_dict_metadata
        stored = {name: tuple(tensor.size) for name, tensor in found.items()}
        _check_same_weights(folder, parameters, stored)
        tensors, like = {}, list(parameters.values())
        for name, shape in stored.items():
            kind, _, inner = name.partition(".")
            parameter = like[int(inner.split(".")[0])] if kind == "optimizer" else parameters[inner]
            same = tuple(parameter.shape) == shape  # all but Adam's count of steps
            tensors[name] = torch.empty_like(parameter.detach()) if same else torch.empty(shape)
        with _of_all_processes():
            dcp.load(tensors, storage_reader=reader)
        _restore(tensors, parameters, ema, optimizer)
        return int(told["step"]), dict(told["notes"])


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
    """Everything that changes during training, by name."""
    tensors = {f"weights.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"ema.{name}": value for name, value in ema.values.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    return tensors


def _check_same_weights(
    path: Path, parameters: dict[str, nn.Parameter], stored: dict[str, tuple[int, ...]]
) -> None:
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    expected = {f"{kind}.{name}": shape for kind in ("weights", "ema") for name, shape in shapes.items()}
    found = {name: shape for name, shape in stored.items() if not name.startswith("optimizer.")}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise ValueError(
            f"{path} was written by a run that trained other weights (such as {odd[0]} {odd[1]}): "
            "choose another output folder or delete it"
        )
    like = list(shapes.values())
    for name in stored.keys() - found.keys():
        shape = like[int(name.split(".")[1])]
        if stored[name] not in ((), shape):  # Adam's count of steps, and its moments
            raise ValueError(f"{name} is {stored[name]}, expected {shape}")


def _restore(
    tensors: dict[str, Tensor],
    parameters: dict[str, nn.Parameter],
    ema: EMA,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Take over what :func:`_tensors` gave."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
            ema.values[name].copy_(tensors[f"ema.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
