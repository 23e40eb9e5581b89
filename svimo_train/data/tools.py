"""Things to hold in the right hand, each built with random sizes and colours.

A tool's axes: x along the handle towards its head, z its back (what faces up at work), the grip at the origin. Metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .palette import GLAZES, PAINTS, STEEL, WOODS, pick
from .shapes import Distance, Mesh, blob, brick, capsule_distance, join, lathe, slab, tube


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A thing to hold in the right hand."""

    mesh: Mesh
    work: np.ndarray
    """The point that touches the target, in the tool's axes."""
    distance: Distance
    """The handle as a solid, for closing the hand around it."""
    grip_radius: float
    grip_slant: float
    """Radians the handle is turned from straight across the palm (0) towards along the fingers."""
    head: float
    """Half width of the head, to keep it off the walls of containers."""
    palm_axis: np.ndarray | None = None
    """The direction the palm faces, of a tool with one way to hold it; others turn in the hand to suit the wrist."""
    roll: float = 0.0
    """Lean of the back away from the person at work, as a slope, so that a blade shows its flat."""
    upright: bool = False
    """Carried handle-up and tilted to pour, rather than pointed at the target."""
    spout: np.ndarray | None = None
    """Colour of the liquid that runs out."""


HANDLE_END = 0.05
"""Where along x the hand's part of a tool ends, metres."""
NECK = 0.02
"""Metres over which a stretched tool widens from there."""


def stretched(tool: Tool, along: float, across: float) -> Tool:
    """The same tool with a head so many times as long, from where the hand ends, and so many times as wide; one that is
    carried upright grows as a whole."""
    factors = np.array([along, across, across])

    def stretch(points: np.ndarray) -> np.ndarray:
        if tool.upright:
            return factors * points
        beyond = np.maximum(points[:, :1] - HANDLE_END, 0)
        wide = 1 + (across - 1) * np.minimum(beyond / NECK, 1)
        return np.concatenate([points[:, :1] + (along - 1) * beyond, wide * points[:, 1:]], axis=1)

    normals = tool.mesh.normals / factors
    return replace(
        tool,
        mesh=replace(
            tool.mesh,
            vertices=stretch(tool.mesh.vertices),
            normals=normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        ),
        work=stretch(tool.work[None])[0],
        distance=(lambda point: across * tool.distance(point / factors)) if tool.upright else tool.distance,
        grip_radius=(across if tool.upright else 1.0) * tool.grip_radius,
        head=across * tool.head,
    )


def _handle(rng: np.random.Generator, radius: float, back: float, front: float, color: np.ndarray) -> Mesh:
    x = np.array([-back, -back * 0.92, -back * 0.3, front * 0.35, front])
    thickness = radius * np.array([0.75, 1.05, 0.95, 1.08, 0.8])
    path = np.column_stack([x, np.zeros((5, 2))])
    return tube(path, np.column_stack([thickness, thickness]), color, gloss=rng.uniform(0.1, 0.4))


def _held(
    mesh: Mesh,
    *,
    work: tuple,
    radius: float,
    back: float,
    front: float,
    slant: float,
    head: float,
    roll: float = 0.0,
) -> Tool:
    return Tool(
        mesh=mesh,
        work=np.array(work, dtype=np.float64),
        distance=capsule_distance((-back, 0, 0), (front, 0, 0), radius),
        grip_radius=radius,
        grip_slant=np.radians(slant),
        head=head,
        roll=roll,
    )


def _spoon(rng: np.random.Generator) -> Tool:
    color = pick(rng, (STEEL, *WOODS, *PAINTS))
    gloss = 0.8 if color.std() < 0.05 else 0.3
    length, width, neck = rng.uniform(0.03, 0.037), rng.uniform(0.022, 0.027), rng.uniform(0.075, 0.095)
    radius = rng.uniform(0.0065, 0.008)
    stem = tube(
        [(-0.06, 0, 0), (0.0, 0, 0), (0.05, 0, 0), (neck + 0.01, 0, -0.002)],
        [(radius * 1.2, radius), (radius, radius * 0.9), (0.0045, 0.0045), (0.0045, 0.004)],
        color,
        gloss,
    )
    # a dish: an outer shell below, and a slightly smaller, darker one above it that is pressed in
    center = neck + length
    shell = blob((length, width, 0.011), (center, 0, -0.003), color, gloss)
    flat = np.minimum(shell.vertices, (np.inf, np.inf, 0.0))
    inside = np.hypot((flat[:, 0] - center) / length, flat[:, 1] / width)
    top = shell.vertices[:, 2] > -0.0005
    flat[top, 2] = -0.008 * (1 - np.clip(inside[top] / 0.92, 0, 1) ** 2)
    shade = np.where(top & (inside < 0.85), 0.8, 1.0)[:, None]
    dish = Mesh(
        vertices=flat,
        normals=shell.normals,
        faces=shell.faces,
        colors=shell.colors * shade,
        gloss=shell.gloss,
    )
    work = (center + 0.75 * length, 0, -0.01)
    return _held(join(stem, dish), work=work, radius=radius, back=0.06, front=0.05, slant=38, head=width)


