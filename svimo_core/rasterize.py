"""Draw 3D motion with tensor operations, where the tensors are: what :mod:`svimo_core.render` draws with OpenCV.

Every joint and point is a disc and every bone a capsule, each of one colour; of those that cover a spot, the nearest
wins. One reduction finds it: each writes a number, its depth before its colour, to the spots that it covers, and the
smallest number stays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .motion import HAND_BONES, HAND_NAMES, JOINTS_PER_HAND, NUM_JOINTS
from .once import OnceForEach
from .render import MOTION_STYLE, NEAR, REFERENCE_WIDTH, supersampling

LEAST_WIDTH, LEAST_SPOTS, MOST_SPOTS = 144, 2, 4
"""A drawing has so many spots across at least, and 2 to 4 for a pixel: thin lines are drawn finer than they are looked
at."""
SPOTS_AT_ONCE = 2**22
"""As many frames are drawn at once as have so many spots, whose numbers and what covers them take about 200 MB."""
LONGEST_BONE = 1 / 4
"""Of the width of a drawing; the rest of a longer one, of a hand that nearly touches the lens, is not drawn."""
CHANNEL_BITS = 12
"""Of each of the three colour channels, wide enough for the sum over a pixel's spots."""
COLOR_MASK = 2 ** (3 * CHANNEL_BITS) - 1
DEPTH_STEPS = 1e6
"""Depths that are told apart, in a metre."""
FARTHEST = 100.0
"""Metres; whatever is farther counts as no farther than this when it is in doubt what is nearer."""
NOTHING = (2**27 - 1) << 36
"""Farther than everything, and black."""
JOINT_BEFORE_BONES = 1e-4
"""Metres."""


class Grid(NamedTuple):
    """The spots of one frame, and one more all around for what lies outside."""

    height: int
    width: int

    @property
    def stride(self) -> int:
        """From a spot to the one below."""
        return self.width + 2


class Strokes(NamedTuple):
    """What is written where: F x S each, int64."""

    spots: Tensor
    numbers: Tensor


