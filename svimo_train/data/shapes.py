"""Triangle meshes of simple things, solids that answer "how far away is your surface", and points on surfaces.

Everything is in metres. Meshes are small (hundreds of triangles): they are drawn in software, many clips a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Distance = Callable[[np.ndarray], np.ndarray]
"""Signed distance of points (..., 3) to a solid's surface (...), metres, negative inside."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Triangles, seen from outside counter-clockwise, with one normal, colour and gloss per vertex."""

    vertices: np.ndarray
    """V x 3, metres."""
    normals: np.ndarray
    """V x 3, unit length."""
    faces: np.ndarray
    """M x 3 vertex indices."""
    colors: np.ndarray
    """V x 3 RGB in 0..1."""
    gloss: np.ndarray
    """V, strength of the highlight."""

    def moved(self, rotation: np.ndarray, translation: Sequence[float] = (0, 0, 0)) -> Mesh:
        """The same mesh after a proper rotation (3 x 3) and a translation."""
        return Mesh(
            vertices=self.vertices @ rotation.T + translation,
            normals=self.normals @ rotation.T,
            faces=self.faces,
            colors=self.colors,
            gloss=self.gloss,
        )


def join(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
        colors=np.concatenate([mesh.colors for mesh in meshes]),
        gloss=np.concatenate([mesh.gloss for mesh in meshes]),
    )


