"""A clip without its pixels: things and hands moving in the world, and the camera that looks at them.

The axes of the world: metres, x right, y away from the person, z up, the table at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svimo_core.motion import Camera

from .actions import Style, smoothstep, tool_path, typical_poses
from .hands import PALM_HALF_THICKNESS, RELAXED, HandPlacement, HandPose, close_hand, hand_joints
from .shapes import surface_points
from .targets import TARGETS, Target
from .targets import stretched as stretched_target
from .tools import TOOLS, Tool
from .tools import stretched as stretched_tool
from .words import Triplet

HORIZONTAL_FOV = (49.0, 51.0)
"""Degrees. Nearly constant, around :meth:`Camera.from_fov`'s default, since a reference image does not tell its own."""
FILL = (0.88, 0.97)
"""Share of the image, in the wider direction, that hands and things take up in the first frame."""
ELBOWS = np.array([[-0.26, -0.28, 0.07], [0.27, -0.27, 0.1]])
"""Of a person who sits in front of the target: left and right."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a clip has that no word names; nothing by default."""

    tool: tuple[float, float] = (1.0, 1.0)
    """Factors on the length and on the width of its head."""
    target: tuple[float, float] = (1.0, 1.0)
    """Factors on its width and on its height."""
    action: bool = False
    """Another motion than any word's."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Moving hands and things in world axes, ready to be measured or drawn; F frames."""

    triplet: Triplet
    tool: Tool
    target: Target
    tool_rotation: np.ndarray
    """F x 3 x 3."""
    tool_position: np.ndarray
    """F x 3."""
    target_rotation: np.ndarray
    target_position: np.ndarray
    poses: tuple[HandPose, HandPose]
    """Left, right."""
    placements: tuple[HandPlacement, HandPlacement]
    elbows: tuple[np.ndarray, np.ndarray]
    """F x 3 each."""
    hand_length: float
    flow: np.ndarray
    fps: float

    def joints(self) -> np.ndarray:
        """F x 2 x 21 x 3 in world axes."""
        hands = [
            hand_joints(pose, self.hand_length) @ place.axes.transpose(0, 2, 1) + place.wrist[:, None]
            for pose, place in zip(self.poses, self.placements, strict=True)
        ]
        return np.stack(hands, 1)

    def points(self, count: int) -> dict[str, np.ndarray]:
        """Surface points of both objects, F x count x 3 in world axes."""
        tool, target = surface_points(self.tool.mesh, count), surface_points(self.target.mesh, count)
        return {
            "tool": tool @ self.tool_rotation.transpose(0, 2, 1) + self.tool_position[:, None],
            "target": target @ self.target_rotation.transpose(0, 2, 1) + self.target_position[:, None],
        }


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera standing in the world."""

    axes: np.ndarray
    """Rows are the camera's x, y and z axes in the world."""
    eye: np.ndarray
    """The camera's place in the world, metres."""
    camera: Camera

    def look(self, points: np.ndarray) -> np.ndarray:
        """World to camera axes (..., 3)."""
        return (points - self.eye) @ self.axes.T


