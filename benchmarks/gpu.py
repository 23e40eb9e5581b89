"""What a card takes for everything that a run consists of, at the full size on random weights.

    python -m benchmarks.gpu                                  all parts, in at most eight minutes
    python -m benchmarks.gpu --only rate forward compile      some of them
    python -m benchmarks.gpu --device cpu --size small        the same at a reduced size, in float32

Needs torch, diffusers, transformers, safetensors, einops, tqdm and opencv; compiling needs triton. A part that fails is
reported, and so is what does not fit into memory. Weights are random: only time and memory mean anything.

Prints Markdown, which docs/full-size.md holds, part by part; --json writes the same numbers.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.full_size import GIB, META, SIZES, Size, count_operations, forward_operations, inputs
from svimo_core.checkpoint import read_header
from svimo_core.config import COGVIDEOX_5B_I2V, TINY, BackboneConfig, ClipSize, SViMoConfig, VAEConfig
from svimo_core.model.drawing import DrawingEncoder
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.layers import rotary_3d
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.vae import VideoVAE, build_vae
from svimo_core.sampling.guidance import FeedbackOptions, StageClock
from svimo_core.sampling.latents import JointLatents
from svimo_core.sampling.pipeline import SViMo, encode_image
from svimo_core.sampling.reader import Reading
from svimo_core.sampling.sampler import Denoiser
from svimo_core.schedule import NoiseSchedule

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models" / "svimo-tiny.safetensors"
"""Whose motion statistics put random readings where hands and things are."""
TERA = 1e12
STEPS = 6
GUIDANCE_SCALE = 6.0
SKIP_BELOW = 0.3
"""Change of the noisy latents, relative to them, since the network last ran."""
PRODUCTS = 20
"""Matrix products in one timed call."""
KINDS_OF_KERNEL = {
    "attention": re.compile("(?!triton_).*(flash|fmha|sdpa|attention)"),
    "matrix products": re.compile("(?!triton_).*(nvjet|gemm|cutlass|cublas|splitK|addmm|aten::linear)"),
}
"""By their names; what is left moves memory, and is what compiling can fuse. A compiled kernel is called triton_ and
what it was fused from."""

Row = dict[str, str | int | float]
"""One line of a table: cells by the names of their columns."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    model: SViMoConfig
    sizes: tuple[Size, Size, Size]
    """The first is the model's own, runs are made at the second, the third has no drawing."""
    product: int
    """Rows and columns of the matrices that the rate is measured with."""
    compiler: str


SCALES = {
    "full": Scale(model=COGVIDEOX_5B_I2V, sizes=SIZES, product=8192, compiler="inductor"),
    "small": Scale(  # large enough for a CPU's times to compare networks
        model=replace(TINY, backbone=replace(COGVIDEOX_5B_I2V.backbone, num_layers=4, num_heads=8)),
        sizes=(
            Size(clip=ClipSize(9, 208, 240)),
            Size(clip=ClipSize(9, 64, 96)),
            Size(clip=ClipSize(9, 240, 368), motion=False),
        ),
        product=1536,
        compiler="inductor",
    ),
    "tiny": Scale(  # for tests
        model=replace(
            TINY,
            backbone=BackboneConfig(num_layers=2, num_heads=4, head_dim=64, text_dim=64, text_length=32),
            vae=VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4),
        ),
        sizes=(
            Size(clip=ClipSize(9, 96, 128)),
            Size(clip=ClipSize(9, 64, 96)),
            Size(clip=ClipSize(9, 64, 112), motion=False),
        ),
        product=1024,
        compiler="aot_eager",  # the same without minutes of a C++ compiler
    ),
}


class CastingLayers:
    """Layers whose linear ones compute in the type of their input, whatever their weights are stored in."""

    class Linear(nn.Linear):
        """Casts its weight."""

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.to(x.dtype), self.bias)

    Conv2d, LayerNorm, Embedding = nn.Conv2d, nn.LayerNorm, nn.Embedding


