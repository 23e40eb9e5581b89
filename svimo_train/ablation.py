"""The paper's ablation (Table 3): the same training with parts of the closed loop left out, and what that costs.

    python -m svimo_train.ablation --config svimo_train/configs/tiny-ablation.json --out output/train/ablation

Every variant and seed starts from the same checkpoints, learns from the same clips for the same number of steps, and is
evaluated on the same clips. None of them knows guidance at the start: what an MM-DiT in `init` has learned of it is set
to zero (`start.safetensors` in the output folder). Runs that are done are kept, so the command can be run again after a
stop. `results.json` in the output folder has every score; a table of them is printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from svimo_core.checkpoint import load_part, read_header, save_checkpoint
from svimo_core.files import reading, whole_file
from svimo_core.sampling.guidance import FeedbackOptions
from svimo_core.sampling.pipeline import SViMo

from .evaluate import evaluate
from .judges import Judges
from .settings import TrainConfig
from .trainer import TrainingStopped, train
from .truth import synthetic_clips

log = logging.getLogger(__name__)


class Variant(NamedTuple):
    """What of the loop a run trains with."""

    guidance: bool
    gradient_constraint: bool
    backbone: str = "init"


VARIANTS = {
    "full loop": Variant(True, True),
    "interaction guidance only": Variant(True, False),
    "gradient constraint only": Variant(False, True),
    "no VID in the loop": Variant(False, False),
    "separate video and motion models": Variant(False, False, "separate"),
}
"""In the paper's order. VID always reads the motion off the latents; without guidance it never speaks back."""
METRICS = ("psnr_moving_db", "mpjpe_mm", "smoothness", "chamfer_mm2", "fid", "reprojection_px")


def require_same_run(config: TrainConfig, folder: Path, count: int, steps: int) -> None:
    """Note in the output folder what its runs are of, or compare with what was noted.

    Raises:
        ValueError: it holds runs of something else.
    """
    settings = {
        **{field: value for field, value in config.to_dict().items() if field not in ("output", "seed")},
        "count": count,
        "sampling_steps": steps,
    }
    told, path = json.dumps(settings, indent=1, sort_keys=True) + "\n", folder / "run.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(told)
    elif path.read_text() != told:
        raise ValueError(
            f"{folder} holds runs of another configuration, --count or --steps (see run.json there): choose another "
            "--out, or delete it to start anew"
        )


def without_guidance(init: Path, folder: Path) -> Path:
    """A checkpoint whose MM-DiT has still to learn what guidance means, as the paper's has at the start: the guidance
    half of its motion patch kernel is zero."""
    path = folder / "start.safetensors"
    if not path.is_file():
        header = read_header(init)
        header.check_has("backbone")
        parts = {name: load_part(header, name, torch.float32) for name in header.parts}
        kernel = parts["backbone"].patch_embed.motion_proj.weight
        with torch.no_grad():
            kernel[:, kernel.shape[1] // 2 :] = 0
        save_checkpoint(path, header.config, parts, header.normalizer, header.preview, header.provenance)
    return path


def run_folder(name: str, seed: int | str) -> str:
    """Where a variant's run with a seed lies in the output folder."""
    return f"{name.replace(' ', '-')}-{seed}"


def run_variant(config: TrainConfig, name: str, seed: int, folder: Path, count: int, steps: int) -> dict:
    """Train and evaluate one variant with one seed, or read what an earlier run found."""
    variant = VARIANTS[name]
    output = folder / run_folder(name, seed)
    found = output / "scores.json"
    if not found.is_file():
        joint = replace(
            config.joint, guidance=variant.guidance, gradient_constraint=variant.gradient_constraint
        )
        path = train(replace(config, output=output, seed=seed, joint=joint, backbone=variant.backbone))
        model = SViMo.load(path)
        scores, _ = evaluate(
            model,
            synthetic_clips(0, count, "test", model.config),
            Judges.load(),
            steps=steps,
            guidance_scale=1.0,
            options=FeedbackOptions(enabled=variant.guidance),
            compare=None,
        )
        with whole_file(found) as partial:
            partial.write_text(json.dumps(scores, indent=1) + "\n")
    with reading(found, "is damaged", "delete it to measure anew"):
        return dict(json.loads(found.read_text()))


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown: mean and spread (standard deviation over seeds) of each metric for each variant."""
    lines = [f"| variant | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
    for name, seeds in results.items():
        columns = [[scores[metric] for scores in seeds.values()] for metric in METRICS]
        cells = (f"{np.mean(column):.3f} +- {np.std(column):.3f}" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """0 when every variant is done; 1 with a message on stderr when it cannot go on."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train.ablation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--config", type=Path, required=True, help="of a joint stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--count", type=int, default=64, help="clips to evaluate on")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results: dict[str, dict[str, dict]] = {name: {} for name in args.variants}
    try:
        config = TrainConfig.load(args.config)
        if config.stage != "joint":
            raise ValueError(f"the ablation is of a joint stage, and {args.config.name} is of {config.stage}")
        if args.count < 2:
            raise ValueError(
                f"--count must be at least 2, for FID compares two sets of motions; got {args.count}"
            )
        require_same_run(config, args.out, args.count, args.steps)
        if config.init is not None:
            config = replace(config, init=without_guidance(config.init, args.out))
        for seed in args.seeds:  # all variants of a seed before the next: an early stop still compares them
            for name in args.variants:
                log.info("%s, seed %d", name, seed)
                results[name][str(seed)] = run_variant(config, name, seed, args.out, args.count, args.steps)
        with whole_file(args.out / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=1) + "\n")
    except (OSError, ValueError, TrainingStopped, KeyboardInterrupt) as error:
        sys.stderr.write(f"{error or 'stopped'}\n")
        return 1
    sys.stdout.write(f"{table(results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
