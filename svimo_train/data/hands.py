"""Two articulated 21-joint hands: bones, joint limits, grasps found by search, and a skin to look at.

A hand lives in its own axes: origin at the wrist, S towards the thumb's side, F along the fingers, P out of the palm.
For a right hand (S, F, P) is a right-handed frame and for a left hand a mirrored one, so both share every number here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .shapes import Distance, sheet_faces

# Segment lengths per hand length (wrist to the tip of the middle finger): Buchholz, Armstrong and Goldstein 1992,
# "Anthropometric data for describing the kinematics of the human hand", Ergonomics 35(3).
METACARPALS = np.array([0.463, 0.446, 0.421, 0.414])
PHALANGES = np.array(
    [
        [0.251, 0.196, 0.158],
        [0.245, 0.143, 0.097],
        [0.266, 0.170, 0.108],
        [0.244, 0.165, 0.107],
        [0.204, 0.117, 0.093],
    ]
)
"""Thumb (metacarpal, proximal, distal), then index, middle, ring and pinky (proximal, middle, distal)."""
METACARPAL_ANGLES = np.radians([19.0, 5.0, -9.0, -23.0])
SPREAD_ANGLES = np.radians([6.0, 1.0, -4.0, -10.0])
THUMB_BASE = np.array([0.125, 0.105, 0.055])

FLEXION_LIMITS = np.radians([[0, 60, 80], [90, 105, 75], [90, 105, 75], [90, 105, 75], [90, 105, 75]])
"""Largest flexion of each digit's three joints; extension ends at zero (the thumb's base moves by `HandPose.thumb`)."""
THUMB_LIMITS = np.radians([[5, 50], [5, 75]])
"""How far the thumb's base swings from along the fingers to aside, and how far it is raised out of the palm."""

DIGIT_RADII = np.array(
    [[0.082, 0.066, 0.060, 0.052]] + [[0.056, 0.051, 0.046, 0.039]] * 3 + [[0.048, 0.043, 0.039, 0.034]]
)
"""Radius of each digit at its four joints, per hand length."""
PALM_HALF_THICKNESS = 0.072


@dataclass(frozen=True, kw_only=True)
class HandPose:
    """Joint angles in radians; leading axes may be frames or candidates."""

    flexion: np.ndarray
    """... x 5 x 3, digits from thumb to pinky, joints from base to tip; the thumb's first entry is zero."""
    thumb: np.ndarray
    """... x 3: the thumb's base swung in the palm's plane from F to S, raised out of it to P, and its bending
    direction turned from across the palm (-S) to along the fingers (F)."""

    def blend(self, other: HandPose, weight: np.ndarray) -> HandPose:
        """A pose sequence from this pose (weight 0) to the other (weight 1); one weight per frame."""
        return HandPose(
            flexion=self.flexion + weight[:, None, None] * (other.flexion - self.flexion),
            thumb=self.thumb + weight[:, None] * (other.thumb - self.thumb),
        )


RELAXED = HandPose(
    flexion=np.radians([[0, 10, 15]] + [[18, 22, 12]] * 4), thumb=np.radians([42.0, 25.0, 40.0])
)


@dataclass(frozen=True, kw_only=True)
class HandPlacement:
    """Where a hand is: wrist and axes in some frame; leading axes may be frames."""

    wrist: np.ndarray
    """... x 3, metres."""
    axes: np.ndarray
    """... x 3 x 3, columns S, F, P."""


def hand_joints(pose: HandPose, length: float) -> np.ndarray:
    """The 21 joints (..., 21, 3) of a hand of this length in its own axes, OpenPose order, metres."""
    base, along, bend = _digits(pose)
    turned = np.cumsum(pose.flexion, -1)[..., None]
    bones = PHALANGES[..., None] * (
        np.cos(turned) * along[..., None, :] + np.sin(turned) * bend[..., None, :]
    )
    joints = base[..., None, :] + np.concatenate([np.zeros_like(bones[..., :1, :]), np.cumsum(bones, -2)], -2)
    wrist = np.zeros((*joints.shape[:-3], 1, 3))
    return length * np.concatenate([wrist, joints.reshape(*joints.shape[:-3], 20, 3)], -2)


