"""Things on the table that the left hand steadies, each built with random sizes and colours.

A target's axes: z up, the centre of its foot at the origin. Metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .palette import GLAZES, PAINTS, STEEL, WOODS, pick
from .shapes import (
    Distance,
    Mesh,
    blob,
    box_distance,
    brick,
    capsule_distance,
    cone_distance,
    join,
    lathe,
    slab,
    tube,
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A thing that stands on the table and is steadied by the left hand."""

    mesh: Mesh
    surface: float
    """Height of what gets scraped, struck, brushed or cut: a container's inner floor, another thing's top."""
    rim: float
    """Largest height around the surface, which a tool has to come over."""
    reach: tuple[float, float]
    """Half extents in x and y of the free surface."""
    hold: str
    """"side": the hand wraps the body; "press": fingertips on top; "handle": the hand wraps a handle."""
    distance: Distance
    """What the left hand holds, as a solid."""
    hold_point: np.ndarray
    """A point on the axis of a wrapped solid at the held height, or the place that gets pressed."""
    hold_axis: np.ndarray
    """Direction from the pinky to the thumb side of a wrapping hand."""
    hold_radius: float
    hollow: bool = False
    cut_depth: float = 0.0
    """How deep below the surface a blade may go."""
    turn: float | None = None
    """A wrapping hand with a fixed place has its palm face this direction, radians from x around z; None is free."""


def stretched(target: Target, across: float, up: float) -> Target:
    """The same thing, so many times as wide and deep, and so many times as high."""
    factors = np.array([across, across, up])
    normals = target.mesh.normals / factors
    return replace(
        target,
        mesh=replace(
            target.mesh,
            vertices=factors * target.mesh.vertices,
            normals=normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        ),
        surface=up * target.surface,
        rim=up * target.rim,
        reach=(across * target.reach[0], across * target.reach[1]),
        # exact to the sides, where a wrapping hand is
        distance=lambda point: across * target.distance(point / factors),
        hold_point=factors * target.hold_point,
        hold_radius=across * target.hold_radius,
        cut_depth=up * target.cut_depth,
    )


def _vessel(
    rng, foot: float, top: float, height: float, bulge: float, color, gloss: float, liquid: float
) -> Mesh:
    """A hollow body, its inside a little darker, filled to a fraction of its height."""
    wall, floor = 0.0045, 0.006
    middle = (foot + top) / 2 + bulge
    outer = [(0, 0), (foot, 0), (middle, 0.45 * height), (top, height)]
    inner = [(top - wall, height), (middle - wall, 0.45 * height), (foot - wall, floor), (0, floor)]
    outside = lathe([*outer, (top - wall / 2, height + 0.002), inner[0]], color, gloss, 22)
    inside = lathe(inner, color * 0.82, gloss * 0.5, 22)
    if not liquid:
        return join(outside, inside)
    level = floor + liquid * (height - floor)
    radius = np.interp(level, [floor, 0.45 * height, height], [foot, middle, top]) - wall
    tone = pick(
        rng, ((0.33, 0.19, 0.1), (0.72, 0.38, 0.1), (0.93, 0.9, 0.82), (0.7, 0.2, 0.12), (0.55, 0.6, 0.2))
    )
    return join(outside, inside, lathe([(radius, level), (0, level)], tone, 0.6, 22))


def _wrapped(height_held: float, radius: float, distance: Distance) -> dict:
    return dict(
        hold="side",
        distance=distance,
        hold_point=np.array([0, 0, height_held]),
        hold_axis=np.array([0.0, 0, 1]),
        hold_radius=radius,
    )


def _cup(rng: np.random.Generator) -> Target:
    color, radius, height = pick(rng, GLAZES), rng.uniform(0.039, 0.045), rng.uniform(0.08, 0.095)
    foot = radius * rng.uniform(0.75, 1.0)
    body = _vessel(rng, foot, radius, height, rng.uniform(0, 0.004), color, 0.5, rng.uniform(0.55, 0.75))
    angle = np.linspace(-1.25, 1.25, 7)
    loop = np.column_stack(
        [radius * 0.93 + 0.024 * np.cos(angle), np.zeros(7), height * 0.52 + 0.028 * np.sin(angle)]
    )
    handle = tube(loop, np.full(7, 0.0052), color * 0.97, 0.5, 7, (0, 1, 0)).moved(
        _about_z(rng.uniform(-0.9, 0.5))
    )
    return Target(
        mesh=join(body, handle),
        surface=0.008,
        rim=height,
        reach=(foot - 0.004, foot - 0.004),
        hollow=True,
        **_wrapped(0.5 * height, (foot + radius) / 2, cone_distance(foot, radius, height)),
    )