def make_scene(
    triplet: Triplet,
    tool_rng: np.random.Generator,
    target_rng: np.random.Generator,
    rng: np.random.Generator,
    time: np.ndarray,
    fps: float,
    change: Change | None = None,
) -> Scene:
    """Let hands and things move: one generator for the tool's shape, one for the target's, one for everything else.

    Args:
        time: of the frames, F, seconds.
        change: what of it has no word.
    """
    # 1. things, and how this person works
    change = change or Change()
    tool = stretched_tool(TOOLS[triplet.tool](tool_rng), *change.tool)
    target = stretched_target(TARGETS[triplet.target](target_rng), *change.target)
    action = None if change.action else triplet.action
    frames = len(time)
    style = Style.draw(rng, frames / fps)
    hand_length = rng.uniform(0.168, 0.19)
    yaw = np.radians(rng.uniform(-12, 12))
    left_elbow, right_elbow = ELBOWS + rng.uniform(-0.03, 0.03, (2, 3))

    # 2. the tool's path, and how the target gives way to it
    target_rotation, target_position = _target_motion(action, target, style, time, yaw)
    path = tool_path(action, tool, target, style, time, rng.spawn(1)[0])
    tool_rotation = target_rotation @ path.rotation
    tool_position = _apply(target_rotation, path.point) + target_position - tool_rotation @ tool.work

    # 3. hands: the right one moves with the tool, the left one reaches for the target and then moves with it
    typical, points = typical_poses(tool, target, style)
    typical, points = target_rotation[0] @ typical, points @ target_rotation[0].T
    right = _hold_tool(tool, hand_length, typical, points - typical @ tool.work, right_elbow)
    left = _hold_target(target, hand_length, target_rotation[0], left_elbow)
    right_pose = close_hand(tool.distance, right, hand_length)
    left_pose = close_hand(target.distance, left, hand_length, "press" if target.hold == "press" else "wrap")
    reach = smoothstep((time - style.start) / (0.85 * style.approach))
    away = -rng.uniform(0.05, 0.075) * left.axes[:, 2] - rng.uniform(0.03, 0.06) * left.axes[:, 1]
    reaching = HandPlacement(
        wrist=left.wrist + (1 - reach)[:, None] * away, axes=np.tile(left.axes, (frames, 1, 1))
    )
    gripping = HandPlacement(
        wrist=np.tile(right.wrist, (frames, 1)), axes=np.tile(right.axes, (frames, 1, 1))
    )
    placements = (
        _carried(reaching, target_rotation, target_position),
        _carried(gripping, tool_rotation, tool_position),
    )
    elbows = (  # they give way to the wrists a little
        elbow + 0.4 * (place.wrist - place.wrist[0])
        for elbow, place in zip((left_elbow, right_elbow), placements, strict=True)
    )
    return Scene(
        triplet=triplet,
        tool=tool,
        target=target,
        tool_rotation=tool_rotation,
        tool_position=tool_position,
        target_rotation=target_rotation,
        target_position=target_position,
        poses=(RELAXED.blend(left_pose, reach), RELAXED.blend(right_pose, np.ones(frames))),
        placements=placements,
        elbows=tuple(elbows),
        hand_length=hand_length,
        flow=path.flow,
        fps=fps,
    )


