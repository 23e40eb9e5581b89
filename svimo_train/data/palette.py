"""Colours of the synthetic world's materials, RGB in 0..1."""

from __future__ import annotations

import numpy as np

STEEL = (0.72, 0.74, 0.78)
WOODS = ((0.72, 0.52, 0.31), (0.55, 0.36, 0.2), (0.84, 0.68, 0.46), (0.42, 0.26, 0.15))
PAINTS = (
    *((0.80, 0.15, 0.12), (0.10, 0.36, 0.72), (0.95, 0.75, 0.12), (0.13, 0.53, 0.33), (0.93, 0.47, 0.13)),
    *((0.50, 0.22, 0.56), (0.10, 0.58, 0.62), (0.86, 0.40, 0.52), (0.16, 0.18, 0.24)),
)
GLAZES = (*PAINTS, (0.94, 0.93, 0.88), (0.88, 0.85, 0.76), (0.62, 0.76, 0.80), (0.36, 0.42, 0.40))


def pick(rng: np.random.Generator, colors: tuple) -> np.ndarray:
    """One of the colours, slightly off."""
    return np.clip(np.array(colors[rng.integers(len(colors))]) * rng.uniform(0.9, 1.1, 3), 0, 1)
