"""Train the judges of 3D motion on the synthetic world, and check the classifier on clips of the test split.

    python -m svimo_train.judge_training --out assets/judges.safetensors

Two to three minutes on one core. Or an autoencoder alone, for FID, on the motions of a folder of clips:

    python -m svimo_train.judge_training --clips output/taco/train --out judges.safetensors
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svimo_core.config import COGVIDEOX_5B_I2V
from svimo_core.motion import HandObjectMotion

from .clips import ClipFolder
from .data.synthetic import generate_motion
from .data.targets import TARGETS
from .data.tools import TOOLS
from .data.words import ACTIONS, Triplet
from .judges import HAND_VALUES, NOTHING, SHIPPED, InteractionAutoencoder, Judges, motion_features

log = logging.getLogger(__name__)

LENGTHS = (9, 17, 25)
"""Frames of the clips, at 8 fps: judges serve models of any length."""
UNSEEN = ("ladle", "pot")
"""Things that only the check has. All actions are trained on, since whatever a prompt asks for must be recognised."""
FROZEN = 0.12
"""Share of training motions that stop early and are to be called NOTHING."""
FEWEST, KEPT_OUT = 20, 10
"""Clips that a folder has to have at least; and one of so many is kept out of training, to see what the autoencoder
makes of motions that it does not know."""
NAMED = 20
"""Broken clips in a message."""


def train_judges(*, clips: int, steps: int, seed: int = 0) -> Judges:
    """Judges trained on `clips` clips of each of LENGTHS, each network for `steps` steps on clips of its own."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    judges = Judges.new((*ACTIONS, NOTHING))

    def classification(features: Tensor, actions: Tensor) -> Tensor:
        features, stopped = _frozen(features)
        actions = torch.where(stopped, len(ACTIONS), actions)
        return F.cross_entropy(judges.classifier(_roughened(features)), actions)

    for name, network, loss, any_words in (
        ("autoencoder", judges.autoencoder, partial(reconstruction, judges.autoencoder), False),
        ("classifier", judges.classifier, classification, True),
    ):
        data = [_clips(rng, clips, frames, any_words) for frames in LENGTHS]
        _standardise(network, torch.cat([features.flatten(0, 1) for features, _ in data]))
        _fit(name, network, loss, _batches(rng, data, steps), steps)
    return judges


