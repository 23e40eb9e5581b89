"""Units and axes of other programs -> metres in camera space: x right, y down, z forward."""

from __future__ import annotations

import numpy as np

UNITS = {"metres": 1.0, "decimetres": 0.1, "centimetres": 0.01, "millimetres": 0.001, "inches": 0.0254}
AXES = {sign + axis: direction * unit
        for sign, direction in (("+", 1), ("-", -1))
        for axis, unit in zip("xyz", np.eye(3, dtype=int), strict=True)}  # fmt: skip

PALMS = (0.06, 0.14)
"""Metres from the wrist to the base of the middle finger, of a child's hand and of the largest: no two units of
:data:`UNITS` can both bring a length into this range. Measured on files of others: 0.082 to 0.128."""


def to_camera(up: str, forward: str) -> np.ndarray:
    """The rotation (3 x 3) from a program's right-handed axes into camera space.

    Args:
        up, forward: keys of :data:`AXES`; what is forward lies deeper in the picture.

    Raises:
        ValueError: no such axis, or both along one.
    """
    if up not in AXES or forward not in AXES:
        raise ValueError(f"axes are {', '.join(AXES)}; got up {up!r} and forward {forward!r}")
    if AXES[up] @ AXES[forward]:
        raise ValueError(f"up and forward cannot lie along one axis, got {up} and {forward}")
    right = np.cross(AXES[forward], AXES[up])
    return np.stack([right, -AXES[up], AXES[forward]]).astype(np.float64)


USUAL_PALMS = (0.07, 0.12)
"""For inches, as a very small hand in centimetres comes near a very large one in inches."""


def guess_unit(palm: float) -> str | None:
    """The unit in which a palm of this length is a hand's; None if there is none."""
    for unit, metres in UNITS.items():
        low, high = USUAL_PALMS if unit == "inches" else PALMS
        if low <= palm * metres <= high:
            return unit
    return None