def _ladle(rng: np.random.Generator) -> Tool:
    color, radius, neck = pick(rng, (STEEL, *PAINTS)), rng.uniform(0.007, 0.009), rng.uniform(0.09, 0.11)
    cup = rng.uniform(0.029, 0.034)
    stem = tube(
        [(-0.07, 0, 0), (0.0, 0, 0), (neck, 0, 0), (neck + 0.012, 0, -0.012)],
        [radius, radius, 0.005, 0.005],
        color,
        0.6,
    )
    t = np.linspace(0, np.pi / 2, 5)
    outer = [(cup * np.sin(a), -cup * np.cos(a)) for a in t]
    inner = [(0.88 * cup * np.sin(a), -0.88 * cup * np.cos(a)) for a in t[::-1]]
    bowl = lathe([*outer, (0.94 * cup, 0.001), *inner[1:]], color * 0.95, 0.6, 14)
    center = np.array([neck + 0.008 + cup, 0, -0.018])
    return _held(
        join(stem, bowl.moved(np.eye(3), center)),
        work=tuple(center + (0.3 * cup, 0, -0.95 * cup)),
        radius=radius,
        back=0.07,
        front=0.06,
        slant=38,
        head=cup,
    )


def _spatula(rng: np.random.Generator) -> Tool:
    handle, blade = pick(rng, (*WOODS, *PAINTS)), pick(rng, (STEEL, STEEL, *PAINTS))
    radius, width, length = rng.uniform(0.009, 0.011), rng.uniform(0.026, 0.032), rng.uniform(0.065, 0.08)
    neck = rng.uniform(0.07, 0.085)
    stem = tube([(0.05, 0, 0), (neck + 0.006, 0, -0.004)], [0.004, 0.004], STEEL, 0.6, 6)
    ends = [(neck, neck + 0.014), (neck + length - 0.012, neck + length)]
    plates = [brick(((b - a) / 2, width, 0.0016), ((a + b) / 2, 0, -0.004), blade, 0.5) for a, b in ends]
    ribs = [
        brick((length / 2 - 0.012, width / 7, 0.0016), (neck + length / 2, y * width, -0.004), blade, 0.5)
        for y in (-6 / 7, -2 / 7, 2 / 7, 6 / 7)
    ]
    mesh = join(_handle(rng, radius, 0.065, 0.055, handle), stem, *plates, *ribs)
    work = (neck + length, 0, -0.005)
    return _held(mesh, work=work, radius=radius, back=0.065, front=0.055, slant=36, head=width)


def _whisk(rng: np.random.Generator) -> Tool:
    handle, wire = pick(rng, (STEEL, *WOODS, *PAINTS)), pick(rng, (STEEL, STEEL, *PAINTS))
    radius, length, width = rng.uniform(0.008, 0.01), rng.uniform(0.075, 0.09), rng.uniform(0.023, 0.028)
    t = np.linspace(0, np.pi, 9)
    x = 0.055 + length * (1 - np.cos(t)) / 2
    reach = width * np.sin(t) ** 0.9 * (0.35 + 0.65 * (1 - np.cos(t)) / 2)
    wires = [
        tube(
            np.column_stack([x, reach * np.cos(a), reach * np.sin(a)]),
            np.full(9, 0.0021),
            wire,
            0.7,
            4,
            (0.1, np.cos(a + 1.5), np.sin(a + 1.5)),
        )
        for a in np.arange(6) * np.pi / 3 + 0.2
    ]
    return _held(
        join(_handle(rng, radius, 0.065, 0.06, handle), *wires),
        work=(0.055 + length, 0, -0.004),
        radius=radius,
        back=0.065,
        front=0.06,
        slant=38,
        head=width,
    )


