"""The MANO hand: its arrays, where they put joints and skin, and which way a left hand's shape points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..motion import JOINTS_PER_HAND

TIP_VERTICES = (744, 320, 443, 554, 671)
"""Vertices at the tips of thumb, index, middle, ring and pinky, as smplx and HaMeR count them."""
FROM_MANO = np.array([0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20])
"""For each of the 21 joints in OpenPose order: its place in MANO's 16 joints followed by the five tips."""
NUM_VERTICES = 778
NUM_JOINTS = 16
NUM_BETAS = 10
POSE_SIZE = 3 * (NUM_JOINTS - 1)
"""Numbers in the pose of the fingers: a rotation vector for each joint but the wrist."""

LEFT_SHAPES = ("official", "mended")
"""Which way the shape directions of a left hand point, see :func:`left_shape`."""


@dataclass(frozen=True, kw_only=True)
class ManoModel:
    """The arrays of one MANO file, float64, metres; V = 778 vertices."""

    side: str
    v_template: np.ndarray
    """Mean hand, V x 3."""
    shapedirs: np.ndarray
    """Shape directions, V x 3 x 10."""
    posedirs: np.ndarray
    """Pose corrections, V x 3 x 135."""
    J_regressor: np.ndarray
    """Vertices to joints, 16 x V."""
    weights: np.ndarray
    """Skinning weights, V x 16."""
    parents: np.ndarray
    """Parent of each joint, 16; -1 at the wrist."""
    hands_mean: np.ndarray
    """Mean finger pose, 45: the relaxed hand."""
    faces: np.ndarray
    """Triangles, F x 3."""
    hands_components: np.ndarray | None = None
    """Principal components of the finger pose, 45 x 45, one a row; None where the file has none."""


# Posing


def hand_vertices(
    model: ManoModel, betas: np.ndarray, rotations: np.ndarray, transl: np.ndarray
) -> np.ndarray:
    """The skin of a hand in every frame (Romero et al. 2017, equations 2 to 4), N x V x 3, metres.

    Args:
        model: the hand.
        betas: shape, 10 for all frames or N x 10.
        rotations: of the wrist and the 15 finger joints in MANO's order, each in its parent's axes, N x 16 x 3 x 3.
        transl: added to every vertex, N x 3, metres. The wrist turns about its own place, which is not the origin.
    """
    return pose(model, betas, rotations).points() + transl[:, None]


