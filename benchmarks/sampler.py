"""How much of the sampler's time is not spent in the networks: `python -m benchmarks.sampler [--steps 20]`.

One run of the bundled model with the loop closed, timed from outside by hooks on the three networks that the sampler
calls. What is left is drawing the motion, the solver, and bookkeeping; drawing is shown apart.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch

from svimo_core.sampling import painter, pipeline
from svimo_core.sampling.pipeline import SViMo, generate
from svimo_core.sampling.sampler import sample

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models" / "svimo-tiny.safetensors"


def timed(seconds: Counter, name: str, module: torch.nn.Module) -> None:
    """Add the wall time of a module's forwards to `seconds[name]`."""
    started = []
    module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
    module.register_forward_hook(lambda *_: seconds.update({name: time.perf_counter() - started.pop()}))


def main() -> None:
    """Print the medians over a few runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()

    model, seconds = SViMo.load(BUNDLED), Counter()
    timed(seconds, "MM-DiT", model.backbone)
    timed(seconds, "VID", model.interaction)
    timed(seconds, "VAE encoder", model.vae.model.encoder)
    inside = Counter()

    def timed_draw(*inputs):
        started = time.perf_counter()
        frames = draw(*inputs)
        seconds["drawing"] += time.perf_counter() - started
        return frames

    def sample_alone(*inputs, **options):
        seconds.clear()  # of encoding the image
        result = sample(*inputs, **options)
        inside.update(seconds)
        return result

    draw, painter.render_motion, pipeline.sample = painter.render_motion, timed_draw, sample_alone
    config = model.config
    image = torch.rand(config.height, config.width, 3, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(arguments.runs + 1):  # the first warms up
        inside.clear()
        made = generate(model, image, "use spoon to stir cup", steps=arguments.steps)
        total = made.report.seconds["total"]
        networks = sum(inside[name] for name in ("MM-DiT", "VID", "VAE encoder"))
        runs.append({**inside, "sampler": total, "outside networks": total - networks})
    print(
        f"{config.frames} frames of {config.width} x {config.height}, {arguments.steps} steps, "
        f"{made.report.feedback_passes} feedback passes, {torch.get_num_threads()} threads; medians of {arguments.runs}"
    )
    sampler = median(run["sampler"] for run in runs[1:])
    for name in runs[0]:
        value = median(run[name] for run in runs[1:])
        print(f"{name:<18}{value:8.2f} s {value / sampler:7.1%}")


if __name__ == "__main__":
    main()
