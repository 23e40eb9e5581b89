"""How processes share a stage: a part of every weight on each, by PyTorch's FSDP2 (arXiv 2304.11277).

Sharding spreads float32 weights, gradients, moments and averages. In a forward pass each process gathers all weights,
in the type they compute in, as they are first used, and lets them go block by block in the backward pass. They are not
let go after each block's forward pass: how often a stage runs the MM-DiT and VID depends on a sample's dropout, and a
process that gathers again would wait for ever for others that do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from svimo_core.model.mmdit import Block
from svimo_core.weights import StoredTensor, read_tensors


def precision(name: str) -> str:
    """Accelerate's name of a precision; "auto" is bf16 on a GPU that has it, and full precision elsewhere."""
    if name != "auto":
        return name
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def shard(stage: nn.Module, accelerator: Accelerator) -> None:
    """Leave of each weight that is trained only this process's part, in place; it is another `nn.Parameter` after that.
    Each block of the MM-DiT is gathered and reduced by itself, and all else (VID is a fiftieth of it) together. Frozen
    weights stay whole, and so does everything in a run of one process."""
    if not dist.is_initialized():
        return
    options = dict(
        mesh=init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        reshard_after_forward=False,
        mp_policy=MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # autocast knows better which inputs have to stay float32
        ),
        ignored_params={p for p in stage.parameters() if not p.requires_grad},
    )
    for module in stage.modules():
        if isinstance(module, Block) and all(p.requires_grad for p in module.parameters()):
            fully_shard(module, **options)
    fully_shard(stage, **options)


def fill(module: nn.Module, tensors: dict[str, StoredTensor], device: torch.device) -> None:
    """Give a module on the meta device its weights, on this device; of spread ones a process reads its part alone.

    Args:
        tensors: the weights, and maybe others.
    """
    weights = {name: torch.empty_like(w, device=device) for name, w in module.state_dict().items()}
    rows = {name: _own_rows(w) for name, w in weights.items() if isinstance(w, DTensor)}
    for name, value in read_tensors({name: tensors[name] for name in weights}, stream=True, rows=rows):
        _own(weights[name]).copy_(value)
    module.load_state_dict(weights, assign=True)


def _own(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own_rows(tensor: DTensor) -> slice:
    """Which rows of a tensor that is: `fully_shard` spreads them as `torch.chunk` does."""
    most = math.ceil(len(tensor) / tensor.device_mesh.size())
    first = min(most * tensor.device_mesh.get_local_rank(), len(tensor))
    return slice(first, first + len(_own(tensor)))


@contextmanager
def micro_batch(forward: nn.Module, last: bool) -> Iterator[None]:
    """A forward and backward pass whose gradients the processes reduce only after the last of a step."""
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(last)
        forward.set_reshard_after_backward(last)
    if isinstance(forward, DistributedDataParallel) and not last:
        with forward.no_sync():
            yield
    else:
        yield


@contextmanager
def gathered(stage: nn.Module) -> Iterator[None]:
    """A block in which every process has all of all weights, in the type they compute in; all have to enter it. Not
    before the first step."""
    spread = [module for module in stage.modules() if isinstance(module, FSDPModule)]
    for module in spread:
        module.unshard()
    try:
        yield
    finally:
        for module in spread:
            module.reshard()


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale gradients down to a norm, over all weights and processes; returns what it was before."""
    parameters = list(parameters)
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes, in which case all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
