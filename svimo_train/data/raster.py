"""A z-buffer for moving triangle meshes in plain numpy: every triangle of every frame at once.

A clip is a few hundred thousand covered samples, which numpy handles in tens of milliseconds; a loop over triangles
would take seconds. The image is drawn larger and averaged down, which is the anti-aliasing.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

HALF = np.float32(0.5)
"""From a sample's row or column to its centre."""
CHUNK_SAMPLES = 250_000
"""Frames are drawn in groups of about this many canvas samples: it bounds memory at full size, and fits caches."""


def draw_meshes(
    points: np.ndarray,
    depths: np.ndarray,
    faces: np.ndarray,
    colors: np.ndarray,
    backgrounds: np.ndarray,
    factor: int,
) -> np.ndarray:
    """Draw moving, coloured, opaque triangles over backgrounds, nearest first, with dark creases.

    Args:
        points: projected vertices F x V x 2 in pixels of the final image.
        depths: of the vertices, F x V, metres in front of the camera.
        faces: M x 3; the side that shows its corners counter-clockwise to the viewer is drawn.
        colors: lit vertex colours F x V x 3 in 0..1.
        backgrounds: F x H x W x 3 uint8 at final size.
        factor: the canvas is this much larger than the final image.

    Returns:
        F x H x W x 3 uint8.
    """
    frames, height, width = backgrounds.shape[:3]
    height, width = height * factor, width * factor
    group = max(1, CHUNK_SAMPLES // (height * width))
    video = np.empty_like(backgrounds)
    for first in range(0, frames, group):
        part = slice(first, first + group)
        canvas, nearness = _draw(points[part] * factor, depths[part], faces, colors[part], height, width)
        for i, background in enumerate(backgrounds[part]):
            video[first + i] = _finish(canvas[i], nearness[i], background, factor)
    return video


def coverage(points: np.ndarray, faces: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which pixels the visible side of moving triangles covers: F x H x W uint8, 0 or 255. `points` as above."""
    mask = np.zeros(len(points) * height * width, np.uint8)
    mask[_samples(_front_facing(points, faces, height, width), height, width).place] = 255
    return mask.reshape(len(points), height, width)


class _Triangles(NamedTuple):
    """T triangles on the screen."""

    corners: np.ndarray
    """3 x T, indices into the vertices of all frames."""
    x: np.ndarray
    """3 x T."""
    y: np.ndarray
    frame: np.ndarray
    first_row: np.ndarray
    last_row: np.ndarray


class _Samples(NamedTuple):
    """S covered samples; a sample under several triangles occurs several times."""

    triangle: np.ndarray
    place: np.ndarray
    """Index into the flattened frames x height x width."""
    x: np.ndarray
    y: np.ndarray


def _draw(
    points: np.ndarray, depths: np.ndarray, faces: np.ndarray, colors: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (F H W 3, uint8) and 1 / depth (F H W, 0 where empty) of the nearest triangles."""
    frames = len(points)
    triangles = _front_facing(points, faces, height, width)
    a, b, c = triangles.corners
    # barycentric weights are linear over the screen: w_b = b_x (x - x_a) + b_y (y - y_a), and w_c alike
    (x0, x1, x2), (y0, y1, y2) = triangles.x, triangles.y
    scale = 1 / ((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0))
    b_x, b_y, c_x, c_y = (y2 - y0) * scale, (x0 - x2) * scale, (y0 - y1) * scale, (x1 - x0) * scale
    near = (
        (1 / depths).reshape(-1).astype(np.float32)
    )  # 1 / depth is linear over the screen too, unlike depth
    slope_x = b_x * (near[b] - near[a]) + c_x * (near[c] - near[a])
    slope_y = b_y * (near[b] - near[a]) + c_y * (near[c] - near[a])
    offset = near[a] - slope_x * x0 - slope_y * y0

    sample = _samples(triangles, height, width)
    value = (
        offset[sample.triangle] + slope_x[sample.triangle] * sample.x + slope_y[sample.triangle] * sample.y
    )
    nearness = np.zeros(frames * height * width, np.float32)
    np.maximum.at(nearness, sample.place, value)
    winner = np.full(frames * height * width, -1)
    front = np.flatnonzero(value == nearness[sample.place])
    winner[sample.place[front]] = front
    place = np.flatnonzero(winner >= 0)
    front = winner[place]  # exactly one sample for every covered place

    triangle = sample.triangle[front]
    x, y = sample.x[front] - x0[triangle], sample.y[front] - y0[triangle]
    w_b = b_x[triangle] * x + b_y[triangle] * y
    w_c = c_x[triangle] * x + c_y[triangle] * y
    canvas = np.zeros((frames * height * width, 3), np.uint8)
    for channel, shade in enumerate((colors.reshape(-1, 3).T * 255).astype(np.float32)):
        origin, to_b, to_c = shade[a], shade[b] - shade[a], shade[c] - shade[a]
        color = origin[triangle] + w_b * to_b[triangle] + w_c * to_c[triangle]
        canvas[place, channel] = np.clip(color, 0, 255, out=color)
    return canvas.reshape(frames, height, width, 3), nearness.reshape(frames, height, width)


def _front_facing(points: np.ndarray, faces: np.ndarray, height: int, width: int) -> _Triangles:
    """The triangles of all frames that face the viewer and may cover a sample."""
    frames, vertices = points.shape[:2]
    flat = points.reshape(-1, 2).astype(np.float32)
    corners = (faces.T[:, None] + vertices * np.arange(frames)[:, None]).reshape(3, -1).astype(np.int32)
    x, y = flat[:, 0][corners], flat[:, 1][corners]
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    first_row = np.maximum(np.ceil(np.minimum(np.minimum(y[0], y[1]), y[2]) - 0.5), 0).astype(np.int32)
    last_row = np.minimum(np.floor(np.maximum(np.maximum(y[0], y[1]), y[2]) - 0.5), height - 1).astype(
        np.int32
    )
    keep = np.flatnonzero((area < 0) & (last_row >= first_row))
    frame = np.repeat(np.arange(frames, dtype=np.int32), len(faces))
    return _Triangles(corners[:, keep], x[:, keep], y[:, keep], frame[keep], first_row[keep], last_row[keep])


def _samples(triangles: _Triangles, height: int, width: int) -> _Samples:
    """Every sample whose centre lies in a triangle, found scan line by scan line."""
    owner, row = _expand(triangles.last_row - triangles.first_row + 1)
    row += triangles.first_row[owner]
    center = row.astype(np.float32) + HALF
    # the three edges are half-planes, so a scan line is covered from the largest lower to the smallest upper bound
    left, right = np.zeros(len(row), np.float32), np.full(len(row), width, np.float32)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        x, y, rise = triangles.x[i], triangles.y[i], triangles.y[j] - triangles.y[i]
        level = np.abs(rise) < 1e-6  # such an edge bounds rows, which is already done
        slope = np.where(level, 0, (triangles.x[j] - x) / np.where(level, 1, rise))
        crossing = (x - slope * y)[owner] + slope[owner] * center
        lower, upper = (
            np.where(bounds & ~level, 0, np.inf).astype(np.float32) for bounds in (rise > 0, rise <= 0)
        )
        np.maximum(left, crossing - lower[owner], out=left)
        np.minimum(right, crossing + upper[owner], out=right)
    first = np.ceil(left - HALF).astype(np.intp)
    line, column = _expand(np.maximum(np.ceil(right - HALF).astype(np.intp) - first, 0))
    column += first[line]
    start = (triangles.frame[owner] * height + row) * width
    return _Samples(owner[line], start[line] + column, column.astype(np.float32) + HALF, center[line])


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For items repeated `counts` times: the item of every copy, and its number among the item's copies. As wide as
    indices are: numpy converts narrower ones each time it looks something up."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _finish(canvas: np.ndarray, nearness: np.ndarray, background: np.ndarray, factor: int) -> np.ndarray:
    """One frame: creases darkened where something lies just in front, averaged down, and set into the background."""
    height, width = background.shape[:2]
    covered = nearness > 0
    # "unsharp masking the depth buffer" (Luft et al. 2006): a cheap stand-in for ambient occlusion
    blurred = cv2.blur(nearness, (2 * (width * factor // 60) + 1,) * 2)
    crease = np.where(covered, np.clip((blurred / np.maximum(nearness, 1e-6) - 1) * 4.0, 0, 0.45), 0)
    canvas = cv2.multiply(canvas, cv2.merge([1 - crease.astype(np.float32)] * 3), dtype=cv2.CV_8U)
    drawn = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(covered.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)[
        ..., None
    ]
    return np.minimum(drawn + background * ((255 - alpha) / 255.0), 255).astype(np.uint8)
