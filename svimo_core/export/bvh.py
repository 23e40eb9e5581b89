"""BVH: one skeleton per file, for animation tools.

Centimetres, y up, 16 joints with rotations and five end sites, the wrist as root. Rotations turn about z,
then x, then y, which every reader knows.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..files import whole_file
from ..hand_rig import JOINT_PARENTS, TIPS, HandAnimation
from ..motion import JOINT_NAMES
from . import FLIP, flip_rotations

METRES_PER_UNIT = 0.01
"""BVH has no units; most tools take centimetres."""


def write_bvh(path: str | os.PathLike, hand: HandAnimation, fps: float) -> Path:
    """Write one hand's skeleton and its movement.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    rest = hand.rig.rest_joints * FLIP / METRES_PER_UNIT
    side = hand.rig.side

    lines = ["HIERARCHY"]
    order = []  # joints as their channels follow each other

    def add(joint: int, depth: int) -> None:
        indent = "\t" * depth
        offset = rest[joint] - rest[max(JOINT_PARENTS[joint], 0)]
        place = f"{indent}\tOFFSET " + " ".join(f"{value:.6f}" for value in offset)
        if joint in TIPS:
            lines.extend([f"{indent}End Site", f"{indent}{{", place, f"{indent}}}"])
            return
        order.append(joint)
        channels = "6 Xposition Yposition Zposition" if joint == 0 else "3"
        lines.extend(
            [f"{indent}{'JOINT' if joint else 'ROOT'} {side}_{JOINT_NAMES[joint]}", f"{indent}{{", place]
        )
        lines.append(f"{indent}\tCHANNELS {channels} Zrotation Xrotation Yrotation")
        for child, parent in enumerate(JOINT_PARENTS):
            if parent == joint:
                add(child, depth + 1)
        lines.append(f"{indent}}}")

    add(0, 0)
    angles = np.stack(
        [
            Rotation.from_matrix(flip_rotations(hand.rotations[:, j])).as_euler("ZXY", degrees=True)
            for j in order
        ],
        axis=1,
    )
    angles = np.unwrap(angles, period=360, axis=0)
    rows = np.concatenate([hand.translations * FLIP / METRES_PER_UNIT, angles.reshape(len(hand), -1)], axis=1)
    lines += ["MOTION", f"Frames: {len(hand)}", f"Frame Time: {1 / fps:.8f}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in rows]
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
    return path
