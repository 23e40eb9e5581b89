"""What the sampler asks of a GPU, on a machine without one: PyTorch's fake tensors know where they are and of what
type, but not their values, so that whatever would wait for the GPU's numbers stops the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svimo_core.config import ClipSize, SViMoConfig
from svimo_core.model.drawing import DrawingEncoder
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.vae import VideoVAE, build_vae
from svimo_core.normalization import MotionNormalizer
from svimo_core.sampling.guidance import FeedbackLoop, FeedbackOptions
from svimo_core.sampling.latents import JointLatents, noise_like
from svimo_core.sampling.painter import MotionPainter, QuickPainter
from svimo_core.sampling.pipeline import empty_latents
from svimo_core.sampling.reader import MotionReader
from svimo_core.sampling.sampler import Denoiser, guidance_scales, sample
from svimo_core.schedule import SOLVERS, STOCHASTIC_SOLVERS, NoiseSchedule

STEPS, CLIPS = 4, 2
CLOSED = FeedbackOptions(start=0)
OPEN = FeedbackOptions(enabled=False)
GPU = torch.device("cuda", 0)
HALVES = (torch.bfloat16, torch.float16)


class CastingLeaves:
    """Leaves that compute in the type of their input whatever their weights are stored in, as ComfyUI's do."""

    class Linear(nn.Linear):
        def forward(self, x):
            return F.linear(x, *cast(self, x))

    class Conv1d(nn.Conv1d):
        def forward(self, x):
            return self._conv_forward(x, *cast(self, x))

    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, *cast(self, x))

    class Conv3d(nn.Conv3d):
        def forward(self, x):
            return self._conv_forward(x, *cast(self, x))

    class LayerNorm(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x, self.normalized_shape, *cast(self, x), self.eps)

    class GroupNorm(nn.GroupNorm):
        def forward(self, x):
            return F.group_norm(x, self.num_groups, *cast(self, x), self.eps)

    Embedding = nn.Embedding