def _bowl(rng: np.random.Generator) -> Target:
    color, radius, height = pick(rng, GLAZES), rng.uniform(0.068, 0.08), rng.uniform(0.055, 0.068)
    foot = 0.5 * radius
    body = _vessel(rng, foot, radius, height, 0.12 * radius, color, 0.5, rng.uniform(0.3, 0.55))
    stripe = lathe(
        [(radius * 0.975, 0.82 * height), (radius * 1.002, 0.93 * height)], pick(rng, GLAZES), 0.4, 22
    )
    return Target(
        mesh=join(body, stripe),
        surface=0.008,
        rim=height,
        reach=(0.85 * foot, 0.85 * foot),
        hollow=True,
        **_wrapped(0.62 * height, 0.9 * radius, cone_distance(1.25 * foot, radius, height)),
    )


def _pot(rng: np.random.Generator) -> Target:
    color, radius, height = pick(rng, (*PAINTS, STEEL)), rng.uniform(0.062, 0.07), rng.uniform(0.075, 0.088)
    body = _vessel(rng, radius, radius, height, 0.0, color, 0.6, rng.uniform(0.5, 0.7))
    angle = np.linspace(-1.3, 1.3, 6)
    loops = [
        tube(
            np.column_stack(
                [0.9 * radius + 0.022 * np.cos(angle), 0.024 * np.sin(angle), np.full(6, 0.75 * height)]
            ),
            np.full(6, 0.005),
            color * 0.6,
            0.4,
            6,
        ).moved(_about_z(turn))
        for turn in (1.2, 1.2 + np.pi)
    ]
    return Target(
        mesh=join(body, *loops),
        surface=0.008,
        rim=height,
        reach=(radius - 0.01, radius - 0.01),
        hollow=True,
        **_wrapped(0.5 * height, radius, cone_distance(radius, radius, height)),
    )


def _pan(rng: np.random.Generator) -> Target:
    color, radius, height = (
        pick(rng, ((0.16, 0.16, 0.18), (0.25, 0.25, 0.28), *PAINTS)),
        rng.uniform(0.078, 0.09),
        0.036,
    )
    body = _vessel(rng, 0.86 * radius, radius, height, 0.0, color, 0.5, 0.0)
    grip, turn = rng.uniform(0.0095, 0.0115), np.radians(rng.uniform(195, 215))
    out = np.array([np.cos(turn), np.sin(turn), 0])
    path = [
        out * r + (0, 0, z)
        for r, z in (
            (0.93 * radius, 0.03),
            (radius + 0.025, 0.04),
            (radius + 0.06, 0.046),
            (radius + 0.135, 0.048),
        )
    ]
    handle = tube(path, [0.006, 0.007, grip, grip], pick(rng, (*WOODS, (0.1, 0.1, 0.1))), 0.2, 8)
    middle = (path[2] + path[3]) / 2
    return Target(
        mesh=join(body, handle),
        surface=0.007,
        rim=height,
        reach=(0.72 * radius, 0.72 * radius),
        hollow=True,
        hold="handle",
        distance=capsule_distance(path[2], path[3], grip),
        hold_point=middle,
        hold_axis=-out,
        hold_radius=grip,
    )


def _pressed(height: float, edge: float, half_y: float, distance: Distance) -> dict:
    return dict(
        hold="press",
        distance=lambda point: np.minimum(distance(point), point[..., 2]),  # the table stops fingers too
        hold_point=np.array([-edge, -0.25 * half_y, height]),
        hold_axis=np.array([0.0, 0, 1]),
        hold_radius=0.0,
    )


