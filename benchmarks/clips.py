"""Does reading keep up? How fast encoded clips become batches at full size, beside what eight cards can use up.

    python -m benchmarks.clips [--folder FOLDER] [--workers 4] [--gigabytes 2]

Writes made-up clips (random latents, frames and motion of the right shapes) into shards in the folder, reads them in a
run's order through the trainer's own loader, and deletes them. Before the first of two passes it asks the system to
forget the files (`posix_fadvise`, on Linux); what a hypervisor or a disk keeps is out of reach.

The need is what the joint stage's own arithmetic allows on eight H100 at the rate in their data sheet: a forward pass
of the MM-DiT, another as it is recomputed, and a backward pass of twice the work. No run reaches that rate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from svimo_core.config import COGVIDEOX_5B_I2V, ClipSize
from svimo_core.motion import Camera, HandObjectMotion
from svimo_core.normalization import MotionNormalizer
from svimo_train.encode import clips_per_shard
from svimo_train.encoded import EncodedClip, EncodedClips, EncodedFolder, size_name, write_manifest
from svimo_train.loader import Batches, EncodedBatches, MicroBatches, SampleOrder, batches
from svimo_train.settings import Phase, Shape, TrainConfig
from svimo_train.shards import Record, write_shard

from .full_size import Size, forward_operations

MODEL = COGVIDEOX_5B_I2V
SIZES = ClipSize(49, 240, 368), ClipSize(49, 416, 624)
BATCH = 4
"""The paper's, on each card."""
CARDS, CARD_RATE = 8, 989e12
"""H100 SXM, dense bfloat16, operations per second."""
PASSES = 4
"""Forward passes that a training step amounts to: forward, recomputed forward, and backward as two."""
POINTS = 128


class Measured(NamedTuple):
    """What reading took."""

    first: float
    """Samples per second in the first pass, which reads from the disk."""
    second: float
    """And in the second, from memory as far as the files fit into it."""
    cpu: float
    """Seconds of all processes together per sample."""


def need(size: ClipSize) -> float:
    """Samples per second that the cards use up at their own rate."""
    operations, _ = forward_operations(Size(clip=size), MODEL)
    return CARDS * CARD_RATE / (PASSES * operations)


def made_up_clip(size: ClipSize, seed: int) -> Record:
    """Noise of the right shapes."""
    rng = np.random.default_rng(seed)
    motion = HandObjectMotion(
        hands=rng.normal(size=(size.frames, 2, 21, 3)),
        objects={name: rng.normal(size=(size.frames, POINTS, 3)) for name in MODEL.interaction.object_names},
        camera=Camera.from_fov(size.width, size.height),
        fps=MODEL.fps,
        prompt="use spoon to stir cup",
    )
    image = torch.from_numpy(rng.integers(0, 256, (size.height, size.width, 3), np.uint8))
    shape = 2, *MODEL.vae.latent_shape(*size)
    latents = torch.from_numpy(rng.standard_normal(shape, np.float32)).half()
    return EncodedClip(motion, image, latents).record()


def write(folder: Path, size: ClipSize, gigabytes: float) -> tuple[int, float]:
    """Fill a folder; how many clips, and bytes of each."""
    each, shards, written, number = clips_per_shard(size, MODEL), {}, 0, 0
    with tqdm(total=gigabytes * 1e9, desc=f"write {size_name(size)}", unit="B", unit_scale=True) as bar:
        while written < gigabytes * 1e9:
            records = {f"{n:06d}": made_up_clip(size, n) for n in range(number, number + each)}
            path = write_shard(folder / size_name(size), records)
            shards[path.name] = list(records)
            number += each
            written += path.stat().st_size
            bar.update(path.stat().st_size)
    write_manifest(folder, "made up", {size_name(size): shards})
    return number, written / number


def forget(folder: Path) -> None:
    """Ask the system not to keep these files in memory."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, size: ClipSize, count: int, workers: int) -> Measured:
    """Read all clips twice, as one process of a run does."""
    shape = Shape(frames=size.frames, height=size.height, width=size.width, batch_size=BATCH)
    steps = count // BATCH
    config = TrainConfig(
        stage="joint",
        clips=folder,
        output=folder,
        phases=(Phase(steps=2 * steps, shapes=(shape,)),),
        workers=workers,
    )
    some = EncodedClips([EncodedFolder(folder)])
    motions = [some.clip(index, size).motion for index in range(2)]
    load = EncodedBatches(
        clips=EncodedClips([EncodedFolder(folder)]),
        model=MODEL,
        normalizer=MotionNormalizer.fit(motions, MODEL.interaction.object_names),
    )
    del some, motions  # a file that is mapped stays in memory
    forget(folder)
    dataset = Batches(config, load, SampleOrder(0, [count], [1.0]))
    read = batches(dataset, MicroBatches(config, 0, 0, 0, 1), pin_memory=False)
    rates, before = [], os.times()
    for _ in range(2):
        began = time.perf_counter()
        done = sum(len(batch["prompts"]) for batch, _ in islice(read, steps))
        rates.append(done / (time.perf_counter() - began))
    read.close()  # or the workers' time is not known yet
    cpu = sum(os.times()[:4]) - sum(before[:4])
    return Measured(*rates, cpu / (2 * steps * BATCH))


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clips", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; without it the system's for such files"
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of made-up clips at each size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"| clip | MB | need of {CARDS} cards: samples/s | MB/s | from disk, {args.workers} workers: samples/s | "
        "MB/s | x need | from memory: samples/s | CPU ms per sample |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            count, bytes_each = write(Path(folder), size, args.gigabytes)
            found, wanted, mb = measure(Path(folder), size, count, args.workers), need(size), bytes_each / 1e6
        print(
            f"| {size.frames} x {size.height} x {size.width} | {mb:.2f} | {wanted:.1f} | {wanted * mb:.0f} | "
            f"{found.first:.0f} | {found.first * mb:.0f} | {found.first / wanted:.1f} | {found.second:.0f} | "
            f"{1000 * found.cpu:.1f} |"
        )


if __name__ == "__main__":
    main()