def train_folder_judges(
    folder: Path, *, frames: int, steps: int, seed: int = 0
) -> tuple[Judges, dict[str, float]]:
    """An autoencoder of the first frames of each clip's motion.

    Returns:
        It, without a classifier; and its error on clips it learned from ("train") and on those kept out ("kept_out"),
        as a part of the motions' variance.

    Raises:
        ValueError: clips that are broken, too short or without what the judges look at (the message names them), or
            too few.
    """
    clips, features, broken = ClipFolder(folder), [], []
    for index, name in enumerate(clips.names):
        try:
            features.append(motion_features(clips.motion(index, frames)))
        except (OSError, ValueError) as error:
            broken.append(f"{name}: {error}")
    if broken:
        more = f"\n... and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ValueError(
            f"{len(broken)} clips of {folder} cannot be learned from; write them again, delete them or choose another "
            "--frames:\n" + "\n".join(broken[:NAMED]) + more
        )
    if len(features) < FEWEST:
        raise ValueError(f"an autoencoder needs at least {FEWEST} clips, {folder} has {len(features)}")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    everything = torch.from_numpy(np.stack(features))[torch.from_numpy(rng.permutation(len(features)))]
    kept_out, known = everything.split(
        [len(everything) // KEPT_OUT, len(everything) - len(everything) // KEPT_OUT]
    )
    judges = Judges.new()
    loss = partial(reconstruction, judges.autoencoder)
    _standardise(judges.autoencoder, known.flatten(0, 1))
    nothing = torch.zeros(len(known), dtype=torch.long)
    _fit("autoencoder", judges.autoencoder, loss, _batches(rng, [(known, nothing)], steps), steps)
    with torch.inference_mode():
        error = {"train": loss(known).item(), "kept_out": loss(kept_out).item()}
    if not np.isfinite(list(error.values())).all():
        raise ValueError(
            f"the autoencoder does not learn from the motions of {folder} (its error is {error['train']}): look for "
            "coordinates that are no metres"
        )
    return judges, error


def reconstruction(autoencoder: InteractionAutoencoder, features: Tensor, _: Tensor | None = None) -> Tensor:
    """Mean square error of features (B, N, FEATURES) that went through a code, in units of their variance."""
    decoded = autoencoder.decode(autoencoder.encode(features), features.shape[1])
    return F.mse_loss(decoded, (features - autoencoder.encoder.mean) / autoencoder.encoder.std)


def held_out_clips(count: int, frames: int) -> list[HandObjectMotion]:
    """The first clips of the test split."""
    return [generate_motion(seed, "test", frames=frames) for seed in range(count)]


def _clips(rng: np.random.Generator, count: int, frames: int, any_words: bool) -> tuple[Tensor, Tensor]:
    """Features (count, frames, FEATURES) and actions (count,) of training clips.

    Args:
        any_words: any tool does anything to any target, a jug hammers on a loaf, so that what is held cannot tell what
            is done.
    """
    tools, targets = ([name for name in names if name not in UNSEEN] for names in (TOOLS, TARGETS))
    features, actions = [], []
    for seed in range(count):
        triplet = Triplet(*(words[rng.integers(len(words))] for words in (tools, ACTIONS, targets)))
        motion = generate_motion(seed, frames=frames, triplet=triplet if any_words else None)
        features.append(motion_features(motion))
        actions.append(ACTIONS.index(motion.metadata["action"]))
    return torch.from_numpy(np.stack(features)), torch.tensor(actions)


def _batches(
    rng: np.random.Generator, data: list[tuple[Tensor, Tensor]], steps: int, size: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(steps):
        features, actions = data[rng.integers(len(data))]
        chosen = torch.from_numpy(rng.integers(len(features), size=size))
        yield features[chosen], actions[chosen]


def _frozen(features: Tensor) -> tuple[Tensor, Tensor]:
    """Stop some motions (B,) at a moment before the action has shown itself."""
    batch, frames = features.shape[:2]
    stopped = torch.rand(batch) < FROZEN
    last = torch.where(stopped, (torch.rand(batch) * 0.4 * frames).long(), frames)
    index = torch.minimum(torch.arange(frames), last[:, None])
    return features.gather(1, index[..., None].expand_as(features)), stopped


def _roughened(features: Tensor) -> Tensor:
    """Motions as a model might generate them: all values jitter by up to 4 mm, hands and things are 15 mm off."""
    batch = len(features)
    jitter = torch.randn_like(features) * 0.004 * torch.rand(batch, 1, 1)
    left, right, tool, target = torch.randn(4, batch, 1, 3) * 0.015
    joints, moments = HAND_VALUES // 6, torch.zeros(batch, 1, 6)
    offset = [left.repeat(1, 1, joints), right.repeat(1, 1, joints), tool, moments, target, moments]
    return features + jitter + torch.cat(offset, dim=2)


def _standardise(network: nn.Module, features: Tensor) -> None:
    """By the spread of these features (any number, FEATURES)."""
    network.encoder.mean.copy_(features.mean(0))
    network.encoder.std.copy_(features.std(0).clamp(min=1e-3))


def _fit(name: str, network: nn.Module, loss, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    network.train()
    for step, batch in enumerate(batches):
        value = loss(*batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            log.info("%s: step %d of %d, loss %.4f", name, step, steps, value.item())
    network.eval()


def main(arguments: list[str] | None = None) -> int:
    """Train, check and save as asked on the command line; 0 when done, 1 with a message on stderr when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train.judge_training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--count", type=int, default=1500, help="synthetic clips of each length")
    parser.add_argument("--steps", type=int, default=2000, help="of each network")
    parser.add_argument(
        "--check", type=int, default=256, help="clips of the test split to check the classifier on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clips",
        type=Path,
        metavar="FOLDER",
        help="of training clips, in place of the synthetic world: an autoencoder for FID on clips like them",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=COGVIDEOX_5B_I2V.frames,
        help="of each clip in --clips: as many as the model generates",
    )
    args = parser.parse_args(arguments)
    if args.clips is not None and args.out == SHIPPED:
        parser.error("--clips needs --out FILE: the shipped judges are the synthetic world's")
    for name in ("frames", "steps", "count"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    try:
        judges, notes = _of_folder(args) if args.clips is not None else _of_synthetic_world(args)
        judges.save(args.out, notes)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    log.info(
        "wrote %s (%.0f kB) after %.0f s",
        args.out,
        args.out.stat().st_size / 1e3,
        time.perf_counter() - start,
    )
    return 0


def _of_folder(args: argparse.Namespace) -> tuple[Judges, dict[str, str]]:
    judges, errors = train_folder_judges(args.clips, frames=args.frames, steps=args.steps, seed=args.seed)
    log.info(
        "error after the code: %.3f of the variance, of clips kept out of training %.3f",
        errors["train"],
        errors["kept_out"],
    )
    training = f"{args.frames} frames of clips in {args.clips.name}, {args.steps} steps, seed {args.seed}"
    return judges, {"training": training} | {
        f"error_{name}": f"{value:.3f}" for name, value in errors.items()
    }


def _of_synthetic_world(args: argparse.Namespace) -> tuple[Judges, dict[str, str]]:
    judges = train_judges(clips=args.count, steps=args.steps, seed=args.seed)
    notes = {
        "training": f"{args.count} synthetic clips of each of {LENGTHS} frames, {args.steps} steps, seed {args.seed}"
    }
    for frames in LENGTHS:
        motions = held_out_clips(args.check, frames)
        seen = judges.obedience(motions, [motion.metadata["action"] for motion in motions])
        notes[f"accuracy_{frames}_frames"] = f"{seen:.3f}"
        log.info("classifier at %d frames, %d test clips: %.1f %% right", frames, args.check, 100 * seen)
    return judges, notes


if __name__ == "__main__":
    sys.exit(main())
