"""21 joints per hand over time -> MANO pose, shape and translation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import solveh_banded
from scipy.spatial.transform import Rotation, Slerp

from ..files import whole_file
from ..hand_rig import HandAnimation, HandRig, check_hand, palm_alignment
from ..motion import JOINTS_PER_HAND
from ..tracks import bridge
from .model import (
    FROM_MANO,
    NUM_BETAS,
    NUM_JOINTS,
    POSE_SIZE,
    TIP_VERTICES,
    ManoModel,
    hand_joints,
    hand_vertices,
    joints_only,
    left_shape,
    pose,
)

log = logging.getLogger(__name__)

OBSERVED_TO = 0.004
"""Metres: how exactly a joint is observed."""
FINGERS_BEND = 1.0
"""Radians: how far a finger joint is from the relaxed hand."""
FINGERS_ACCELERATE = 30.0
"""Radians per second^2."""
JOINTS_ACCELERATE = 10.0
"""Metres per second^2."""
SETTLED = 2e-5
"""Metres: a step that moves the joints by less (root mean square) was the last."""
DAMPING = 0.1
"""Of Levenberg and Marquardt's first step: a fifth after each that helps, and ten times as much until one does."""
HOPELESS = 1e8
"""Damping at which a fit gives up looking for a better place."""
CHUNK = 256
"""Frames whose derivatives are worked out at a time: bounds the memory, and the time until a fit can be cancelled."""

FRAME_SIZE = 3 + 3 + POSE_SIZE
"""Unknowns of a frame: turn of the wrist, translation, fingers."""


@dataclass(frozen=True, kw_only=True)
class ManoFit:
    """MANO parameters of one hand over time, as smplx takes them with use_pca=False, flat_hand_mean=True."""

    model: ManoModel
    betas: np.ndarray
    """Shape, 10: one for the whole clip, so bone lengths are constant."""
    global_orient: np.ndarray
    """Rotation vector of the wrist, N x 3, radians."""
    hand_pose: np.ndarray
    """Rotation vectors of the 15 finger joints in MANO's order, N x 45, radians."""
    transl: np.ndarray
    """N x 3, metres, camera space."""
    joints: np.ndarray
    """The fitted joints, N x 21 x 3, OpenPose order."""
    observed: np.ndarray
    """The joints that were fitted, N x 21 x 3; NaN where the hand is absent."""
    present: np.ndarray
    """Frames in which the hand was observed, N bool; in the others the pose is carried over."""

    @property
    def residual_mm(self) -> float:
        """Root mean square distance between fitted and observed joints, millimetres, where the hand is present."""
        apart = self.joints[self.present] - self.observed[self.present]
        return float(np.sqrt(np.mean(np.sum(apart**2, axis=-1))) * 1000)

    @property
    def rotations(self) -> np.ndarray:
        """Rotation of the wrist and the 15 finger joints in their parents' axes, N x 16 x 3 x 3."""
        return _matrices(np.concatenate([self.global_orient, self.hand_pose], axis=1))

    def vertices(self) -> np.ndarray:
        """The exact MANO mesh in every frame, pose corrections included, N x 778 x 3."""
        return hand_vertices(self.model, self.betas, self.rotations, self.transl)

    def animation(self) -> HandAnimation:
        """The fit as a skinned rig, whose mesh lacks MANO's pose corrections: skinning cannot express them."""
        model = self.model
        shaped = model.v_template + model.shapedirs @ self.betas
        joints = np.concatenate([model.J_regressor @ shaped, shaped[list(TIP_VERTICES)]])
        wrist = joints[0]
        weights = np.concatenate([model.weights, np.zeros((len(shaped), len(TIP_VERTICES)))], axis=1)
        rotations = np.tile(np.eye(3), (len(self.joints), JOINTS_PER_HAND, 1, 1))
        rotations[:, :NUM_JOINTS] = self.rotations
        rig = HandRig(
            side=model.side,
            rest_joints=joints[FROM_MANO] - wrist,
            vertices=shaped - wrist,
            faces=model.faces,
            weights=weights[:, FROM_MANO],
        )
        return HandAnimation(
            rig=rig,
            rotations=rotations[:, FROM_MANO],
            translations=wrist + self.transl,
            observed=self.observed,
        )


