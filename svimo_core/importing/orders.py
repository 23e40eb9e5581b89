"""Orders of a hand's joints, as trackers and data sets number them, and which of them an array has."""

from __future__ import annotations

import numpy as np

from ..hand_rig import JOINT_PARENTS
from ..motion import JOINTS_PER_HAND

OPENPOSE, MANO, INTERHAND, OPENXR, WEBXR = "OpenPose", "MANO", "InterHand2.6M", "OpenXR", "WebXR"
ORDERS: dict[str, tuple[int, ...]] = {
    OPENPOSE: tuple(range(JOINTS_PER_HAND)),
    MANO: (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20),
    INTERHAND: (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16),
    OPENXR: (1, *range(2, 6), *range(7, 11), *range(12, 16), *range(17, 21), *range(22, 26)),
    WEBXR: (0, *range(1, 5), *range(6, 10), *range(11, 15), *range(16, 20), *range(21, 25)),
}
"""Where each of our 21 joints stands in the file's.

- OpenPose: wrist, then each finger from base to tip. MediaPipe, HaMeR, WiLoR, FreiHAND and DexYCB number so, too.
- MANO: its 16 joints (wrist, index, middle, pinky, ring, thumb), then the tips of thumb, index, middle, ring, pinky;
  what smplx's MANO returns with tips, and HO-3D's order.
- InterHand2.6M: each finger from tip to base, the thumb first; the wrist last; and the right hand before the left.
- OpenXR: XrHandJointEXT, palm and metacarpals among them. WebXR: the same without the palm.
"""
JOINT_COUNTS = {OPENPOSE: 21, MANO: 21, INTERHAND: 21, OPENXR: 26, WEBXR: 25}

BONES = np.array([*((JOINT_PARENTS[j], j) for j in range(1, JOINTS_PER_HAND)), (5, 9), (9, 13), (13, 17)])
"""Pairs of joints whose distance tells an order from another: a hand's bones, and its knuckles."""
BONE_LENGTHS = np.array(
    [
        *(42, 42, 32, 28),  # thumb, from the wrist
        *(93, 42, 25, 22),
        *(91, 46, 29, 23),
        *(87, 43, 27, 23),
        *(84, 34, 20, 20),
        *(22, 20, 19),  # from knuckle to knuckle
    ]
)
"""Of an adult's hand, millimetres."""
MOST_UNLIKE = 0.35
"""Root mean square of the logarithms of bones over :data:`BONE_LENGTHS`, their common factor taken out, that can be a
hand. Hands of the right order are at 0.0 to 0.25, a centimetre of noise included; of another, at 0.55 and more."""
CLEARLY = 0.12
"""So much less than any other order's."""


def unlike_a_hand(joints: np.ndarray) -> float:
    """How far the proportions of joints (F x 21 x 3, OpenPose order, any unit) are from a hand's: 0 is an adult's."""
    lengths = np.linalg.norm(joints[:, BONES[:, 0]] - joints[:, BONES[:, 1]], axis=-1)
    logs = np.log(np.maximum(np.median(lengths, axis=0), 1e-12) / BONE_LENGTHS)
    return float(np.sqrt(np.mean((logs - logs.mean()) ** 2)))


def guess_order(name: str, joints: np.ndarray) -> tuple[str, str]:
    """Which order the joints of hands have.

    Args:
        name: what to call the file in errors.
        joints: of all hands that are there, F x J x 3, any unit.

    Returns:
        A key of :data:`ORDERS`, and a sentence that says why.

    Raises:
        ValueError: a number of joints that no order has, or bones that no hand has in any of them.
    """
    count = joints.shape[1]
    fitting = [order for order, joint_count in JOINT_COUNTS.items() if joint_count == count]
    if not fitting:
        raise ValueError(f"{name}: a hand has 21, 25 (WebXR) or 26 (OpenXR) joints, this one {count}")
    unlike = {order: unlike_a_hand(joints[:, ORDERS[order]]) for order in fitting}
    best, *others = sorted(fitting, key=unlike.__getitem__)
    numbers = ", ".join(f"{order} {unlike[order]:.2f}" for order in fitting)
    if unlike[best] > MOST_UNLIKE:
        raise ValueError(
            f"{name}: in no order that is known do these joints make fingers (off a hand's proportions by {numbers}; "
            f"a hand is below {MOST_UNLIKE}): are they in another program's order, or no hands at "
            "all? To take them as they are, set joint_order"
        )
    if others and unlike[others[0]] - unlike[best] < CLEARLY:
        raise ValueError(
            f"{name}: the order of joints is not certain (off a hand's proportions by {numbers}): set joint_order"
        )
    return best, f"Joints are in {best} order: off a hand's proportions by {numbers}."
