"""Does drawing keep up? What clips cost that are drawn as training goes, beside what one GPU could use up.

    python -m benchmarks.on_the_fly [--config svimo_train/configs/small.json] [--cores 16]

Each stage's batches are drawn as its workers draw them, in one thread whose CPU time counts; so many cores are taken to
be so many times as fast. The GPU's side is computed: operations of the networks' passes, counted on the meta device, at
a share of the rate in the H100's data sheet. No run on a GPU stands behind that share.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from svimo_core.checkpoint import init_part
from svimo_core.config import PRESETS, ClipSize, SViMoConfig
from svimo_core.motion import NUM_JOINTS
from svimo_core.normalization import MotionNormalizer
from svimo_core.rasterize import Rasterizer
from svimo_core.render import render_motion
from svimo_train.data.wild import MOST_OBJECTS, wild_motion
from svimo_train.drawing import CAMERA
from svimo_train.loader import Crops, synthetic_clips
from svimo_train.on_the_fly import SyntheticBatches
from svimo_train.recipe import load_stages
from svimo_train.settings import Shape, TrainConfig

from .full_size import META, count_operations

CARD_RATE, UTILISATION = 989e12, 0.3
"""H100 SXM, dense bfloat16, operations per second; and what of it a run is taken to reach."""
TRAINED = 3
"""Forward passes that a forward and a backward pass amount to."""


class Cost(NamedTuple):
    """Of a whole stage."""

    operations: float
    drawing: float
    """CPU seconds that workers share."""
    alone: float
    """CPU seconds of the training process."""


class Operations:
    """Of one forward pass for one clip or sample, by network."""

    def __init__(self, model: SViMoConfig):
        self.model = model
        with META:
            self.parts = {
                part: init_part(model, part, 0).requires_grad_(False)
                for part in ("vae", "backbone", "interaction", "drawing_encoder")
            }

    def encode(self, size: ClipSize) -> float:
        """The VAE's encoder, one stream."""
        return self._count(lambda: self.parts["vae"].encode(torch.empty(1, 3, *size)))

    def decode(self, size: ClipSize) -> float:
        """The VAE's decoder, one stream."""
        return self._count(lambda: self.parts["vae"].decode(self._latent(size)))

    def denoise(self, size: ClipSize) -> float:
        """The MM-DiT."""
        config, latent = self.model.backbone, self._latent(size)
        text, time_of = torch.empty(1, config.text_length, config.text_dim, device=META), self._time()
        return self._count(lambda: self.parts["backbone"](latent, latent, text, time_of, latent, latent))

    def read(self, size: ClipSize) -> float:
        """VID."""
        latent, points = self._latent(size), self.model.interaction.num_points
        hands, clouds = (torch.empty(1, size.frames, n, 3, device=META) for n in (NUM_JOINTS, points))
        return self._count(lambda: self.parts["interaction"](hands, clouds, latent, latent, self._time()))

    def draw(self, size: ClipSize) -> float:
        """The drawing encoder."""
        network, points = self.parts["drawing_encoder"], self.model.interaction.points_per_object
        draw = Rasterizer(CAMERA, (size.height, size.width), network.config.pixel)
        metres = torch.empty(1, size.frames, NUM_JOINTS + MOST_OBJECTS * points, 3, device=META)
        return self._count(lambda: network(draw(metres, (points,) * MOST_OBJECTS)))

    def of_batch(self, config: TrainConfig, shape: Shape) -> float:
        """One step of a stage at one shape."""
        size, samples = shape.size, shape.batch_size
        encoded = self.encode(size)
        if config.stage == "vae":
            return samples * TRAINED * (encoded + self.decode(size))
        if config.stage == "drawing":
            return samples * TRAINED * self.draw(size)
        clips = samples / config.sources[0].synthetic.uses
        both_streams = 0.0 if config.sources[0].synthetic.first_frames else 2 * encoded
        image = self.encode(size._replace(frames=1))
        denoise, read = self.denoise(size), self.read(size)
        each = {
            "interaction": TRAINED * read,
            "backbone": image + TRAINED * denoise,
            # a first pass, what is read of it and drawn, then the step's own
            "joint": image + (1 + TRAINED) * (denoise + read) + self.draw(size),
            "alignment": image + denoise + read,
        }[config.stage]
        return clips * both_streams + samples * each

    def _latent(self, size: ClipSize) -> torch.Tensor:
        return torch.empty(1, *self.model.vae.latent_shape(*size), device=META)

    @staticmethod
    def _time() -> torch.Tensor:
        return torch.zeros(1, dtype=torch.long, device=META)

    @staticmethod
    def _count(work: Callable[[], object]) -> float:
        with META:
            return count_operations(work)[0]


