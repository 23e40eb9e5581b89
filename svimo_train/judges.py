"""Two small networks that judge 3D motion: an autoencoder whose codes FID compares, and a classifier of actions.

FID is the Frechet distance between codes of an interaction autoencoder trained on true motions (paper section 4.1).
Prompt obedience is the share of generated motions in which the classifier sees the action that the prompt asked for; it
needs no reference, and knows the synthetic world alone. `python -m svimo_train.judge_training` trains both, or the
autoencoder on a folder of clips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import (
    Conv1d,
    GroupNorm,
    Linear,
)  # judges never run inside ComfyUI, whose layers they need not take

from svimo_core.files import reading
from svimo_core.motion import HAND_NAMES, JOINTS_PER_HAND, HandObjectMotion
from svimo_core.weights import fill, open_weights, write_weights

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "judges.safetensors"
FORMAT = "svimo-judges"
RATE = 8.0
"""Frames per second that motions are brought to, so that time means the same at any frame rate."""
OBJECTS = ("tool", "target")
HAND_VALUES = len(HAND_NAMES) * JOINTS_PER_HAND * 3
FEATURES = HAND_VALUES + len(OBJECTS) * 9
NOTHING = "nothing"
"""What the classifier calls a motion that stops before it does anything."""
CODE = 32
WIDTH = 64


def motion_features(motion: HandObjectMotion) -> np.ndarray:
    """What the judges see of a motion: frames at RATE x FEATURES, float32.

    Joints and the clouds' centres relative to where the target starts (metres), and each cloud's second moments as the
    upper triangle of its covariance, times 100 (square decimetres). The order of a cloud's points does not matter.

    Raises:
        ValueError: no objects named "tool" and "target", a hand that is absent, or fewer than 3 frames at RATE.
    """
    missing = set(OBJECTS) - set(motion.objects)
    if missing:
        raise ValueError(f"judging a motion needs objects named {list(OBJECTS)}, got {list(motion.objects)}")
    motion.require_both_hands("judging a motion")
    origin = motion.objects["target"][0].mean(0)
    rows, columns = np.triu_indices(3)
    parts = [(motion.hands - origin).reshape(len(motion), -1)]
    for name in OBJECTS:
        center = motion.objects[name].mean(1, keepdims=True)
        spread = motion.objects[name] - center
        moments = np.einsum("nki,nkj->nij", spread, spread) / spread.shape[1]
        parts += [center[:, 0] - origin, 100 * moments[:, rows, columns]]
    features = np.concatenate(parts, axis=1)
    frames = round((len(motion) - 1) / motion.fps * RATE) + 1
    if frames < 3:
        raise ValueError(
            f"judging a motion needs at least {2 / RATE} s, got {(len(motion) - 1) / motion.fps:.2f} s"
        )
    place = np.linspace(0, len(motion) - 1, frames)
    before = np.minimum(place.astype(int), len(motion) - 2)
    weight = (place - before)[:, None]
    return ((1 - weight) * features[before] + weight * features[before + 1]).astype(np.float32)


class MotionEncoder(nn.Module):
    """Features (B, N, FEATURES) of any length to one vector (B, 2 * WIDTH): convolutions, then mean and maximum."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))
        self.stem = Conv1d(FEATURES, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                GroupNorm(8, WIDTH),
                nn.SiLU(),
                Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation),
            )
            for dilation in (1, 2, 4)
        )

    def forward(self, features: Tensor) -> Tensor:
        x = self.stem(((features - self.mean) / self.std).mT)
        for block in self.blocks:
            x = x + block(x)
        return torch.cat([x.mean(-1), x.amax(-1)], dim=-1)