def _brush(rng: np.random.Generator) -> Tool:
    handle, hair = (
        pick(rng, (*WOODS, *PAINTS)),
        pick(rng, ((0.85, 0.75, 0.55), (0.2, 0.15, 0.12), (0.9, 0.9, 0.86))),
    )
    radius, width, length = rng.uniform(0.008, 0.01), rng.uniform(0.022, 0.029), rng.uniform(0.036, 0.046)
    ferrule = tube(
        [(0.05, 0, 0), (0.066, 0, 0), (0.09, 0, 0)],
        [(0.009, 0.007), (width, 0.009), (width, 0.009)],
        STEEL,
        0.7,
        10,
    )
    bristles = tube(
        [(0.09, 0, 0), (0.09 + 0.6 * length, 0, 0), (0.09 + length, 0, -0.002)],
        [(width * 0.98, 0.0085), (width * 1.08, 0.009), (width * 0.95, 0.004)],
        hair,
        0.02,
        10,
    )
    bristles.colors[:] *= np.clip(1.15 - 0.5 * (bristles.vertices[:, :1] - 0.09) / length, 0, 1)
    mesh = join(_handle(rng, radius, 0.065, 0.055, handle), ferrule, bristles)
    return _held(
        mesh, work=(0.09 + length, 0, -0.003), radius=radius, back=0.065, front=0.055, slant=36, head=width
    )


def _knife(rng: np.random.Generator) -> Tool:
    handle, radius = pick(rng, (*WOODS, (0.12, 0.12, 0.13), *PAINTS)), rng.uniform(0.0095, 0.0115)
    length, depth = rng.uniform(0.13, 0.155), rng.uniform(0.03, 0.038)
    edge = [(0.055, 0.004), (0.055, -depth + 0.006), (0.062, -depth)]
    spine = [
        (0.055 + length * s, -depth * (1 - ((s - 0.45) / 0.55) ** 2 * 0.85) if s > 0.45 else -depth)
        for s in (0.45, 0.7, 0.88, 1.0)
    ]
    tip = [(0.055 + 0.8 * length, 0.002), (0.055 + 0.4 * length, 0.006)]
    outline = np.array([*edge, *spine, *tip])  # in x, z; extruded along y
    blade = slab(outline, -0.0013, 0.0013, (0.80, 0.82, 0.85), 0.9)
    to_upright = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # x, y, z -> x, -z, y
    bolster = brick((0.006, 0.006, 0.011), (0.053, 0, 0), STEEL, 0.7)
    mesh = join(_handle(rng, radius, 0.06, 0.05, handle), bolster, blade.moved(to_upright))
    return _held(
        mesh,
        work=(0.055 + 0.45 * length, 0, -depth),
        radius=radius,
        back=0.06,
        front=0.05,
        slant=32,
        head=0.01,
        roll=0.45,
    )


def _hammer(rng: np.random.Generator) -> Tool:
    handle, radius, neck = pick(rng, (*WOODS, *PAINTS)), rng.uniform(0.01, 0.012), rng.uniform(0.1, 0.125)
    head = pick(rng, ((0.30, 0.31, 0.34), (0.45, 0.46, 0.5), (0.2, 0.2, 0.22)))
    stem = tube(
        [(-0.07, 0, 0), (-0.05, 0, 0), (0.05, 0, 0), (neck, 0, 0)],
        [radius * 1.1, radius, radius, radius * 0.75],
        handle,
        0.2,
    )
    poll = tube(
        [(neck, 0, 0.018), (neck, 0, -0.016), (neck, 0, -0.022), (neck, 0, -0.036)],
        [0.013, 0.0115, 0.0155, 0.016],
        head,
        0.7,
        10,
        (1, 0, 0),
    )
    claw = tube(
        [(neck, 0, 0.014), (neck - 0.002, 0, 0.032), (neck - 0.014, 0, 0.05)],
        [(0.012, 0.011), (0.013, 0.007), (0.013, 0.002)],
        head,
        0.7,
        8,
        (1, 0, 0),
    )
    mesh = join(stem, poll, claw)
    return _held(mesh, work=(neck, 0, -0.036), radius=radius, back=0.07, front=0.06, slant=34, head=0.016)


def _mallet(rng: np.random.Generator) -> Tool:
    handle, head = pick(rng, WOODS), pick(rng, (*WOODS, *PAINTS, (0.15, 0.15, 0.16)))
    radius, neck, size = rng.uniform(0.009, 0.011), rng.uniform(0.1, 0.12), rng.uniform(0.023, 0.028)
    stem = tube(
        [(-0.07, 0, 0), (0.0, 0, 0), (neck, 0, 0)], [radius * 1.05, radius, radius * 0.85], handle, 0.2
    )
    depth = rng.uniform(0.036, 0.044)
    barrel = tube(
        [(neck, 0, depth), (neck, 0, depth * 0.85), (neck, 0, -depth * 0.85), (neck, 0, -depth)],
        [size * 0.88, size, size, size * 0.88],
        head,
        0.2,
        12,
        (1, 0, 0),
    )
    mesh = join(stem, barrel)
    return _held(mesh, work=(neck, 0, -depth), radius=radius, back=0.07, front=0.06, slant=34, head=size)


