"""Train the judges of 3D motion on the synthetic world, and check the classifier on clips of the test split.

    python -m svimo_train.judge_training --out assets/judges.safetensors

Two to three minutes on one core.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svimo_core.motion import HandObjectMotion

from .data.synthetic import generate_motion
from .data.targets import TARGETS
from .data.tools import TOOLS
from .data.words import ACTIONS, Triplet
from .judges import HAND_VALUES, NOTHING, SHIPPED, Judges, motion_features

log = logging.getLogger(__name__)

LENGTHS = (9, 17, 25)
"""Frames of the clips, at 8 fps: judges serve models of any length."""
UNSEEN = ("ladle", "pot")
"""Things that only the check has. All actions are trained on, since whatever a prompt asks for must be recognised."""
FROZEN = 0.12
"""Share of training motions that stop early and are to be called NOTHING."""


def train_judges(*, clips: int, steps: int, seed: int = 0) -> Judges:
    """Judges trained on `clips` clips of each of LENGTHS, each network for `steps` steps on clips of its own."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    judges = Judges.new((*ACTIONS, NOTHING))

    def reconstruction(features: Tensor, _: Tensor) -> Tensor:
        encoder = judges.autoencoder.encoder
        decoded = judges.autoencoder.decode(judges.autoencoder.encode(features), features.shape[1])
        return F.mse_loss(decoded, (features - encoder.mean) / encoder.std)

    def classification(features: Tensor, actions: Tensor) -> Tensor:
        features, stopped = _frozen(features)
        actions = torch.where(stopped, len(ACTIONS), actions)
        return F.cross_entropy(judges.classifier(_roughened(features)), actions)

    for name, network, loss, any_words in (
        ("autoencoder", judges.autoencoder, reconstruction, False),
        ("classifier", judges.classifier, classification, True),
    ):
        data = [_clips(rng, clips, frames, any_words) for frames in LENGTHS]
        everything = torch.cat([features.flatten(0, 1) for features, _ in data])
        network.encoder.mean.copy_(everything.mean(0))
        network.encoder.std.copy_(everything.std(0).clamp(min=1e-3))
        _fit(name, network, loss, _batches(rng, data, steps), steps)
    return judges


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


def main(arguments: list[str] | None = None) -> None:
    """Train, check and save as asked on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train.judge_training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--clips", type=int, default=1500, help="of each length")
    parser.add_argument("--steps", type=int, default=2000, help="of each network")
    parser.add_argument(
        "--check", type=int, default=256, help="clips of the test split to check the classifier on"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    judges = train_judges(clips=args.clips, steps=args.steps, seed=args.seed)
    notes = {
        "training": f"{args.clips} synthetic clips of each of {LENGTHS} frames, {args.steps} steps, seed {args.seed}"
    }
    for frames in LENGTHS:
        motions = held_out_clips(args.check, frames)
        seen = judges.obedience(motions, [motion.metadata["action"] for motion in motions])
        notes[f"accuracy_{frames}_frames"] = f"{seen:.3f}"
        log.info("classifier at %d frames, %d test clips: %.1f %% right", frames, args.check, 100 * seen)
    judges.save(args.out, notes)
    log.info(
        "wrote %s (%.0f kB) after %.0f s",
        args.out,
        args.out.stat().st_size / 1e3,
        time.perf_counter() - start,
    )


if __name__ == "__main__":
    main()
