"""A motion as things: skinned hands and rigid objects. What every 3D export starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .hand_rig import HandAnimation, fit_capsule_hand
from .mano import ManoFit, ManoModel, fit_mano
from .motion import HAND_NAMES, Camera, HandObjectMotion
from .tracks import RigidTrack, align, display_surface, extent, fit_rigid_track, rigid_parts


@dataclass(frozen=True, kw_only=True)
class ObjectMesh:
    """An object's own surface, and where on it the points of its motion are."""

    vertices: np.ndarray
    """V x 3, in axes and a unit of its own."""
    faces: np.ndarray
    """F x 3, outside counter-clockwise."""
    points: np.ndarray
    """K x 3, in the axes of the vertices and in the order of the motion's points."""

    def on(self, track: RigidTrack, name: str) -> np.ndarray:
        """The vertices where the track's canonical points are: turned, moved and scaled, V x 3, metres.

        Raises:
            ValueError: a track of another number of points, or of too few to tell how the surface turns.
        """
        if len(self.points) != len(track.points):
            raise ValueError(
                f"{name}: its mesh was made for {len(self.points)} points and its motion has {len(track.points)}: "
                "import both together"
            )
        if extent(self.points) < 2:
            raise ValueError(
                f"{name}: its mesh cannot be shown, as its points ({len(self.points)}) lie in one place or on one "
                "line and do not tell how it turns: take 3 or more of the mesh"
            )
        scale = np.sqrt(track.points.var(axis=0).sum() / self.points.var(axis=0).sum())
        even = np.full(len(self.points), 1 / len(self.points))
        rotations, translations = align(track.points[None], scale * self.points, even)
        return scale * self.vertices @ rotations[0].T + translations[0]


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
        return hands | {
            f"{name} (object)" if name in hands else name: thing.track.residual_mm
            for name, thing in self.objects.items()
        }


def rig_motion(
    motion: HandObjectMotion,
    *,
    mano: Mapping[str, ManoModel] | None = None,
    smoothness: float = 1.0,
    parts: Mapping[str, int] | None = None,
    meshes: Mapping[str, ObjectMesh] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> RiggedMotion:
    """Turn joints into skinned hands of constant bone lengths, and point clouds into rigid objects.

    A hand that is absent for some frames is carried over them.

    Args:
        motion: the joints and points.
        mano: MANO models by side; None for the built-in capsule hands.
        smoothness: see :func:`svimo_core.mano.fit_mano`.
        parts: number of rigid parts of articulated objects by name, such as {"scissors": 2}: they become objects of
            their own, "scissors part 1" and so on. The others stay one.
        meshes: surfaces to show instead of those wrapped around the points, by name.
        on_progress: called with (done, total); raising from it cancels.

    Raises:
        ValueError: hands that are no hands in metres; points that do not move as so many parts; parts or meshes of
            objects that the motion does not have, or both of one.
    """
    parts, meshes = dict(parts or {}), dict(meshes or {})
    for name in (*parts, *meshes):
        if name not in motion.objects:
            known = ", ".join(motion.objects) or "none"
            raise ValueError(
                f"the motion has no object {name!r} to rig in parts or with a mesh: it has {known}"
            )
    for name, count in parts.items():
        taken = [f"{name} part {j}" for j in range(1, count + 1) if f"{name} part {j}" in motion.objects]
        if taken:
            raise ValueError(
                f"{name}: a part would be called {taken[0]!r}, as another object is: rename that one"
            )
    for name in parts.keys() & meshes.keys():
        raise ValueError(
            f"{name}: one mesh cannot be shown for several parts: give parts or a mesh, not both"
        )
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
        if name in parts:
            groups = rigid_parts(points, parts[name], name=name)
            things = {f"{name} part {j}": points[:, group] for j, group in enumerate(groups, start=1)}
        else:
            things = {name: points}
        for key, cloud in things.items():
            track = fit_rigid_track(cloud, name=key)
            if name in meshes:
                vertices, faces = meshes[name].on(track, name), meshes[name].faces
            else:
                vertices, faces = display_surface(track.points)
            objects[key] = RigidObject(track=track, vertices=vertices, faces=faces)
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
