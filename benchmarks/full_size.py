"""What the full size costs: parameters, bytes, tokens, FLOPs and memory, computed; seconds per forward, measured.

    python -m benchmarks.full_size                 the computed table, on any machine
    python -m benchmarks.full_size --device cuda   the 6 B model with random weights, beside diffusers' CogVideoX
    python -m benchmarks.full_size --device cpu    the same networks, 8 heads wide and 4 blocks deep, in float32

Prints Markdown, which docs/full-size.md holds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from svimo_core.checkpoint import init_part
from svimo_core.config import COGVIDEOX_5B_I2V, BackboneConfig, TextConfig
from svimo_core.model.layers import rotary_3d
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.text import build_text_encoder

GIB = 2**30
T5_XXL = TextConfig(
    vocab_size=32128, dim=4096, ff_dim=10240, num_layers=24, num_heads=64, head_dim=64, text_length=226
)
SVIMO = COGVIDEOX_5B_I2V.backbone
VIDEO_ONLY = replace(SVIMO, motion=False, image_padding="zero")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A clip by its tokens."""

    name: str
    grid: tuple[int, int, int]
    """Latent frames, height and width in patches, of one stream."""
    motion: bool

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        t, h, w = self.grid
        return SVIMO.text_length + (2 if self.motion else 1) * t * h * w


SIZES = (
    Size(name="49 x 416 x 624, video and motion", grid=(13, 26, 39), motion=True),
    Size(name="49 x 240 x 368, video and motion", grid=(13, 15, 23), motion=True),
    Size(name="49 x 480 x 720, video only (CogVideoX)", grid=(13, 30, 45), motion=False),
)
CPU_SIZE = Size(name="9 x 208 x 240, video and motion", grid=(3, 13, 15), motion=True)


def backbone_flops(config: BackboneConfig, tokens: int) -> tuple[float, float]:
    """Floating point operations of one forward for one sequence: all, and those of attention.

    Per block 24 D^2 for each token (four projections and the feed-forward) and 4 D for each pair of tokens.
    """
    attention = config.num_layers * 4.0 * tokens**2 * config.dim
    return config.num_layers * 24.0 * tokens * config.dim**2 + attention, attention


def fake_attention(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
    """Attention's output without its arithmetic: fused kernels never hold the scores."""
    return rearrange(torch.empty_like(v), "b heads n d -> b n (heads d)")


class PeakMemory(TorchDispatchMode):
    """Bytes that new tensors hold at the worst moment; on the meta device nothing is allocated for it."""

    def __init__(self, known: Iterable[Tensor]):
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


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in module.parameters())


