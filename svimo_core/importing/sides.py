"""Left or right: which way fingers bend, and what mirrored hands give away."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ..motion import HAND_NAMES

CERTAIN = 0.2
"""Palm lengths by which the tips of four fingers are off the plane of the palm, in the median over frames. Hands of
files that others made bend by -0.1 to 0.8; the same hands mirrored by 0.1 to -0.8."""
MOST_ODD = 0.1
"""Share of frames in which the fingers of a hand may bend backwards so far."""
CHOICES = ("check", "keep", "swap", "mirror", "mirror left", "mirror right")


def sides_named(text: str) -> list[str]:
    """The sides that a file's name or a label says: words that begin with left or right."""
    return sorted(set(re.findall("(?<![a-z])(left|right)", text.lower())))


def bends(joints: np.ndarray, side: str) -> np.ndarray:
    """How far the tips of the four fingers lie to the palm's side of its plane, in palm lengths, in each frame.

    Args:
        joints: F x 21 x 3, OpenPose order, right-handed axes.
        side: the hand that they are thought to be; as the other one, the sign changes.
    """
    forward = joints[:, (5, 9, 13, 17)].mean(axis=1) - joints[:, 0]
    across = joints[:, 17] - joints[:, 5] if side == "right" else joints[:, 5] - joints[:, 17]
    out = np.cross(forward, across)
    out /= np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-12)
    off = np.einsum("nfc,nc->nf", joints[:, (8, 12, 16, 20)] - joints[:, (5, 9, 13, 17)], out)
    palm = np.median(np.linalg.norm(joints[:, 9] - joints[:, 0], axis=-1))
    return off.mean(axis=1) / max(palm, 1e-12)


def guess_side(name: str, joints: np.ndarray) -> tuple[str, str]:
    """Which hand joints are (F x 21 x 3), by the way its fingers bend, and a sentence that says why.

    Raises:
        ValueError: fingers that are too straight to tell.
    """
    bend = float(np.median(bends(joints, "right")))
    if abs(bend) < CERTAIN:
        raise ValueError(
            f"{name} has one hand and does not say which, and its fingers are too straight to tell (they bend by "
            f"{abs(bend):.2f} palms; {CERTAIN} is certain): name the array left or right"
        )
    side = "right" if bend > 0 else "left"
    return side, f"It is a {side} hand: as one, its fingers bend by {abs(bend):.2f} palms to the palm's side."


def check_sides(
    name: str, there: Mapping[str, np.ndarray], setting: str, before: Mapping[str, np.ndarray]
) -> None:
    """Refuse hands whose fingers bend backwards.

    Args:
        name: what to call the file in errors.
        there: :func:`bends` of each hand that is there.
        setting: the one of :data:`CHOICES` that led to them.
        before: the same without it.

    Raises:
        ValueError: it says which hand, how far, and what it can be.
    """
    curls = {side: float(np.median(values)) for side, values in there.items()}
    for side, values in there.items():
        odd = values < -CERTAIN
        if curls[side] >= -CERTAIN and odd.mean() > MOST_ODD:
            raise ValueError(
                f"{name}: the fingers of the {side} hand bend backwards in {int(odd.sum())} of {len(odd)} frames that "
                f"have it, first in its frame {int(np.argmax(odd))}, as if hands changed sides there: mend the file, "
                "or set sides to keep"
            )
    backwards = [side for side in HAND_NAMES if curls.get(side, 0) < -CERTAIN]
    if not backwards:
        return
    how_far = " and ".join(f"{side} {-curls[side]:.2f}" for side in backwards)
    if setting != "check" and min(np.median(values) for values in before.values()) > -CERTAIN:
        way_out = f"they do so only because sides is {setting}: set it to check"
    elif len(backwards) < len(there):
        way_out = (
            "that hand alone is mirrored, as trackers that see every hand as a right one leave it: set sides to "
            f"mirror {backwards[0]}"
        )
    elif len(there) == 1:
        (side,) = backwards
        way_out = (
            "it is the other hand (set sides to swap), or mirrored: by a tracker that sees every hand as a right one "
            f"(set sides to mirror {side}), or by left-handed axes or a mirrored picture (set sides to mirror; for "
            "Unity also up to +y and forward to +z)"
        )
    else:
        way_out = (
            "left and right are swapped, as MediaPipe's of a picture that is not mirrored (set sides to swap), or the "
            "axes are left-handed as Unity's and Unreal's, or the picture was mirrored (set sides to mirror; for Unity "
            "also up to +y and forward to +z)"
        )
    raise ValueError(
        f"{name}: fingers bend backwards (by {how_far} palm lengths): {way_out}; if it is meant so, set sides to keep"
    )