def fit_mano(
    joints: np.ndarray,
    model: ManoModel,
    *,
    fps: float,
    smoothness: float = 1.0,
    steps: int = 40,
    on_progress: Callable[[int, int], None] | None = None,
) -> ManoFit:
    """Fit MANO to the joints of one hand: all frames at once, one shape for the clip.

    The most likely pose under independent Gaussians: a joint is observed to 4 mm; finger rotations stay within
    about 1 rad of the relaxed hand and accelerate by 30 rad/s^2, joints by 10 m/s^2; shape coefficients have unit
    variance (MANO's own scale). Joints leave the twist of a finger open: the terms on pose decide it.

    All of these are sums of squares, and a frame is tied only to the two before and after it, so each step of
    Levenberg and Marquardt is a banded linear system: time and memory grow with the clip's length.

    Args:
        joints: N x 21 x 3, OpenPose order, metres, camera space. A frame that is NaN throughout has no hand: smoothness
            carries the pose across it, and before the first and after the last frame with a hand it stands still.
        model: the same side's MANO.
        fps: frames per second, which sets how much change between frames is plausible.
        smoothness: factor on the acceleration terms; 0 fits every frame alone.
        steps: the most steps to take; it stops earlier, commonly after eight, when a step moves nothing.
        on_progress: called with (steps done, steps) after each and with (done, steps) within one; raising from it
            cancels the fit.

    Raises:
        ValueError: a hand that is absent throughout; and see :func:`svimo_core.hand_rig.check_hand`.
    """
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (JOINTS_PER_HAND, 3) or not len(joints):
        raise ValueError(
            f"{model.side} hand: expected frames x 21 x 3 with at least one frame, got {joints.shape}"
        )
    present = ~np.isnan(joints).all(axis=(1, 2))
    if not present.any():
        raise ValueError(
            f"{model.side} hand: absent in all {len(joints)} frames, so there is nothing to fit MANO to"
        )
    seen = np.flatnonzero(present)
    span = slice(seen[0], seen[-1] + 1)
    filled = check_hand(bridge(joints, present), model.side)[span]

    problem = _Problem(filled, present[span], model, fps, smoothness)
    state = _settle(problem, steps, on_progress or (lambda done, total: None))

    held = np.clip(np.arange(len(joints)), seen[0], seen[-1]) - seen[0]
    rotations = np.concatenate([state.orient[:, None], _matrices(state.fingers)], axis=1)[held]
    fit = ManoFit(
        model=model,
        betas=state.betas,
        global_orient=Rotation.from_matrix(state.orient).as_rotvec()[held],
        hand_pose=state.fingers[held],
        transl=state.transl[held],
        joints=hand_joints(model, state.betas, rotations, state.transl[held]),
        observed=joints,
        present=present,
    )
    log.info("MANO %s hand: %.1f mm residual over %d frames", model.side, fit.residual_mm, len(seen))
    return fit


def save_mano(path: str | os.PathLike, fits: dict[str, ManoFit], fps: float) -> Path:
    """Write MANO parameters to an .npz: `<side>_betas`, `_global_orient`, `_hand_pose`, `_transl`, `_present`, `fps`.

    `left_shapedirs` says which left hand the betas are for, "official" or "mended": see
    :func:`svimo_core.mano.model.left_shape`.
    """
    path = Path(path)
    arrays = {
        f"{side}_{name}": getattr(fit, name).astype(np.float32)
        for side, fit in fits.items()
        for name in ("betas", "global_orient", "hand_pose", "transl")
    }
    arrays |= {f"{side}_present": fit.present for side, fit in fits.items()}
    if "left" in fits:
        right = fits["right"].model if "right" in fits else None
        arrays["left_shapedirs"] = np.array(left_shape(fits["left"].model, right))
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, fps=np.array(fps), **arrays)
    return path


# The fit as least squares


