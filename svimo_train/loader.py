"""From clips to a step's batches: which clips, and reading or drawing them beside the training.

Everything is a function of numbers: the n-th sample of a run is the same clip whoever asks, and micro-batch m of step s
draws from a generator of its own. So PyTorch's own DataLoader, with any number of workers, goes on exactly where a run
stopped: it only starts at another step and sample.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from svimo_core.config import SViMoConfig
from svimo_core.model.vae import VideoVAE
from svimo_core.motion import HandObjectMotion
from svimo_core.normalization import MotionNormalizer

from .clips import FIRST_FRAMES_SERVE, ClipFolder
from .drawing import DrawingPool
from .encode import encoded_clips, sampled_clips
from .encoded import EncodedClips, EncodedFolder
from .on_the_fly import ENDLESS, HeldOutClips, LatentEncoder, SyntheticBatches, SyntheticClips
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
    comes again, in another order each time; those of an endless source come in their order.

    Args:
        counts: clips in each folder, or :data:`ENDLESS`; clips are numbered through all of them.
        weights: how often each folder is drawn, beside the others.
        uses: samples that each clip of an endless source makes, by source.

    Raises:
        ValueError: a folder with so small a weight that it would never be drawn.
    """

    def __init__(
        self, seed: int, counts: Sequence[int], weights: Sequence[float], uses: Sequence[int] | None = None
    ):
        self.seed = seed
        self.counts = counts
        self.uses = uses
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
        if self.counts[folder] == ENDLESS:
            return int(self.starts[folder]) + drawn // self.uses[folder]
        epoch, place = divmod(drawn, self.counts[folder])
        return int(self.starts[folder] + permutation(self.seed, epoch, 2, folder, self.counts[folder])[place])


def sample_order(config: TrainConfig, data: TrainingData) -> SampleOrder:
    """That of a run."""
    sources = config.sources
    uses = [source.synthetic.uses if source.synthetic else 1 for source in sources]
    return SampleOrder(config.seed, data.counts, [source.weight for source in sources], uses)


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

    def __init__(self, folders: Sequence[ClipFolder | SyntheticClips], objective: VAEObjective):
        self.folders = folders
        self.starts = np.cumsum([0, *map(len, folders)])
        self.objective = objective

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """frames: B 3 N H W float32 in [-1, 1]."""
        rng = np.random.default_rng(torch.randint(2**31, (1,), generator=generator).item())
        crops = [self._crop(index, shape, rng) for index in indices]
        frames = torch.from_numpy(np.stack(crops)).float() / 127.5 - 1
        return {"frames": rearrange(frames, "b n h w c -> b c n h w").contiguous()}

    def _crop(self, index: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
        folder = int(np.searchsorted(self.starts, index, side="right")) - 1
        clips, index = self.folders[folder], index - int(self.starts[folder])
        frames = clips.length(index)
        if frames < shape.frames:
            raise ValueError(
                f"{clips.name(index)} has {frames} frames, {shape.frames} are needed: take shapes of fewer"
            )
        part = index, shape.frames, rng.integers(frames - shape.frames + 1)
        drawn = rng.random() < self.objective.drawing_share
        video = clips.drawing(*part) if drawn else clips.clip(*part).video
        height, width = video.shape[1:3]
        if height < shape.height or width < shape.width:
            raise ValueError(
                f"{clips.name(index)} is {height} x {width} pixels, {shape.height} x {shape.width} are to be cut "
                "from it: take smaller shapes"
            )
        top, left = rng.integers(height - shape.height + 1), rng.integers(width - shape.width + 1)
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
    """Latents that the MM-DiT has sampled for the same clips, at each step."""
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
                f"clip {name} of {folder.folder} has only its first frame, which serves only "
                f"{FIRST_FRAMES_SERVE}: train on another folder"
            )
        none = torch.zeros(2, *self.model.vae.latent_shape(*size), dtype=torch.float16)
        latents = [none if clip.latents is None else clip.latents for clip in clips]
        if self.sampled_share:
            chosen = torch.rand(len(indices), generator=generator) < self.sampled_share
            for row in chosen.nonzero().flatten().tolist():
                folder, name = self.sampled.places[indices[row]]
                steps = folder.record(name, size).tensors["latents"]
                latents[row] = steps[torch.randint(len(steps), (), generator=generator)]
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

    clips: list[ClipFolder] | list[SyntheticClips] | EncodedClips | HeldOutClips | DrawingPool
    """Those that sheets may show, too; of endless ones the held-out ones."""
    counts: list[int]
    """Clips in each folder."""
    load: Load
    encode: Callable[[Batch], Batch] = lambda batch: batch
    """What is left to do where the frozen networks are."""


