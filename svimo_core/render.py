"""Draw 3D motion as video: through its own camera for the motion stream, or from the side for people.

The rendered motion video (paper section 3.1, figure 2) is what lets a video model read 3D motion: skeletons and
point clouds projected with the camera, on black, far to near, encoded afterwards by the same VAE as the video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .motion import HAND_BONES, HAND_NAMES, Camera, HandObjectMotion

NEAR = 1e-3
"""Metres. What lies behind the camera cannot be projected and is not drawn."""
REFERENCE_WIDTH = 624
"""Line widths and radii below are in pixels of an image this wide, the paper's."""
MOST_SUPERSAMPLING = 4
"""Small images are drawn this many times larger at most, then reduced."""
SUBPIXEL_BITS = 4

AZIMUTH, ELEVATION = 25.0, 25.0
"""Degrees that the view from the side is turned to the right of, and raised above, the motion's camera."""

HAND_COLORS = ((255, 0, 0), (0, 255, 0))  # left red, right green
JOINT_COLOR = (255, 255, 0)
OBJECT_COLORS = ((236, 52, 217), (20, 35, 222), (240, 150, 30), (40, 200, 220))
"""Tool, target, then any further objects in order."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """Sizes in pixels at REFERENCE_WIDTH, colours as RGB."""

    bone_width: float = 4.5
    joint_radius: float = 3.0
    point_radius: float = 6.0
    background: tuple[int, int, int] = (0, 0, 0)
    hand_colors: tuple[tuple[int, int, int], ...] = HAND_COLORS
    joint_color: tuple[int, int, int] = JOINT_COLOR
    object_colors: tuple[tuple[int, int, int], ...] = OBJECT_COLORS


MOTION_STYLE = Style()
VIEW_STYLE = Style(
    bone_width=6.0,
    joint_radius=4.0,
    point_radius=3.0,
    background=(24, 26, 31),
    hand_colors=((235, 110, 100), (105, 210, 120)),
    joint_color=(250, 240, 200),
    object_colors=((225, 120, 220), (110, 130, 250), (240, 170, 80), (90, 205, 220)),
)


def supersampling(width: int) -> int:
    """How many times larger an image this wide is drawn, then reduced, so that thin lines stay legible."""
    return min(MOST_SUPERSAMPLING, max(1, math.ceil(REFERENCE_WIDTH / width)))


def check_in_view(motion: HandObjectMotion) -> None:
    """Refuse a motion of which a drawing through its own camera would show nothing.

    Raises:
        ValueError: no joint and no point is ever in the picture.
    """
    if any(in_picture(points, motion.camera)[1].any() for points in (motion.hands, *motion.objects.values())):
        return
    low, high = (", ".join(f"{value:.3g}" for value in limit) for limit in motion.bounds())
    raise ValueError(
        f"nothing of the motion is in view of its camera: it lies between ({low}) and ({high}), and the camera sees "
        "metres in front of it (z > 0); scale the motion to metres, or place it at a distance from the camera"
    )


def in_picture(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Whether, by frame (N), any of its points (N ... 3, NaN: absent) is behind a camera, and any in the picture."""
    with np.errstate(all="ignore"):
        u, v = np.moveaxis(camera.project(points), -1, 0)
        depth = points[..., 2]
        inside = (depth > NEAR) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    each = tuple(range(1, depth.ndim))
    return (depth <= NEAR).any(axis=each), inside.any(axis=each)


def render_motion(motion: HandObjectMotion, width: int, height: int) -> np.ndarray:
    """Draw a motion through its own camera: the rendered motion video of the paper.

    Returns:
        Frames, N x height x width x 3 uint8 RGB.
    """
    return np.stack(list(draw_motion(motion, width, height)))


def render_view(motion: HandObjectMotion, width: int, height: int) -> np.ndarray:
    """All frames of :func:`draw_view`, N x height x width x 3 uint8 RGB."""
    return np.stack(list(draw_view(motion, width, height)))


def draw_motion(motion: HandObjectMotion, width: int, height: int) -> Iterator[np.ndarray]:
    """The frames of :func:`render_motion` one after the other, height x width x 3 each."""
    camera = motion.camera.resized(width, height)
    return (_draw_frame(motion, i, camera, MOTION_STYLE) for i in range(len(motion)))


def draw_view(motion: HandObjectMotion, width: int, height: int) -> Iterator[np.ndarray]:
    """Draw a motion from the right and above, over a ground grid, framed on the whole clip; for people to look at.

    Returns:
        Frames, height x width x 3 uint8 RGB each.
    """
    seen, ground = _from_the_side(motion, width, height)
    return (_draw_frame(seen, i, seen.camera, VIEW_STYLE, ground) for i in range(len(seen)))


