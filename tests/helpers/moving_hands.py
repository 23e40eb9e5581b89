"""Hands and objects that move in a known way: the ground truth of the motion tests."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from svimo_core.hand_rig import FINGER_BASES, HandAnimation, HandRig
from svimo_core.motion import Camera, HandObjectMotion

PALM = np.array(
    [
        (0, 0, 0),
        (-0.026, 0.012, 0.028),
        (-0.024, 0, 0.089),
        (-0.002, -0.002, 0.091),
        (0.017, 0, 0.085),
        (0.034, 0.004, 0.077),
    ]
)
BONES = np.array(
    [
        (0.042, 0.032, 0.028),
        (0.042, 0.025, 0.022),
        (0.046, 0.029, 0.023),
        (0.043, 0.027, 0.023),
        (0.034, 0.02, 0.02),
    ]
)


def skeleton(side: str) -> np.ndarray:
    """Rest joints of an adult's flat hand, 21 x 3: fingers along +z, back of the hand up (-y)."""
    joints = np.zeros((21, 3))
    for finger, base in enumerate(FINGER_BASES):
        direction = (
            np.array([-0.7, 0.15, 0.7]) if finger == 0 else PALM[finger + 1] * (1, 0, 1) / 0.09 + (0, 0, 1)
        )
        joints[base] = PALM[finger + 1]
        for joint in range(3):
            joints[base + joint + 1] = joints[base + joint] + BONES[
                finger, joint
            ] * direction / np.linalg.norm(direction)
    return joints if side == "right" else joints * (-1, 1, 1)


def hand_animation(side: str, frames: int = 17) -> HandAnimation:
    """A hand that travels, turns and closes; its rig has no mesh."""
    t = np.linspace(0, 1, frames)
    sign = 1 if side == "right" else -1
    rotations = np.tile(np.eye(3), (frames, 21, 1, 1))
    rotations[:, 0] = Rotation.from_rotvec(
        np.stack([0.4 * np.sin(3 * t) - 0.6, sign * 0.8 * t, 0.3 * t], -1)
    ).as_matrix()
    for base in FINGER_BASES:
        curl = np.zeros((frames, 3))
        curl[:, 0] = -(0.3 if base == 1 else 0.9) * np.sin(np.pi * t) ** 2
        for joint in range(3):
            rotations[:, base + joint] = Rotation.from_rotvec(curl).as_matrix()
    translations = np.stack(
        [sign * (0.12 - 0.08 * np.sin(np.pi * t)), 0.05 * np.cos(4 * t), 0.55 + 0.1 * t], -1
    )
    rest = skeleton(side)
    rig = HandRig(
        side=side,
        rest_joints=rest,
        vertices=np.zeros((0, 3)),
        faces=np.zeros((0, 3), int),
        weights=np.zeros((0, 21)),
    )
    return HandAnimation(
        rig=rig, rotations=rotations, translations=translations, observed=np.zeros((frames, 21, 3))
    )


def object_points(frames: int = 17, points: int = 128, seed: int = 0) -> np.ndarray:
    """A mug-sized cylinder's surface that turns and travels rigidly, N x K x 3."""
    rng = np.random.default_rng(seed)
    angle, height = rng.uniform(0, 2 * np.pi, points), rng.uniform(-0.05, 0.05, points)
    cloud = np.stack([0.04 * np.cos(angle), height, 0.04 * np.sin(angle)], -1)
    t = np.linspace(0, 1, frames)
    turns = Rotation.from_rotvec(np.stack([1.5 * t, 2.5 * t * (1 + seed), -t], -1)).as_matrix()
    places = np.stack([0.1 * np.sin(2 * t) - 0.1 * seed, 0.02 * t, 0.6 - 0.05 * t], -1)
    return np.einsum("nij,kj->nki", turns, cloud) + places[:, None]


def motion(frames: int = 17, fps: float = 8.0) -> HandObjectMotion:
    """Two hands, a tool and a target in front of a camera."""
    hands = np.stack([hand_animation(side, frames).joints for side in ("left", "right")], axis=1)
    objects = {"tool": object_points(frames, seed=0), "target": object_points(frames, 96, seed=1)}
    camera = Camera.from_fov(144, 96)
    return HandObjectMotion(
        hands=hands, objects=objects, camera=camera, fps=fps, prompt="use mug to pour bowl"
    )