class Rasterizer:
    """Rendered motion videos at a fraction of their size.

    Args:
        camera: fx and cx over the width, fy and cy over the height.
        size: height and width of the videos, pixels, which decide how large things are drawn.
        pixel: so many of their pixels, across and down, become one.
    """

    def __init__(self, camera: tuple[float, float, float, float], size: tuple[int, int], pixel: int = 1):
        height, width = (side // pixel for side in size)
        self.camera = camera
        self.fine = min(MOST_SPOTS, max(LEAST_SPOTS, math.ceil(LEAST_WIDTH / width)))
        """Spots in a row of a pixel."""
        self.grid = Grid(height * self.fine, width * self.fine)
        self.sizes = _drawn_sizes(size[1], self.grid.width)
        self.parts = OnceForEach(_parts)

    def __call__(self, metres: Tensor, clouds: tuple[int, ...]) -> Tensor:
        """Draw joints of both hands and the points of all objects in order.

        Args:
            metres: B N 42+P 3.
            clouds: number of points of each object.

        Returns:
            B N 3 h w in [0, 1], float32; a frame in which a number is not finite is NaN.
        """
        parts = self.parts(clouds, metres.device)
        at_once = max(1, SPOTS_AT_ONCE // (self.grid.height * self.grid.width))
        drawn = [self._draw(frames, *parts) for frames in metres.float().flatten(0, 1).split(at_once)]
        return torch.cat(drawn).unflatten(0, metres.shape[:2])

    def memory(self, frames: int) -> int:
        """Bytes that so many frames need: counted, 44 for each spot that is drawn at once."""
        return 45 * min(frames * self.grid.height * self.grid.width, SPOTS_AT_ONCE)

    def _draw(
        self, frames: Tensor, starts: Tensor, ends: Tensor, bone_colors: Tensor, colors: Tensor
    ) -> Tensor:
        """Frames (F 42+P 3) to drawings, F 3 h w."""
        grid, fine = self.grid, self.fine
        bone, joint, point, offset = self.sizes

        # 1. where everything lies in the grid, and what it writes
        fx, fy, cx, cy = self.camera
        x, y, z = frames.unbind(dim=-1)
        seen = z > NEAR
        near = z.clamp(min=NEAR)
        x = (fx * x / near + cx) * grid.width + offset
        y = (fy * y / near + cy) * grid.height + offset
        places = torch.stack([x, y], dim=-1).nan_to_num().clamp(-8 * max(grid), 8 * max(grid))
        between = (near[:, starts] + near[:, ends]) / 2
        numbers = _numbers(near, seen, colors)
        front = _numbers(
            (near - JOINT_BEFORE_BONES)[:, :NUM_JOINTS], seen[:, :NUM_JOINTS], colors[:NUM_JOINTS]
        )
        bones = _numbers(between, seen[:, starts] & seen[:, ends], bone_colors)

        # 2. the smallest number of each spot
        strokes = (
            _capsules(places[:, starts], places[:, ends], bones, bone, grid),
            _discs(places[:, :NUM_JOINTS], front, joint, grid),
            _discs(places[:, NUM_JOINTS:], numbers[:, NUM_JOINTS:], point, grid),
        )
        spots, numbers = (torch.cat(x, dim=1) for x in zip(*strokes, strict=True))
        canvas = numbers.new_full((len(frames), (grid.height + 2) * grid.stride), NOTHING)
        canvas.scatter_reduce_(1, spots, numbers, "amin")

        # 3. its colour, in the mean over a pixel's spots
        colors = canvas.bitwise_and_(COLOR_MASK).view(-1, grid.height + 2, grid.stride)[:, 1:-1, 1:-1]
        sums = colors.unflatten(1, (-1, fine)).sum(dim=2).unflatten(2, (-1, fine)).sum(dim=3)
        channels = [sums >> (CHANNEL_BITS * i) & (2**CHANNEL_BITS - 1) for i in range(3)]
        drawn = torch.stack(channels, dim=1) / (255 * fine**2)
        return drawn + 0 * frames.sum(dim=(1, 2))[:, None, None, None]


def _numbers(depth: Tensor, seen: Tensor, colors: Tensor) -> Tensor:
    """Depth (F S, metres) before colour (S)."""
    steps = (depth.clamp(max=FARTHEST) * DEPTH_STEPS).long()
    return torch.where(seen, steps << (3 * CHANNEL_BITS) | colors, NOTHING)


def _discs(centers: Tensor, numbers: Tensor, radius: float, grid: Grid) -> Strokes:
    """Of centres (F D 2, spots) and what they write (F D)."""
    reach = torch.arange(math.floor(2 * radius) + 1, device=centers.device)
    first = (centers - radius - 0.5).ceil()[..., None]  # the first spot whose middle may lie within
    away = (first + reach + 0.5 - centers[..., None]).square()
    covered = away[..., 0, None, :] + away[..., 1, :, None] <= radius**2  # F D rows columns
    columns = (first[..., 0, :].long() + reach).clamp(-1, grid.width) + 1
    rows = (first[..., 1, :].long() + reach).clamp(-1, grid.height) + 1
    spots = (rows * grid.stride)[..., :, None] + columns[..., None, :]
    return Strokes(spots.flatten(1), torch.where(covered, numbers[..., None, None], NOTHING).flatten(1))


def _capsules(starts: Tensor, ends: Tensor, numbers: Tensor, radius: float, grid: Grid) -> Strokes:
    """Of the ends of bones (F D 2 each, spots) and what they write (F D)."""
    # 1. u runs along the axis on which a bone is longer, from its lower end; v across it
    way = ends - starts
    steep = (way[..., 1].abs() > way[..., 0].abs())[..., None]
    way = torch.where(steep, way.flip(-1), way)
    start = torch.where(steep, starts.flip(-1), starts)
    start = torch.where(way[..., :1] < 0, start + way, start)
    way = way * way[..., :1].sign()
    length = way.norm(dim=-1, keepdim=True)
    along, across = (way / length.clamp(min=1e-6)).split(1, dim=-1)
    along = torch.where(length < 1e-6, 1.0, along)  # a bone without length is a disc
    u0, v0 = start.split(1, dim=-1)

    # 2. the spots at each u, and how far their middles are from the bone's middle line
    steps = math.ceil(LONGEST_BONE * grid.width + 2 * radius) + 1
    u = (u0 - radius - 0.5).ceil() + torch.arange(steps, device=u0.device)  # F D steps
    du = u + 0.5 - u0
    reach = radius * math.sqrt(2)  # across a line of 45 degrees
    v = (v0 + du * (across / along.clamp(min=math.sqrt(0.5))) - reach - 0.5).ceil()
    v = v[..., None] + torch.arange(math.floor(2 * reach) + 1, device=u0.device)  # F D steps reach
    dv = v + (0.5 - v0[..., None])
    forth = dv * across[..., None] + (du * along)[..., None]
    aside = dv * along[..., None] - (du * across)[..., None]
    beyond = forth - forth.clamp(min=0).minimum(length[..., None])
    covered = torch.addcmul(aside * aside, beyond, beyond) <= radius**2

    # 3. back to rows and columns
    u_end, v_end = (torch.where(steep, *x) for x in ((grid.height, grid.width), (grid.width, grid.height)))
    u_step, v_step = (torch.where(steep, *x) for x in ((grid.stride, 1), (1, grid.stride)))
    u = u.long().clamp(min=-1).minimum(u_end) + 1
    v = v.long().clamp(min=-1).minimum(v_end[..., None]) + 1
    spots = v * v_step[..., None] + (u * u_step)[..., None]
    return Strokes(spots.flatten(1), torch.where(covered, numbers[..., None, None], NOTHING).flatten(1))


def _drawn_sizes(width: int, spots: int) -> tuple[float, float, float, float]:
    """Radii of bones, joints and points, and how far to the right and down OpenCV draws, in spots.

    As OpenCV draws them on its canvas, measured: discs are 0.55 pixels larger than asked for, lines of 2 pixels and
    more 1.3 wider than the next even number. Its coordinates count from the middle of the first pixel.
    """
    canvas = width * supersampling(width)
    unit, scale = canvas / REFERENCE_WIDTH, spots / canvas
    line = max(1, round(MOTION_STYLE.bone_width * unit))
    line = 1.3 if line == 1 else 2 * math.ceil(line / 2) + 1.3
    joint, point = (r * unit + 0.55 for r in (MOTION_STYLE.joint_radius, MOTION_STYLE.point_radius))
    return line / 2 * scale, joint * scale, point * scale, scale / 2


def _parts(clouds: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Joints at the starts and ends of all bones; colours of bones, and of joints and points."""
    bones = torch.cat([torch.tensor(HAND_BONES) + i * JOINTS_PER_HAND for i in range(len(HAND_NAMES))])
    of_bones = [color for color in MOTION_STYLE.hand_colors for _ in HAND_BONES]
    of_rest = [MOTION_STYLE.joint_color] * NUM_JOINTS
    for i, points in enumerate(clouds):
        of_rest += [MOTION_STYLE.object_colors[i % len(MOTION_STYLE.object_colors)]] * points
    colors = (
        torch.tensor([sum(c << (CHANNEL_BITS * i) for i, c in enumerate(color)) for color in part])
        for part in (of_bones, of_rest)
    )
    return tuple(x.to(device) for x in (bones[:, 0], bones[:, 1], *colors))
