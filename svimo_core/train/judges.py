"""Train the judges of 3D motion on the synthetic world, and check the classifier on clips of the test split.

    python -m svimo_core.train.judges --out assets/judges.safetensors

About three minutes on one core.
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

from ..data.synthetic import generate_motion
from ..data.words import ACTIONS, TRIPLETS
from ..judges import HAND_VALUES, SHIPPED, Judges, motion_features
from ..motion import HandObjectMotion

log = logging.getLogger(__name__)

LENGTHS = (9, 17, 25)
"""Frames of the clips, at 8 fps: judges serve models of any length."""
UNSEEN = ("ladle", "pot")
"""Things that only the check has. All actions are trained on, since whatever a prompt asks for must be recognised."""


def train_judges(*, clips: int, steps: int, seed: int = 0) -> Judges:
    """Judges trained on `clips` clips of each of LENGTHS, each network for `steps` steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = [_clips(rng, clips, frames) for frames in LENGTHS]
    judges = Judges.new(ACTIONS)
    everything = torch.cat([features.flatten(0, 1) for features, _ in data])
    for network in (judges.autoencoder, judges.classifier):
        network.encoder.mean.copy_(everything.mean(0))
        network.encoder.std.copy_(everything.std(0).clamp(min=1e-3))

    def reconstruction(features: Tensor, _: Tensor) -> Tensor:
        encoder = judges.autoencoder.encoder
        decoded = judges.autoencoder.decode(judges.autoencoder.encode(features), features.shape[1])
        return F.mse_loss(decoded, (features - encoder.mean) / encoder.std)

    def classification(features: Tensor, actions: Tensor) -> Tensor:
        return F.cross_entropy(judges.classifier(_roughened(features)), actions)

    for name, network, loss in (
        ("autoencoder", judges.autoencoder, reconstruction),
        ("classifier", judges.classifier, classification),
    ):
        _fit(name, network, loss, _batches(rng, data, steps), steps)
    return judges


def test_clips(count: int, frames: int) -> list[HandObjectMotion]:
    """The first clips of the test split."""
    return [generate_motion(seed, "test", frames=frames) for seed in range(count)]


def _clips(rng: np.random.Generator, count: int, frames: int) -> tuple[Tensor, Tensor]:
    """Features (count, frames, FEATURES) and actions (count,), all actions equally often."""
    features, actions = [], []
    for seed in range(count):
        action = seed % len(ACTIONS)
        known = [t for t in TRIPLETS if t.action == ACTIONS[action] and not set(t) & set(UNSEEN)]
        motion = generate_motion(seed, frames=frames, triplet=known[rng.integers(len(known))])
        features.append(motion_features(motion))
        actions.append(action)
    return torch.from_numpy(np.stack(features)), torch.tensor(actions)


def _batches(
    rng: np.random.Generator, data: list[tuple[Tensor, Tensor]], steps: int, size: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(steps):
        features, actions = data[rng.integers(len(data))]
        chosen = torch.from_numpy(rng.integers(len(features), size=size))
        yield features[chosen], actions[chosen]


def _roughened(features: Tensor) -> Tensor:
    """Motions as a model might generate them: every value jitters by up to 4 mm, hands and objects are off by 15 mm."""
    batch = len(features)
    jitter = torch.randn_like(features) * 0.004 * torch.rand(batch, 1, 1)
    groups = (
        HAND_VALUES // 6,
        HAND_VALUES // 6,
        3,
        3,
    )  # points of the left hand, the right hand, the centres
    offset = (
        torch.cat([torch.randn(batch, 1, 3).repeat(1, 1, n if n > 3 else 1) for n in groups], dim=2) * 0.015
    )
    shifted = features + jitter
    left_right, tool, target = (
        HAND_VALUES,
        slice(HAND_VALUES, HAND_VALUES + 3),
        slice(HAND_VALUES + 9, HAND_VALUES + 12),
    )
    shifted[..., :left_right] += offset[..., :left_right]
    shifted[..., tool] += offset[..., left_right : left_right + 3]
    shifted[..., target] += offset[..., left_right + 3 :]
    return shifted


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
        prog="python -m svimo_core.train.judges", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--clips", type=int, default=2400, help="of each length")
    parser.add_argument("--steps", type=int, default=3000, help="of each network")
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
        motions = test_clips(args.check, frames)
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