def render_named(motion: HandObjectMotion, width: int, height: int) -> np.ndarray:
    """One frame with everything called by its name, so that a hand on the wrong side is seen at once: through the
    camera, and beside it from the side. The first frame that has as many hands as any.

    Returns:
        height x 2 width x 3 uint8 RGB.
    """
    hands = motion.present.sum(axis=1)
    first = int(np.argmax(hands == hands.max()))
    still = motion.take(slice(first, first + 1))
    camera = motion.camera.resized(width, height)
    side, ground = _from_the_side(still, width, height)
    views = [
        _draw_frame(still, 0, camera, replace(VIEW_STYLE, background=(0, 0, 0))),
        _draw_frame(side, 0, side.camera, VIEW_STYLE, ground),
    ]
    for view, seen, lens in zip(views, (still, side), (camera, side.camera), strict=True):
        things = {name: seen.hands[0, i] for i, name in enumerate(HAND_NAMES) if seen.present[0, i]}
        things |= {name: points[0] for name, points in seen.objects.items()}
        for name, points in things.items():
            if points[:, 2].min() > NEAR:
                x, y = lens.project(points[:1] if name in HAND_NAMES else points.mean(axis=0, keepdims=True))[
                    0
                ]
                place = (int(np.clip(x + 6, 2, width - 60)), int(np.clip(y + 18, 14, height - 4)))
                cv2.putText(view, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate(views, axis=1)


def _from_the_side(motion: HandObjectMotion, width: int, height: int) -> tuple[HandObjectMotion, np.ndarray]:
    """A motion in the axes of a camera that sees all of it, and the ground below it there."""
    low, high = motion.bounds()
    center, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-3)
    camera = Camera.from_fov(width, height, horizontal_degrees=40.0)
    half_angle = math.atan(min(width, height) / 2 / camera.fx)
    distance = 0.85 * radius / math.sin(half_angle)
    to_view = _rotation_x(-ELEVATION) @ _rotation_y(AZIMUTH)

    def look(points: np.ndarray) -> np.ndarray:
        return (points - center) @ to_view.T + (0, 0, distance)

    seen = replace(
        motion,
        hands=look(motion.hands),
        objects={name: look(points) for name, points in motion.objects.items()},
        camera=camera,
    )
    return seen, look(_ground_grid(low, high))


def _draw_frame(
    motion: HandObjectMotion, frame: int, camera: Camera, style: Style, ground: np.ndarray | None = None
) -> np.ndarray:
    """Paint one frame far to near, supersampled so that thin lines stay legible at small sizes."""
    factor = supersampling(camera.width)
    big = camera.resized(camera.width * factor, camera.height * factor)
    unit = big.width / REFERENCE_WIDTH
    canvas = np.full((big.height, big.width, 3), style.background, np.uint8)

    # 1. everything drawable as (depth, first pixel, second pixel or None, size, colour)
    strokes = []
    for joints, color, present in zip(
        motion.hands[frame], style.hand_colors, motion.present[frame], strict=True
    ):
        if not present:
            continue
        pixels = _pixels(joints, big)
        for a, b in HAND_BONES:
            depth = (joints[a, 2] + joints[b, 2]) / 2
            if min(joints[a, 2], joints[b, 2]) > NEAR:
                strokes.append((depth, pixels[a], pixels[b], style.bone_width, color))
        for joint, pixel in zip(joints, pixels, strict=True):
            if joint[2] > NEAR:
                strokes.append((joint[2] - 1e-4, pixel, None, style.joint_radius, style.joint_color))
    for i, points in enumerate(motion.objects.values()):
        color = style.object_colors[i % len(style.object_colors)]
        for point, pixel in zip(points[frame], _pixels(points[frame], big), strict=True):
            if point[2] > NEAR:
                strokes.append((point[2], pixel, None, style.point_radius, color))

    # 2. paint: the ground first, then far to near
    if ground is not None:
        for a, b in ground:
            if min(a[2], b[2]) > NEAR:
                start, end = _pixels(np.stack([a, b]), big)
                cv2.line(canvas, start, end, (62, 66, 74), max(1, round(unit)), cv2.LINE_AA, SUBPIXEL_BITS)
    for _, start, end, size, color in sorted(strokes, key=lambda stroke: -stroke[0]):
        if end is None:
            radius = round(size * unit * 2**SUBPIXEL_BITS)
            cv2.circle(canvas, start, radius, color, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
        else:
            cv2.line(canvas, start, end, color, max(1, round(size * unit)), cv2.LINE_AA, SUBPIXEL_BITS)
    if factor > 1:
        canvas = cv2.resize(canvas, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return canvas


def _pixels(points: np.ndarray, camera: Camera) -> list[tuple[int, int]]:
    """Fixed-point pixel positions for cv2; far outside the image is clamped to keep within its integers."""
    safe = np.concatenate([points[:, :2], np.maximum(points[:, 2:], NEAR)], axis=1)
    limit = 8 * max(camera.width, camera.height)
    fixed = np.clip(camera.project(safe), -limit, limit) * 2**SUBPIXEL_BITS
    return [(int(x), int(y)) for x, y in np.rint(fixed)]


def _ground_grid(low: np.ndarray, high: np.ndarray, cell: float = 0.05) -> np.ndarray:
    """Segments (S, 2, 3) of a horizontal grid just below the clip; cells of 5 cm, fewer for a large scene."""
    extent = float(max(high[0] - low[0], high[2] - low[2]))
    cell *= max(1, math.ceil(extent / cell / 16))
    xs = np.arange(math.floor(low[0] / cell), math.ceil(high[0] / cell) + 1) * cell
    zs = np.arange(math.floor(low[2] / cell), math.ceil(high[2] / cell) + 1) * cell
    y = high[1]
    along_z = [((x, y, zs[0]), (x, y, zs[-1])) for x in xs]
    along_x = [((xs[0], y, z), (xs[-1], y, z)) for z in zs]
    return np.array(along_z + along_x, dtype=np.float64)


def _rotation_x(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _rotation_y(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