class Skipping(nn.Module):
    """In place of the backbone: while the noisy latents have hardly changed since it last ran, what it then added to
    them is added again. EasyCache in its simplest form."""

    def __init__(self, network: MMDiT):
        super().__init__()
        self.network = network
        self.skipped = 0
        self.seen: Tensor | None = None
        self.added: Tensor | None = None

    def forward(
        self, video: Tensor, image: Tensor, text: Tensor, timestep: Tensor, drawing: Tensor, guidance: Tensor
    ) -> tuple[Tensor, ...]:
        """As of :class:`MMDiT`."""
        streams = torch.stack([video, drawing])
        if self.seen is not None:
            change = (streams - self.seen).abs().mean() / self.seen.abs().mean()
            if change < SKIP_BELOW:
                self.skipped += 1
                return tuple(streams + self.added)
        made = torch.stack(self.network(video, image, text, timestep, drawing, guidance))
        self.seen, self.added = streams, made - streams
        return tuple(made)

    def image_condition(self, image: Tensor, latent_frames: int) -> Tensor:
        """See :meth:`MMDiT.image_condition`."""
        return self.network.image_condition(image, latent_frames)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one piece of work takes."""

    seconds: float
    """Median."""
    first: float
    """Seconds of the first call, which compiles."""
    memory: int | None
    """Most bytes in use, beside those in use before; None on a CPU."""


class OutOfTime(Exception):
    """There is none left to measure any more."""


class Bench:
    """One device, and the networks on it, each made when a part first asks for it.

    Args:
        rounds: timed calls of each job.
        deadline: of `time.perf_counter`; after it nothing is begun.
    """

    def __init__(self, device: torch.device, scale: Scale, rounds: int, deadline: float = math.inf):
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.scale = scale
        self.rounds = rounds
        self.deadline = deadline
        self.order = random.Random(0)

    # --- networks ---

    def network(self, build: Callable[[], nn.Module], stored: torch.dtype | None = None) -> nn.Module:
        """Built where it takes no memory, then filled on the device with seeded random weights of about unit gain.

        Args:
            stored: type of the weights of linear layers, if not the one to compute in.
        """
        with META:
            network = nn.Module.to(build(), self.dtype).eval().requires_grad_(False)
            for layer in network.modules():
                if stored is not None and isinstance(layer, nn.Linear):
                    layer.weight = nn.Parameter(layer.weight.to(stored), requires_grad=False)
        assert not list(network.buffers()), "nothing would fill them"
        network = network.to_empty(device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                values = torch.randn(weight.shape, generator=generator, device=self.device, dtype=self.dtype)
                weight.copy_(values.mul_(weight[0].numel() ** -0.5))
        return network

    @cached_property
    def backbone(self) -> MMDiT:
        """Ours, 6 B parameters at the full size."""
        return self.network(lambda: MMDiT(self.scale.model.backbone))

    def diffusers_backbone(self) -> CogVideoXTransformer3DModel:
        """CogVideoX's of the same width and depth, as diffusers has it."""
        config = self.scale.model.backbone
        return self.network(
            lambda: CogVideoXTransformer3DModel(
                num_attention_heads=config.num_heads,
                attention_head_dim=config.head_dim,
                in_channels=2 * config.latent_channels,
                num_layers=config.num_layers,
                text_embed_dim=config.text_dim,
                max_text_seq_length=config.text_length,
                use_rotary_positional_embeddings=True,
            )
        )

    @cached_property
    def vae(self) -> VideoVAE:
        """Diffusers', as the library wraps it."""
        config = self.scale.model.vae
        return VideoVAE(self.network(lambda: build_vae(config)), config)

    @cached_property
    def model(self) -> SViMo:
        """Everything but a text encoder."""
        config = self.scale.model
        return SViMo(
            config=config,
            backbone=self.backbone,
            vae=self.vae,
            interaction=self.network(lambda: InteractionModel(config.interaction)),
            normalizer=read_header(BUNDLED).normalizer,
            drawing_encoder=self.network(lambda: DrawingEncoder(config.drawing, config.vae)),
        )

    def given(self, size: Size) -> tuple[Tensor, ...]:
        """Random arguments of one forward of the backbone."""
        return inputs(size, self.scale.model, self.device, self.dtype)

    # --- clock ---

    @cached_property
    def rate(self) -> float:
        """Floating point operations per second of large matrix products, one after the other."""
        n = self.scale.product
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))

        def products() -> None:
            for _ in range(PRODUCTS):
                a @ b

        return PRODUCTS * 2.0 * n**3 / self.race({"products": products})["products"].seconds

    def time(self, work: Callable[[], object]) -> tuple[float, int | None]:
        """Seconds of one call, and bytes in use at its worst moment beside those in use before (None on a CPU)."""
        if self.device.type == "cpu":
            began = time.perf_counter()
            work()
            return time.perf_counter() - began, None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) / 1000, torch.cuda.max_memory_allocated() - before

    def race(self, jobs: dict[str, Callable[[], object]]) -> dict[str, Measured]:
        """Medians of all jobs, which take turns in random order; without those that do not fit into memory.

        Raises:
            OutOfTime: before the first job.
        """
        if time.perf_counter() > self.deadline:
            raise OutOfTime
        first = {}
        for name, work in jobs.items():
            with suppress(torch.OutOfMemoryError):
                first[name] = self.time(work)[0]
            if name not in first:  # what the failed call held is free only now
                self.empty()
        seconds: dict[str, list[float]] = {name: [] for name in first}
        memory: dict[str, int | None] = {}
        for _ in range(self.rounds):
            for name in self.order.sample(list(first), len(first)):
                took, memory[name] = self.time(jobs[name])
                seconds[name].append(took)
        return {
            name: Measured(seconds=median(taken), first=first[name], memory=memory[name])
            for name, taken in seconds.items()
        }

    def kernels(self, work: Callable[[], object]) -> list[tuple[str, float]]:
        """Name and seconds of all that the device does in one call; on a CPU, of PyTorch's operators."""
        on_gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            work()
            if on_gpu:
                torch.cuda.synchronize()
        kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
        found = [
            (event.name, event.time_range.elapsed_us() / 1e6)
            for event in profiler.events()
            if event.device_type == kind and event.cpu_parent is None and not event.is_user_annotation
        ]
        if not found:
            raise RuntimeError("the profiler saw no kernels: this machine does not let it")
        return found

    def empty(self) -> None:
        """Give back what nothing holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def cells(found: dict[str, Measured], name: str, *references: str, weights: int | None = None) -> Row:
    """Of one job of a race: its time, also in times of others, and its memory, with `weights` bytes of weights or
    beside them."""
    if name not in found:
        return {"seconds": "does not fit"}
    mine = found[name]
    row: Row = {"seconds": mine.seconds}
    row |= {f"x {other}": mine.seconds / found[other].seconds for other in references if other in found}
    if mine.memory is not None:
        row["beside weights, GiB" if weights is None else "peak, GiB"] = ((weights or 0) + mine.memory) / GIB
    return row


def against_rate(bench: Bench, operations: float, row: Row) -> Row:
    """A row with its operations, and its time in times of that of matrix products of as many."""
    if isinstance(row["seconds"], str):
        return row
    return row | {
        "TFLOP": operations / TERA,
        "TFLOP/s": operations / row["seconds"] / TERA,
        "x matrix products": row["seconds"] * bench.rate / operations,
    }


def clip_cells(bench: Bench, size: Size) -> Row:
    """What a row is about."""
    return {"clip": size.name, "tokens": size.tokens(bench.scale.model)}


def weight_bytes(network: nn.Module) -> int:
    """Of all its weights."""
    return sum(weight.nbytes for weight in network.parameters())


def one_forward(network: nn.Module, given: tuple[Tensor, ...]) -> Callable[[], object]:
    """Our network's forward, or diffusers' on as many tokens: a drawing's are so many more frames. The rotary table is
    made beforehand, as its pipelines do."""
    if isinstance(network, MMDiT):
        return partial(network, *given)
    video, image, text, timestep, *drawing = given
    if drawing:
        video, image = torch.cat([video, drawing[0]], dim=2), torch.cat([image, drawing[1]], dim=2)
    frames, height, width = video.shape[2:]
    config = network.config
    rotary = rotary_3d(
        frames,
        height // config.patch_size,
        width // config.patch_size,
        config.attention_head_dim,
        video.device,
    )

    def forward() -> object:
        hidden = rearrange(torch.cat([video, image], dim=1), "b c t h w -> b t c h w")
        return network(hidden, text, timestep, image_rotary_emb=rotary, return_dict=False)

    return forward


# --- parts: each gives the rows of its table as they come ---


def rate(bench: Bench) -> Iterator[Row]:
    """What the device can do: large matrix products, and attention alone at the first clip's tokens."""
    n = bench.scale.product
    yield {
        "work": f"matrix product, {n} x {n} x {n}",
        "seconds": 2.0 * n**3 / bench.rate,
        "TFLOP/s": bench.rate / TERA,
    }
    model, size = bench.scale.model, bench.scale.sizes[0]
    shape = 1, model.backbone.num_heads, size.tokens(model), model.backbone.head_dim
    q, k, v = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(3))

    def attend(backends: list[SDPBackend]) -> Tensor:
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(q, k, v)

    ways = {
        "attention, as PyTorch chooses": list(SDPBackend.__members__.values())[1:],
        "attention, flash": [SDPBackend.FLASH_ATTENTION],
        "attention, cuDNN": [SDPBackend.CUDNN_ATTENTION],
        "attention, memory-efficient": [SDPBackend.EFFICIENT_ATTENTION],
    }
    for way, backends in ways.items():
        try:
            row = cells(bench.race({way: partial(attend, backends)}), way)
        except RuntimeError:
            row = {"seconds": "not there"}
        yield {"work": way} | against_rate(bench, 4.0 * shape[2] * q.numel(), row)


