"""Motions that no world has, for what must draw or read any: other hands, sizes, speeds and places, one hand or none,
up to four objects of any shape, joints that tremble as a model's first readings do.

Half of them are the synthetic world's own, as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from svimo_core.motion import Camera, HandObjectMotion

from .synthetic import generate_motion

WILD_SHARE = 0.5
MOST_OBJECTS = 4
AWAY = -1.0
"""Depth in metres, behind the camera, of a hand that is not there."""


def wild_motion(
    seed: int, frames: int, height: int, width: int, fps: float, points: int, split: str = "train"
) -> HandObjectMotion:
    """One motion, of so many points per object; the same seed and split give the same one."""
    rng = np.random.default_rng([seed, split == "test", 7])
    motion = generate_motion(
        seed,
        split,
        frames=frames,
        height=height,
        width=width,
        fps=fps,
        points=points,
        varied=rng.random() < 0.5,
    )
    if rng.random() >= WILD_SHARE:
        return motion
    for change, chance in CHANGES:
        if rng.random() < chance:
            motion = change(motion, rng)
    return motion


def _other_objects(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    """Boxes and ellipsoids, each of which follows a hand's joint or lies still."""
    frames, points = len(motion), next(iter(motion.objects.values())).shape[1]
    objects = {}
    for i in range(rng.integers(0, MOST_OBJECTS + 1)):
        spots = rng.normal(size=(points, 3))
        norm = 2 if rng.random() < 0.5 else np.inf
        spots /= np.linalg.norm(spots, norm, axis=1, keepdims=True)
        spots = (spots * np.exp(rng.normal(np.log(0.04), 0.6, 3))) @ _turn(rng, np.pi).T
        path = motion.hands[:, rng.integers(2), rng.integers(21)] + rng.normal(0, 0.03, 3)
        path = path if rng.random() < 0.6 else np.repeat(path[:1], frames, axis=0)
        objects[f"object {i + 1}"] = (path[:, None] + spots).astype(np.float32)
    return replace(motion, objects=objects)


def _other_hands(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    """Each of another size, turned about its wrist."""
    wrists = motion.hands[:, :, :1]
    parts = motion.hands - wrists
    hands = [
        parts[:, i] @ (_turn(rng, 1.5) * np.exp(rng.normal(0, 0.3))).T + rng.normal(0, 0.05, 3)
        for i in range(2)
    ]
    return replace(motion, hands=(np.stack(hands, axis=1) + wrists).astype(np.float32))


def _mirrored(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    mirrored = _moved(motion, lambda x: x * np.float32([-1, 1, 1]))
    return replace(mirrored, hands=mirrored.hands[:, ::-1].copy())


def _elsewhere(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    """The whole scene turned about its middle, larger or smaller, and moved to some place in view."""
    middle = motion.hands.mean(axis=(0, 1, 2))
    depth = middle[2] * np.exp(rng.normal(0, 0.35))
    camera = motion.camera
    aside = rng.uniform(-0.35, 0.35, 2) * (camera.width / camera.fx, camera.height / camera.fy)
    turn = _turn(rng, rng.choice([0.5, np.pi]))
    place = np.array([*aside * depth, depth])
    return _moved(motion, lambda x: (x - middle) @ turn.T + place)


def _other_lens(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    camera = motion.camera
    wider, (right, down) = np.exp(rng.normal(0, 0.25)), rng.normal(0, 0.05, 2)
    return replace(
        motion,
        camera=Camera(
            fx=camera.fx * wider,
            fy=camera.fy * wider,
            cx=camera.cx + right * camera.width,
            cy=camera.cy + down * camera.height,
            width=camera.width,
            height=camera.height,
        ),
    )


def _other_speed(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    """Faster with a turn at the end, slower, or still."""
    last = len(motion) - 1
    at = np.arange(last + 1) * rng.choice([0.0, 0.3, 2.0, 3.0])
    at = last - abs(last - at % (2 * last or 1))
    low = np.clip(at.astype(int), 0, max(last - 1, 0))
    share = (at - low).astype(np.float32)
    return _moved(
        motion,
        lambda x: x[low] + share.reshape(-1, *[1] * (x.ndim - 1)) * (x[np.minimum(low + 1, last)] - x[low]),
    )


def _trembling(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    """Every joint and point a little off, always and anew in each frame."""
    always, anew = 0.012 * rng.random(2)
    return _moved(motion, lambda x: x + rng.normal(0, always, x[:1].shape) + rng.normal(0, anew, x.shape))


def _one_hand(motion: HandObjectMotion, rng: np.random.Generator) -> HandObjectMotion:
    """The other one is not there, or neither."""
    hands = motion.hands.copy()
    gone = rng.integers(3)
    hands[:, slice(None) if gone == 2 and rng.random() < 0.3 else gone % 2, :, 2] = AWAY
    return replace(motion, hands=hands)


CHANGES: tuple[tuple[Callable[[HandObjectMotion, np.random.Generator], HandObjectMotion], float], ...] = (
    (_other_objects, 0.4),
    (_other_hands, 0.4),
    (_mirrored, 0.5),
    (_elsewhere, 0.4),
    (_other_lens, 0.3),
    (_other_speed, 0.4),
    (_trembling, 0.5),
    (_one_hand, 0.2),
)
"""What becomes of a wild motion, in this order, and how often."""


def _moved(motion: HandObjectMotion, move: Callable[[np.ndarray], np.ndarray]) -> HandObjectMotion:
    objects = {name: move(cloud).astype(np.float32) for name, cloud in motion.objects.items()}
    return replace(motion, hands=move(motion.hands).astype(np.float32), objects=objects)


def _turn(rng: np.random.Generator, most: float) -> np.ndarray:
    """A rotation about any axis by up to so many radians (Rodrigues' formula)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = rng.uniform(-most, most)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
