"""From clips on disk to a step's batches: which clips, and reading them beside the training.

Everything is a function of numbers: the n-th sample of a run is the same clip whoever asks, and micro-batch m of step s
draws from a generator of its own. So PyTorch's own DataLoader, with any number of workers, goes on exactly where a run
stopped: it only starts at another step and sample.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from svimo_core.config import SViMoConfig
from svimo_core.motion import HandObjectMotion
from svimo_core.normalization import MotionNormalizer
from svimo_core.render import render_motion

from .clips import ClipFolder
from .drawing import DrawingPool
from .encode import encoded_clips, sampled_clips
from .encoded import EncodedClips, EncodedFolder
from .settings import Batch, Shape, TrainConfig, VAEObjective

STATISTICS_CLIPS = 512
"""Behind the motion statistics of a model that has none."""
BLOCK = 1000
"""Samples over which the folders' weights hold exactly, in thousandths."""


class Load(Protocol):
    """How a stage's batches are made of clips."""

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """Tensors of these clips; all that is random comes from the generator."""


# --- which clips ---


class SampleOrder:
    """Which clip each sample of a run is, from its number alone. Every clip of a folder comes once before any of them
    comes again, in another order each time.

    Args:
        counts: clips in each folder; clips are numbered through all of them.
        weights: how often each folder is drawn, beside the others.

    Raises:
        ValueError: a folder with so small a weight that it would never be drawn.
    """

    def __init__(self, seed: int, counts: Sequence[int], weights: Sequence[float]):
        self.seed = seed
        self.counts = counts
        self.starts = np.cumsum([0, *counts])
        edges = np.cumsum(weights) / sum(weights)
        self.slots = np.searchsorted(edges[:-1], (np.arange(BLOCK) + 0.5) / BLOCK)
        self.quota = np.bincount(self.slots, minlength=len(counts))
        if not self.quota.all():
            raise ValueError(
                f"a folder of clips with under a thousandth of all weights would never be drawn, got {list(weights)}"
            )

    def __call__(self, sample: int) -> int:
        """The number of a clip."""
        block, place = divmod(sample, BLOCK)
        folders = self.slots[permutation(self.seed, block, 3, 0, BLOCK)[: place + 1]]
        folder = int(folders[-1])
        drawn = block * int(self.quota[folder]) + np.count_nonzero(folders == folder) - 1
        epoch, place = divmod(drawn, self.counts[folder])
        return int(self.starts[folder] + permutation(self.seed, epoch, 2, folder, self.counts[folder])[place])


@lru_cache(maxsize=64)
def permutation(seed: int, number: int, purpose: int, folder: int, count: int) -> np.ndarray:
    """An order of so many things."""
    return np.random.default_rng([seed, number, purpose, folder]).permutation(count)


