"""What each stage of a run needs on each card, and how long it calculates, before a card is paid for.

    python -m svimo_train plan --config svimo_train/configs/cogvideox-5b-i2v.json --cards 8 --memory 80

Weights and their companions are counted from the model's shapes; activations and operations by one forward and
backward pass of the trained networks on the meta device, where nothing is computed. What PyTorch's allocator and CUDA's
libraries keep for themselves is not counted: leave a tenth of a card free. Nor are frozen networks at work, but for the
VAE's encodes of the drawings that the drawing encoder learns from; they take memory before that pass, not during it.
Of the host's memory only what writing a state takes is counted.
"""

from __future__ import annotations

import argparse
import math
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from svimo_core.checkpoint import init_part, read_header
from svimo_core.config import COGVIDEOX_5B_I2V, PRESETS, ClipSize, InteractionConfig, SViMoConfig
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.layers import AttentionFunction, scaled_dot_product_attention
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.vae import VideoVAE
from svimo_core.motion import NUM_JOINTS
from svimo_core.rasterize import Rasterizer

from .data.wild import MOST_OBJECTS
from .drawing import CAMERA, HELD_OUT
from .optimizers import moment_bytes
from .recipe import add_config_arguments, named_stages
from .settings import TRAINED, Shape, TrainConfig
from .stages import checkpoint_blocks, with_pupil
from .state import host_bytes

GB = 1e9
TERA = 1e12
KEPT_FREE = 0.1
"""Share of a card for what is not counted."""
MOMENTS = {"adamw": "float32", "adamw8bit": "8 bits"}


class PeakMemory(TorchDispatchMode):
    """Bytes that new tensors hold at the worst moment; on the meta device nothing is allocated for it."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.known = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})
        self.held = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known[storage] = True
                self.held += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return result

    def _freed(self, size: int) -> None:
        self.held -= size


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps of attention, without its arithmetic: inputs and output, never the scores."""

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        context.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


