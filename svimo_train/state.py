"""What a killed run needs to go on as if nothing had happened: no pickles.

One safetensors file; or, of weights that are spread over processes, a folder `state-STEP` (`sharded_state.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from svimo_core.files import reading, whole_file

from .optimizers import moment_tensors, start_moments

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
    tensors = tensors_in_use(parameters, ema, optimizer)
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
        for name, tensor in places_for(path, stored, parameters, ema, optimizer).items():
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


def tensors_in_use(
    parameters: dict[str, nn.Parameter], ema: EMA, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that changes during training, by name; no copies."""
    tensors = {f"weights.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"ema.{name}": value for name, value in ema.values.items()}
    return tensors | {f"{OPTIMIZER}{name}": value for name, value in moment_tensors(optimizer).items()}


def places_for(
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
    tensors = tensors_in_use(parameters, ema, optimizer)
    for name, tensor in tensors.items():
        if name not in stored:
            raise ValueError(
                f"{path} was written with another optimizer (it lacks {name}): set optimizer as it was, or choose "
                "another output folder"
            )
        if stored[name] != tuple(tensor.shape):
            raise ValueError(f"{name} is {stored[name]}, expected {tuple(tensor.shape)}")
    return tensors