def close_hand(distance: Distance, placement: HandPlacement, length: float, mode: str = "wrap") -> HandPose:
    """Bend the digits of a placed hand until they touch a solid.

    Each digit tries a grid of joint angles within its limits and keeps the one that lies closest against the surface,
    going through it costing far more than staying off it.

    Args:
        distance: of the solid, in the frame of the placement.
        mode: "wrap" lays every phalanx against the solid; "press" only the fingertips, from above.
    """
    fingers = _grid((0, FLEXION_LIMITS[1, 0]), 13, (0, FLEXION_LIMITS[1, 1]), 13)
    candidates = np.stack(
        [fingers[:, 0], fingers[:, 1], 0.67 * fingers[:, 1]], 1
    )  # the last joint follows the middle one
    thumb_bends = _grid((0, FLEXION_LIMITS[0, 1]), 5, (0, FLEXION_LIMITS[0, 2]), 5)
    swings = _grid(THUMB_LIMITS[0], 4, THUMB_LIMITS[1], 8)
    along_fingers = np.radians(75.0 if mode == "wrap" else 20.0)
    swing, bends = (index.ravel() for index in np.mgrid[: len(swings), : len(thumb_bends)])
    thumb = np.column_stack([swings[swing], np.full(len(swing), along_fingers)])
    thumb_flexion = np.column_stack([np.zeros(len(bends)), thumb_bends[bends]])

    flexion, best_thumb = RELAXED.flexion.copy(), RELAXED.thumb
    count = len(candidates)
    pose = HandPose(
        flexion=np.concatenate([np.zeros((count, 1, 3)), np.repeat(candidates[:, None], 4, 1)], 1),
        thumb=np.broadcast_to(best_thumb, (count, 3)),
    )
    cost = _touch_cost(pose, slice(1, 5), distance, placement, length, mode)  # candidates x 4
    flexion[1:] = candidates[cost.argmin(0)]
    count = len(thumb)
    pose = HandPose(flexion=np.concatenate([thumb_flexion[:, None], np.zeros((count, 4, 3))], 1), thumb=thumb)
    best = _touch_cost(pose, slice(0, 1), distance, placement, length, mode)[:, 0].argmin()
    flexion[0], best_thumb = thumb_flexion[best], thumb[best]
    return HandPose(flexion=flexion, thumb=best_thumb)


def _touch_cost(
    pose: HandPose, digits: slice, distance: Distance, placement: HandPlacement, length: float, mode: str
) -> np.ndarray:
    joints = hand_joints(pose, length)[:, 1:].reshape(-1, 5, 4, 3)[:, digits]
    radii = length * DIGIT_RADII[digits]
    middles, middle_radii = (joints[:, :, 1:] + joints[:, :, :-1]) / 2, (radii[:, 1:] + radii[:, :-1]) / 2
    points = np.concatenate(
        [joints[:, :, 1:], middles], 2
    )  # second and third joint, tip, and the middles of the bones
    clearance = distance(points @ placement.axes.T + placement.wrist) - np.concatenate(
        [radii[:, 1:], middle_radii], 1
    )
    through, off = np.minimum(clearance, 0), np.maximum(clearance, 0)
    weight = np.array([1, 1, 1, 0.5, 1, 1]) if mode == "wrap" else np.array([0, 0.1, 1, 0, 0, 0.3])
    effort = 2e-5 * ((pose.flexion[:, digits] - RELAXED.flexion[digits]) ** 2).sum(-1)  # settles ties, in m^2
    if mode == "press":
        effort = 20 * effort
    return (30 * through**2 + weight * off**2).sum(2) + effort


def _grid(first: Sequence[float], first_count: int, second: Sequence[float], second_count: int) -> np.ndarray:
    a, b = np.meshgrid(np.linspace(*first, first_count), np.linspace(*second, second_count), indexing="ij")
    return np.column_stack([a.ravel(), b.ravel()])


