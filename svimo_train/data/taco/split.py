"""Which sequences to learn from and which to keep for judging (SViMo, section 4.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from svimo_core.files import whole_file

from .layout import Sequence

TEST_SHARE = 0.1
HELD_OUT = {"action": ("hit",), "tool": ("glue gun",), "target": ("toy",)}
"""The paper's examples of words that training never has; it does not give the whole list."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sequences by name, in two parts."""

    train: list[Sequence]
    test: list[Sequence]
    held_out: list[Sequence] = field(default_factory=list)
    """Those of the test part that have a held-out word."""

    def write(self, folder: Path) -> None:
        """Write train.txt, test.txt and held_out.txt in the form of TACO's lists.

        Raises:
            ValueError: the folder has other lists already.
            OSError: it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("train", "test", "held_out"):
            path, text = folder / f"{name}.txt", "".join(f"{sequence}\n" for sequence in getattr(self, name))
            if path.is_file() and path.read_text() != text:
                raise ValueError(
                    f"{path} has another split than these sequences and options give: choose another folder, or give "
                    "one list of sequences from the start (--sequences) if the source is still growing"
                )
            with whole_file(path) as partial:
                partial.write_text(text)


def split_sequences(
    sequences: Iterable[Sequence],
    *,
    test_share: float = TEST_SHARE,
    held_out: dict[str, tuple[str, ...]] | None = None,
    seed: int = 0,
) -> Split:
    """The paper's split: all sequences with a held-out word first, then a weighted draw from the other triplets.

    Each <action, tool, target> of the rest gives a number in proportion to its size, up or down to the next whole one,
    and keeps at least one sequence to learn from. The order of the sequences does not matter.

    Args:
        sequences: all of them; a name that occurs again is ignored.
        test_share: of all; the held-out ones may be more.
        held_out: words by "action", "tool" and "target"; None for :data:`HELD_OUT`.
        seed: of the draw.

    Raises:
        ValueError: a share that is no share.
    """
    if not 0 <= test_share < 1:
        raise ValueError(f"the test share must be from 0 to below 1, got {test_share}")
    words = HELD_OUT if held_out is None else held_out
    ordered = sorted({sequence.name: sequence for sequence in sequences}.values(), key=lambda s: s.name)
    kept = [s for s in ordered if any(getattr(s, part) in words[part] for part in words)]
    names = {s.name for s in kept}
    groups = defaultdict(list)
    for sequence in ordered:
        if sequence.name not in names:
            groups[sequence.triplet].append(sequence)

    rng = np.random.default_rng(seed)
    candidates = []
    for triplet in rng.permutation(sorted(groups)).tolist():
        group = groups[tuple(triplet)]
        candidates += [group[i] for i in rng.permutation(len(group))] if len(group) > 1 else []
    count = min(max(round(test_share * len(ordered)) - len(kept), 0), len(candidates) // 2)
    # Evenly spaced places along the groups: each has its share of them, to within one.
    places = (rng.random() + np.arange(count)) * len(candidates) / max(count, 1)
    drawn = {candidates[int(place)].name for place in places}
    return Split(
        train=[s for s in ordered if s.name not in names | drawn],
        test=[s for s in ordered if s.name in names | drawn],
        held_out=kept,
    )