def _plate(rng: np.random.Generator) -> Target:
    color, rim = pick(rng, GLAZES), pick(rng, GLAZES)
    radius, height = rng.uniform(0.088, 0.1), 0.016
    flat = 0.66 * radius
    under = lathe([(0, 0), (flat, 0), (radius, height), (0.96 * radius, height + 0.001)], color, 0.5, 26)
    border = lathe([(0.97 * radius, height + 0.001), (flat, 0.006)], rim, 0.5, 26)
    floor = lathe([(flat, 0.006), (0, 0.006)], color, 0.4, 26)
    return Target(
        mesh=join(under, border, floor),
        surface=0.006,
        rim=height,
        reach=(0.9 * flat, 0.9 * flat),
        **_pressed(height, 0.8 * radius, 0.0, cone_distance(flat, radius, height)),
    )


def _board(rng: np.random.Generator) -> Target:
    color, x, y, z = (
        pick(rng, WOODS),
        rng.uniform(0.105, 0.12),
        rng.uniform(0.072, 0.085),
        rng.uniform(0.008, 0.011),
    )
    c = 0.015
    outline = [
        (x - c, -y),
        (x, c - y),
        (x, y - c),
        (x - c, y),
        (c - x, y),
        (-x, y - c),
        (-x, c - y),
        (c - x, -y),
    ]
    board = slab(outline, 0, 2 * z, color, 0.15)
    groove = [
        slab(
            [
                (x - 0.012, s * (y - 0.012) - 0.002),
                (x - 0.012, s * (y - 0.012) + 0.002),
                (0.012 - x, s * (y - 0.012) + 0.002),
                (0.012 - x, s * (y - 0.012) - 0.002),
            ],
            0,
            2 * z + 0.0006,
            color * 0.62,
        )
        for s in (-1, 1)
    ]
    return Target(
        mesh=join(board, *groove),
        surface=2 * z,
        rim=2 * z,
        reach=(0.55 * x, 0.6 * y),
        **_pressed(2 * z, 0.78 * x, y, box_distance((x, y, z), (0, 0, z))),
    )


def _box(rng: np.random.Generator) -> Target:
    color = pick(rng, ((0.73, 0.56, 0.36), (0.66, 0.49, 0.3), *PAINTS))
    x, y, z = rng.uniform(0.058, 0.072), rng.uniform(0.042, 0.05), rng.uniform(0.03, 0.042)
    body = brick((x, y, z), (0, 0, z), color, 0.1)
    tape = brick((x + 0.0006, 0.011, z + 0.0004), (0, 0, z + 0.0003), np.minimum(color * 1.25 + 0.08, 1), 0.3)
    return Target(
        mesh=join(body, tape),
        surface=2 * z,
        rim=2 * z,
        reach=(0.7 * x, 0.7 * y),
        cut_depth=0.4 * z,
        hold="side",
        distance=box_distance((x, y, z), (0, 0, z)),
        hold_point=np.array([0.0, 0, 1.1 * z]),
        hold_axis=np.array([0.0, 0, 1]),
        hold_radius=x,
        turn=0.0,
    )


def _loaf(rng: np.random.Generator) -> Target:
    crust = pick(rng, ((0.76, 0.48, 0.2), (0.6, 0.34, 0.14), (0.85, 0.62, 0.3)))
    x, y, z = rng.uniform(0.085, 0.1), rng.uniform(0.04, 0.048), rng.uniform(0.027, 0.033)
    body = blob((x, y, z), (0, 0, z), crust, 0.12, 0.65)
    slashes = [
        blob((0.006, 0.55 * y, 0.004), (s * x, 0, 1.955 * z), np.minimum(crust * 1.4 + 0.12, 1), 0.05).moved(
            np.eye(3)
        )
        for s in (-0.45, -0.15, 0.15, 0.45)
    ]
    return Target(
        mesh=join(body, *slashes),
        surface=2 * z,
        rim=2 * z,
        reach=(0.45 * x, 0.3 * y),
        cut_depth=1.2 * z,
        **_pressed(1.95 * z, 0.55 * x, y, box_distance((0.9 * x, 0.88 * y, z), (0, 0, z))),
    )


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


TARGETS: dict[str, Callable[[np.random.Generator], Target]] = {
    "cup": _cup,
    "bowl": _bowl,
    "pan": _pan,
    "plate": _plate,
    "board": _board,
    "box": _box,
    "loaf": _loaf,
    "pot": _pot,
}