def step_generator(seed: int, step: int, micro: int) -> torch.Generator:
    """The source of all randomness of one forward pass, by the micro-batch's number in its step over all processes."""
    words = np.random.SeedSequence([seed, step, 0, micro]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def draw_shape(config: TrainConfig, step: int) -> Shape:
    """The clip shape of a step, the same on every process."""
    shapes = config.phase_at(step).shapes
    weights = np.array([shape.weight for shape in shapes])
    rng = np.random.default_rng([config.seed, step, 1])
    return shapes[rng.choice(len(shapes), p=weights / weights.sum())]


class MicroBatch(NamedTuple):
    """One forward pass of one process."""

    step: int
    number: int
    """In its step, over all processes."""
    sample: int
    """Number of its first sample in the run; the others follow."""


class MicroBatches(Sampler):
    """All that one process has to do from a step on.

    Args:
        step, sample: the first ones, numbered over all processes.
        process, processes: this one's number, and how many share the run.
    """

    def __init__(self, config: TrainConfig, step: int, sample: int, process: int, processes: int):
        self.config = config
        self.step = step
        self.sample = sample
        self.process = process
        self.processes = processes

    def __iter__(self) -> Iterator[MicroBatch]:
        sample, each_step = self.sample, self.config.gradient_accumulation * self.processes
        for step in range(self.step, self.config.steps):
            size = draw_shape(self.config, step).batch_size
            for number in range(self.process, each_step, self.processes):
                yield MicroBatch(step, number, sample + number * size)
            sample += each_step * size


# --- reading them ---


class Crops:
    """Crops of videos and of rendered motion, as the VAE's stage wants them."""

    def __init__(self, folders: Sequence[ClipFolder], objective: VAEObjective):
        self.clips = [(clips, index) for clips in folders for index in range(len(clips))]
        self.objective = objective

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """frames: B 3 N H W float32 in [-1, 1]."""
        rng = np.random.default_rng(torch.randint(2**31, (1,), generator=generator).item())
        crops = [self._crop(*self.clips[index], shape, rng) for index in indices]
        frames = torch.from_numpy(np.stack(crops)).float() / 127.5 - 1
        return {"frames": rearrange(frames, "b n h w c -> b c n h w").contiguous()}

    def _crop(self, clips: ClipFolder, index: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
        start = rng.integers(len(clips.motion(index)) - shape.frames + 1)
        clip = clips.clip(index, shape.frames, start)
        video = clip.video
        if rng.random() < self.objective.drawing_share:
            video = render_motion(clip.motion, width=video.shape[2], height=video.shape[1])
        top, left = (
            rng.integers(size - part + 1)
            for size, part in zip(video.shape[1:3], (shape.height, shape.width), strict=True)
        )
        return video[:, top : top + shape.height, left : left + shape.width]


@dataclass(frozen=True, kw_only=True)
class EncodedBatches:
    """Latents, normalised motion, prompts and first frames."""

    clips: EncodedClips
    model: SViMoConfig
    normalizer: MotionNormalizer
    first_frames: bool = False
    """Take clips that have only their first frame as well."""
    sampled: EncodedClips | None = None
    """Latents that the MM-DiT has sampled for the same clips."""
    sampled_share: float = 0.0
    """Fraction of samples that have those."""

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """Clips as tensors.

        Returns:
            video, motion: latents, B C T h w float32; zero where the clip has no video.
            whole: which clips have one, B.
            hands, points: normalised motion, B N 42 3 and B N P 3.
            images: first frames, B H W 3 uint8.
            prompts.

        Raises:
            ValueError: a clip that is damaged or lacks its video; the message names it.
        """
        size = shape.size
        clips = [self.clips.clip(index, size) for index in indices]
        whole = [clip.latents is not None for clip in clips]
        if not (self.first_frames or all(whole)):
            folder, name = self.clips.places[indices[whole.index(False)]]
            raise ValueError(
                f"clip {name} of {folder.folder} has only its first frame, which serves only a joint stage with "
                'joint.guidance_from "first" and without joint.warm_up: train on another folder'
            )
        none = torch.zeros(2, *self.model.vae.latent_shape(*size), dtype=torch.float16)
        latents = [none if clip.latents is None else clip.latents for clip in clips]
        if self.sampled_share:
            chosen = torch.rand(len(indices), generator=generator) < self.sampled_share
            for row in chosen.nonzero().flatten().tolist():
                folder, name = self.sampled.places[indices[row]]
                latents[row] = folder.record(name, size).tensors["latents"]
        # float32 first: the trainer's autocast for CPUs refuses to stack float16
        scaled = torch.stack([x.float() for x in latents]) * self.model.vae.scaling_factor
        points = self.model.interaction.points_per_object
        hands, clouds = zip(*(self.normalizer.normalize(clip.motion, points) for clip in clips), strict=True)
        return {
            "video": scaled[:, 0],
            "motion": scaled[:, 1],
            "whole": torch.tensor(whole),
            "hands": torch.stack(hands),
            "points": torch.stack(clouds),
            "images": torch.stack([clip.image for clip in clips]),
            "prompts": [clip.motion.prompt for clip in clips],
        }


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a stage learns from."""

    clips: list[ClipFolder] | EncodedClips | DrawingPool
    counts: list[int]
    """Clips in each folder."""
    load: Load


def training_data(config: TrainConfig, model: SimpleNamespace, accelerator: Accelerator) -> TrainingData:
    """The clips of a configuration as its stage reads them; what has to be encoded for that is, by all processes.

    Raises:
        ValueError: clips that cannot be used; the message names them.
    """
    if config.stage == "drawing":
        pool = DrawingPool(config.clips, config.drawing.motions, model)
        return TrainingData(clips=pool, counts=[pool.count], load=pool)
    if config.stage == "vae":
        folders = plain_folders(config)
        counts = [len(folder) for folder in folders]
        return TrainingData(clips=folders, counts=counts, load=Crops(folders, config.vae))
    clips, sampled = encoded_clips(config, model, accelerator), None
    if config.stage == "interaction" and config.interaction.sampled_share:
        sampled = sampled_clips(clips, config, model, accelerator)
    load = EncodedBatches(
        clips=clips,
        model=model.config,
        normalizer=model.normalizer,
        # where nothing needs true latents
        first_frames=config.stage == "alignment"
        or (config.stage == "joint" and config.joint.guidance_from == "first" and not config.joint.warm_up),
        sampled=sampled,
        sampled_share=config.interaction.sampled_share if sampled else 0.0,
    )
    return TrainingData(clips=clips, counts=[len(folder.names) for folder in clips.folders], load=load)


def require_clips(config: TrainConfig) -> None:
    """Look whether there are clips, before a large model is loaded for them.

    Raises:
        ValueError: a folder has none; the message names it.
    """
    for source in config.sources:
        if not EncodedFolder.is_one(source.folder):
            ClipFolder(source.folder)


def plain_folders(config: TrainConfig) -> list[ClipFolder]:
    """The folders of a configuration, none of them encoded.

    Raises:
        ValueError: one is.
    """
    for source in config.sources:
        if EncodedFolder.is_one(source.folder):
            raise ValueError(
                f"the clips of {source.folder} are encoded, and the {config.stage} stage learns from plain ones: "
                "give it the folder that they were encoded from"
            )
    return [ClipFolder(source.folder) for source in config.sources]


def some_motions(config: TrainConfig) -> list[HandObjectMotion]:
    """The first clips of each folder, :data:`STATISTICS_CLIPS` together, for a model without motion statistics."""
    each = -(-STATISTICS_CLIPS // len(config.sources))
    motions = []
    for source in config.sources:
        if EncodedFolder.is_one(source.folder):
            clips, size = EncodedFolder(source.folder), config.phases[0].shapes[0].size
            clips.require_sizes([size])
            motions += [clips.clip(name, size).motion for name in clips.names[:each]]
        else:
            clips = ClipFolder(source.folder)
            motions += [clips.motion(index) for index in range(min(len(clips), each))]
    return motions


@dataclass(frozen=True)
class Batches(Dataset):
    """A stage's batches by :class:`MicroBatch`, each with the state of its generator after loading, from which the
    forward pass draws on; or the error, which the training raises."""

    config: TrainConfig
    load: Load
    order: SampleOrder

    def __getitem__(self, micro: MicroBatch) -> tuple[Batch, Tensor] | Exception:
        generator, shape = (
            step_generator(self.config.seed, micro.step, micro.number),
            draw_shape(self.config, micro.step),
        )
        try:
            indices = [self.order(micro.sample + i) for i in range(shape.batch_size)]
            return self.load(indices, shape, generator), generator.get_state()
        except (OSError, ValueError) as error:
            return error


def batches(
    dataset: Batches, work: MicroBatches, pin_memory: bool
) -> Iterator[tuple[Batch, torch.Generator]]:
    """Read batches in their order, ahead of their use where the configuration has `workers`.

    Raises:
        OSError, ValueError: a clip that cannot be read; the message names it.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=work,
        num_workers=dataset.config.workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pin_memory,
    )
    for read in loader:
        if isinstance(read, Exception):
            raise read
        batch, state = read
        generator = torch.Generator()
        generator.set_state(state)
        yield batch, generator


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches all processes, and the training finishes its step and stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
