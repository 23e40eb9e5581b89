"""21 joints per hand -> a skinned hand: a skeleton of constant bone lengths, its rotations, and a mesh.

:class:`HandRig` and :class:`HandAnimation` are what every hand becomes before it is exported, whether it was
fitted with MANO (:mod:`svimo_core.mano`) or with the capsule hand built here, which needs no file and no licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import ConvexHull

from .motion import HAND_NAMES, JOINT_NAMES, JOINTS_PER_HAND
from .tracks import align, bridge, extent, fit_rigid_track, smallest_turns

JOINT_PARENTS = tuple(-1 if j == 0 else 0 if j % 4 == 1 else j - 1 for j in range(JOINTS_PER_HAND))
"""The tree that rotations follow: finger bases hang from the wrist, other joints from the one before."""

FINGER_BASES = (1, 5, 9, 13, 17)
PALM = (0, *FINGER_BASES)
"""Joints that move as one rigid piece with the wrist."""
TIPS = tuple(base + 3 for base in FINGER_BASES)
"""Joints that end a finger and do not rotate."""

PALM_LENGTH_RANGE = (0.03, 0.2)
"""Metres from the wrist to the base of the middle finger that can be a hand; an adult's is about 0.09."""

SHORTEST_BONE = 1e-4
"""Metres; a finger bone that is shorter over the whole clip is none."""

CAPSULE_RADII = np.array(
    [
        0.021,
        *(0.016, 0.0125, 0.0105, 0.0085),
        *(0.0105, 0.009, 0.008, 0.007) * 3,
        *(0.0095, 0.008, 0.007, 0.006),
    ]
)
"""Thickness of the capsule hand around each joint, metres, for a palm of :data:`CAPSULE_PALM_LENGTH`."""
CAPSULE_PALM_LENGTH = 0.09
CAPSULE_SIDES = 12
"""Vertices around a finger."""


@dataclass(frozen=True, kw_only=True)
class HandRig:
    """One hand's skeleton and mesh in rest pose, where the axes of every joint are parallel to the rig's own."""

    side: str
    """"left" or "right"."""
    rest_joints: np.ndarray
    """21 x 3, metres, the wrist at the origin."""
    vertices: np.ndarray
    """V x 3, metres."""
    faces: np.ndarray
    """F x 3 vertex indices, outside counter-clockwise."""
    weights: np.ndarray
    """Skinning weights, V x 21; every row adds up to 1."""


@dataclass(frozen=True, kw_only=True)
class HandAnimation:
    """A rig in motion: camera space, metres."""

    rig: HandRig
    rotations: np.ndarray
    """Rotation of every joint in its parent's axes, N x 21 x 3 x 3; identity in rest. Tips do not rotate."""
    translations: np.ndarray
    """Wrist position, N x 3."""
    observed: np.ndarray
    """The joints that were fitted, N x 21 x 3; NaN where the hand is absent, and the rig goes on as it can."""

    @property
    def present(self) -> np.ndarray:
        """The frames in which the hand was there, N bool."""
        return np.isfinite(self.observed[:, 0, 0])

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.rotations)

    @cached_property
    def global_rotations(self) -> np.ndarray:
        """Rotation of every joint from rest to camera space, N x 21 x 3 x 3."""
        rotations = self.rotations.copy()
        for joint, parent in enumerate(JOINT_PARENTS[1:], start=1):
            rotations[:, joint] = rotations[:, parent] @ rotations[:, joint]
        return rotations

    @cached_property
    def joints(self) -> np.ndarray:
        """Joint positions of the rig, N x 21 x 3: forward kinematics, so bones never stretch."""
        joints = np.empty((len(self), JOINTS_PER_HAND, 3))
        joints[:, 0] = self.translations
        for joint, parent in enumerate(JOINT_PARENTS[1:], start=1):
            bone = self.rig.rest_joints[joint] - self.rig.rest_joints[parent]
            joints[:, joint] = joints[:, parent] + self.global_rotations[:, parent] @ bone
        return joints

    def posed_vertices(self) -> np.ndarray:
        """The mesh in every frame by linear blend skinning, N x V x 3."""
        rotations = self.global_rotations
        offsets = self.joints - np.einsum("njab,jb->nja", rotations, self.rig.rest_joints)
        blended = np.einsum("vj,njab->nvab", self.rig.weights, rotations, optimize=True)
        return np.einsum("nvab,vb->nva", blended, self.rig.vertices) + self.rig.weights @ offsets

    @property
    def residual_mm(self) -> float:
        """Root mean square distance between the rig's joints and the observed ones, millimetres."""
        return float(np.sqrt(np.nanmean(np.sum((self.joints - self.observed) ** 2, axis=-1))) * 1000)