def _digits(pose: HandPose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base, straight direction and bending direction (... x 5 x 3 each) of the digits, for a hand of length 1."""
    swing, raised, turn = (pose.thumb[..., i] for i in range(3))
    thumb = np.stack([np.cos(raised) * np.sin(swing), np.cos(raised) * np.cos(swing), np.sin(raised)], -1)
    toward = np.stack([-np.cos(turn), np.sin(turn), np.zeros_like(turn)], -1)
    toward = toward - (toward * thumb).sum(-1, keepdims=True) * thumb
    toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
    zero = np.zeros(4)
    knuckles = METACARPALS[:, None] * np.stack(
        [np.sin(METACARPAL_ANGLES), np.cos(METACARPAL_ANGLES), zero], 1
    )
    straight = np.stack([np.sin(SPREAD_ANGLES), np.cos(SPREAD_ANGLES), zero], 1)
    four = (*thumb.shape[:-1], 4, 3)
    base = np.concatenate(
        [np.broadcast_to(THUMB_BASE, thumb.shape)[..., None, :], np.broadcast_to(knuckles, four)], -2
    )
    along = np.concatenate([thumb[..., None, :], np.broadcast_to(straight, four)], -2)
    bend = np.concatenate([toward[..., None, :], np.broadcast_to([0.0, 0, 1], four)], -2)
    return base, along, bend


# --- skin: rings of vertices around the bones, joined to a closed surface ---

RING_SIDES = 8
_RING_BONE = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
_RING_PLACE = np.array([-0.25, 0.0, 0.5, 0.0, 0.5, 0.0, 0.45, 0.78, 0.96, 1.04])
_RING_SCALE = np.array([1.0, 1.05, 0.96, 1.02, 0.95, 1.0, 1.0, 0.98, 0.62, 0.02])
_PALM_RINGS, _PALM_SIDES, _ARM_RINGS = 8, 12, 5


def skin_faces(left: bool) -> np.ndarray:
    """Triangles of the surface that :func:`skin` places; mirrored hands turn theirs around."""
    digit, palm = sheet_faces(len(_RING_BONE), RING_SIDES), sheet_faces(_PALM_RINGS, _PALM_SIDES)
    size = len(_RING_BONE) * RING_SIDES
    hand = np.concatenate([*(digit + i * size for i in range(5)), palm + 5 * size])
    arm = sheet_faces(_ARM_RINGS, _PALM_SIDES) + 5 * size + _PALM_RINGS * _PALM_SIDES
    return np.concatenate([hand, arm])[:, :: 1 if left else -1]


def skin(
    pose: HandPose, placement: HandPlacement, elbow: np.ndarray, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and normals (F x V x 3 each) of hands and sleeved forearms over frames; `elbow` is F x 3."""
    # 1. digits: rings around bent but planar chains
    _, along, bend = _digits(pose)
    turned = np.cumsum(pose.flexion, -1)
    joints = hand_joints(pose, 1.0)[..., 1:, :].reshape(*turned.shape[:-1], 4, 3)
    bone = np.diff(joints, axis=-2)
    center = joints[..., _RING_BONE, :] + _RING_PLACE[:, None] * bone[..., _RING_BONE, :]
    tangent = turned[..., _RING_BONE].copy()
    tangent[..., 3] = (turned[..., 0] + turned[..., 1]) / 2
    tangent[..., 5] = (turned[..., 1] + turned[..., 2]) / 2
    inward = (
        -np.sin(tangent)[..., None] * along[..., None, :] + np.cos(tangent)[..., None] * bend[..., None, :]
    )
    side = np.cross(along, bend)[..., None, None, :]
    angle = np.arange(RING_SIDES) * (2 * np.pi / RING_SIDES)
    ring = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * inward[..., None, :]
    place = np.clip(_RING_PLACE, 0, 1)
    radius = _RING_SCALE * (DIGIT_RADII[:, _RING_BONE] * (1 - place) + DIGIT_RADII[:, _RING_BONE + 1] * place)
    digit_vertices = center[..., None, :] + radius[..., None, None] * ring
    digit_normals = ring.copy()
    forward = (
        np.cos(tangent)[..., None] * along[..., None, :] + np.sin(tangent)[..., None] * bend[..., None, :]
    )[..., None, :]
    digit_normals[..., 8, :, :] = 0.7 * ring[..., 8, :, :] + 0.7 * forward[..., 8, :, :]
    digit_normals[..., 9, :, :] = forward[..., 9, :, :]

    # 2. the palm: a rigid loft from the wrist to the knuckles
    frames = pose.flexion.shape[0]
    palm_vertices, palm_normals = (np.broadcast_to(part, (frames, *part.shape)) for part in _PALM)
    local = np.concatenate([digit_vertices.reshape(frames, -1, 3), palm_vertices], 1) * length
    normals = np.concatenate([digit_normals.reshape(frames, -1, 3), palm_normals], 1)
    vertices = local @ placement.axes.transpose(0, 2, 1) + placement.wrist[:, None]
    normals = normals @ placement.axes.transpose(0, 2, 1)

    # 3. the forearm: from inside the palm to the elbow, the sleeve a little wider
    arm = elbow - placement.wrist
    arm = arm / np.linalg.norm(arm, axis=1, keepdims=True)
    across = placement.axes[:, :, 0] - (placement.axes[:, :, 0] * arm).sum(1, keepdims=True) * arm
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    over = np.cross(arm, across) * np.sign(np.linalg.det(placement.axes))[:, None]
    angle = np.arange(_PALM_SIDES) * (2 * np.pi / _PALM_SIDES)
    ring = np.cos(angle)[:, None] * across[:, None] + np.sin(angle)[:, None] * over[:, None]  # F S 3
    places = np.array([1.45, 0.38, 0.36, 0.05, -0.14]) * length
    widths = np.array([0.29, 0.235, 0.17, 0.142, 0.105]) * length
    heights = np.array([0.27, 0.215, 0.135, 0.104, 0.065]) * length
    around = (np.cos(angle)[:, None] * across[:, None])[:, None] * widths[:, None, None]
    around = around + (np.sin(angle)[:, None] * over[:, None])[:, None] * heights[:, None, None]
    sleeve = placement.wrist[:, None, None] + arm[:, None, None] * places[:, None, None] + around
    vertices = np.concatenate([vertices, sleeve.reshape(frames, -1, 3)], 1)
    normals = np.concatenate([normals, np.repeat(ring[:, None], len(places), 1).reshape(frames, -1, 3)], 1)
    return vertices, normals


def skin_colors(skin_tone: np.ndarray, sleeve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertex colours and gloss: redder fingertips and knuckles, paler nails, skin at the wrist, then the sleeve."""
    rings, sides = len(_RING_BONE), RING_SIDES
    digit = np.tile(skin_tone, (rings, sides, 1))
    for ring in (1, 3, 5):
        digit[ring] *= (0.96, 0.88, 0.87)
    digit[8:] *= (1.0, 0.86, 0.85)
    digit[7, 5:8] = np.minimum(skin_tone * (1.12, 1.1, 1.12) + (0.06, 0.03, 0.04), 1)  # the nail, on the back
    palm = np.tile(skin_tone, (_PALM_RINGS * _PALM_SIDES, 1))
    arm = np.repeat(np.stack([sleeve, sleeve, skin_tone, skin_tone, skin_tone]), _PALM_SIDES, 0)
    colors = np.concatenate([np.tile(digit.reshape(-1, 3), (5, 1)), palm, arm])
    gloss = np.full(len(colors), 0.12)
    gloss[-_ARM_RINGS * _PALM_SIDES :] = 0.03
    return colors, gloss


def _palm() -> tuple[np.ndarray, np.ndarray]:
    """Vertices and normals of the palm for a hand of length 1: flat rounded rings, slanted with the knuckles."""
    place = np.array([-0.25, -0.05, 0.25, 0.55, 0.8, 0.97, 1.08, 1.12])
    half_width = np.array([0.09, 0.14, 0.17, 0.2, 0.215, 0.21, 0.18, 0.02])
    half_thickness = np.array([0.055, 0.102, 0.1, 0.09, 0.08, 0.07, 0.045, 0.01])
    angle = np.arange(_PALM_SIDES) * (2 * np.pi / _PALM_SIDES)
    c, s = np.cos(angle), np.sin(angle)
    squared = np.sign(c) * np.abs(c) ** 0.75, np.sign(s) * np.abs(s) ** 0.75
    x = half_width[:, None] * squared[0] - 0.012 * place[:, None]
    y = 0.425 * place[:, None] + 0.17 * x * place[:, None] - 0.12 * np.abs(x) * place[:, None] * (x < 0)
    z = half_thickness[:, None] * squared[1]
    normals = np.stack(
        np.broadcast_arrays(c / half_width[:, None], np.zeros_like(x), s / half_thickness[:, None]), -1
    )
    normals[-2:, :, 1] = np.array([8.0, 100.0])[:, None]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.stack([x, y, z], -1).reshape(-1, 3), normals.reshape(-1, 3)


_PALM = _palm()