def hand_joints(model: ManoModel, betas: np.ndarray, rotations: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """The 21 joints of a hand in every frame, N x 21 x 3, OpenPose order, metres; the tips lie on the skin.

    Args: as of :func:`hand_vertices`.
    """
    return hand_vertices(joints_only(model), betas, rotations, transl)[:, FROM_MANO]


@dataclass(frozen=True, kw_only=True)
class Posed:
    """A hand on its way to a pose: what both its points and their derivatives are made of. V points, N frames."""

    weights: np.ndarray
    """V x 16."""
    rest: np.ndarray
    """Points after the corrections for shape and pose and before any rotation, N x V x 3."""
    rest_joints: np.ndarray
    """Joints of the shaped hand, N x 16 x 3 or 1 x 16 x 3."""
    turns: np.ndarray
    """Rotation of each joint from rest, N x 16 x 3 x 3."""
    places: np.ndarray
    """Position of each joint, N x 16 x 3."""

    @property
    def blended(self) -> np.ndarray:
        """Mean of the joints' rotations by weight at each point, N x V x 3 x 3."""
        flat = self.turns.reshape(len(self.turns), NUM_JOINTS, 9)
        return (self.weights @ flat).reshape(len(flat), -1, 3, 3)

    def points(self) -> np.ndarray:
        """The points in this pose, N x V x 3."""
        offsets = self.places - np.einsum("njab,njb->nja", self.turns, self._joints_of_all_frames)
        return np.einsum("nvab,nvb->nva", self.blended, self.rest) + self.weights @ offsets

    def carried(self) -> np.ndarray:
        """Where each joint by itself would put each point, N x V x 16 x 3."""
        arms = self.rest[:, :, None] - self._joints_of_all_frames[:, None]
        return np.einsum("njab,nvjb->nvja", self.turns, arms) + self.places[:, None]

    @property
    def _joints_of_all_frames(self) -> np.ndarray:
        return np.broadcast_to(self.rest_joints, self.places.shape)


def pose(model: ManoModel, betas: np.ndarray, rotations: np.ndarray) -> Posed:
    """Shape and rotations -> the pose. See :func:`hand_vertices` for the arguments."""
    shaped = model.v_template + np.einsum("vck,nk->nvc", model.shapedirs, np.atleast_2d(betas))
    joints = model.J_regressor @ shaped
    turns, places = np.empty(rotations.shape), np.empty(rotations.shape[:-1])
    turns[:, 0], places[:, 0] = rotations[:, 0], joints[:, 0]
    for joint, parent in enumerate(model.parents[1:], start=1):
        turns[:, joint] = turns[:, parent] @ rotations[:, joint]
        bone = joints[:, joint] - joints[:, parent]
        places[:, joint] = places[:, parent] + (turns[:, parent] @ bone[..., None])[..., 0]
    bent = (rotations[:, 1:] - np.eye(3)).reshape(len(rotations), -1)
    correction = bent @ model.posedirs.reshape(-1, bent.shape[1]).T
    return Posed(
        weights=model.weights,
        rest=shaped + correction.reshape(len(rotations), -1, 3),
        rest_joints=joints,
        turns=turns,
        places=places,
    )


def joints_only(model: ManoModel) -> ManoModel:
    """The same hand with 21 "vertices", its 16 joints and five tips: exact for them, and 37 times less work.

    A joint is a fixed mixture of vertices, so it moves with shape as linearly as they do, and it follows its own
    rotation alone, without pose correction.
    """
    tips = list(TIP_VERTICES)
    regress = model.J_regressor
    return replace(
        model,
        v_template=np.concatenate([regress @ model.v_template, model.v_template[tips]]),
        shapedirs=np.concatenate([np.einsum("jv,vcb->jcb", regress, model.shapedirs), model.shapedirs[tips]]),
        posedirs=np.concatenate([np.zeros((NUM_JOINTS, *model.posedirs.shape[1:])), model.posedirs[tips]]),
        J_regressor=np.eye(NUM_JOINTS, JOINTS_PER_HAND),
        weights=np.concatenate([np.eye(NUM_JOINTS), model.weights[tips]]),
        faces=np.zeros((0, 3), np.int64),
    )


# The left hand's shape


def left_shape(left: ManoModel, right: ManoModel | None = None) -> str:
    """Which way a left hand's shape directions point: "official" or "mended".

    In the official MANO_LEFT they are copies of the right hand's although the hand is its mirror image, so that betas
    which lengthen a right hand shorten a left one (vchoutas/smplx#48, mks0601). "mended" is a file, or a model, whose
    x is turned round.

    With the right hand at hand the two are compared. Without it the hand itself tells: over a population long hands
    are broad and thick ones, that is, stretch along x goes with stretch along y and z. The fault reverses x alone, and
    that correlation with it.

    Raises:
        ValueError: the first model is not a left hand, or the second not a right one.
    """
    if left.side != "left" or (right is not None and right.side != "right"):
        sides = left.side if right is None else f"{left.side} and {right.side}"
        raise ValueError(f"expected a left hand, and a right one to compare it with, got {sides}")
    if right is not None:
        ours, theirs = left.shapedirs[:, 0], right.shapedirs[:, 0]
        return "official" if np.linalg.norm(ours - theirs) < np.linalg.norm(ours + theirs) else "mended"
    centred = left.v_template - left.v_template.mean(axis=0)
    stretch = np.einsum("vc,vck->ck", centred, left.shapedirs) / (centred**2).sum(axis=0)[:, None]
    return "official" if stretch[0] @ (stretch[1] + stretch[2]) < 0 else "mended"


def with_left_shape(left: ManoModel, convention: str, right: ManoModel | None = None) -> ManoModel:
    """The left hand with its shape directions in a convention, "official" or "mended"; see :func:`left_shape`.

    Betas have a meaning only together with it: whoever made them with the official file as it is needs "official"
    to get the same hand back, and whoever mended it first needs "mended".

    Raises:
        ValueError: an unknown convention, or models of the wrong side.
    """
    if convention not in LEFT_SHAPES:
        raise ValueError(f'the shape of a left hand is "official" or "mended", got {convention!r}')
    if left_shape(left, right) == convention:
        return left
    return replace(left, shapedirs=left.shapedirs * np.array([-1.0, 1.0, 1.0])[:, None])