def fused_attention(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
    """An attention function of the MM-DiT (B heads N d to B N heads*d) that only takes its memory."""
    return rearrange(FusedAttention.apply(q, k, v), "b heads n d -> b n (heads d)")


PLANNED = "drawing", "interaction", "backbone", "joint"
"""Stages that can be planned."""
CAN_PLAN = f"the plan is for the stages {', '.join(PLANNED)}"


@cache
def activation_bytes(
    model: SViMoConfig, stage: str, shape: Shape, dtype: torch.dtype, checkpointed: bool
) -> int:
    """Peak of one forward and backward pass of what a stage trains, weights and their gradients left out."""
    networks = {part: on_meta(model, part, fused_attention).to(dtype) for part in TRAINED[stage]}
    weights = [weight for network in networks.values() for weight in network.parameters()]
    for weight in weights:
        weight.requires_grad_(True).grad = torch.empty_like(weight)  # there before, so that it is not counted
    with PeakMemory([tensor for weight in weights for tensor in (weight, weight.grad)]) as memory:
        trained_pass(networks, model, shape, dtype, checkpointed)
    # gradients are made beside those that are there and added: weights' own size, which is no activation
    return memory.peak


@cache
def operations(model: SViMoConfig, stage: str, shape: Shape, checkpointed: bool) -> int:
    """Floating point operations of one forward and backward pass of what a stage trains."""
    networks = {part: on_meta(model, part) for part in TRAINED[stage]}
    with FlopCounterMode(display=False) as counter:
        trained_pass(networks, model, shape, torch.float32, checkpointed)
    return counter.get_total_flops()


def trained_pass(
    networks: dict[str, nn.Module], model: SViMoConfig, shape: Shape, dtype: torch.dtype, checkpointed: bool
) -> None:
    """Forward and backward through the networks of a stage on the meta device."""
    count, frames, vid = shape.batch_size, shape.frames, model.interaction
    with torch.device("meta"):
        latent = count, *model.vae.latent_shape(frames, shape.height, shape.width)
        video, image, drawing, guidance = (torch.empty(latent, dtype=dtype) for _ in range(4))
        text = torch.empty(count, model.backbone.text_length, model.backbone.text_dim, dtype=dtype)
        timestep = torch.zeros(count, dtype=torch.long)
        hands, points = (torch.empty(count, frames, n, 3, dtype=dtype) for n in (NUM_JOINTS, vid.num_points))
        metres = torch.empty(count, frames, NUM_JOINTS + MOST_OBJECTS * vid.points_per_object, 3)
    if checkpointed and "backbone" in networks:
        checkpoint_blocks(networks["backbone"])
    outputs = []
    if "backbone" in networks:
        video, drawing = networks["backbone"](video, image, text, timestep, drawing, guidance)
        outputs += [video, drawing]
    if "interaction" in networks:
        outputs += networks["interaction"](hands, points, video, drawing, timestep)
    if "drawing_encoder" in networks:
        network = networks["drawing_encoder"]
        draw = Rasterizer(CAMERA, (shape.height, shape.width), network.config.pixel)
        outputs.append(network(draw(metres, (vid.points_per_object,) * MOST_OBJECTS).to(dtype)))
    torch.stack([output.float().sum() for output in outputs]).sum().backward()


@cache
@torch.inference_mode()
def encoding(model: SViMoConfig, size: ClipSize) -> tuple[int, int]:
    """Operations, and peak bytes beside the weights in float32, of one clip that the VAE encodes."""
    vae = VideoVAE(on_meta(model, "vae"), model.vae)
    frames = torch.empty(1, *size, 3, dtype=torch.uint8, device="meta")
    with PeakMemory(vae.model.parameters()) as memory, FlopCounterMode(display=False) as counter:
        vae.encode(frames)
    return counter.get_total_flops(), memory.peak


def on_meta(
    model: SViMoConfig, part: str, attention: AttentionFunction = scaled_dot_product_attention
) -> nn.Module:
    """A part without its numbers."""
    with torch.device("meta"):
        if part == "backbone":
            return MMDiT(model.backbone, attention=attention)
        if part == "interaction":
            return InteractionModel(model.interaction, attention=attention)
        return init_part(model, part, 0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on one card."""

    states: int
    """float32 weights and averages, and both moments, of what is trained."""
    gradients: int
    copies: int
    """Trained weights in the type they compute in: gathered, or what autocast keeps of whole ones."""
    frozen: int
    """Networks that are not trained, float32 as the trainer holds them."""
    activations: dict[str, int]
    """By clip size."""
    host: dict[bool, int]
    """Memory of the host, on top, of each process that writes a state: in the background or not."""

    @property
    def total(self) -> int:
        """At the largest clip."""
        return self.states + self.gradients + self.copies + self.frozen + max(self.activations.values())


def plan(config: TrainConfig, model: SViMoConfig, cards: int, *, sharded: bool, bf16: bool = True) -> Plan:
    """What one of so many cards holds during a stage.

    Raises:
        ValueError: a stage that cannot be planned.
    """
    if config.stage not in PLANNED:
        raise ValueError(f"{CAN_PLAN}, got {config.stage}")
    parts = {"vae", "drawing_encoder"} if config.stage == "drawing" else {"vae", "backbone", "interaction"}
    networks = {part: on_meta(model, part) for part in parts.difference(config.idle)}
    sizes = {part: numel(network) for part, network in networks.items()}
    trained = sum(sizes[part] for part in TRAINED[config.stage])
    weights = [weight for part in TRAINED[config.stage] for weight in networks[part].parameters()]
    frozen = sum(sizes.values()) - trained
    if config.learns_from_teacher:
        frozen += numel(on_meta(replace(model, interaction=teacher_size(config, model)), "interaction"))
    spread = cards if sharded else 1
    dtype = torch.bfloat16 if bf16 else torch.float32
    shapes = {shape_name(shape): shape for phase in config.phases for shape in phase.shapes}
    states = trained * (4 + 4) // spread + moment_bytes(config, weights, spread)
    return Plan(
        states=states,
        # whole on each card between the passes whose gradients add up
        gradients=trained * 4 // (spread if config.gradient_accumulation == 1 else 1),
        copies=trained * dtype.itemsize,
        frozen=frozen * 4,
        activations={
            name: activation_bytes(model, config.stage, shape, dtype, config.gradient_checkpointing)
            for name, shape in shapes.items()
        },
        host={way: host_bytes(states, sharded=sharded, background=way) for way in (True, False)},
    )


def teacher_size(config: TrainConfig, model: SViMoConfig) -> InteractionConfig:
    """Of the VID that teaches the model's; as large as that where its file is not there yet."""
    path = config.interaction.teacher
    return read_header(path).config.interaction if path.exists() else model.interaction


def numel(module: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in module.parameters())


def shape_name(shape: Shape) -> str:
    """For tables."""
    return f"{shape.batch_size} of {shape.frames} x {shape.height} x {shape.width}"


def gigabytes(size: int) -> str:
    """For tables, of small networks as well."""
    return f"{size / GB:.1f}" if size >= 0.1 * GB else f"{size / GB:.3f}"


def advice(found: Plan, config: TrainConfig, memory: float, sharded: bool) -> str:
    """Whether it fits, and what to change if it does not."""
    room = memory * (1 - KEPT_FREE)
    if found.total <= room:
        return f"It fits: {found.total / GB:.0f} of {memory / GB:.0f} GB, {KEPT_FREE:.0%} of them kept free."
    largest = max(found.activations, key=found.activations.__getitem__)
    ways = []
    if not config.gradient_checkpointing and "backbone" in TRAINED[config.stage]:
        ways.append("set gradient_checkpointing")
    if max(shape.batch_size for phase in config.phases for shape in phase.shapes) > 1:
        ways.append(f"lower the batch of {largest}")
    if not sharded:
        ways.append("spread the weights over the cards")
    elif config.gradient_accumulation > 1:
        ways.append("set gradient_accumulation to 1, with which gradients are spread")
    if config.optimizer == "adamw":
        ways.append("set optimizer to adamw8bit")
    if sharded:
        ways.append("take more cards")
    return (
        f"It does not fit: {found.total / GB:.0f} of {memory / GB:.0f} GB. To change that: {'; '.join(ways)}."
    )


def host_memory(found: Plan, config: TrainConfig, cards: int, sharded: bool) -> str:
    """What writing a state takes of the host."""
    if not sharded:
        return f"Host memory to write a state: {found.host[True] / GB:.1f} GB of one process."
    told = []
    for background, size in found.host.items():
        chosen = (
            " (as configured)" if sharded == config.sharded and background == config.background_saves else ""
        )
        told.append(
            f"{size / GB:.1f} GB of each process, {cards * size / GB:.1f} for {cards} on one machine, with "
            f"background_saves {str(background).lower()}{chosen}"
        )
    return f"Host memory to write a state: {'; '.join(told)}."


def arithmetic(config: TrainConfig, model: SViMoConfig, cards: int, rate: float, share: float) -> str:
    """How long one of so many cards calculates for a stage.

    Args:
        rate: of a card's matrix products, operations a second.
        share: of it that is reached.
    """
    total, parts = 0.0, []
    for phase in config.phases:
        weights = sum(shape.weight for shape in phase.shapes)
        for shape in phase.shapes:
            passes = phase.steps * config.gradient_accumulation * shape.weight / weights
            one = operations(model, config.stage, shape, config.gradient_checkpointing)
            total += passes * one
            parts.append(f"{passes:,.0f} passes of {shape_name(shape)} at {one / TERA:,.1f} TFLOP")
    if config.stage == "drawing":
        count = (config.drawing.motions + HELD_OUT) / cards
        for size in {shape.size: None for phase in config.phases for shape in phase.shapes}:
            one, held = encoding(model, size)
            total += count * one
            parts.append(
                f"{count:,.0f} drawings of {' x '.join(map(str, size))} that the VAE encodes at {one / TERA:,.1f} "
                f"TFLOP (before a step, in {held / GB:.1f} GB)"
            )
    hours = total / (rate * share) / 3600
    return (
        f"Arithmetic of each card: {'; '.join(parts)}. Together {total / TERA:,.0f} TFLOP: {hours:.2g} hours at "
        f"{share:.0%} of {rate / TERA:g} TFLOP/s."
    )


def report(
    config: TrainConfig,
    title: str,
    model: SViMoConfig,
    cards: int,
    memory: float,
    rate: float,
    share: float,
) -> tuple[str, bool]:
    """A table and advice, and whether the stage fits as it is configured.

    Args:
        memory: of a card, bytes.
        rate, share: see :func:`arithmetic`.
    """
    ways = {"whole on every card": False}
    if config.stage != "drawing":
        ways["spread over the cards"] = True
    plans = {name: plan(config, model, cards, sharded=sharded) for name, sharded in ways.items()}
    rows = {
        f"weights, averages (float32), moments ({MOMENTS[config.optimizer]})": lambda p: p.states,
        "gradients (float32)": lambda p: p.gradients,
        "weights to compute with (bfloat16)": lambda p: p.copies,
        "frozen networks (float32)": lambda p: p.frozen,
        **{
            f"activations, {name}": lambda p, name=name: p.activations[name]
            for name in next(iter(plans.values())).activations
        },
        "**together**, at the largest clip": lambda p: p.total,
    }
    lines = [title, "", f"| | {' | '.join(plans)} |", "|---" * (1 + len(plans)) + "|"]
    for name, bytes_of in rows.items():
        lines.append(f"| {name} | " + " | ".join(gigabytes(bytes_of(p)) for p in plans.values()) + " |")
    lines.append("")
    for (name, sharded), found in zip(ways.items(), plans.values(), strict=True):
        chosen = " (as configured)" if sharded == config.sharded else ""
        lines.append(f"{name.capitalize()}{chosen}: {advice(found, config, memory, sharded)}")
        lines.append(host_memory(found, config, cards, sharded))
    lines += ["", arithmetic(config, model, cards, rate, share)]
    fits = {sharded: plans[name].total <= memory * (1 - KEPT_FREE) for name, sharded in ways.items()}
    return "\n".join(lines) + "\n", fits[config.sharded]


def main(arguments: list[str] | None = None) -> int:
    """0 when every stage fits on its cards, 1 when one does not or cannot be planned."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train plan", description="What each stage of a run needs on each card."
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help=f"size of a model that is not there yet (default: {COGVIDEOX_5B_I2V.name})",
    )
    parser.add_argument("--cards", type=int, default=8)
    parser.add_argument("--memory", type=float, default=80, help="of a card, GB")
    parser.add_argument(
        "--rate", type=float, default=989, help="of a card's matrix products, TFLOP/s (default: an H100's)"
    )
    parser.add_argument("--share", type=float, default=0.35, help="of that rate that training reaches")
    args = parser.parse_args(arguments)
    for name, most in (("cards", math.inf), ("memory", math.inf), ("rate", math.inf), ("share", 1)):
        if not 0 < getattr(args, name) <= most or math.isinf(getattr(args, name)):
            parser.error(
                f"--{name} must be above 0{' and at most 1' if most == 1 else ''}, got {getattr(args, name)}"
            )
    model, source, fit = PRESETS[args.preset or COGVIDEOX_5B_I2V.name], None, []
    preset = "the preset" if args.preset else "the preset (no checkpoint there yet; --preset names another)"
    try:
        stages = named_stages(args)
        for name, config in stages.items():
            if config.stage not in PLANNED and len(stages) > 1:
                sys.stdout.write(f"## {name}\n\n{config.stage} stage: not planned; {CAN_PLAN}\n\n")
                continue
            if config.init is not None and config.init.exists():
                model, source = read_header(config.init).config, config.init
            whose = f"{model.name}, {f'as in {source}' if source else preset}"
            if config.learns_from_teacher:
                model = with_pupil(model, teacher_size(config, model), config)
                whose += f", but VID of {numel(on_meta(model, 'interaction')) / 1e6:.2f} M weights, which learns from"
                whose += f" {config.interaction.teacher}"
            config.check_sizes(model)
            title = f"## {name}\n\n{config.stage} stage, {whose}; bfloat16 compute; GB on each of {args.cards} cards"
            text, fits = report(
                config, title, model, args.cards, args.memory * GB, args.rate * TERA, args.share
            )
            sys.stdout.write(f"{text}\n")
            fit.append(fits)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0 if all(fit) else 1