class InteractionAutoencoder(nn.Module):
    """A motion to a code (B, CODE) and back to its features."""

    def __init__(self):
        super().__init__()
        self.encoder = MotionEncoder()
        self.to_code = Linear(2 * WIDTH, CODE)
        self.decoder = nn.Sequential(
            *(Linear(CODE + 12, 2 * WIDTH), nn.SiLU(), Linear(2 * WIDTH, 2 * WIDTH), nn.SiLU()),
            Linear(2 * WIDTH, FEATURES),
        )

    def encode(self, features: Tensor) -> Tensor:
        return self.to_code(self.encoder(features))

    def decode(self, code: Tensor, frames: int) -> Tensor:
        """Codes (B, CODE) to standardised features (B, frames, FEATURES)."""
        seconds = torch.arange(frames, device=code.device, dtype=code.dtype) / RATE
        waves = seconds[:, None] * (
            2 * torch.pi * torch.tensor([0.1, 0.25, 0.5, 1.0, 1.5, 2.0], device=code.device)
        )
        time = torch.cat([waves.sin(), waves.cos()], dim=1).expand(len(code), -1, -1)
        return self.decoder(torch.cat([code[:, None].expand(-1, frames, -1), time], dim=2))


class ActionClassifier(nn.Module):
    """A motion to scores of actions (B, actions)."""

    def __init__(self, actions: int):
        super().__init__()
        self.encoder = MotionEncoder()
        self.head = nn.Sequential(nn.Dropout(0.2), Linear(2 * WIDTH, actions))

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.encoder(features))


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """The networks, and the words that the classifier knows; without words, no classifier."""

    autoencoder: InteractionAutoencoder
    classifier: ActionClassifier | None = None
    actions: tuple[str, ...] = ()

    @classmethod
    def new(cls, actions: Sequence[str] = ()) -> Judges:
        """Untrained ones."""
        return cls(
            autoencoder=InteractionAutoencoder(),
            classifier=ActionClassifier(len(actions)) if actions else None,
            actions=tuple(actions),
        )

    @torch.inference_mode()
    def codes(self, motions: Sequence[HandObjectMotion]) -> np.ndarray:
        """Motions x CODE, for :func:`svimo_train.metrics.frechet_distance`."""
        return np.concatenate([self.autoencoder.encode(_batch(motion)).numpy() for motion in motions])

    @torch.inference_mode()
    def classify(self, motions: Sequence[HandObjectMotion]) -> list[str]:
        """The action that each motion performs."""
        return [self.actions[int(self.classifier(_batch(motion)).argmax())] for motion in motions]

    def obedience(self, motions: Sequence[HandObjectMotion], asked: Sequence[str]) -> float:
        """Share of motions that perform the action that was asked for, 0 to 1; higher is better.

        Raises:
            ValueError: an action that the classifier does not know.
        """
        unknown = sorted(set(asked) - set(self.actions))
        if unknown:
            raise ValueError(
                f"the classifier does not know {', '.join(unknown)}; it knows {', '.join(self.actions)}"
            )
        return float(np.mean([a == b for a, b in zip(self.classify(motions), asked, strict=True)]))

    def save(self, path: str | os.PathLike, notes: dict[str, str]) -> None:
        """Write one safetensors file, with notes on the training beside the words."""
        state = self._modules().state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        metadata = {"format": FORMAT, "actions": json.dumps(self.actions), **notes}
        write_weights(path, shapes, torch.float16, ((k, v.half()) for k, v in state.items()), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike = SHIPPED) -> Judges:
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError, ValueError: no such file, or it holds something else.
        """
        tensors, metadata = open_weights(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{Path(path).name} does not hold motion judges; make some: python -m svimo_train.judge_training"
            )
        with reading(path, "does not hold sound motion judges", "get it again"):
            with torch.device("meta"):
                judges = cls.new(json.loads(metadata["actions"]))
            fill(judges._modules(), tensors, Path(path).name, torch.float32).eval()
            if not all(x.isfinite().all() for x in judges._modules().state_dict().values()):
                raise ValueError("some of their weights are no numbers")
        return judges

    def _modules(self) -> nn.ModuleDict:
        networks = {"autoencoder": self.autoencoder, "classifier": self.classifier}
        return nn.ModuleDict({name: network for name, network in networks.items() if network is not None})


def _batch(motion: HandObjectMotion) -> Tensor:
    return torch.from_numpy(motion_features(motion))[None]
