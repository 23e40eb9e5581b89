"""A made-up hand in MANO's file format, so that no test needs MANO's files."""

from __future__ import annotations

import numpy as np
from helpers.moving_hands import skeleton

from svimo_core.hand_rig import JOINT_PARENTS
from svimo_core.mano import FROM_MANO, TIP_VERTICES

NUM_VERTICES = 778
RING = 6
MIRROR = np.array([-1, 1, 1])
TURNS = np.array([1, -1, -1])
"""What a mirror in x does to a rotation vector."""


def mano_arrays(side: str = "right", seed: int = 0, *, left_shape: str = "mended") -> dict[str, np.ndarray]:
    """The arrays of a MANO file: rings of vertices around the bones of a flat hand, joints at their centres.

    The left hand is the right one's mirror image; with `left_shape` "official" its shape directions are not, as in
    MANO_LEFT.
    """
    arrays = _right_hand(seed)
    if side == "left":
        arrays = _mirrored(arrays)
        if left_shape == "official":
            arrays["shapedirs"] = arrays["shapedirs"] * MIRROR[:, None]
    return arrays


def _mirrored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    matrices = np.outer(MIRROR, MIRROR)  # what the mirror does to a rotation matrix
    posedirs = arrays["posedirs"].reshape(NUM_VERTICES, 3, 15, 3, 3) * MIRROR[:, None, None, None] * matrices
    return arrays | {
        "v_template": arrays["v_template"] * MIRROR,
        "shapedirs": arrays["shapedirs"] * MIRROR[:, None],
        "posedirs": posedirs.reshape(NUM_VERTICES, 3, 135),
        "hands_mean": (arrays["hands_mean"].reshape(15, 3) * TURNS).ravel(),
        "hands_components": (arrays["hands_components"].reshape(45, 15, 3) * TURNS).reshape(45, 45),
        "f": arrays["f"][:, ::-1].copy(),
    }


def _right_hand(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    turn = np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])
    rest = skeleton("right") @ turn.T + (0.09, 0.006, 0.006)  # MANO's wrist is not at the origin
    to_mano = np.argsort(FROM_MANO)  # 16 joints, then the five tips
    joints = rest[to_mano]
    parents = [-1 if p < 0 else int(FROM_MANO[p]) for p in (JOINT_PARENTS[j] for j in to_mano[:16])]

    tips = np.array(TIP_VERTICES)
    vertices = np.zeros((NUM_VERTICES, 3))
    weights = np.zeros((NUM_VERTICES, 16))
    regressor = np.zeros((16, NUM_VERTICES))
    free = np.setdiff1d(np.arange(NUM_VERTICES), tips)
    angles = np.linspace(0, 2 * np.pi, RING, endpoint=False)
    faces = []
    rings = len(free) // RING
    for ring in range(rings):
        joint = ring % 16
        children = [c for c in range(16) if parents[c] == joint] or [16 + [15, 3, 6, 12, 9].index(joint)]
        bone = joints[children[ring // 16 % len(children)]] - joints[joint]
        along = (ring // 16) / (rings // 16 + 1)
        side_axis = np.cross(bone, (0, 1, 0)) / np.linalg.norm(np.cross(bone, (0, 1, 0)))
        up = np.cross(bone, side_axis) / np.linalg.norm(bone)
        index = free[ring * RING : (ring + 1) * RING]
        vertices[index] = (
            joints[joint]
            + along * bone
            + 0.009 * (np.cos(angles)[:, None] * side_axis + np.sin(angles)[:, None] * up)
        )
        weights[index, joint] = 1
        faces += [(index[i], index[(i + 1) % RING], index[(i + 2) % RING]) for i in range(RING - 2)]
        if ring < 16:
            regressor[joint, index] = 1 / RING
    vertices[tips] = joints[16:]
    weights[tips, [15, 3, 6, 12, 9]] = 1  # thumb, index, middle, ring, pinky: the last joint of each
    weights[free[rings * RING :], 0] = 1

    stretch = rng.normal(size=(10, 3, 3)) * 0.02
    stretch[0] = 0.06 * np.eye(3)
    return {
        "v_template": vertices,
        "shapedirs": np.einsum("kij,vj->vik", stretch, vertices - joints[0]),
        "posedirs": rng.normal(size=(NUM_VERTICES, 3, 135)) * 1e-4,
        "J_regressor": regressor,
        "weights": weights,
        "hands_mean": np.tile([0.0, 0.0, 0.15], 15),
        "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0],
        "kintree_table": np.array([[2**32 - 1, *parents[1:]], range(16)], dtype=np.uint32),
        "f": np.array(faces, dtype=np.uint32),
    }