def forward(bench: Bench) -> Iterator[Row]:
    """One forward of the backbone beside diffusers' CogVideoX on as many tokens."""
    networks = {"ours": bench.backbone}
    try:
        networks["diffusers"] = bench.diffusers_backbone()
    except torch.OutOfMemoryError:
        yield {"network": "diffusers", "seconds": "its weights do not fit beside ours"}
    for size in bench.scale.sizes:
        given = bench.given(size)
        found = bench.race({name: one_forward(network, given) for name, network in networks.items()})
        operations, _ = forward_operations(size, bench.scale.model)
        for name, network in networks.items():
            row = cells(found, name, "diffusers", weights=weight_bytes(network))
            yield clip_cells(bench, size) | {"network": name} | against_rate(bench, operations, row)


Ways = dict[str, tuple[nn.Module, nn.ModuleList]]
"""Networks, and the blocks to run them with."""


@contextmanager
def eager_and_compiled(bench: Bench) -> Iterator[Ways]:
    """Our network and diffusers', each with its blocks as they are and with every one compiled by itself."""
    networks = {"ours": bench.backbone, "diffusers": bench.diffusers_backbone()}
    ways: Ways = {}
    for name, network in networks.items():
        blocks = network.transformer_blocks
        by_itself = (torch.compile(block, dynamic=False, backend=bench.scale.compiler) for block in blocks)
        ways[f"{name}, eager"] = network, blocks
        ways[f"{name}, compiled"] = network, nn.ModuleList(by_itself)
    try:
        yield ways
    finally:
        for name, network in networks.items():
            _, network.transformer_blocks = ways[f"{name}, eager"]
        torch._dynamo.reset()