def inputs(
    size: Size, config: BackboneConfig, device: torch.device, dtype: torch.dtype, batch: int = 1
) -> tuple:
    """Random arguments of one forward."""
    t, h, w = size.grid
    shape = batch, config.latent_channels, t, h * config.patch_size, w * config.patch_size
    video, image, drawing, guidance = (torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
    text = torch.randn(batch, config.text_length, config.text_dim, device=device, dtype=dtype)
    timestep = torch.full((batch,), 500, device=device)
    inputs = video, image, text, timestep
    return (*inputs, drawing, guidance) if size.motion else inputs


@torch.inference_mode()
def activation_bytes(
    config: BackboneConfig, size: Size, batch: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Peak of everything but the weights in one forward, counted on the meta device."""
    meta = torch.device("meta")
    with meta:
        network = MMDiT(config, attention=fake_attention).to(dtype)
    given = inputs(size, config, meta, dtype, batch)
    with PeakMemory(network.parameters()) as memory:
        network(*given)
    return memory.peak


def computed() -> str:
    """The tables that need no GPU."""
    with torch.device("meta"):
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
        flops, attention = backbone_flops(config, size.tokens)
        one, two = (activation_bytes(config, size, batch) / GIB for batch in (1, 2))
        weights = counts[
            "SViMo backbone without position table"
            if size.motion
            else "CogVideoX-5b-I2V without position table"
        ]
        single = activation_bytes(config, size, 1, torch.float32) / GIB
        peaks = [weights * itemsize / GIB + held for itemsize, held in ((4, single), (2, one), (1, one))]
        lines.append(
            f"| {size.name} | {size.tokens:,} | {flops / 1e12:.0f} | {attention / 1e12:.0f} | {one:.2f} GiB | "
            f"{two:.2f} GiB | {peaks[0]:.1f} GiB | {peaks[1]:.1f} GiB | {peaks[2]:.1f} GiB |"
        )
    return "\n".join(lines)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of this machine's best square matrix product."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(8))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one call: on a GPU until it is done, on a CPU what this process used of it."""
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def as_diffusers(
    network: nn.Module, config: BackboneConfig, given: tuple, size: Size
) -> Callable[[], object]:
    """Diffusers' forward on the same number of tokens, with the rotary table made beforehand, as its pipelines do."""
    t, h, w = size.grid
    video, image, text, timestep = given[:4]
    if size.motion:  # the same tokens as one longer video
        t, video, image = 2 * t, video.repeat(1, 1, 2, 1, 1), image.repeat(1, 1, 2, 1, 1)
    rotary = rotary_3d(t, h, w, config.head_dim, video.device)

    def forward() -> object:
        hidden = rearrange(torch.cat([video, image], dim=1), "b c t h w -> b t c h w")
        return network(hidden, text, timestep, image_rotary_emb=rotary, return_dict=False)

    return forward


@torch.inference_mode()
def measured(
    device: torch.device, sizes: tuple[Size, ...], config: BackboneConfig, dtype: torch.dtype, rounds: int
) -> str:
    """Median seconds per forward of both networks, called in turn in random order."""
    torch.set_default_dtype(dtype)
    with device:
        ours = MMDiT(config).eval()
        theirs = CogVideoXTransformer3DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            in_channels=2 * config.latent_channels,
            num_layers=config.num_layers,
            use_rotary_positional_embeddings=True,
        ).eval()
    torch.set_default_dtype(torch.float32)
    rate = matmul_rate(device, dtype)
    lines = [
        f"{device_name(device)}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}, matrix products at "
        f"{rate / 1e12:.3g} TFLOP/s, {parameters(ours) / 1e6:,.1f} M parameters, {rounds} paired runs.",
        "",
        "| clip | tokens | ours, s | fraction of matmul rate | peak memory | diffusers, s | ours / diffusers |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        given = inputs(size, config, device, dtype)
        jobs = {"ours": lambda given=given: ours(*given), "theirs": as_diffusers(theirs, config, given, size)}
        times = {name: [] for name in jobs}
        for name in jobs:
            jobs[name]()  # warm up
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            jobs["ours"]()
            peak = f"{(torch.cuda.max_memory_allocated(device) - weight_bytes(theirs)) / GIB:.1f} GiB"
        else:
            peak = "-"
        for _ in range(rounds):
            for name in random.sample(list(jobs), len(jobs)):
                times[name].append(seconds(jobs[name], device))
        mine, other = (statistics.median(times[name]) for name in jobs)
        flops, _ = backbone_flops(config, size.tokens)
        lines.append(
            f"| {size.name} | {size.tokens:,} | {mine:.4g} | {flops / mine / rate:.0%} | {peak} | {other:.4g} | "
            f"{mine / other:.3f} |"
        )
    return "\n".join(lines)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(value.nbytes for value in module.state_dict().values())


def device_name(device: torch.device) -> str:
    """For people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)


def main(arguments: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="measure there; without it only compute")
    parser.add_argument("--rounds", type=int, help="paired runs: 10 on a GPU, 40 on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    chosen = parser.parse_args(arguments)
    if chosen.device is None:
        sys.stdout.write(computed() + "\n")
        return
    device = torch.device(chosen.device)
    if device.type == "cuda":
        table = measured(device, SIZES[:2], SVIMO, torch.bfloat16, chosen.rounds or 10)
    else:
        torch.set_num_threads(chosen.threads)
        reduced = replace(SVIMO, num_layers=4, num_heads=8)
        table = measured(device, (CPU_SIZE,), reduced, torch.float32, chosen.rounds or 40)
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
