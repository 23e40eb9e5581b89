"""What the full size costs: parameters, bytes, tokens, FLOPs and memory, counted on the meta device.

    python -m benchmarks.full_size

Prints Markdown, which docs/full-size.md holds. What a real device takes, `benchmarks/gpu.py` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from svimo_core.checkpoint import init_part
from svimo_core.config import COGVIDEOX_5B_I2V, BackboneConfig, ClipSize, SViMoConfig, TextConfig
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.text import build_text_encoder
from svimo_train.plan import PeakMemory

META = torch.device("meta")
GIB = 2**30
T5_XXL = TextConfig(
    vocab_size=32128, dim=4096, ff_dim=10240, num_layers=24, num_heads=64, head_dim=64, text_length=226
)
SVIMO = COGVIDEOX_5B_I2V.backbone
VIDEO_ONLY = replace(SVIMO, motion=False, image_padding="zero")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one forward works on: a clip, with a drawing of its motion or without."""

    clip: ClipSize
    motion: bool = True

    @property
    def name(self) -> str:
        """For tables."""
        streams = "video and motion" if self.motion else "video only (CogVideoX)"
        return f"{self.clip.frames} x {self.clip.height} x {self.clip.width}, {streams}"

    def tokens(self, model: SViMoConfig) -> int:
        """Length of the sequence."""
        return replace(model, backbone=replace(model.backbone, motion=self.motion)).num_tokens(*self.clip)


SIZES = (
    Size(clip=ClipSize(49, 416, 624)),
    Size(clip=ClipSize(49, 240, 368)),
    Size(clip=ClipSize(49, 480, 720), motion=False),
)


def inputs(
    size: Size, model: SViMoConfig, device: torch.device, dtype: torch.dtype, batch: int = 1
) -> tuple[Tensor, ...]:
    """Random arguments of one forward."""
    shape = batch, *model.latent_shape(*size.clip)
    video, image, drawing, guidance = (torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
    config = model.backbone
    text = torch.randn(batch, config.text_length, config.text_dim, device=device, dtype=dtype)
    timestep = torch.full((batch,), 500, device=device)
    inputs = video, image, text, timestep
    return (*inputs, drawing, guidance) if size.motion else inputs


@torch.inference_mode()
def count_operations(work: Callable[[], object]) -> tuple[float, float]:
    """Floating point operations of work on the meta device: all, and those of attention's two products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops(), counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)


@cache
def forward_operations(size: Size, model: SViMoConfig) -> tuple[float, float]:
    """Those of one forward of the backbone for one sequence."""
    with META:
        network = MMDiT(model.backbone)
    given = inputs(size, model, META, torch.float32)
    return count_operations(lambda: network(*given))


def fake_attention(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
    """Attention's output without its arithmetic: fused kernels never hold the scores."""
    return rearrange(torch.empty_like(v), "b heads n d -> b n (heads d)")


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in module.parameters())


@torch.inference_mode()
def activation_bytes(
    config: BackboneConfig, size: Size, batch: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Peak of everything but the weights in one forward, counted on the meta device."""
    with META:
        network = MMDiT(config, attention=fake_attention).to(dtype)
    given = inputs(size, COGVIDEOX_5B_I2V, META, dtype, batch)
    with PeakMemory(network.parameters()) as memory:
        network(*given)
    return memory.peak


def tables() -> str:
    """Weights of every network, and what one forward of the backbone takes."""
    with META:
        counts = {
            "CogVideoX-5b-I2V, as published": parameters(
                MMDiT(replace(VIDEO_ONLY, position_table=(13, 30, 45)))
            ),
            "CogVideoX-5b-I2V without position table": parameters(MMDiT(VIDEO_ONLY)),
            "SViMo backbone, converted (with position table)": parameters(
                MMDiT(replace(SVIMO, position_table=(13, 30, 45)))
            ),
            "SViMo backbone without position table": parameters(MMDiT(SVIMO)),
            "VID (interaction model)": parameters(init_part(COGVIDEOX_5B_I2V, "interaction", 0)),
            "VAE": parameters(init_part(COGVIDEOX_5B_I2V, "vae", 0)),
            "T5-XXL text encoder": parameters(build_text_encoder(T5_XXL)),
        }
    lines = ["| network | parameters | fp32 | bf16, fp16 | fp8 |", "|---|---|---|---|---|"]
    for name, count in counts.items():
        stored = " | ".join(f"{count * size / GIB:.2f} GiB" for size in (4, 2, 1))
        lines.append(f"| {name} | {count:,} | {stored} |")
    lines += [
        "",
        "| clip | tokens | TFLOP per forward | of which attention | activations, bf16 | with CFG in one batch | "
        "peak, fp32 | peak, bf16 or fp16 | peak, fp8 weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        config = SVIMO if size.motion else VIDEO_ONLY
        flops, attention = forward_operations(size, COGVIDEOX_5B_I2V)
        one, two = (activation_bytes(config, size, batch) / GIB for batch in (1, 2))
        weights = counts[
            "SViMo backbone without position table"
            if size.motion
            else "CogVideoX-5b-I2V without position table"
        ]
        single = activation_bytes(config, size, 1, torch.float32) / GIB
        peaks = [weights * itemsize / GIB + held for itemsize, held in ((4, single), (2, one), (1, one))]
        lines.append(
            f"| {size.name} | {size.tokens(COGVIDEOX_5B_I2V):,} | {flops / 1e12:.0f} | {attention / 1e12:.0f} | "
            f"{one:.2f} GiB | {two:.2f} GiB | {peaks[0]:.1f} GiB | {peaks[1]:.1f} GiB | {peaks[2]:.1f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
