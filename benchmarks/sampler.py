"""Where the sampler's time goes, with the drawing encoder and without: `python -m benchmarks.sampler [--steps 10]`.

The bundled model with the loop refreshed at every step, drawn with OpenCV and encoded by the VAE, and the quick way, in
turns. Guidance is drawing and encoding; the rest is what is in no network and draws nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from svimo_core.sampling import painter, pipeline
from svimo_core.sampling.guidance import FeedbackOptions
from svimo_core.sampling.pipeline import SViMo, generate
from svimo_core.sampling.sampler import sample

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models" / "svimo-tiny.safetensors"
WAYS = {"OpenCV and VAE": True, "tensors and drawing encoder": False}
"""What encodes drawings, and whether that is the exact way."""


class Stopwatch:
    """Seconds by name, of functions that it wraps."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()

    def on(self, name: str, function: Callable) -> Callable:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            made = function(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - began
            return made

        return timed


def measure(runs: int, steps: int) -> dict[str, dict[str, float]]:
    """Median seconds by way and part."""
    model, watch, inside = SViMo.load(BUNDLED), Stopwatch(), Counter()
    vid = model.interaction
    model.backbone.forward = watch.on("MM-DiT", model.backbone.forward)
    vid.read, vid.hear = watch.on("VID", vid.read), watch.on("VID", vid.hear)
    vid.alignment.find = watch.on("VID", vid.alignment.find)
    vid.alignment.forward = watch.on("VID", vid.alignment.forward)
    model.vae.model.encoder.forward = watch.on("VAE encoder", model.vae.model.encoder.forward)
    model.drawing_encoder.forward = watch.on("drawing encoder", model.drawing_encoder.forward)
    painter.draw_joints = watch.on("drawing", painter.draw_joints)
    painter.Rasterizer.__call__ = watch.on("drawing", painter.Rasterizer.__call__)

    def sample_alone(*args: Any, **kwargs: Any) -> Any:
        watch.seconds.clear()  # of encoding the image
        made = sample(*args, **kwargs)
        inside.update(watch.seconds)
        return made

    pipeline.sample = sample_alone
    config = model.config
    image = torch.rand(config.height, config.width, 3, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[Counter]] = {way: [] for way in WAYS}
    for _ in range(runs + 1):  # the first warms up
        for way, exact in WAYS.items():
            inside.clear()
            options = FeedbackOptions(start=0, exact=exact)
            made = generate(model, image, "use spoon to stir cup", steps=steps, options=options)
            assert made.report.feedback_passes == steps
            parts = Counter(inside)
            parts["guidance"] = made.report.seconds["guidance"]
            parts["total"] = made.report.seconds["total"]
            parts["the rest"] = parts["total"] - sum(parts[name] for name in ("MM-DiT", "VID", "guidance"))
            found[way].append(parts)
    names = "MM-DiT", "VID", "guidance", "drawing", "VAE encoder", "drawing encoder", "the rest", "total"
    return {
        way: {name: median(run[name] for run in done[1:]) for name in names} for way, done in found.items()
    }


def main() -> None:
    """Print the medians over a few runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    found = measure(arguments.runs, arguments.steps)
    print(
        f"9 frames of 96 x 64, {arguments.steps} steps with classifier-free guidance, the loop refreshed at each, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {arguments.runs} runs in turns\n"
    )
    print(f"| | {' | | '.join(WAYS)} | |")
    print("|---" * (1 + 2 * len(WAYS)) + "|")
    for name in next(iter(found.values())):
        cells = (f"{parts[name]:.3f} s | {parts[name] / parts['total']:.1%}" for parts in found.values())
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