@dataclass(frozen=True, kw_only=True)
class _State:
    """The unknowns."""

    betas: np.ndarray
    """10."""
    orient: np.ndarray
    """N x 3 x 3. Steps turn it directly: a rotation vector near a whole turn has no derivative."""
    transl: np.ndarray
    """N x 3."""
    fingers: np.ndarray
    """N x 45."""

    def part(self, frames: slice) -> _State:
        """Some of the frames."""
        return _State(
            betas=self.betas,
            orient=self.orient[frames],
            transl=self.transl[frames],
            fingers=self.fingers[frames],
        )

    def moved(self, frames: np.ndarray, betas: np.ndarray) -> _State:
        """The state after a step, N x 51 and 10."""
        return _State(
            betas=self.betas + betas,
            orient=Rotation.from_rotvec(frames[:, :3]).as_matrix() @ self.orient,
            transl=self.transl + frames[:, 3:6],
            fingers=self.fingers + frames[:, 6:],
        )


class _Problem:
    """Joints to fit, and how far a state is from them."""

    def __init__(
        self, joints: np.ndarray, present: np.ndarray, model: ManoModel, fps: float, smoothness: float
    ):
        self.hand = joints_only(model)
        self.joints = joints[:, np.argsort(FROM_MANO)]
        self.relaxed = model.hands_mean
        template = self.hand.v_template
        rotations = palm_alignment(template[FROM_MANO], joints[present])
        # Rotation happens about the template's wrist, which stays in place and is then translated.
        self.start = _State(
            betas=np.zeros(NUM_BETAS),
            orient=_turned_between(rotations, np.flatnonzero(present)),
            transl=self.joints[:, 0] - template[0],
            fingers=np.tile(self.relaxed, (len(joints), 1)),
        )
        self.observed = present / OBSERVED_TO**2
        change = smoothness * fps**4 * _second_differences(len(joints))
        self.joint_change = change / JOINTS_ACCELERATE**2
        self.finger_change = change / FINGERS_ACCELERATE**2

    def predict(self, state: _State) -> np.ndarray:
        """Joints in MANO's order, N x 21 x 3."""
        rotations = np.concatenate([state.orient[:, None], _matrices(state.fingers)], axis=1)
        return hand_vertices(self.hand, state.betas, rotations, state.transl)

    def loss(self, state: _State, predicted: np.ndarray) -> float:
        """Half the negative logarithm of the likelihood, but for a constant."""
        apart = np.sum((predicted - self.joints) ** 2, axis=(1, 2))
        bend = (state.fingers - self.relaxed) / FINGERS_BEND
        terms = (
            self.observed @ apart,
            np.sum(predicted * _banded(self.joint_change, predicted)),
            np.sum(bend**2),
            np.sum(state.fingers * _banded(self.finger_change, state.fingers)),
            np.sum(state.betas**2),
        )
        return float(sum(terms))

    def normal_equations(
        self, state: _State, predicted: np.ndarray, report: Callable[[], None]
    ) -> _NormalEquations:
        """What a step solves: second derivatives (Gauss and Newton's) and the way down."""
        frames = len(predicted)
        by_frame = np.empty((frames, predicted[0].size, FRAME_SIZE))
        by_betas = np.empty((frames, predicted[0].size, NUM_BETAS))
        for start in range(0, frames, CHUNK):
            report()
            part = slice(start, start + CHUNK)
            by_frame[part], by_betas[part] = _derivatives(self.hand, state.part(part))
        joint_weights = self.joint_change.copy()
        joint_weights[0] += self.observed
        force = self.observed[:, None, None] * (self.joints - predicted) - _banded(
            self.joint_change, predicted
        )
        force = force.reshape(frames, -1)
        blocks = np.zeros((3, frames, FRAME_SIZE, FRAME_SIZE))
        for offset, block in enumerate(blocks):
            last = max(frames - offset, 0)
            weighted = joint_weights[offset, :last, None, None] * by_frame[:last]
            block[:last] = by_frame[offset:].transpose(0, 2, 1) @ weighted
            bend = np.full(last, (offset == 0) / FINGERS_BEND**2) + self.finger_change[offset, :last]
            diagonal = np.arange(6, FRAME_SIZE)
            block[:last, diagonal, diagonal] += bend[:, None]
        down = (by_frame.transpose(0, 2, 1) @ force[..., None])[..., 0]
        down[:, 6:] -= (state.fingers - self.relaxed) / FINGERS_BEND**2
        down[:, 6:] -= _banded(self.finger_change, state.fingers)
        weighted = _banded(joint_weights, by_betas)
        return _NormalEquations(
            blocks=blocks,
            across=by_frame.transpose(0, 2, 1) @ weighted,
            betas=np.einsum("nik,nil->kl", by_betas, weighted) + np.eye(NUM_BETAS),
            down=down,
            down_betas=np.einsum("nik,ni->k", by_betas, force) - state.betas,
        )