def forwards(bench: Bench, ways: Ways, size: Size) -> dict[str, Callable[[], object]]:
    """One forward in each way."""
    given = bench.given(size)

    def job(network: nn.Module, blocks: nn.ModuleList) -> Callable[[], object]:
        work = one_forward(network, given)

        def through_blocks() -> object:
            network.transformer_blocks = blocks
            return work()

        return through_blocks

    return {name: job(*way) for name, way in ways.items()}


def compiled(bench: Bench) -> Iterator[Row]:
    """The same forwards with each block compiled, and without."""
    with eager_and_compiled(bench) as ways:
        for size in bench.scale.sizes:
            found = bench.race(forwards(bench, ways, size))
            operations, _ = forward_operations(size, bench.scale.model)
            for name, (network, _) in ways.items():
                row = cells(
                    found, name, "diffusers, eager", "diffusers, compiled", weights=weight_bytes(network)
                )
                if name in found:
                    row["first call, s"] = found[name].first
                yield clip_cells(bench, size) | {"network": name} | against_rate(bench, operations, row)


def kernels(bench: Bench) -> Iterator[Row]:
    """What a forward consists of on the device, with each block compiled and without."""
    size = bench.scale.sizes[1]
    with eager_and_compiled(bench) as ways:
        for name, work in forwards(bench, ways, size).items():
            work()
            yield clip_cells(bench, size) | {"network": name} | kernel_cells(bench.kernels(work))


