"""What a timestep for each stream and latent frame costs: `python -m benchmarks.timesteps [--steps 10] [--runs 15]`.

The bundled model of any direction with nothing known, once with one timestep for everything and once with one for each
latent frame of each stream, all the same: one forward, and one run of the sampler. Both ways take turns, and each pair
gives one ratio of CPU time, so that whatever else the machine does falls on both. They make the same, up to rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from svimo_core.sampling.latents import JointLatents, Known, known_frames
from svimo_core.sampling.pipeline import SViMo, empty_latents, generate

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "models" / "svimo-tiny-any.safetensors"
PROMPT = "use spoon to stir cup"


def paired(
    one: Callable[[], Tensor], each: Callable[[], Tensor], runs: int
) -> tuple[list[float], list[float]]:
    """CPU seconds of the first way, and the second's over the first's, of so many pairs after one to warm up.

    Raises:
        ValueError: they make different things.
    """
    seconds, ratios = [], []
    for run in range(runs + 1):
        took = {}
        for way in (one, each) if run % 2 else (each, one):
            began = time.process_time()
            took[way] = way(), time.process_time() - began
        if not torch.allclose(took[one][0], took[each][0], atol=1e-4):
            raise ValueError("one timestep and equal ones of all frames make different things")
        if run:
            seconds.append(took[one][1])
            ratios.append(took[each][1] / took[one][1])
    return seconds, ratios


def ways(model: SViMo, steps: int) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """What is measured, with one timestep and with those of all frames."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    latents = empty_latents(config, config.frames, config.height, config.width)
    drawn = [torch.randn(2, *latents.shape[1:], generator=generator) for _ in range(4)]
    text = torch.randn(2, config.backbone.text_length, config.backbone.text_dim, generator=generator)
    image = torch.rand(config.height, config.width, 3, generator=generator)
    frames = known_frames(latents.shape[2], video=False, motion=False)
    nothing = Known(JointLatents(latents, latents), frames)

    def forward(timestep: Tensor) -> Tensor:
        video, condition, drawing, guidance = drawn
        with torch.inference_mode():
            return torch.cat(model.backbone(video, condition, text, timestep, drawing, guidance))

    def sampled(known: Known | None) -> Tensor:
        return generate(model, image, PROMPT, steps=steps, known=known).video

    at = torch.full((2,), 500)
    return {
        "one forward, with guidance scale": (
            lambda: forward(at),
            lambda: forward(at[:, None, None].expand(-1, *frames.shape[1:])),
        ),
        f"an image and a prompt to a clip, {steps} steps": (lambda: sampled(None), lambda: sampled(nothing)),
    }


def main() -> None:
    """Print medians and quartiles over the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    model = SViMo.load(BUNDLED)
    config = model.config
    print(
        f"{config.frames} frames of {config.width} x {config.height}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; medians of {arguments.runs} pairs, in brackets the quartiles\n"
    )
    print("| | CPU time with one timestep | with one for each frame |\n|---|---|---|")
    for name, (one, each) in ways(model, arguments.steps).items():
        seconds, ratios = paired(one, each, arguments.runs)
        low, middle, high = quantiles(ratios, n=4)
        print(f"| {name} | {median(seconds):.3f} s | {middle:.3f} x ({low:.3f} to {high:.3f}) |")


if __name__ == "__main__":
    main()
