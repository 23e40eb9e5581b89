"""AdamW, whose two moments of each weight are float32, or 8 bits in blocks with a scale each (arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .settings import TrainConfig

BLOCK, SMALLEST = 256, 4096
"""Values with one scale in common; and the fewest of a tensor for 8 bits. What is smaller, or no multiple of a block,
has float32 moments (as torchao has it)."""


def make_optimizer(config: TrainConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Of the kind, rate, betas and weight decay that a configuration names."""
    if config.optimizer == "adamw8bit":
        from torchao.optim import AdamW8bit as kind
    else:
        kind = AdamW
    return kind(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def in_8_bits(optimizer: Optimizer) -> bool:
    """Whether its moments are, where a tensor is large enough."""
    return not isinstance(optimizer, AdamW)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Of all weights, from the next step on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # which a compiled step reads
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def start_moments(optimizer: Optimizer, indices: Iterable[int]) -> None:
    """Give these weights, by their place in the optimizer, the moments of zero that a first step gives them. The
    learning rate has to be set anew.

    Raises:
        IndexError: there is no such weight.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index in indices:
        weights[index].grad = torch.zeros_like(weights[index])
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    optimizer.zero_grad()


def moment_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer knows of each weight that has had a gradient: "INDEX.NAME" to tensor, no copies. Of moments in
    8 bits their codes and scales; where the weight is spread over processes, each process's part is a tensor of its own
    ("INDEX.NAME.2-of-8"), since blocks are counted from where the part begins."""
    tensors = {}
    for index, known in optimizer.state_dict()["state"].items():
        for name, value in known.items():
            name, own = f"{index}.{name}", ""
            if isinstance(value, DTensor) and in_8_bits(optimizer):
                mesh, value = value.device_mesh, value.to_local()
                own = f".{mesh.get_local_rank() + 1}-of-{mesh.size()}"
            if is_traceable_wrapper_subclass(value) and not isinstance(value, DTensor):
                inner, _ = value.__tensor_flatten__()
                tensors |= {f"{name}.{part}{own}": getattr(value, part) for part in inner}
            else:
                tensors[name + own] = value
    return tensors


def moment_bytes(config: TrainConfig, weights: Iterable[Tensor], processes: int) -> int:
    """What both moments of these weights take of each of so many processes that share them."""
    total = 0
    for weight in weights:
        rows = -(-len(weight) // processes) if weight.ndim else 1
        part = rows * weight[0].numel() if weight.ndim else 1
        coded = config.optimizer == "adamw8bit" and part >= SMALLEST and part % BLOCK == 0
        total += 2 * (part + 4 * part // BLOCK if coded else 4 * part)
    return total