def _apply(rotations: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """One rotation and one vector per frame."""
    return np.einsum("fij,fj->fi", rotations, vectors)


def _carried(placement: HandPlacement, rotation: np.ndarray, position: np.ndarray) -> HandPlacement:
    """A hand placed in a thing's axes, in the world."""
    return HandPlacement(wrist=_apply(rotation, placement.wrist) + position, axes=rotation @ placement.axes)


def _target_motion(
    action: str | None, target: Target, style: Style, time: np.ndarray, yaw: float
) -> tuple[np.ndarray, np.ndarray]:
    """The left hand holds a container towards the tool, and turns a flat thing under it."""
    weight = smoothstep((time - style.start - style.approach) / 0.6)
    tilt, lift, turn = 0.0, 0.0, 0.0
    if target.hollow and target.hold == "side" and action in ("stir", "pour", "dip"):
        tilt = np.radians(9.0)
        lift = target.reach[0] * np.sin(tilt) + (0.025 if action == "pour" else 0.0)
    if target.hold == "press" and action in ("brush", "scrape"):
        turn = np.radians(14.0)
    angle, lean = yaw + turn * weight, tilt * weight
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    about_z = np.array(
        [[np.cos(angle), -np.sin(angle), zero], [np.sin(angle), np.cos(angle), zero], [zero, zero, one]]
    )
    about_y = np.array(
        [[np.cos(lean), zero, np.sin(lean)], [zero, one, zero], [-np.sin(lean), zero, np.cos(lean)]]
    )
    rotation = about_z.transpose(2, 0, 1) @ about_y.transpose(2, 0, 1)
    return rotation, np.stack([zero, zero, lift * weight], 1)


def _hold_tool(
    tool: Tool, length: float, rotation: np.ndarray, position: np.ndarray, elbow: np.ndarray
) -> HandPlacement:
    """Turn the right hand around the handle until wrist and table suit it in these poses of the tool."""
    if tool.palm_axis is not None:
        palms = tool.palm_axis[None]
    else:
        roll = np.arange(48) * (2 * np.pi / 48)
        palms = np.stack([np.zeros_like(roll), np.cos(roll), np.sin(roll)], 1)
    choices = [
        _around((0, 0, 0), (1, 0, 0), palm, tool.grip_radius, tool.grip_slant, length, False)
        for palm in palms
    ]
    return min(choices, key=lambda hand: _strain(hand, rotation, position, elbow, length))


def _hold_target(target: Target, length: float, rotation: np.ndarray, elbow: np.ndarray) -> HandPlacement:
    """Place the left hand on a target, in the target's axes."""
    elbow = rotation.T @ elbow
    if target.hold == "press":  # fingers forward and a little down, the palm over the edge
        forward = target.hold_point - elbow
        forward = forward * (1, 1, 0) / np.linalg.norm(forward[:2])
        pitch, down = np.radians(20.0), np.array([0, 0, -1.0])
        fingers = np.cos(pitch) * forward + np.sin(pitch) * down
        palm = np.cos(pitch) * down - np.sin(pitch) * forward
        axes = np.stack([np.cross(palm, fingers), fingers, palm], 1)
        return HandPlacement(wrist=target.hold_point - axes @ np.array([0, 0.72, 0.2]) * length, axes=axes)
    axis = target.hold_axis
    if target.turn is not None:
        palms = np.array([[np.cos(target.turn), np.sin(target.turn), 0]])
    else:
        first = np.cross(axis, (0, 0, 1) if abs(axis[2]) < 0.9 else (1, 0, 0))
        first /= np.linalg.norm(first)
        roll = np.arange(48)[:, None] * (2 * np.pi / 48)
        palms = np.cos(roll) * first + np.sin(roll) * np.cross(axis, first)
    slant = np.radians(25.0) if target.hold == "handle" else 0.0
    choices = [
        _around(target.hold_point, axis, palm, target.hold_radius, slant, length, True) for palm in palms
    ]
    return min(choices, key=lambda hand: _strain(hand, np.eye(3)[None], np.zeros((1, 3)), elbow, length))


def _around(
    point: tuple | np.ndarray,
    axis: tuple | np.ndarray,
    palm: np.ndarray,
    radius: float,
    slant: float,
    length: float,
    left: bool,
) -> HandPlacement:
    """A hand whose palm lies against a cylinder (point, axis, radius) and faces in direction `palm`, the axis running
    from the pinky's to the thumb's side, slanted towards the fingers."""
    axis = np.asarray(axis, dtype=np.float64)
    third = np.cross(axis, palm) if left else np.cross(palm, axis)
    side, fingers = np.cos(slant) * axis - np.sin(slant) * third, np.sin(slant) * axis + np.cos(slant) * third
    axes = np.stack([side, fingers, palm], 1)
    along = (
        0.43 if radius < 0.02 else 0.38
    )  # what is thin lies in the fingers' bases, what is thick in the palm
    inside = np.array([0.0, along * length, 0.9 * PALM_HALF_THICKNESS * length + radius])
    return HandPlacement(wrist=np.asarray(point) - axes @ inside, axes=axes)


def _strain(
    hand: HandPlacement, rotation: np.ndarray, position: np.ndarray, elbow: np.ndarray, length: float
) -> float:
    """How uncomfortable a held thing's poses are: bent wrists, upturned palms, knuckles in the table."""
    wrist = rotation @ hand.wrist + position
    axes = rotation @ hand.axes
    forearm = wrist - elbow
    forearm /= np.linalg.norm(forearm, axis=1, keepdims=True)
    bend = np.arccos(np.clip((axes[:, :, 1] * forearm).sum(1), -1, 1))
    corners = np.array([[0, 0, -0.1], [0.15, 0.45, -0.05], [-0.15, 0.4, -0.05], [0, 0.6, 0.1]]) * length
    lowest = (axes[:, 2, :] @ corners.T + wrist[:, 2:]).min(1)
    buried = np.maximum(0.012 - lowest, 0) * 60
    upturned = 0.5 * np.maximum(axes[:, 2, 2], 0)
    return float((bend**2 + buried + upturned).mean())


def make_view(rng: np.random.Generator, scene: Scene, height: int, width: int) -> View:
    """A camera before the person's face that just sees the first frame whole."""
    turn, rise = np.radians(rng.uniform(-14, 14)), np.radians(rng.uniform(40, 56))
    back = np.array([np.sin(turn) * np.cos(rise), -np.cos(turn) * np.cos(rise), np.sin(rise)])
    right = np.cross(-back, (0, 0, 1))
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(-back, right), -back])
    camera = Camera.from_fov(width, height, rng.uniform(*HORIZONTAL_FOV))

    joints, clouds = scene.joints()[0].reshape(-1, 3), scene.points(128)
    seen = np.concatenate([joints, clouds["tool"][0], clouds["target"][0]]) @ axes.T
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    center = np.append((low + high) / 2, np.median(seen[:, 2])) + rng.uniform(-0.012, 0.012, 3)
    margin = rng.uniform(*FILL)
    spread = np.abs(seen - center)[:, :2] * (camera.fx, camera.fy) / (np.array([width, height]) * margin / 2)
    distance = (spread.max(1) - (seen - center)[:, 2]).max()
    return View(axes=axes, eye=center @ axes + distance * back, camera=camera)
