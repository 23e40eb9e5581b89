"""Pixels for a scene: materials, a lamp and the sky, shadows on a table, and the room around it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .hands import skin, skin_colors, skin_faces
from .palette import WOODS, pick
from .raster import coverage, draw_meshes
from .scene import Scene, View
from .shapes import sheet_faces


def film(scene: Scene, view: View, rng: np.random.Generator, drawn: slice = slice(None)) -> np.ndarray:
    """Draw the video, or these frames of it: N x H x W x 3 uint8."""
    height, width = view.camera.height, view.camera.width
    factor = 3 if width < 200 else 2
    tone = LIGHTEST_SKIN + rng.uniform() * (DARKEST_SKIN - LIGHTEST_SKIN)
    sleeve = np.clip(np.array(SLEEVES[rng.integers(len(SLEEVES))]) * rng.uniform(0.85, 1.15, 3), 0, 1)
    light = _light(rng)
    table = _table(rng, view, light)

    # 1. everything as triangles in the world: vertices and normals F x V x 3, colours V x 3
    parts = [
        (
            mesh.vertices @ rotation.transpose(0, 2, 1) + position[:, None],
            mesh.normals @ rotation.transpose(0, 2, 1),
            mesh.faces,
            mesh.colors,
            mesh.gloss,
        )
        for mesh, rotation, position in (
            (scene.tool.mesh, scene.tool_rotation, scene.tool_position),
            (scene.target.mesh, scene.target_rotation, scene.target_position),
        )
    ]
    colors, gloss = skin_colors(tone, sleeve)
    for i, left in enumerate((True, False)):
        surface = skin(scene.poses[i], scene.placements[i], scene.elbows[i], scene.hand_length)
        parts.append((*surface, skin_faces(left), colors, gloss))
    if scene.flow.any():
        parts.append(_stream(scene))
    starts = np.cumsum([0] + [part[0].shape[1] for part in parts[:-1]])
    vertices, normals = (np.concatenate([part[i][drawn] for part in parts], 1) for i in (0, 1))
    faces = np.concatenate([part[2] + start for part, start in zip(parts, starts, strict=True)])
    colors, gloss = (np.concatenate([part[i] for part in parts]) for i in (3, 4))

    # 2. light them, and cast their shadows on the table
    lit = light.shade(normals, colors, gloss, -view.axes[2])
    fallen = vertices - light.direction * (np.maximum(vertices[..., 2:], 0) / light.direction[2])
    shadow = coverage(view.camera.project(view.look(fallen)), faces, height, width)
    spread = 2 * max(1, width // 110) + 1
    backgrounds = np.stack(
        [
            (table * (1 - 0.0021 * cv2.GaussianBlur(mask, (spread, spread), 0)[..., None])).astype(np.uint8)
            for mask in shadow
        ]
    )

    # 3. draw
    seen = view.look(vertices)
    return draw_meshes(view.camera.project(seen), seen[..., 2], faces, lit, backgrounds, factor)


LIGHTEST_SKIN, DARKEST_SKIN = np.array([0.92, 0.73, 0.62]), np.array([0.40, 0.26, 0.19])
SLEEVES = (
    (0.2, 0.28, 0.45),
    (0.6, 0.2, 0.2),
    (0.85, 0.85, 0.82),
    (0.22, 0.22, 0.24),
    (0.3, 0.45, 0.32),
    (0.75, 0.65, 0.3),
    (0.45, 0.35, 0.55),
)


@dataclass(frozen=True, kw_only=True)
class Light:
    """A lamp far away and an even sky."""

    direction: np.ndarray
    """Unit vector towards the lamp."""
    lamp: np.ndarray
    """RGB strength."""
    sky: np.ndarray
    """RGB strength."""

    def shade(
        self, normals: np.ndarray, colors: np.ndarray, gloss: np.ndarray, to_eye: np.ndarray
    ) -> np.ndarray:
        """Blinn-Phong: lit colours F x V x 3 for normals F x V x 3, colours V x 3 and gloss V."""
        facing = np.clip(normals @ self.direction * 0.75 + 0.25, 0, None)[
            ..., None
        ]  # light wraps around a little
        half = self.direction + to_eye
        shine = np.clip(normals @ (half / np.linalg.norm(half)), 0, None) ** 28 * gloss
        ambient = self.sky * (0.78 + 0.22 * normals[..., 2:])
        return np.clip(colors * (ambient + self.lamp * facing) + shine[..., None], 0, 1)


def _light(rng: np.random.Generator) -> Light:
    turn, rise = rng.uniform(0.9, 2.1) * np.pi, np.radians(rng.uniform(45, 70))  # from the person's side
    direction = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    warmth = rng.uniform(-1, 1) * np.array([0.05, 0.0, -0.06])
    return Light(
        direction=direction,
        lamp=rng.uniform(0.5, 0.62) * (1 + warmth),
        sky=rng.uniform(0.5, 0.6) * (1 - warmth),
    )


def _table(rng: np.random.Generator, view: View, light: Light) -> np.ndarray:
    """The empty scene, H x W x 3 float32 in 0..255: a table of some material up to its edge, and the room beyond."""
    camera = view.camera.resized(view.camera.width * 2, view.camera.height * 2)
    row, column = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = (
        np.stack([(column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy, np.ones_like(row)], 2)
        @ view.axes
    )
    x, y = (view.eye[i] - view.eye[2] * rays[..., i] / np.minimum(rays[..., 2], -1e-3) for i in (0, 1))
    turn = rng.uniform(-0.12, 0.12)
    u, v = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    noise = cv2.resize(
        rng.standard_normal((48, 48)).astype(np.float32), (384, 384), interpolation=cv2.INTER_CUBIC
    )

    def grain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Smooth noise with cells of length 1."""
        return cv2.remap(
            noise,
            (a * 8).astype(np.float32),
            (b * 8).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )

    kind = rng.integers(4)
    if kind == 0:  # planks
        plank = np.floor(v / 0.11)
        wood = pick(rng, WOODS)
        value = 0.9 + 0.06 * grain(u * 6 + plank * 7.3, v * 90) + 0.05 * np.sin(plank * 12.9)
        value *= np.where(np.abs(v / 0.11 - plank - 0.5) > 0.485, 0.72, 1)
        color = wood * value[..., None]
    elif kind == 1:  # plain laminate
        color = pick(rng, TABLETOPS) * (1 + 0.015 * grain(u * 40, v * 40))[..., None]
    elif kind == 2:  # a woven cloth with checks
        cell, a, b = rng.uniform(0.03, 0.05), pick(rng, TABLETOPS), pick(rng, TABLETOPS)
        mix = ((np.sin(u * np.pi / cell) > 0).astype(float) + (np.sin(v * np.pi / cell) > 0)) / 2
        color = a + (b - a) * 0.6 * mix[..., None]
    else:  # stone
        stone = pick(rng, ((0.75, 0.73, 0.7), (0.4, 0.42, 0.44), (0.58, 0.55, 0.5)))
        color = stone * (1 + 0.05 * grain(u * 25, v * 25) + 0.05 * grain(u * 90 + 5, v * 90))[..., None]
    falloff = 1.05 - 0.5 * np.hypot(x, y)  # the lamp is brightest over the work
    color = color * (light.sky + light.lamp * light.direction[2]) * np.clip(falloff, 0.55, 1)[..., None]
    edge = rng.uniform(0.2, 0.34)
    room = pick(rng, TABLETOPS) * rng.uniform(0.35, 0.7) * np.clip(1 - 0.4 * (y - edge), 0.5, 1)[..., None]
    color = np.where((y > edge)[..., None], room, np.where((y > edge - 0.008)[..., None], color * 0.7, color))
    size = (view.camera.width, view.camera.height)
    return cv2.resize((np.clip(color, 0, 1) * 255).astype(np.float32), size, interpolation=cv2.INTER_AREA)


TABLETOPS = (
    (0.85, 0.83, 0.78),
    (0.6, 0.65, 0.68),
    (0.35, 0.45, 0.52),
    (0.75, 0.6, 0.5),
    (0.5, 0.55, 0.42),
    (0.3, 0.3, 0.33),
    (0.8, 0.74, 0.6),
)


def _stream(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What runs from a spout down into the target; nowhere thick while nothing runs."""
    sides = 6
    top = scene.tool_rotation @ scene.tool.work + scene.tool_position
    bottom = top.copy()
    bottom[:, 2] = scene.target_position[:, 2] + scene.target.surface
    angle = np.arange(sides) * (2 * np.pi / sides)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], 1)
    rings = [
        end[:, None] + width * scene.flow[:, None, None] * ring
        for end, width in ((bottom, 0.0045), (top, 0.006))
    ]
    normals = np.broadcast_to(np.concatenate([ring, ring]), (len(top), 2 * sides, 3))
    colors = np.tile(scene.tool.spout, (2 * sides, 1))
    return np.concatenate(rings, 1), normals, sheet_faces(2, sides), colors, np.full(2 * sides, 0.5)