def cast(leaf: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return leaf.weight.to(x.dtype), leaf.bias.to(x.dtype)


@contextmanager
def weights_of(dtype: torch.dtype) -> Iterator[None]:
    """What is built in here has its weights on the GPU, in this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with GPU:
            yield
    finally:
        torch.set_default_dtype(before)


class Run:
    """The core sampler with all its networks on the GPU. Build and use it among fake tensors.

    Args:
        dtype: to compute in.
        first: type of the weights of the patch embedding of the MM-DiT and of VID's stems.
        rest: of all others.
    """

    def __init__(
        self,
        config: SViMoConfig,
        statistics: dict,
        schedule: NoiseSchedule,
        dtype: torch.dtype,
        first: torch.dtype | None = None,
        rest: torch.dtype | None = None,
        operations: type = nn,
        quick: bool = True,
    ):
        with weights_of(rest or dtype):
            backbone = MMDiT(config.backbone, operations)
            interaction = InteractionModel(config.interaction, operations)
            vae = VideoVAE(build_vae(config.vae), config.vae)
            encoder = DrawingEncoder(config.drawing, config.vae, operations)
        if first is not None:
            for module in (
                backbone.patch_embed,
                interaction.stem,
                interaction.pyramid,
                interaction.alignment.stem,
                encoder.stem,
            ):
                for leaf in module.modules():
                    for name, weight in leaf.named_parameters(recurse=False):
                        setattr(leaf, name, nn.Parameter(weight.detach().to(first)))
        self.networks = (backbone, interaction, encoder) if quick else (backbone, interaction)
        self.leaf_types: set[tuple[str, torch.dtype]] = set()
        """Names of leaves of all networks, and types of what they were given."""
        for network in self.networks:
            for name, leaf in network.named_modules():
                if hasattr(leaf, "weight") and not isinstance(leaf, nn.Embedding):
                    leaf.register_forward_pre_hook(
                        lambda _, given, name=name: self.leaf_types.add((name, given[0].dtype))
                    )
        size, normalizer = (
            ClipSize(config.frames, config.height, config.width),
            MotionNormalizer.from_dict(statistics),
        )
        empty = empty_latents(config, *size).expand(CLIPS, -1, -1, -1, -1)
        self.start = noise_like(JointLatents(empty, empty), torch.Generator().manual_seed(0)).to(GPU)
        image = torch.randn(CLIPS, *empty.shape[1:2], *empty.shape[3:], device=GPU)
        text = torch.randn(2, CLIPS, config.backbone.text_length, config.backbone.text_dim, device=GPU)
        self.denoiser = Denoiser(
            model=backbone, schedule=schedule, image=image, text=text[0], negative_text=text[1], dtype=dtype
        )
        clip = normalizer, config.width, config.height
        painter = QuickPainter(encoder, *clip, dtype) if quick else MotionPainter(vae.encode, *clip)
        self.loop = FeedbackLoop(MotionReader(interaction, normalizer, dtype=dtype), painter, image)

    def __call__(self, options: FeedbackOptions, solver: str, batched: bool = True, on_step=lambda *_: None):
        """Latents, reading and report."""
        self.loop.options = options
        timesteps = self.denoiser.schedule.timesteps(STEPS)
        latents, report = sample(
            replace(self.denoiser, batched=batched),
            self.start,
            timesteps,
            torch.Generator().manual_seed(1),
            solver,
            self.loop,
            guidance_scales(6.0, timesteps),
            on_step,
        )
        return latents, self.loop.reading(), report


@pytest.fixture
def build(config, normalizer) -> Iterator[Callable[..., Run]]:
    """Makes runs, among fake tensors only: a real one that someone left behind stops a run as well."""
    statistics, schedule = normalizer.to_dict(), NoiseSchedule(config.schedule)
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=False):
        yield lambda dtype, size=config, **options: Run(size, statistics, schedule, dtype, **options)


def check(config: SViMoConfig, run: Run, made: tuple, dtype: torch.dtype, passes: int = STEPS) -> None:
    """Everything has its shape, is on the GPU and in float32, and every layer computed in the type that was asked."""
    latents, reading, report = made
    shape = (CLIPS, *config.latent_shape(config.frames, config.height, config.width))
    assert [x.shape for x in latents] == [shape, shape]
    assert reading.hands.shape == (CLIPS, config.frames, 42, 3)
    assert reading.points.shape == (CLIPS, config.frames, config.interaction.num_points, 3)
    for x in (*latents, *reading, *run.loop.reader.read(*latents)):
        assert (x.device, x.dtype) == (GPU, torch.float32)
    assert report.feedback_passes == passes
    others = {(name, given) for name, given in run.leaf_types if given != dtype}
    assert others == set()
    assert len(run.leaf_types) > 100


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_sampler_never_asks_the_gpu_for_a_value(config, build, solver, quick, dtype):
    run = build(dtype, quick=quick)
    check(config, run, run(CLOSED, solver), dtype)


def test_branches_of_guidance_one_after_the_other(config, build):
    run = build(torch.bfloat16)
    options = FeedbackOptions(start=0.25, every=2, iterations=2)
    check(config, run, run(options, "ddim", batched=False), torch.bfloat16, passes=4)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_a_network_computes_in_the_type_of_its_input(config, build, dtype):
    """With weights of two types, as files have them that keep some layers in full precision."""
    table = replace(config, backbone=replace(config.backbone, position_table=(3, 2, 3)))
    run = build(dtype, table, first=torch.float32, rest=torch.bfloat16, operations=CastingLeaves)
    for network in run.networks:
        assert {weight.dtype for weight in network.parameters()} == {torch.float32, torch.bfloat16}
    check(config, run, run(CLOSED, "ddim"), dtype)


def test_a_value_that_is_asked_for_stops_the_run(build):
    """So that the tests above can fail."""
    run = build(torch.bfloat16)
    run.networks[0].proj_out.register_forward_hook(lambda _, inputs, out: out * out.abs().max().item())
    with pytest.raises(DataDependentOutputException):
        run(OPEN, "ddim")


# What moves


class Moved(NamedTuple):
    """A tensor that went from one device to another, or numbers that were asked for."""

    way: str
    """Such as "cuda to cpu"."""
    dtype: torch.dtype
    shape: tuple[int, ...]


class Moves(TorchDispatchMode):
    """Notes every operator whose result is elsewhere than what it was made from."""

    def __init__(self):
        super().__init__()
        self.seen: list[Moved] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not given:
            return result
        # numbers on the CPU mix with tensors on a GPU
        into = function._schema.name == "aten::copy_"
        source = given[1] if into else max(given, key=lambda x: x.device.type)
        for made in tree_leaves(result):
            if isinstance(made, Tensor | bool | int | float):
                where = made.device.type if isinstance(made, Tensor) else "cpu"
                if where != source.device.type:
                    self.seen.append(
                        Moved(f"{source.device.type} to {where}", source.dtype, tuple(source.shape))
                    )
        return result


def moved(run: Run, options: FeedbackOptions, solver: str) -> list[list[Moved]]:
    """Step by step; the first step of a run makes constants, too."""
    steps = []
    with Moves() as moves:

        def on_step(*_):
            steps.append(moves.seen)
            moves.seen = []

        run(options, solver, on_step=on_step)
    return steps


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("options", [OPEN, CLOSED], ids=["open", "closed"])
def test_only_what_is_drawn_moves(config, build, solver, options, quick):
    """Per step: fresh noise to the GPU where the solver needs any; and with the loop closed and the VAE in it, joints
    and points in metres to the CPU, the only thing that waits for the GPU, and the frames back, a byte each."""
    run = build(torch.bfloat16, quick=quick)
    steps = moved(run, options, solver)
    spots = 42 + config.interaction.num_points
    metres = Moved("cuda to cpu", torch.float32, (CLIPS, config.frames, spots, 3))
    frames = Moved("cpu to cuda", torch.uint8, (CLIPS, config.frames, config.height, config.width, 3))
    noise = Moved("cpu to cuda", torch.float32, tuple(run.start.video.shape))
    expected = [metres, frames] if options.enabled and not quick else []
    for i, seen in enumerate(steps):
        back = [noise] * 2 if solver in STOCHASTIC_SOLVERS and i + 1 < STEPS else []
        if i:
            assert seen == [*expected, *back]
        else:  # rotary angles, fixed noise and statistics go to the GPU once
            assert [x for x in seen if x.way == "cuda to cpu"] == expected[:1]
            assert len(seen) > len(expected) + len(back)
            assert seen.count(frames) == len(expected[1:])


def test_moves_are_seen(build):
    """So that the test above can fail."""
    numbers = torch.zeros(3, device=GPU)
    with Moves() as moves:
        numbers.cpu().to(GPU)
        numbers.copy_(torch.zeros(3))
        torch.zeros(3).copy_(numbers)
        (numbers * torch.tensor(2.0)).to(torch.float16)
        torch.zeros(2, device=GPU) + 1
    assert [x.way for x in moves.seen] == ["cuda to cpu", "cpu to cuda"] + ["cpu to cuda", "cuda to cpu"]