def check_hand(joints: np.ndarray, side: str) -> np.ndarray:
    """Return one hand's joints as float64 (N x 21 x 3), refusing what cannot be a hand in metres.

    A frame in which all numbers are NaN has no hand.

    Raises:
        ValueError: wrong shape, other values that are not finite, a palm of an impossible size, or no hand at all.
    """
    if side not in HAND_NAMES:
        raise ValueError(f'a hand is "left" or "right", got {side!r}')
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (JOINTS_PER_HAND, 3) or not len(joints):
        raise ValueError(f"{side} hand: expected frames x 21 x 3 with at least one frame, got {joints.shape}")
    broken = ~np.isfinite(joints).all(axis=(1, 2)) & ~np.isnan(joints).all(axis=(1, 2))
    if broken.any():
        raise ValueError(
            f"{side} hand: values that are not finite (NaN or infinity), first in frame {int(np.argmax(broken))}"
        )
    if np.isnan(joints).all():
        raise ValueError(f"{side} hand: it is absent from every frame")
    palm = float(np.nanmedian(np.linalg.norm(joints[:, 9] - joints[:, 0], axis=-1)))
    low, high = PALM_LENGTH_RANGE
    if not low <= palm <= high:
        raise ValueError(
            f"{side} hand: wrist to middle knuckle is {palm:.4g} m, and a hand in metres has {low} to {high}; scale "
            "the motion first (centimetres x 0.01, millimetres x 0.001), or check that the hand is not missing"
        )
    return joints


def fit_capsule_hand(joints: np.ndarray, side: str) -> HandAnimation:
    """Fit a skeleton of constant bone lengths to one hand's joints and put the capsule mesh on it.

    The wrist turns with the rigid palm; each finger bone then swings, without twist, towards the next observed
    joint from where the skeleton already is, so that errors do not add up along a finger.

    Args:
        joints: N x 21 x 3, OpenPose order, metres, camera space; NaN in frames without the hand, over which its
            joints move in straight lines.
        side: "left" or "right".

    Raises:
        ValueError: see :func:`check_hand`; or finger joints that lie in one place.
    """
    observed = check_hand(joints, side)
    joints = bridge(observed, np.isfinite(observed[:, 0, 0]))
    palm = fit_rigid_track(joints[:, PALM], name=f"{side} palm")
    if extent(palm.points) < 2:
        raise ValueError(
            f"{side} palm: its joints lie on one line or in one place, so the hand's rotation is undefined; are all 21 "
            "joints there?"
        )
    bone_lengths = np.median(
        np.linalg.norm(np.diff(joints[:, 1:].reshape(-1, 5, 4, 3), axis=2), axis=-1), axis=0
    )
    if bone_lengths.min() < SHORTEST_BONE:
        finger, bone = np.unravel_index(bone_lengths.argmin(), bone_lengths.shape)
        start = FINGER_BASES[finger] + bone
        raise ValueError(
            f"{side} hand: {JOINT_NAMES[start]} and {JOINT_NAMES[start + 1]} lie in one place, so the bone between "
            "them has no direction; are all 21 joints there?"
        )
    to_rest = _palm_axes(palm.points, side)
    rest_joints = _flat_hand((palm.points - palm.points[0]) @ to_rest.T, bone_lengths, side)

    rotations = np.tile(np.eye(3), (len(joints), JOINTS_PER_HAND, 1, 1))
    rotations[:, 0] = palm.rotations @ to_rest.T
    translations = palm.posed()[:, 0]
    for base in FINGER_BASES:
        parent_rotation = rotations[:, 0]
        position = translations + parent_rotation @ rest_joints[base]
        for joint in range(base, base + 3):
            bone = rest_joints[joint + 1] - rest_joints[joint]
            wanted = np.einsum("nji,nj->ni", parent_rotation, joints[:, joint + 1] - position)
            rotations[:, joint] = smallest_turns(bone, wanted)
            parent_rotation = parent_rotation @ rotations[:, joint]
            position = position + parent_rotation @ bone

    vertices, faces, weights = _capsule_mesh(rest_joints)
    rig = HandRig(side=side, rest_joints=rest_joints, vertices=vertices, faces=faces, weights=weights)
    return HandAnimation(rig=rig, rotations=rotations, translations=translations, observed=observed)


