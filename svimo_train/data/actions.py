"""What the right hand does: the path of a tool for each action, in the axes of its target.

Every clip begins alike, whatever the action: the tool waits beside the target, so that only the prompt tells what will
happen. It then comes in from above and works until the clip ends. Timing depends on time in seconds, not on frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .targets import Target
from .tools import Tool

TEMPO = {"stir": 1.05, "scrape": 0.95, "pour": 0.34, "hit": 1.1, "brush": 1.1, "cut": 1.35, "dip": 0.95}
"""Cycles per second."""
TEMPO_SPREAD = 0.06
"""Relative standard deviation: a reference image cannot tell the tempo, so much of it would be noise to a learner."""

Work = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of seconds since the action began (F,): the working point (F, 3) and the tool's axis (F, 3)."""


@dataclass(frozen=True, kw_only=True)
class ToolPath:
    """Where a tool is over F frames, in the target's axes, metres."""

    point: np.ndarray
    """The working point, F x 3."""
    rotation: np.ndarray
    """F x 3 x 3, from the tool's axes."""
    flow: np.ndarray
    """F, how much liquid runs, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How this person does it in this clip."""

    heading: float
    """Radians from -x towards +y that the tool points to, seen from above."""
    tempo: float
    """Factor on the action's own tempo."""
    size: float
    """Factor on the action's own amplitude."""
    start: float
    """Seconds until the hands move."""
    approach: float
    """Seconds from then until the action begins."""
    ready: np.ndarray
    """Offset of the waiting working point, metres."""

    @classmethod
    def draw(cls, rng: np.random.Generator, duration: float) -> Style:
        return cls(
            heading=np.radians(rng.uniform(30, 52)),
            tempo=np.exp(TEMPO_SPREAD * rng.standard_normal()),
            size=rng.uniform(0.88, 1.08),
            start=duration * rng.uniform(0.0, 0.05),
            approach=np.clip(0.33 * duration, 0.3, 0.9) * rng.uniform(0.93, 1.07),
            ready=np.array([rng.uniform(0.035, 0.06), rng.uniform(-0.03, 0.02), rng.uniform(0.045, 0.08)]),
        )


def tool_path(
    action: str | None,
    tool: Tool,
    target: Target,
    style: Style,
    time: np.ndarray,
    rng: np.random.Generator | None = None,
) -> ToolPath:
    """The tool's path at the given times (F,) in seconds from the clip's start. Where the action is None it is one that
    has no word, drawn from `rng`."""
    work = _nameless(tool, target, style, rng) if action is None else _ACTIONS[action](tool, target, style)
    since = time - style.start
    worked = np.maximum(since - style.approach, 0)
    point, axis = work(worked)

    # come in on a quadratic Bezier curve whose middle control point lies above the place where work begins
    wait, wait_axis = _ready(tool, target, style)
    entry_point, entry_axis = work(np.zeros(1))
    above = entry_point + (0, 0, max(0.03, 1.6 * (target.rim + 0.015 - entry_point[0, 2])))
    s = smoothstep(since / style.approach)[:, None]
    curve = (1 - s) ** 2 * wait + 2 * s * (1 - s) * above + s**2 * entry_point
    coming = (since < style.approach)[:, None]
    point = np.where(coming, curve, point)
    axis = np.where(coming, (1 - s) * wait_axis + s * entry_axis, axis)
    axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)

    flow = (
        np.clip((0.7 - axis[:, 2]) * 4, 0, 1)
        if tool.spout is not None and action == "pour"
        else np.zeros(len(time))
    )
    return ToolPath(point=point, rotation=_orient(tool, style, axis), flow=flow)