def sheet_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid of vertices (row-major) whose columns close into a ring."""
    row, column = (index.ravel() for index in np.mgrid[: rows - 1, :columns])
    a, b = row * columns + column, row * columns + (column + 1) % columns
    c, d = a + columns, b + columns
    return np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])


def lathe(
    profile: Sequence[tuple[float, float]], color: Sequence[float], gloss: float = 0.2, segments: int = 20
) -> Mesh:
    """Turn a profile of (radius, height) around the z axis.

    The profile runs with the outside on its right: from the bottom's centre outwards, up, and back to the axis.
    Corners sharper than 40 degrees stay crisp.
    """
    profile = np.asarray(profile, dtype=np.float64)
    steps = np.diff(profile, axis=0)
    outward = np.stack([steps[:, 1], -steps[:, 0]], 1)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    points, normals, strips, previous = [], [], [], None
    for i, normal in enumerate(
        outward
    ):  # one strip of quads per profile step; smooth corners share their ring
        if previous is not None and previous @ normal > 0.77:
            normals[-1] = (previous + normal) / np.linalg.norm(previous + normal)
        else:
            points.append(profile[i])
            normals.append(normal)
        strips.append(len(points) - 1)
        points.append(profile[i + 1])
        normals.append(normal)
        previous = normal
    angle = np.arange(segments) * (2 * np.pi / segments)
    points, normals = np.array(points), np.array(normals)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)

    def turn(values: np.ndarray) -> np.ndarray:
        around = values[:, None, :1] * circle
        return np.concatenate(
            [around, np.broadcast_to(values[:, None, 1:], (*around.shape[:2], 1))], 2
        ).reshape(-1, 3)

    faces = np.concatenate([sheet_faces(2, segments) + start * segments for start in strips])
    return _painted(turn(points), turn(normals), faces, color, gloss)


def tube(
    path: Sequence[Sequence[float]],
    radii: Sequence[float] | Sequence[tuple[float, float]],
    color: Sequence[float],
    gloss: float = 0.2,
    segments: int = 8,
    up: Sequence[float] = (0, 0, 1),
) -> Mesh:
    """A round or elliptic (half-width, half-height) tube along a path, closed at both ends; `up` is the height axis."""
    path, radii = np.asarray(path, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    radii = np.broadcast_to(radii.reshape(len(path), -1), (len(path), 2))
    tangent = _unit(np.gradient(path, axis=0))
    side = _unit(np.cross(tangent, np.asarray(up, dtype=np.float64)))
    top = np.cross(side, tangent)
    angle = np.arange(segments) * (2 * np.pi / segments)
    across = side[:, None] * np.cos(angle)[:, None] * radii[:, None, :1]
    across = across - top[:, None] * np.sin(angle)[:, None] * radii[:, None, 1:]
    rings = path[:, None] + across  # R S 3
    faces = sheet_faces(len(path), segments)
    body = _painted(rings.reshape(-1, 3), _unit(across).reshape(-1, 3), faces, color, gloss)
    fan = np.stack(
        [np.zeros(segments, int), 1 + (np.arange(segments) + 1) % segments, 1 + np.arange(segments)], 1
    )
    caps = [
        _painted(
            np.concatenate([path[[i]], rings[i]]),
            np.tile(sign * tangent[i], (segments + 1, 1)),
            order,
            color,
            gloss,
        )
        for i, sign, order in ((0, -1, fan), (-1, 1, fan[:, ::-1]))
    ]
    return join(body, *caps)


def slab(
    outline: Sequence[tuple[float, float]],
    low: float,
    high: float,
    color: Sequence[float],
    gloss: float = 0.1,
) -> Mesh:
    """A flat piece: a counter-clockwise outline in x, y (star-shaped around its mean), filled from z = low to high."""
    outline = np.asarray(outline, dtype=np.float64)
    count = len(outline)
    fan = np.stack([np.zeros(count, int), 1 + np.arange(count), 1 + (np.arange(count) + 1) % count], 1)
    flat = np.concatenate([outline.mean(0, keepdims=True), outline])
    pieces = []
    for z, sign, faces in ((high, 1.0, fan), (low, -1.0, fan[:, ::-1])):
        vertices = np.column_stack([flat, np.full(count + 1, z)])
        pieces.append(_painted(vertices, np.tile([0.0, 0.0, sign], (count + 1, 1)), faces, color, gloss))
    edge = np.roll(outline, -1, 0) - outline
    wall = np.stack([outline, np.roll(outline, -1, 0)], 1)  # count, both ends, 2
    vertices = np.concatenate(
        [np.concatenate([wall, np.full((count, 2, 1), z)], 2) for z in (low, high)], 1
    ).reshape(-1, 3)  # four per side: low a, low b, high a, high b
    normals = _unit(np.column_stack([edge[:, 1], -edge[:, 0], np.zeros(count)])).repeat(4, 0)
    base = 4 * np.arange(count)[:, None]
    faces = np.concatenate([base + (0, 1, 3), base + (0, 3, 2)])
    return join(*pieces, _painted(vertices, normals, faces, color, gloss))


def brick(half: Sequence[float], center: Sequence[float], color: Sequence[float], gloss: float = 0.1) -> Mesh:
    """A box from its half sizes and its centre."""
    x, y, z = half
    box = slab([(-x, -y), (x, -y), (x, y), (-x, y)], -z, z, color, gloss)
    return box.moved(np.eye(3), center)


def blob(
    half: Sequence[float],
    center: Sequence[float],
    color: Sequence[float],
    gloss: float = 0.2,
    squareness: float = 1.0,
) -> Mesh:
    """An ellipsoid from its half sizes; squareness below 1 makes it boxier (a superellipsoid)."""
    rows, columns = 9, 14
    latitude = np.linspace(-np.pi / 2, np.pi / 2, rows)[:, None]
    longitude = np.arange(columns) * (2 * np.pi / columns)
    unit = np.stack(
        np.broadcast_arrays(
            np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
        ),
        2,
    ).reshape(-1, 3)
    shape = np.sign(unit) * np.abs(unit) ** squareness
    normals = _unit(np.sign(shape) * np.abs(shape) ** (2 / squareness - 1) / np.asarray(half))
    return _painted(shape * half + center, normals, sheet_faces(rows, columns), color, gloss)


def capsule_distance(start: Sequence[float], end: Sequence[float], radius: float) -> Distance:
    """A rod with round ends."""
    start, axis = np.asarray(start, dtype=np.float64), np.subtract(end, start)

    def distance(points: np.ndarray) -> np.ndarray:
        along = np.clip((points - start) @ axis / (axis @ axis), 0, 1)
        return np.linalg.norm(points - start - along[..., None] * axis, axis=-1) - radius

    return distance


def box_distance(half: Sequence[float], center: Sequence[float]) -> Distance:
    """An upright box."""

    def distance(points: np.ndarray) -> np.ndarray:
        excess = np.abs(points - center) - half
        return np.linalg.norm(np.maximum(excess, 0), axis=-1) + np.minimum(excess.max(-1), 0)

    return distance


def cone_distance(bottom_radius: float, top_radius: float, height: float) -> Distance:
    """An upright truncated cone standing on z = 0; the solid outside of cups, bowls and plates."""
    slope = np.array([height, bottom_radius - top_radius])
    slope /= np.linalg.norm(slope)  # outward normal of the side in (radius, z)

    def distance(points: np.ndarray) -> np.ndarray:
        radius, z = np.hypot(points[..., 0], points[..., 1]), points[..., 2]
        side = (radius - bottom_radius) * slope[0] + z * slope[1]
        ends = np.maximum(-z, z - height)
        outside = np.hypot(np.maximum(side, 0), np.maximum(ends, 0))
        return outside + np.minimum(np.maximum(side, ends), 0)

    return distance


def surface_points(mesh: Mesh, count: int) -> np.ndarray:
    """Spread points evenly over a surface: count x 3.

    Nothing is drawn at random: meshes built alike (two spoons) get points of the same index in corresponding places,
    so an index means the same part of a thing in every clip.
    """
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    area = np.cumsum(np.linalg.norm(np.cross(b - a, c - a), axis=1))
    index = np.arange(count)
    face = np.searchsorted(area, (index + 0.5) / count * area[-1])
    u, v = (
        (0.5 + index * 0.7548776662) % 1,
        (0.5 + index * 0.5698402910) % 1,
    )  # the R2 low-discrepancy sequence
    u, v = np.where(u + v > 1, 1 - u, u)[:, None], np.where(u + v > 1, 1 - v, v)[:, None]
    return a[face] + u * (b - a)[face] + v * (c - a)[face]


def _painted(
    vertices: np.ndarray, normals: np.ndarray, faces: np.ndarray, color: Sequence[float], gloss: float
) -> Mesh:
    count = len(vertices)
    return Mesh(
        vertices=vertices,
        normals=normals,
        faces=faces,
        colors=np.tile(color, (count, 1)),
        gloss=np.full(count, gloss),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