def cost(config: TrainConfig, model: SViMoConfig, clips: int) -> Cost:
    """Of a stage of one phase, by a few of its batches: so many clips of each shape."""
    (phase,) = config.phases
    operations = Operations(model)
    weight = sum(shape.weight for shape in phase.shapes)
    steps = {shape: phase.steps * shape.weight / weight for shape in phase.shapes}
    total = sum(count * operations.of_batch(config, shape) for shape, count in steps.items())
    if config.stage == "drawing":
        shape, motions = phase.shapes[0], config.drawing.motions
        total += motions * operations.encode(shape.size)
        each = seconds(lambda n: _wild_drawing(n, shape, model), clips)
        return Cost(total, 0.0, motions * each)
    sources = synthetic_clips(config, model)
    motions = [sources[0].motion(index) for index in range(8)]
    if config.stage == "vae":
        load = Crops(sources, config.vae)
    else:
        normalizer = MotionNormalizer.fit(motions, model.interaction.object_names)
        points = model.interaction.points_per_object
        load = SyntheticBatches(sources=sources, normalizer=normalizer, points=points)
    drawing = 0.0
    for shape, count in steps.items():
        generator = torch.Generator().manual_seed(0)
        each = seconds(lambda n, shape=shape, g=generator: load([n], shape, g), clips)
        drawing += count * each * shape.batch_size / config.sources[0].synthetic.uses
    return Cost(total, drawing, 0.0)


def _wild_drawing(number: int, shape: Shape, model: SViMoConfig) -> None:
    points = model.interaction.points_per_object
    motion = wild_motion(number, *shape.size, model.fps, points, "train")
    render_motion(motion, shape.width, shape.height)


def seconds(work: Callable[[int], object], count: int) -> float:
    """CPU seconds of one of so many pieces of work."""
    work(0)
    began = time.process_time()
    for number in range(1, count + 1):
        work(number)
    return (time.process_time() - began) / count


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_the_fly", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--config", type=Path, default=Path("svimo_train/configs/small.json"))
    parser.add_argument("--cores", type=int, default=16)
    parser.add_argument("--clips", type=int, default=40, help="to draw for each stage and shape")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        f"| stage | steps | samples | PFLOP | s on an H100 at {UTILISATION:.0%} | core seconds of drawing | s of it on "
        f"{args.cores} cores | the longer, s |\n|---|---|---|---|---|---|---|---|"
    )
    together = 0.0
    for name, config in load_stages(args.config).items():
        found = cost(config, PRESETS[config.preset], args.clips)
        on_card, drawn = found.operations / CARD_RATE / UTILISATION, found.drawing / args.cores
        longer = max(on_card, drawn) + found.alone
        together += longer
        (phase,) = config.phases
        weight = sum(shape.weight for shape in phase.shapes)
        samples = phase.steps * sum(shape.batch_size * shape.weight for shape in phase.shapes) / weight
        print(
            f"| {name} | {phase.steps} | {samples:.0f} | {found.operations / 1e15:.1f} | {on_card:.0f} | "
            f"{found.drawing + found.alone:.0f} | {drawn + found.alone:.0f} | {longer:.0f} |",
            flush=True,
        )
    print(f"| together | | | | | | | {together:.0f} |")


if __name__ == "__main__":
    main()
