"""A motion as things: skinned hands and rigid objects. What every 3D export starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .hand_rig import HandAnimation, fit_capsule_hand
from .mano import ManoFit, ManoModel, fit_mano
from .motion import HAND_NAMES, Camera, HandObjectMotion
from .tracks import RigidTrack, display_surface, fit_rigid_track


@dataclass(frozen=True, kw_only=True)
class RigidObject:
    """An object's trajectory and the surface to show for it."""

    track: RigidTrack
    vertices: np.ndarray
    """V x 3, metres, in the axes of `track.points`."""
    faces: np.ndarray
    """F x 3, outside counter-clockwise."""


@dataclass(frozen=True, kw_only=True)
class RiggedMotion:
    """Skinned hands and rigid objects in camera space, metres: x right, y down, z forward."""

    frames: int
    hands: tuple[HandAnimation, ...]
    """Left before right; a hand that is absent from every frame is not among them."""
    objects: dict[str, RigidObject]
    camera: Camera
    fps: float
    prompt: str
    metadata: dict[str, str]
    mano: dict[str, ManoFit]
    """MANO parameters by side; empty for capsule hands."""

    def __len__(self) -> int:
        """Number of frames."""
        return self.frames

    def residuals_mm(self) -> dict[str, float]:
        """How far each hand's joints and each object's points are from the given ones, millimetres (RMS)."""
        hands = {hand.rig.side: hand.residual_mm for hand in self.hands}
        return hands | {name: thing.track.residual_mm for name, thing in self.objects.items()}


def rig_motion(
    motion: HandObjectMotion,
    *,
    mano: Mapping[str, ManoModel] | None = None,
    smoothness: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> RiggedMotion:
    """Turn joints into skinned hands of constant bone lengths, and point clouds into rigid objects.

    A hand that is absent for some frames is carried over them.

    Args:
        motion: the joints and points.
        mano: MANO models by side; None for the built-in capsule hands.
        smoothness: see :func:`svimo_core.mano.fit_mano`.
        on_progress: called with (done, total); raising from it cancels.

    Raises:
        ValueError: hands that are no hands in metres, or points that have no rigid motion.
    """
    steps = 100  # of progress, for each hand
    total = 2 * steps + len(motion.objects)
    report = on_progress or (lambda done, total: None)

    # 1. Hands
    hands, fits = [], {}
    for i, side in enumerate(HAND_NAMES):
        start = i * steps
        if not motion.present[:, i].any():
            continue
        if mano is None:
            hands.append(fit_capsule_hand(motion.hands[:, i], side))
        else:
            fits[side] = fit_mano(
                motion.hands[:, i],
                mano[side],
                fps=motion.fps,
                smoothness=smoothness,
                on_progress=lambda done, of, start=start: report(start + steps * done // of, total),
            )
            hands.append(fits[side].animation())
        report(start + steps, total)

    # 2. Objects
    objects = {}
    for i, (name, points) in enumerate(motion.objects.items(), start=1):
        track = fit_rigid_track(points, name=name)
        try:
            vertices, faces = display_surface(track.points)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        objects[name] = RigidObject(track=track, vertices=vertices, faces=faces)
        report(2 * steps + i, total)

    return RiggedMotion(
        frames=len(motion),
        hands=tuple(hands),
        objects=objects,
        camera=motion.camera,
        fps=motion.fps,
        prompt=motion.prompt,
        metadata=dict(motion.metadata),
        mano=fits,
    )