def training_data(config: TrainConfig, model: SimpleNamespace, accelerator: Accelerator) -> TrainingData:
    """The clips of a configuration as its stage reads them; what has to be encoded for that is, by all processes.

    Raises:
        ValueError: sizes that the model does not take, or clips that cannot be used; the message names them.
    """
    config.check_sizes(model.config)
    if config.stage == "drawing":
        pool = DrawingPool(config.clips, config.drawing.motions, model)
        return TrainingData(clips=pool, counts=[pool.count], load=pool)
    if config.stage == "vae":
        folders = synthetic_clips(config, model.config) if config.on_the_fly else plain_folders(config)
        counts = [len(folder) for folder in folders]
        return TrainingData(clips=folders, counts=counts, load=Crops(folders, config.vae))
    if config.on_the_fly:
        return synthetic_data(config, model)
    clips, sampled = encoded_clips(config, model, accelerator), None
    if config.stage == "interaction" and config.interaction.sampled_share:
        sampled = sampled_clips(clips, config, model, accelerator)
    load = EncodedBatches(
        clips=clips,
        model=model.config,
        normalizer=model.normalizer,
        first_frames=config.takes_first_frames,
        sampled=sampled,
        sampled_share=config.interaction.sampled_share if sampled else 0.0,
    )
    return TrainingData(clips=clips, counts=[len(folder.names) for folder in clips.folders], load=load)


def synthetic_clips(config: TrainConfig, model: SViMoConfig) -> list[SyntheticClips]:
    """The sources of a configuration whose clips are drawn as training goes."""
    return [SyntheticClips(source.synthetic, config.seed, model) for source in config.sources]


def synthetic_data(config: TrainConfig, model: SimpleNamespace) -> TrainingData:
    """Clips that are drawn as training goes, encoded where the VAE is.

    Raises:
        ValueError: a model without a text encoder, whose features would have to be made beforehand.
    """
    if "text_encoder" not in model.parts and config.stage != "interaction":
        raise ValueError(
            f"a {model.config.name} model has no text encoder of its own, and features of T5 are made beforehand: "
            "write synthetic clips to a folder with `python -m svimo_train.clips`"
        )
    sources = synthetic_clips(config, model.config)
    vae = VideoVAE(model.parts["vae"], model.config.vae)
    return TrainingData(
        clips=HeldOutClips(model.config, vae),
        counts=[len(source) for source in sources],
        load=SyntheticBatches(
            sources=sources,
            normalizer=model.normalizer,
            points=model.config.interaction.points_per_object,
        ),
        encode=LatentEncoder(vae),
    )


def require_clips(config: TrainConfig) -> None:
    """Look whether there are clips, and some for the sheets, before a large model is loaded for them.

    Raises:
        ValueError: a folder has none; the message names it.
    """
    folders = [source.folder for source in config.sources] + [config.held_out] * bool(config.sheet_every)
    for folder in folders:
        if folder is not None and not EncodedFolder.is_one(folder):
            ClipFolder(folder)


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


def some_motions(config: TrainConfig, model: SViMoConfig) -> list[HandObjectMotion]:
    """The first clips of each folder, :data:`STATISTICS_CLIPS` together, for a model without motion statistics."""
    each = -(-STATISTICS_CLIPS // len(config.sources))
    if config.on_the_fly:
        return [clips.motion(index) for clips in synthetic_clips(config, model) for index in range(each)]
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
    cv2.setNumThreads(1)  # a worker that is forked while OpenCV has threads may wait for them for ever
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=work,
        num_workers=dataset.config.workers,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
    )
    for read in loader:
        if isinstance(read, Exception):
            raise read
        batch, state = read
        generator = torch.Generator()
        generator.set_state(state)
        yield batch, generator


def _start_worker(_worker: int) -> None:
    """Ctrl-C reaches all processes, and so does the SIGTERM of `timeout`, torchrun and Slurm: the training finishes its
    step and stops its workers. Each has one core."""
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
    cv2.setNumThreads(1)