def palm_alignment(rest_joints: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Rotations (N x 3 x 3) that turn the palm of `rest_joints` (21 x 3) to each frame of `joints` (N x 21 x 3)."""
    palm = list(PALM)
    return align(joints[:, palm], rest_joints[palm], np.full(len(palm), 1 / len(palm)))[0]


def _palm_axes(palm: np.ndarray, side: str) -> np.ndarray:
    """Rotation from a palm (6 x 3) to rest axes: fingers along +z, back of the hand up (-y)."""
    forward = palm[2:].mean(axis=0) - palm[0]
    across = palm[2] - palm[5] if side == "left" else palm[5] - palm[2]  # towards +x in rest
    down = np.cross(forward, across)
    axes = np.stack([np.cross(down, forward), down, forward])
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def _flat_hand(palm: np.ndarray, bone_lengths: np.ndarray, side: str) -> np.ndarray:
    """Rest joints (21 x 3) of a flat hand around a palm in rest axes: straight fingers, a little spread."""
    rest = np.zeros((JOINTS_PER_HAND, 3))
    for finger, base in enumerate(FINGER_BASES):
        rest[base] = palm[finger + 1]
        spread = palm[finger + 1] * (1, 0, 1) / np.linalg.norm(palm[finger + 1]) + (0, 0, 1)
        if finger == 0:
            spread = np.array([0.7 if side == "left" else -0.7, 0.15, 0.7])
        direction = spread / np.linalg.norm(spread)
        for joint in range(3):
            rest[base + joint + 1] = rest[base + joint] + bone_lengths[finger, joint] * direction
    return rest


def _capsule_mesh(rest_joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The capsule hand around a flat skeleton: a palm (hull of spheres) and five tubes that bend at joints."""
    radii = CAPSULE_RADII * np.linalg.norm(rest_joints[9]) / CAPSULE_PALM_LENGTH
    parts = [_palm_mesh(rest_joints, radii)]
    parts += [_finger_mesh(rest_joints, radii, base) for base in FINGER_BASES]
    starts = np.cumsum([0] + [len(vertices) for vertices, _, _ in parts])
    vertices = np.concatenate([vertices for vertices, _, _ in parts])
    faces = np.concatenate([faces + start for (_, faces, _), start in zip(parts, starts, strict=False)])
    weights = np.concatenate([weights for _, _, weights in parts])
    area = np.linalg.norm(_normals(vertices, faces), axis=1)
    return vertices, faces[area > 1e-12], weights  # a round end closes with triangles of no area: drop them


def _palm_mesh(rest_joints: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hull of flattened spheres around the wrist and the finger bases; moves with the wrist alone."""
    rings, sides = np.meshgrid(
        np.linspace(0, np.pi, 9), np.linspace(0, 2 * np.pi, CAPSULE_SIDES, endpoint=False)
    )
    sphere = np.stack(
        [np.sin(rings) * np.cos(sides), np.cos(rings), np.sin(rings) * np.sin(sides)], -1
    ).reshape(-1, 3)
    flat = sphere * (1.0, 0.75, 1.0)
    wide = np.where(
        np.arange(JOINTS_PER_HAND)[:, None] == 0, (1.4, 1, 1), 1.0
    )  # the wrist is wider than it is thick
    cloud = np.concatenate([rest_joints[j] + radii[j] * wide[j] * flat for j in PALM])
    hull = ConvexHull(cloud)
    outward = np.einsum("fc,fc->f", _normals(cloud, hull.simplices), hull.equations[:, :3]) > 0
    faces = np.where(outward[:, None], hull.simplices, hull.simplices[:, ::-1])
    used, faces = np.unique(faces, return_inverse=True)
    weights = np.zeros((len(used), JOINTS_PER_HAND))
    weights[:, 0] = 1
    return cloud[used], faces.reshape(-1, 3), weights


def _finger_mesh(
    rest_joints: np.ndarray, radii: np.ndarray, base: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tapered tube along a straight finger, round at both ends, whose surface ends at the tip joint."""
    chain = rest_joints[base : base + 4]
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))])
    direction = (chain[3] - chain[0]) / along[3]
    first, last = radii[base], radii[base + 3]
    end = max(along[3] - last, along[2])  # centre of the round tip

    # 1. Rings: where along the finger, and how wide.
    cap = np.linspace(0, np.pi / 2, 5)
    shaft = np.concatenate(
        [np.linspace(a, b, 6)[:-1] for a, b in ((0, along[1]), (along[1], along[2]), (along[2], end))]
    )
    places = np.concatenate([-first * np.cos(cap[:-1]), shaft, end + last * np.sin(cap)])
    tip_aware = np.append(along[:3], end)
    widths = np.concatenate(
        [first * np.sin(cap[:-1]), np.interp(shaft, tip_aware, radii[base : base + 4]), last * np.cos(cap)]
    )

    # 2. Vertices and quads split into triangles.
    side = np.cross(direction, (0, 1, 0))
    side /= np.linalg.norm(side)
    angles = np.linspace(0, 2 * np.pi, CAPSULE_SIDES, endpoint=False)[:, None]
    circle = np.cos(angles) * side + np.sin(angles) * np.cross(direction, side)
    vertices = chain[0] + places[:, None, None] * direction + widths[:, None, None] * circle
    ring, step = np.meshgrid(np.arange(len(places) - 1), np.arange(CAPSULE_SIDES), indexing="ij")
    a, b = ring * CAPSULE_SIDES + step, ring * CAPSULE_SIDES + (step + 1) % CAPSULE_SIDES
    c, d = a + CAPSULE_SIDES, b + CAPSULE_SIDES
    faces = np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], axis=2).reshape(-1, 3)

    # 3. Weights: one bone each, handed over smoothly across a joint.
    joints = np.array([0, base, base + 1, base + 2])
    reached = [_smooth_step((places - along[i]) / radii[base + i]) for i in range(3)]
    shares = np.stack([1 - reached[0], reached[0] - reached[1], reached[1] - reached[2], reached[2]], axis=-1)
    weights = np.zeros((len(places), JOINTS_PER_HAND))
    weights[:, joints] = np.maximum(shares, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return vertices.reshape(-1, 3), faces, np.repeat(weights, CAPSULE_SIDES, axis=0)


def _smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below -1, 1 above 1, smooth between."""
    x = np.clip((x + 1) / 2, 0, 1)
    return x * x * (3 - 2 * x)


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals of triangles, F x 3, twice as long as the triangles are large."""
    corner = vertices[faces[:, 0]]
    return np.cross(vertices[faces[:, 1]] - corner, vertices[faces[:, 2]] - corner)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals of a mesh's vertices, V x 3: the mean of the adjoining faces by area."""
    normals = np.zeros_like(vertices)
    np.add.at(normals, faces, _normals(vertices, faces)[:, None])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 0, normals / np.maximum(length, 1e-30), (0.0, 1.0, 0.0))