_UPRIGHT = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
"""Turned things have their axis along z: it becomes x, and x becomes -z."""


def _jug(rng: np.random.Generator) -> Tool:
    color, radius = pick(rng, GLAZES), rng.uniform(0.038, 0.044)
    height, bar = rng.uniform(0.1, 0.12), 0.008
    wall = 0.004
    low, high = -0.5 * height, 0.5 * height
    outer = [
        (0, low),
        (0.8 * radius, low),
        (radius, low + 0.3 * height),
        (0.98 * radius, low + 0.55 * height),
        (0.78 * radius, high),
    ]
    inner = [(r - wall, z) for r, z in outer[:0:-1]]
    body = lathe([*outer, *inner, (0, low + wall)], color, 0.5, 18)
    lip = (np.clip((body.vertices[:, 2] - high + 0.03) / 0.03, 0, 1) * (body.vertices[:, 0] < -0.3 * radius))[
        :, None
    ]
    body.vertices[:] += lip * np.array([-0.02, 0, 0.004])  # pulled out to a spout
    body.vertices[:, 1] *= 1 - 0.35 * lip[:, 0]
    away = radius + 0.034  # from the handle's bar to the body's axis, room for fingers
    z = np.array([0.3, 0.36, 0.3, 0.0, -0.22, -0.3, -0.3]) * height
    x = np.array([0.86 * radius, away - 0.012, away, away, away, away - 0.012, 0.95 * radius])
    loop = tube(np.column_stack([x, np.zeros(7), z]), np.full(7, bar), color * 0.95, 0.5, 7, (0, 1, 0))
    mesh = (
        join(body, loop).moved(np.eye(3), (-away, 0, 0)).moved(_UPRIGHT)
    )  # the body towards +z of the tool's axes
    return Tool(
        mesh=mesh,
        work=np.array([high + 0.004, 0, away + 0.78 * radius + 0.018]),
        distance=capsule_distance((-0.3 * height, 0, 0), (0.33 * height, 0, 0), bar),
        grip_radius=bar,
        grip_slant=0.0,
        head=radius,
        palm_axis=np.array([0.0, 0, 1]),
        upright=True,
        spout=pick(rng, ((0.92, 0.92, 0.88), (0.85, 0.55, 0.15), (0.45, 0.25, 0.12), (0.65, 0.8, 0.9))),
    )


def _bottle(rng: np.random.Generator) -> Tool:
    color, radius = pick(rng, PAINTS), rng.uniform(0.027, 0.032)
    height, neck = rng.uniform(0.15, 0.175), rng.uniform(0.011, 0.013)
    low = -0.4 * height
    outer = [
        (0, 0),
        (radius, 0.0),
        (radius, 0.58 * height),
        (0.75 * radius, 0.7 * height),
        (neck, 0.78 * height),
        (neck, 0.93 * height),
    ]
    cap = [(1.3 * neck, 0.94 * height), (1.3 * neck, height), (0.8 * neck, height), (0, 0.97 * height)]
    glass = lathe([(r, z + low) for r, z in [*outer, cap[0]]], color, 0.7, 16)
    mouth = lathe([(r, z + low) for r, z in cap], color * 0.6, 0.4, 12)
    label = lathe(
        [(radius * 1.015, 0.12 * height + low), (radius * 1.015, 0.5 * height + low)],
        pick(rng, GLAZES),
        0.1,
        16,
    )
    return Tool(
        mesh=join(glass, mouth, label).moved(_UPRIGHT),
        work=np.array([0.6 * height, 0, 0]),
        distance=capsule_distance((low + radius, 0, 0), (0.12 * height, 0, 0), radius),
        grip_radius=radius,
        grip_slant=0.0,
        head=radius,
        upright=True,
        spout=pick(rng, ((0.75, 0.1, 0.12), (0.85, 0.6, 0.15), (0.65, 0.8, 0.9), (0.35, 0.5, 0.15))),
    )


TOOLS: dict[str, Callable[[np.random.Generator], Tool]] = {
    "spoon": _spoon,
    "spatula": _spatula,
    "whisk": _whisk,
    "brush": _brush,
    "knife": _knife,
    "hammer": _hammer,
    "mallet": _mallet,
    "jug": _jug,
    "bottle": _bottle,
    "ladle": _ladle,
}
