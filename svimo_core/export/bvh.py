"""BVH: skeletons of hands, one or both per file, for animation tools.

Centimetres, y up, 16 joints with rotations and five end sites per hand. A wrist has a place as well, and is the root
where the file has one hand. Rotations turn about z, then x, then y, which every reader knows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..files import whole_file
from ..hand_rig import JOINT_PARENTS, TIPS, HandAnimation
from . import FLIP, flip_rotations
from .names import bone_names

METRES_PER_UNIT = 0.01
"""BVH has no units; most tools take centimetres."""

TURN = "Zrotation Xrotation Yrotation"
PLACE_AND_TURN = f"6 Xposition Yposition Zposition {TURN}"


def write_bvh(path: str | os.PathLike, hand: HandAnimation, fps: float, *, naming: str = "svimo") -> Path:
    """Write one hand's skeleton and its movement.

    BVH cannot say that a hand is absent: it goes on as its rig does.

    Args:
        path: the file to write or replace.
        hand: the hand.
        fps: frames per second.
        naming: what joints are called, one of :data:`svimo_core.export.names.NAMINGS`.

    Raises:
        ValueError: an unknown naming.
        OSError: the folder cannot be written.
    """
    return _write(path, _hierarchy(hand, naming, "ROOT"), _channels(hand), fps)


def write_hands_bvh(
    path: str | os.PathLike, hands: Sequence[HandAnimation], fps: float, *, naming: str = "svimo"
) -> Path:
    """Write hands into one file: below a root, `hands`, that stays at the origin, as most readers take one root alone.

    Each wrist has the offset zero and its place in its channels, since readers disagree whether such a place replaces
    the offset or is added to it. The rest is as in :func:`write_bvh`.

    Args:
        path: the file to write or replace.
        hands: at least one, all of as many frames.
        fps: frames per second.
        naming: see :func:`write_bvh`.

    Raises:
        ValueError: an unknown naming.
        OSError: the folder cannot be written.
    """
    hierarchy = ["ROOT hands", "{", "\tOFFSET 0 0 0", f"\tCHANNELS {PLACE_AND_TURN}"]
    for hand in hands:
        hierarchy += [f"\t{line}" for line in _hierarchy(hand, naming, "JOINT")]
    still = np.zeros((len(hands[0]), 6))
    return _write(path, [*hierarchy, "}"], np.concatenate([still, *map(_channels, hands)], axis=1), fps)


def _hierarchy(hand: HandAnimation, naming: str, kind: str) -> list[str]:
    """The lines that describe a hand's rest pose; its wrist is a joint of `kind`, ROOT or JOINT."""
    rest = hand.rig.rest_joints * FLIP / METRES_PER_UNIT
    names = bone_names(naming, hand.rig.side)
    lines = []

    def add(joint: int, depth: int) -> None:
        indent = "\t" * depth
        offset = rest[joint] - rest[max(JOINT_PARENTS[joint], 0)]
        place = f"{indent}\tOFFSET " + " ".join(f"{value:.6f}" for value in offset)
        if joint in TIPS:
            lines.extend([f"{indent}End Site", f"{indent}{{", place, f"{indent}}}"])
            return
        lines.extend([f"{indent}{'JOINT' if joint else kind} {names[joint]}", f"{indent}{{", place])
        lines.append(f"{indent}\tCHANNELS {f'3 {TURN}' if joint else PLACE_AND_TURN}")
        for child, parent in enumerate(JOINT_PARENTS):
            if parent == joint:
                add(child, depth + 1)
        lines.append(f"{indent}}}")

    add(0, 0)
    return lines


def _channels(hand: HandAnimation) -> np.ndarray:
    """The numbers of every frame, N x 51, in the order of :func:`_hierarchy`: centimetres, then degrees."""
    angles = np.stack(
        [
            Rotation.from_matrix(flip_rotations(hand.rotations[:, joint])).as_euler("ZXY", degrees=True)
            for joint in range(len(JOINT_PARENTS))  # their order is that of a walk from the wrist down
            if joint not in TIPS
        ],
        axis=1,
    )
    angles = np.unwrap(angles, period=360, axis=0).reshape(len(hand), -1)
    return np.concatenate([hand.translations * FLIP / METRES_PER_UNIT, angles], axis=1)


def _write(path: str | os.PathLike, hierarchy: list[str], channels: np.ndarray, fps: float) -> Path:
    path = Path(path)
    lines = ["HIERARCHY", *hierarchy, "MOTION", f"Frames: {len(channels)}", f"Frame Time: {1 / fps:.8f}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in channels]
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
    return path