@dataclass(frozen=True, kw_only=True)
class _NormalEquations:
    """A symmetric system: frames tied to the next two, and all of them to the betas."""

    blocks: np.ndarray
    """Frame i + offset by frame i, 3 x N x 51 x 51."""
    across: np.ndarray
    """Frames by betas, N x 51 x 10."""
    betas: np.ndarray
    """10 x 10."""
    down: np.ndarray
    """N x 51."""
    down_betas: np.ndarray
    """10."""

    def solve(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """The step, N x 51 and 10, with Marquardt's damping of each unknown by its own curvature."""
        frames, size = self.down.shape
        band = np.zeros((3 * size, frames * size))
        for column in range(size):
            band[: size - column, column::size] = self.blocks[0, :, column:, column].T
            for offset in (1, 2):
                rows = slice(offset * size - column, (offset + 1) * size - column)
                band[rows, column::size] = self.blocks[offset, :, :, column].T
        band = band[: frames * size]  # one or two frames have less of a band
        band[0] += damping * (band[0] + 1)
        betas = self.betas + damping * (np.diag(np.diag(self.betas)) + np.eye(NUM_BETAS))

        right_sides = np.concatenate([self.down[..., None], self.across], axis=2).reshape(frames * size, -1)
        solved = solveh_banded(band, right_sides, overwrite_ab=True, lower=True, check_finite=False)
        alone, through_betas = solved[:, 0], solved[:, 1:]
        across = self.across.reshape(frames * size, -1)
        step_betas = np.linalg.solve(betas - across.T @ through_betas, self.down_betas - across.T @ alone)
        return (alone - through_betas @ step_betas).reshape(frames, size), step_betas


def _settle(problem: _Problem, steps: int, report: Callable[[int, int], None]) -> _State:
    """Levenberg and Marquardt's steps from the start until one moves nothing."""
    state, damping = problem.start, DAMPING
    predicted = problem.predict(state)
    loss = problem.loss(state, predicted)
    for step in range(steps):
        equations = problem.normal_equations(state, predicted, lambda step=step: report(step, steps))
        while damping < HOPELESS:
            report(step, steps)
            tried = state.moved(*equations.solve(damping))
            there = problem.predict(tried)
            if (lower := problem.loss(tried, there)) <= loss:
                break
            damping *= 10
        else:
            break
        moved = np.sqrt(np.mean(np.sum((there - predicted) ** 2, axis=-1)))
        state, predicted, loss, damping = tried, there, lower, damping / 5
        report(step + 1, steps)
        if moved < SETTLED:
            break
    return state


def _derivatives(hand: ManoModel, state: _State) -> tuple[np.ndarray, np.ndarray]:
    """How joints move with a frame's unknowns, N x 63 x 51, and with the betas, N x 63 x 10."""
    frames, points = len(state.orient), len(hand.weights)
    fingers = _matrices(state.fingers)
    posed = pose(hand, state.betas, np.concatenate([state.orient[:, None], fingers], axis=1))
    blended = posed.blended

    # 1. Rotations: a joint that turns swings all points beyond it about its own place.
    beyond = np.eye(NUM_JOINTS)  # joint by ancestor
    for joint, parent in enumerate(hand.parents[1:], start=1):
        beyond[joint] += beyond[parent]
    carried = hand.weights[:, :, None] * posed.carried()
    arms = np.einsum("nvjc,ja->nvac", carried, beyond)
    arms -= (hand.weights @ beyond)[:, :, None] * posed.places[:, None]
    own = _left_jacobians(state.fingers.reshape(frames, -1, 3))
    axes = np.concatenate(
        [np.tile(np.eye(3), (frames, 1, 1, 1)), posed.turns[:, hand.parents[1:]] @ own], axis=1
    )
    turned = -_cross_matrices(arms) @ axes[:, None]

    # 2. Pose corrections, which only the tips have.
    tips = slice(NUM_JOINTS, points)
    change = (_cross_matrices(own.swapaxes(-1, -2)) @ fingers[:, :, None]).reshape(
        frames, NUM_JOINTS - 1, 3, 9
    )
    directions = hand.posedirs[tips].reshape(-1, 3, NUM_JOINTS - 1, 9)
    corrected = np.einsum("vcjm,njam->nvcja", directions, change, optimize=True)
    turned[:, tips, 1:] += np.einsum("nvdc,nvcja->nvjda", blended[:, tips], corrected, optimize=True)

    by_frame = np.zeros((frames, points, 3, FRAME_SIZE))
    turned = turned.transpose(0, 1, 3, 2, 4)  # point, coordinate, joint, axis
    by_frame[..., :3] = turned[..., 0, :]
    by_frame[..., 3:6] = np.eye(3)
    by_frame[..., 6:] = turned[..., 1:, :].reshape(frames, points, 3, POSE_SIZE)

    # 3. Shape
    joints = np.einsum("jv,vck->jck", hand.J_regressor, hand.shapedirs)
    places = np.empty((frames, NUM_JOINTS, 3, NUM_BETAS))
    places[:, 0] = joints[0]
    for joint, parent in enumerate(hand.parents[1:], start=1):
        places[:, joint] = places[:, parent] + posed.turns[:, parent] @ (joints[joint] - joints[parent])
    offsets = places - posed.turns @ joints
    by_betas = blended @ hand.shapedirs + np.einsum("vj,njck->nvck", hand.weights, offsets)
    return by_frame.reshape(frames, -1, FRAME_SIZE), by_betas.reshape(frames, -1, NUM_BETAS)


def _matrices(vectors: np.ndarray) -> np.ndarray:
    """Rotation vectors, N x 3K -> N x K x 3 x 3."""
    return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(len(vectors), -1, 3, 3)


def _cross_matrices(vectors: np.ndarray) -> np.ndarray:
    """Matrices that take the cross product with vectors, ... x 3 -> ... x 3 x 3."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vectors.shape, 3)


def _left_jacobians(vectors: np.ndarray) -> np.ndarray:
    """How a rotation turns, in fixed axes, as its rotation vector changes: ... x 3 -> ... x 3 x 3."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    first = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    second = np.where(small, 1 / 6 - angle**2 / 120, (safe - np.sin(safe)) / safe**3)
    cross = _cross_matrices(vectors)
    return np.eye(3) + first * cross + second * (cross @ cross)


def _second_differences(frames: int) -> np.ndarray:
    """The matrix of the sum of squared second differences, 3 x N: its diagonal and the two beside it."""
    bands = np.zeros((3, frames))
    for start in range(max(frames - 2, 0)):
        bands[0, start : start + 3] += (1, 4, 1)
        bands[1, start : start + 2] -= 2
        bands[2, start] += 1
    return bands


def _banded(bands: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A symmetric matrix, 3 x N (diagonal and the two beside it), times values, N x ..."""
    bands = bands.reshape(*bands.shape, *[1] * (values.ndim - 1))
    product = bands[0] * values
    for offset in (1, 2):
        product[offset:] += bands[offset, :-offset] * values[:-offset]
        product[:-offset] += bands[offset, :-offset] * values[offset:]
    return product


# Frames without a hand


def _turned_between(rotations: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Rotations at some frames, 0 to N - 1 among them -> the rotations of all N, turning evenly in between."""
    if len(frames) == 1:
        return rotations
    return Slerp(frames, Rotation.from_matrix(rotations))(np.arange(frames[-1] + 1)).as_matrix()
