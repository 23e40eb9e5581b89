"""What a run of the MM-DiT needs on each card, before a card is paid for.

    python -m svimo_train plan --config svimo_train/configs/cogvideox-5b-i2v-joint.json --cards 8 --memory 80

Weights and their companions are counted from the model's shapes; activations by one forward and backward pass of the
MM-DiT on the meta device, where nothing is computed. What PyTorch's allocator and CUDA's libraries keep for themselves
is not counted: leave a tenth of a card free.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from svimo_core.checkpoint import init_part, read_header
from svimo_core.config import COGVIDEOX_5B_I2V, PRESETS, SViMoConfig
from svimo_core.model.mmdit import MMDiT

from .settings import Shape, TrainConfig, add_config_arguments, named_config
from .stages import checkpoint_blocks

GB = 1e9
KEPT_FREE = 0.1
"""Share of a card for what is not counted."""


class PeakMemory(TorchDispatchMode):
    """Bytes that new tensors hold at the worst moment; on the meta device nothing is allocated for it."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.known = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})
        self.storages = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                self.storages[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.storages.values()))
        return result


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps of attention, without its arithmetic: inputs and output, never the scores."""

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(v)
        context.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


def fused_attention(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
    """An attention function of the MM-DiT (B heads N d to B N heads*d) that only takes its memory."""
    return rearrange(FusedAttention.apply(q, k, v), "b heads n d -> b n (heads d)")


@cache
def activation_bytes(model: SViMoConfig, shape: Shape, dtype: torch.dtype, checkpointed: bool) -> int:
    """Peak of one forward and backward pass of the MM-DiT, weights and their gradients left out."""
    with torch.device("meta"):
        network = MMDiT(model.backbone, attention=fused_attention).to(dtype)
        latent = shape.batch_size, *model.latent_shape(shape.frames, shape.height, shape.width)
        video, image, drawing, guidance = (torch.empty(latent, dtype=dtype) for _ in range(4))
        text = torch.empty(shape.batch_size, model.backbone.text_length, model.backbone.text_dim, dtype=dtype)
        timestep = torch.zeros(shape.batch_size, dtype=torch.long)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)  # there before, so that it is not counted

    if checkpointed:
        checkpoint_blocks(network)
    known = [tensor for p in network.parameters() for tensor in (p, p.grad)]
    with PeakMemory(known) as memory:
        v_video, v_drawing = network(video, image, text, timestep, drawing, guidance)
        (v_video.float().sum() + v_drawing.float().sum()).backward()
    # gradients are made beside those that are there and added: weights' own size, which is no activation
    return memory.peak


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on one card."""

    states: int
    """float32 weights, averages and both moments of what is trained."""
    gradients: int
    copies: int
    """Trained weights in the type they compute in: gathered, or what autocast keeps of whole ones."""
    frozen: int
    """Networks that are not trained, float32 as the trainer holds them."""
    activations: dict[str, int]
    """By clip size."""

    @property
    def total(self) -> int:
        """At the largest clip."""
        return self.states + self.gradients + self.copies + self.frozen + max(self.activations.values())


def plan(config: TrainConfig, model: SViMoConfig, cards: int, *, sharded: bool, bf16: bool = True) -> Plan:
    """What one of so many cards holds while the MM-DiT and, in the joint stage, VID are trained.

    Raises:
        ValueError: a stage that trains no MM-DiT.
    """
    if config.stage not in ("backbone", "joint"):
        raise ValueError(
            f"the plan is for stages that train the MM-DiT (backbone, joint), got {config.stage}"
        )
    with torch.device("meta"):
        sizes = {part: numel(init_part(model, part, 0)) for part in ("backbone", "interaction", "vae")}
    trained = sizes["backbone"] + (sizes["interaction"] if config.stage == "joint" else 0)
    frozen = sum(sizes.values()) - trained
    spread = cards if sharded else 1
    dtype = torch.bfloat16 if bf16 else torch.float32
    shapes = {shape_name(shape): shape for phase in config.phases for shape in phase.shapes}
    return Plan(
        states=trained * (4 + 4 + 8) // spread,
        # whole on each card between the passes whose gradients add up
        gradients=trained * 4 // (spread if config.gradient_accumulation == 1 else 1),
        copies=trained * dtype.itemsize,
        frozen=frozen * 4,
        activations={
            name: activation_bytes(model, shape, dtype, config.gradient_checkpointing)
            for name, shape in shapes.items()
        },
    )


def numel(module: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in module.parameters())


def shape_name(shape: Shape) -> str:
    """For tables."""
    return f"{shape.batch_size} of {shape.frames} x {shape.height} x {shape.width}"


def advice(found: Plan, config: TrainConfig, memory: float, sharded: bool) -> str:
    """Whether it fits, and what to change if it does not."""
    room = memory * (1 - KEPT_FREE)
    if found.total <= room:
        return f"It fits: {found.total / GB:.0f} of {memory / GB:.0f} GB, {KEPT_FREE:.0%} of them kept free."
    largest = max(found.activations, key=found.activations.__getitem__)
    ways = []
    if not config.gradient_checkpointing:
        ways.append("set gradient_checkpointing")
    if max(shape.batch_size for phase in config.phases for shape in phase.shapes) > 1:
        ways.append(f"lower the batch of {largest}")
    ways.append("take more cards" if sharded else "spread the weights over the cards")
    return (
        f"It does not fit: {found.total / GB:.0f} of {memory / GB:.0f} GB. To change that: {'; '.join(ways)}."
    )


def main(arguments: list[str] | None = None) -> int:
    """0 when the run fits on its cards, 1 when it does not or cannot be planned."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train plan", description="What a run needs on each card."
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=COGVIDEOX_5B_I2V.name,
        help="size of a model that is not there yet",
    )
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--memory", type=float, default=80, help="of a card, GB")
    args = parser.parse_args(arguments)
    try:
        config = named_config(args)
        found_file = config.init is not None and config.init.is_file()
        model = read_header(config.init).config if found_file else PRESETS[args.preset]
        plans = {sharded: plan(config, model, args.cards, sharded=sharded) for sharded in (False, True)}
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    whose = f"{config.init}" if found_file else f"{model.name}, as {config.init} is not there yet"
    sys.stdout.write(
        f"{config.stage} stage of {whose}; bfloat16 compute; GB on each of {args.cards} cards\n\n"
    )
    sys.stdout.write("| | whole on every card | spread over the cards |\n|---|---|---|\n")
    rows = {
        "weights, averages, moments (float32)": lambda p: p.states,
        "gradients (float32)": lambda p: p.gradients,
        "weights to compute with (bfloat16)": lambda p: p.copies,
        "frozen networks (float32)": lambda p: p.frozen,
        **{
            f"activations, {name}": lambda p, name=name: p.activations[name]
            for name in plans[True].activations
        },
        "**together**, at the largest clip": lambda p: p.total,
    }
    for name, bytes_of in rows.items():
        sys.stdout.write(
            f"| {name} | " + " | ".join(f"{bytes_of(p) / GB:.1f}" for p in plans.values()) + " |\n"
        )
    sys.stdout.write("\n")
    for sharded, found in plans.items():
        title = "Spread over the cards" if sharded else "Whole on every card"
        sys.stdout.write(f"{title}: {advice(found, config, args.memory * GB, sharded)}\n")
    return 0 if plans[True].total <= args.memory * GB * (1 - KEPT_FREE) else 1