def kernel_cells(found: list[tuple[str, float]]) -> Row:
    """How many kernels ran, their milliseconds by kind, and which of the rest took longest."""
    took: Counter[str] = Counter(dict.fromkeys((*KINDS_OF_KERNEL, "the rest"), 0.0))
    rest: Counter[str] = Counter()
    for name, seconds in found:
        kind = next((kind for kind, known in KINDS_OF_KERNEL.items() if known.match(name)), "the rest")
        took[kind] += 1000 * seconds
        if kind == "the rest":
            rest[name[:80]] += 1000 * seconds
    longest = ", ".join(f"{name} ({ms:.2g} ms)" for name, ms in rest.most_common(4))
    return {"kernels": len(found)} | {f"{kind}, ms": ms for kind, ms in took.items()} | {"longest": longest}


def fp8(bench: Bench) -> Iterator[Row]:
    """Forwards with the weights of linear layers stored in float8_e4m3fn and cast at use."""
    config = bench.scale.model.backbone
    networks = {
        "as computed": bench.backbone,
        "fp8": bench.network(lambda: MMDiT(config, CastingLayers), torch.float8_e4m3fn),
    }
    for size in bench.scale.sizes[:2]:
        given = bench.given(size)
        found = bench.race({name: partial(network, *given) for name, network in networks.items()})
        for name, network in networks.items():
            row = cells(found, name, "as computed", weights=weight_bytes(network))
            yield (
                clip_cells(bench, size) | {"stored": name, "weights, GiB": weight_bytes(network) / GIB} | row
            )


def cfg(bench: Bench) -> Iterator[Row]:
    """One step's classifier-free guidance, in one forward of two sequences and in two forwards."""
    for size in bench.scale.sizes[:2]:
        video, image, text, _, drawing, guidance = (x.float() for x in bench.given(size))
        denoise = Denoiser(
            model=bench.backbone,
            schedule=NoiseSchedule(bench.scale.model.schedule),
            image=image[:, :, 0],
            text=text,
            negative_text=torch.zeros_like(text),
            dtype=bench.dtype,
        )
        noisy = JointLatents(video, drawing)
        jobs = {
            name: partial(replace(denoise, batched=batched), noisy, guidance, 500, GUIDANCE_SCALE)
            for name, batched in (("batched", True), ("sequential", False))
        }
        found = bench.race(jobs)
        for name in jobs:
            row = cells(found, name, "batched", weights=weight_bytes(bench.backbone))
            yield clip_cells(bench, size) | {"branches": name} | row


