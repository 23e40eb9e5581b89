"""The words of the synthetic world: which tool does what to which target, and what is kept for testing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SPLITS = ("train", "test")


class Triplet(NamedTuple):
    """The three words of a clip."""

    tool: str
    action: str
    target: str

    @property
    def prompt(self) -> str:
        """The text a model is given, in the form the paper uses."""
        return f"use {self.tool} to {self.action} {self.target}"


_USES = {
    "stir": (("spoon", "whisk", "spatula", "ladle"), ("cup", "bowl", "pan", "pot")),
    "scrape": (("spatula", "spoon", "knife"), ("plate", "pan", "board")),
    "pour": (("jug", "bottle"), ("cup", "bowl", "pan", "pot")),
    "hit": (("hammer", "mallet", "spoon", "spatula"), ("box", "board", "pan")),
    "brush": (("brush", "spatula"), ("plate", "board", "box", "loaf")),
    "cut": (("knife",), ("loaf", "box", "board")),
    "dip": (("brush", "spoon", "whisk", "ladle"), ("cup", "bowl", "pot")),
}
ACTIONS = tuple(_USES)
TRIPLETS = tuple(
    Triplet(tool, action, target)
    for action, (tools, targets) in _USES.items()
    for tool in tools
    for target in targets
    if (tool, target) != ("spatula", "cup")  # it does not fit
)
HELD_OUT = frozenset({"dip", "ladle", "pot"})
"""Words that never occur in training."""

TEST_SHARE = 0.1
HELD_OUT_SHARE = 0.03
"""Shares of all clips. As in the paper, everything with a held-out word goes to the test split first, and the rest of
that split is a weighted sample of the remaining triplets."""


def triplet_weights(split: str) -> dict[Triplet, float]:
    """Probability of each triplet in a split. Actions seen in training are equally frequent in the training split."""
    check_split(split)
    seen = [t for t in TRIPLETS if not HELD_OUT.intersection(t)]
    unseen = [t for t in TRIPLETS if HELD_OUT.intersection(t)]
    per_action = {action: sum(t.action == action for t in seen) for action in ACTIONS}
    actions = sum(count > 0 for count in per_action.values())
    weights = {t: 1 / (actions * per_action[t.action]) for t in seen}
    if split == "test":
        held_out = HELD_OUT_SHARE / TEST_SHARE
        weights = {t: (1 - held_out) * weight for t, weight in weights.items()}
        weights |= {t: held_out / len(unseen) for t in unseen}
    return weights


def draw_triplet(rng: np.random.Generator, split: str) -> Triplet:
    """A triplet with the probabilities of :func:`triplet_weights`."""
    weights = triplet_weights(split)
    return list(weights)[rng.choice(len(weights), p=list(weights.values()))]


def check_split(split: str) -> None:
    """Refuse a split that does not exist."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
