"""What a killed run needs to go on as if nothing had happened, in one safetensors file: no pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from svimo_core.files import whole_file


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
    tensors = {f"weights.{name}": p.detach() for name, p in parameters.items()}
    tensors |= {f"ema.{name}": value for name, value in ema.values.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to start this stage anew") from error
    expected = {f"weights.{name}": tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith("weights.")}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise ValueError(
            f"{path} was written by a run that trained other weights (such as {odd[0]} {odd[1]}): "
            "choose another output folder or delete it"
        )
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
    return int(metadata["step"]), json.loads(metadata["notes"])