def vae(bench: Bench) -> Iterator[Row]:
    """The VAE on the first clip, whole and in tiles."""
    config, clip = bench.scale.model.vae, bench.scale.sizes[0].clip
    frames, latent = (1, *clip, 3), (1, *config.latent_shape(*clip))
    with META:
        counted = VideoVAE(build_vae(config), config)
        operations = {
            "encode": count_operations(lambda: counted.encode(torch.empty(frames)))[0],
            "decode": count_operations(lambda: counted.decode(torch.empty(latent)))[0],
        }
    network = bench.vae
    work = {
        "encode": partial(network.encode, torch.rand(frames, device=bench.device)),
        "decode": partial(network.decode, torch.randn(latent, device=bench.device)),
    }
    for name, run in work.items():
        tiled = f"{name}, tiled"
        found = bench.race({name: run, tiled: partial(run, tiled=True)})
        for way in (name, tiled):
            row = cells(found, way, name, weights=weight_bytes(network.model))
            yield (
                clip_cells(bench, bench.scale.sizes[0])
                | {"work": way}
                | (against_rate(bench, operations[name], row) if way == name else row)
            )


def painter(bench: Bench) -> Iterator[Row]:
    """From a reading to the latent of its drawing, by tensors and the drawing encoder, and by OpenCV and the VAE."""
    model = bench.model
    config = model.config.interaction
    for size in bench.scale.sizes[:2]:
        hands, points = (
            torch.randn(1, size.clip.frames, count, 3, device=bench.device)
            for count in (config.num_joints, config.num_points)
        )
        reading = Reading(hands, points)
        quick, exact = model.painter(size.clip), model.painter(size.clip, exact=True)
        metres = torch.cat(model.normalizer.denormalize(*reading), dim=2)
        draw = partial(quick.rasterizer, metres, (config.points_per_object,) * len(config.object_names))
        drawing, frames = draw().to(bench.dtype), exact.draw(*reading)
        jobs = {
            "drawing, tensors": draw,
            "drawing encoder": partial(model.drawing_encoder, drawing),
            "both": partial(quick, reading),
            "drawing, OpenCV": partial(exact.draw, *reading),
            "VAE encoder": partial(model.vae.encode, frames),
            "both, exact": partial(exact, reading),
        }
        found = bench.race(jobs)
        for name in jobs:
            yield clip_cells(bench, size) | {"work": name} | cells(found, name, "both")


def run(bench: Bench) -> Iterator[Row]:
    """One complete run with the loop at every step, after one to warm up."""
    size, stages = bench.scale.sizes[1], []
    for _ in range(2):
        seconds, memory = bench.time(lambda: stages.append(complete_run(bench, size.clip)))
    parts = stages[-1]
    parts["the rest"] = seconds - sum(parts.values())
    for name, took in parts.items():
        yield clip_cells(bench, size) | {"part": name, "seconds": took, "share": took / seconds}
    row = {"part": f"all of {STEPS} steps", "seconds": seconds, "share": 1.0}
    if memory is not None:
        model = bench.model
        networks = model.backbone, model.vae.model, model.interaction, model.drawing_encoder
        row["peak, GiB"] = (memory + sum(map(weight_bytes, networks))) / GIB
    yield clip_cells(bench, size) | row


def denoise(bench: Bench, model: SViMo, clip: ClipSize, image: Tensor) -> tuple:
    """As :meth:`SViMo.denoise`, from random features of prompts."""
    config = bench.scale.model.backbone
    text = torch.randn(2, 1, config.text_length, config.text_dim, device=bench.device)
    return model.denoise(
        image,
        *text,
        clip,
        torch.Generator().manual_seed(0),
        STEPS,
        GUIDANCE_SCALE,
        "constant",
        options=FeedbackOptions(start=0),
    )


def complete_run(bench: Bench, clip: ClipSize) -> dict[str, float]:
    """A reference image to frames and motion in metres; seconds by part."""
    model, clock = bench.model, StageClock(bench.device)
    with clock("encode the image"):
        image = encode_image(
            model.vae.encode, torch.rand(clip.height, clip.width, 3), clip.width, clip.height
        )
    latents, reading, report = denoise(bench, model, clip, image)
    with clock("decode the video"):
        model.vae.decode(latents.video)
    with clock("decode the drawing"):
        model.vae.decode(latents.drawing)
    with clock("motion in metres"):
        model.reader().to_motions(reading, clip.width, clip.height, model.config.fps)
    sampler = {f"sampler: {name}": took for name, took in report.seconds.items() if name != "total"}
    return sampler | clock.seconds()