def typical_poses(tool: Tool, target: Target, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (3, 3, 3) and working points (3, 3) that stand for all work with this tool, in the target's axes.

    A grip is chosen to suit these rather than the clip's own path, since a grip must not give the action away.
    """
    wait, wait_axis = _ready(tool, target, style)
    if tool.upright:
        tilt = np.radians([0.0, 35.0, 65.0])[:, None]
        axes = np.cos(tilt) * np.array([0, 0, 1.0]) + np.sin(tilt) * _heading(tool, style)
    else:
        axes = np.stack(
            [wait_axis, _pointing(tool, style, np.radians(5)), _pointing(tool, style, np.radians(50))]
        )
    points = np.stack([wait, np.array([0, 0, target.rim + 0.02]), np.array([0, 0, target.rim + 0.02])])
    return _orient(tool, style, axes), points


def _orient(tool: Tool, style: Style, axis: np.ndarray) -> np.ndarray:
    """Rotations (F, 3, 3) for axes (F, 3): backs up, or for an upright tool the spout in the plane it tilts in."""
    heading = _heading(tool, style)
    if tool.upright:
        up = np.cross(np.cross(np.array([0, 0, 1.0]), heading), axis)
    else:
        hint = np.array([0, tool.roll, 1.0])
        up = hint - (axis @ hint)[:, None] * axis
    up = up / np.linalg.norm(up, axis=1, keepdims=True)
    return np.stack([axis, np.cross(up, axis), up], 2)


def smoothstep(x: np.ndarray) -> np.ndarray:
    """Minimum-jerk blend from 0 to 1 (Flash and Hogan 1985): how hands reach."""
    x = np.clip(x, 0, 1)
    return x**3 * (10 - 15 * x + 6 * x**2)


def _heading(tool: Tool, style: Style) -> np.ndarray:
    angle = style.heading - (np.radians(38) if tool.upright else 0)  # pouring goes sideways
    return np.array([-np.cos(angle), np.sin(angle), 0.0])


def _pointing(tool: Tool, style: Style, down: np.ndarray | float) -> np.ndarray:
    """Axes that point along the heading and `down` radians below the horizontal: (..., 3)."""
    down = np.asarray(down, dtype=np.float64)[..., None]
    return np.cos(down) * _heading(tool, style) - np.sin(down) * np.array([0, 0, 1.0])


def _ready(tool: Tool, target: Target, style: Style) -> tuple[np.ndarray, np.ndarray]:
    side = max(target.reach[0], 0.03) + style.ready[0]
    if tool.upright:
        height = max(target.rim, _standing(tool)) + 0.3 * style.ready[2]
        return np.array([side + 0.04, style.ready[1], height]), np.array([0, 0, 1.0])
    return np.array([side, style.ready[1], target.rim + style.ready[2]]), _pointing(
        tool, style, np.radians(28)
    )


def _standing(tool: Tool) -> float:
    """Height of the working point of a tool that stands upright."""
    return tool.work[0] - tool.mesh.vertices[:, 0].min()


def _stir(tool: Tool, target: Target, style: Style) -> Work:
    radius = max(0.75 * style.size * (target.reach[0] - 0.6 * tool.head), 0.014)
    lean = np.radians(58 if target.rim > 0.045 else 50)

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angle = 0.4 + 2 * np.pi * TEMPO["stir"] * style.tempo * time
        offset = radius * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], 1)
        return offset + (0, 0, target.surface + 0.003), _pointing(tool, style, lean) + 1.8 * offset

    return work


def _scrape(tool: Tool, target: Target, style: Style) -> Work:
    stroke = 0.85 * style.size * min(target.reach[1], 0.065)
    along, across = np.array([0.35, -0.94, 0.0]), np.array([0.94, 0.35, 0.0])

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cycle = TEMPO["scrape"] * style.tempo * time
        phase = cycle % 1
        pulling = phase < 0.55
        s = np.where(pulling, phase / 0.55, (phase - 0.55) / 0.45)
        place = np.where(pulling, -np.cos(np.pi * s), np.cos(np.pi * s)) * stroke
        lift = np.where(pulling, 0, 0.04 * np.sin(np.pi * s))
        row = 0.3 * target.reach[0] * np.sin(1.3 * np.floor(cycle))
        point = place[:, None] * along + row[:, None] * across + (0, 0, target.surface + 0.001)
        point[:, 2] += lift
        return point, _pointing(tool, style, np.radians(33) - 3 * lift)

    return work


def _pour(tool: Tool, target: Target, style: Style) -> Work:
    above = np.array([0.012, 0, target.rim + 0.04])
    # upright, it is held beside the target and clear of the table
    beside = -(target.mesh.vertices[:, 0].max() + 0.4 * tool.head) * _heading(tool, style)
    beside[2] = max(0.0, _standing(tool) + 0.02 - above[2])

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        phase = (TEMPO["pour"] * style.tempo * time) % 1
        tipped = smoothstep(phase / 0.3) - smoothstep((phase - 0.72) / 0.28)
        tilt = np.radians(68 * min(style.size, 1)) * tipped
        axis = np.cos(tilt)[:, None] * np.array([0, 0, 1.0]) + np.sin(tilt)[:, None] * _heading(tool, style)
        return above + (1 - tipped)[:, None] * beside, axis

    return work


def _hit(tool: Tool, target: Target, style: Style) -> Work:
    resting, raised = np.radians(18), np.radians(-14)
    length = tool.work[0]  # the head rises on an arc around the hand, and the hand rises a little too
    height = style.size * (0.045 + length * (np.sin(resting) - np.sin(raised)))

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        phase = (TEMPO["hit"] * style.tempo * time + 0.55) % 1  # begins raised
        lift = np.where(phase < 0.6, smoothstep(phase / 0.6), 1 - np.clip((phase - 0.6) / 0.27, 0, 1) ** 2)
        point = np.zeros((len(time), 3))
        point[:, 2] = target.surface + 0.001 + height * lift
        return point, _pointing(tool, style, resting + (raised - resting) * lift)

    return work


def _brush(tool: Tool, target: Target, style: Style) -> Work:
    reach = 0.95 * style.size * target.reach[0]

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angle = 2 * np.pi * TEMPO["brush"] * style.tempo * time
        point = np.zeros((len(time), 3))
        point[:, 0] = reach * np.cos(angle)
        point[:, 1] = 0.5 * target.reach[1] * np.sin(0.35 * angle + 0.3)
        point[:, 2] = target.surface + 0.001
        axis = _pointing(tool, style, np.radians(38))
        return point, axis + np.sin(angle)[:, None] * np.array(
            [0.25, 0, 0]
        )  # the handle leads, the bristles trail

    return work


def _cut(tool: Tool, target: Target, style: Style) -> Work:
    saw, along = 0.03 * style.size, _heading(tool, style)
    slices, pitch = 1.5, 0.016  # seconds for a slice, metres between slices

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        number, inside = np.floor(time / slices), time / slices % 1
        deep = target.cut_depth * np.minimum(inside / 0.8, 1)
        lift = 0.022 * np.sin(np.pi * np.clip((inside - 0.8) / 0.2, 0, 1)) + deep * smoothstep(
            (inside - 0.8) / 0.1
        )
        place = saw * np.cos(2 * np.pi * TEMPO["cut"] * style.tempo * time)
        point = place[:, None] * along
        point[:, 0] += 0.3 * target.reach[0] + pitch * (number + smoothstep((inside - 0.85) / 0.15)) % (
            0.5 * target.reach[0]
        )
        point[:, 2] = target.surface + 0.001 - deep + lift
        return point, np.tile(_pointing(tool, style, np.radians(13)), (len(time), 1))

    return work


def _dip(tool: Tool, target: Target, style: Style) -> Work:
    low, high = target.surface + 0.004, target.rim + 0.05 * style.size

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raised = (1 + np.cos(2 * np.pi * TEMPO["dip"] * style.tempo * time)) / 2
        point = np.zeros((len(time), 3))
        point[:, 2] = low + (high - low) * raised
        return point, np.tile(_pointing(tool, style, np.radians(58)), (len(time), 1))

    return work


def _nameless(tool: Tool, target: Target, style: Style, rng: np.random.Generator) -> Work:
    """Any round of any size, tilt, rate and lean, at, over or beside the target as the tool allows."""
    room = max(target.reach[0] - 0.6 * tool.head, 0.014)
    angle, rate = rng.uniform(0, np.pi), rng.uniform(0.35, 1.4)
    axes = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0]])
    flat = rng.uniform(0, np.pi / 2)  # from a stroke one way over a circle to a stroke the other way
    radii = room * rng.uniform(0, 0.9) * np.array([np.cos(flat), np.sin(flat)])
    lift = rng.uniform(0, 0.05) * (rng.random() < 0.6)
    phases = rng.uniform(0, 2 * np.pi, 4)
    sharp = rng.uniform(-0.5, 0.5)
    deep = target.hollow and not tool.upright
    lean = np.radians(rng.uniform(48, 60) if deep else rng.uniform(8, 45))
    nod = np.radians(rng.uniform(0, 12))
    tipped_most, pour_room = rng.uniform(0.15, 1), target.mesh.vertices[:, 0].max() + 0.4 * tool.head

    def work(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turn = 2 * np.pi * rate * style.tempo * time
        turn = turn + sharp * np.sin(turn)
        point = (radii * np.stack([np.cos(turn + phases[0]), np.sin(turn + phases[1])], 1)) @ axes
        raised = lift * (1 + np.cos(turn + phases[2])) / 2
        if not tool.upright:
            point[:, 2] = target.surface + 0.003 + raised
            return point, _pointing(tool, style, lean + nod * np.sin(turn + phases[3]))
        tipped = tipped_most * (1 + np.sin(turn + phases[3])) / 2
        tilt = np.radians(68) * tipped
        clear = np.cos(tilt) * _standing(tool) + np.sin(tilt) * tool.head + 0.01  # of the table
        point[:, 2] = np.maximum(target.rim + 0.04, clear) + raised
        axis = np.cos(tilt)[:, None] * np.array([0, 0, 1.0]) + np.sin(tilt)[:, None] * _heading(tool, style)
        return point - (1 - tipped)[:, None] * pour_room * _heading(tool, style), axis

    return work


_ACTIONS: dict[str, Callable[[Tool, Target, Style], Work]] = {
    "stir": _stir,
    "scrape": _scrape,
    "pour": _pour,
    "hit": _hit,
    "brush": _brush,
    "cut": _cut,
    "dip": _dip,
}