def skip(bench: Bench) -> Iterator[Row]:
    """The sampler with the network run at every step, and skipped where its input has hardly changed.

    On random weights this says what a skipped step saves, not how many a trained model can skip.
    """
    model, size = bench.model, bench.scale.sizes[1]
    channels, _, height, width = model.config.latent_shape(*size.clip)
    image = torch.randn(1, channels, height, width, device=bench.device)
    made: list[Skipping] = []

    def skipping() -> None:
        made.append(Skipping(bench.backbone))
        denoise(bench, replace(model, backbone=made[-1]), size.clip, image)

    jobs = {"every step": partial(denoise, bench, model, size.clip, image), "skipping": skipping}
    found = bench.race(jobs)
    for name in jobs:
        counts = {"calls": STEPS, "skipped": made[-1].skipped if name == "skipping" else 0}
        yield clip_cells(bench, size) | {"network": name} | counts | cells(found, name, "every step")


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "rate": rate,
    "forward": forward,
    "compile": compiled,
    "kernels": kernels,
    "run": run,
    "skip": skip,
    "fp8": fp8,
    "cfg": cfg,
    "painter": painter,
    "vae": vae,
}
"""By name, what matters most first."""


# --- report ---


@dataclass(kw_only=True)
class Result:
    """What came of one part."""

    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    problem: str | None = None
    """Why there is not more."""


@torch.inference_mode()
def run_part(bench: Bench, name: str) -> Result:
    """All rows of a part until the deadline, or until it fails."""
    began, result = time.perf_counter(), Result()
    if began > bench.deadline:
        return Result(problem="left out: the time is used up")
    try:
        with closing(PARTS[name](bench)) as rows:
            result.rows.extend(rows)
    except OutOfTime:
        result.problem = "ended here: the time is used up"
    except torch.OutOfMemoryError:
        result.problem = "out of memory"
    except Exception as error:
        result.problem = f"{type(error).__name__}: {error}"[:500]
    bench.empty()
    result.seconds = time.perf_counter() - began
    return result


def markdown(name: str, result: Result) -> str:
    """The table of a part."""
    columns = list(dict.fromkeys(column for row in result.rows for column in row))
    lines = [f"### {name}", "", *map(str.strip, PARTS[name].__doc__.splitlines()), ""]
    if columns:
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in result.rows:
        lines.append(f"| {' | '.join(text(row.get(column, '')) for column in columns)} |")
    if result.problem:
        lines += ["", f"**{result.problem}**"]
    return "\n".join([*lines, "", f"({result.seconds:.0f} s)", ""])


def text(value: str | int | float) -> str:
    """Of a cell."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def device_name(device: torch.device) -> str:
    """For people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SCALES, default="full")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each job, which take turns")
    parser.add_argument("--budget", type=float, default=480, help="seconds, after which parts are left out")
    parser.add_argument("--json", type=Path, help="file for the same numbers")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu --size small runs anywhere")

    bench = Bench(
        torch.device(chosen.device), SCALES[chosen.size], chosen.rounds, time.perf_counter() + chosen.budget
    )
    about = {
        "device": device_name(bench.device),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "size": chosen.size,
    }
    print(f"{', '.join(about.values())}; random weights; medians of {chosen.rounds} runs in turns\n")
    results: dict[str, Result] = {}
    for name in chosen.only:
        results[name] = run_part(bench, name)
        print(markdown(name, results[name]), flush=True)
        if chosen.json:  # after each part: what was measured stays, whatever comes
            parts = {part: asdict(result) for part, result in results.items()}
            chosen.json.write_text(json.dumps(about | {"parts": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
