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

LEAST_WIDTH, LEAST_SPOTS, MOST_SPOTS = 96, 2, 4
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


class Tables(NamedTuple):
    """What is the same in all frames. Across and down are 2 1 1."""

    focal: Tensor
    """Across and down, spots."""
    middle: Tensor
    """Of the camera, across and down, from the middle of the first spot."""
    ends: Tensor
    """The spots just outside, to the right and below."""
    strides: Tensor
    """Between spots, across and down."""
    radii: Tensor
    """Of joints and points, spots."""
    nearer: Tensor
    """Metres that joints and points count as nearer than they are."""
    bones: Tensor
    """2 D, joints at both ends."""
    colors: Tensor
    """Of joints, points and bones, three channels in a number."""
    channels: Tensor
    """Their bits in it, 3 1 1."""
    units: Tensor
    """By which a channel's bits become its value, 3 1 1."""


class Strokes(NamedTuple):
    """Where each of D may be seen, and whether it is: F places D each."""

    spots: Tensor
    covered: Tensor


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
        self.bone, self.joint, self.point, self.offset = _drawn_sizes(size[1], self.grid.width)
        """Radii, and how far to the right and down everything is drawn, in spots."""
        self.tables = OnceForEach(self._tables)

    def __call__(self, metres: Tensor, clouds: tuple[int, ...]) -> Tensor:
        """Draw joints of both hands and the points of all objects in order.

        Args:
            metres: B N 42+P 3.
            clouds: number of points of each object.

        Returns:
            B N 3 h w in [0, 1], float32; a frame in which a number is not finite is NaN.
        """
        tables = self.tables(clouds, metres.device)
        at_once = max(1, SPOTS_AT_ONCE // (self.grid.height * self.grid.width))
        drawn = [self._draw(frames, tables) for frames in metres.float().flatten(0, 1).split(at_once)]
        return torch.cat(drawn).unflatten(0, metres.shape[:2])

    def memory(self, frames: int) -> int:
        """Bytes that so many frames need: counted, 44 for each spot that is drawn at once."""
        return 45 * min(frames * self.grid.height * self.grid.width, SPOTS_AT_ONCE)

    def _draw(self, frames: Tensor, tables: Tables) -> Tensor:
        """Frames (F 42+P 3) to drawings, F 3 h w."""
        grid, fine = self.grid, self.fine

        # 1. where everything lies in the grid, and what it writes
        x, y, z = frames.unbind(dim=-1)
        depth = torch.where(z > NEAR, z, math.inf)
        places = torch.addcdiv(tables.middle, torch.stack([x, y]) * tables.focal, depth)  # 2 F 42+P
        places = places.nan_to_num().clamp(-8 * max(grid), 8 * max(grid))
        of_bones = depth[:, tables.bones].mean(dim=1)
        numbers = _numbers(torch.cat([depth - tables.nearer, of_bones], dim=1), tables.colors)

        # 2. the smallest number of each spot
        starts, ends = places[:, :, tables.bones].unbind(dim=2)
        discs = _discs(places, tables, max(self.joint, self.point))
        capsules = _capsules(starts, ends, tables, self.bone, LONGEST_BONE * grid.width)
        canvas = numbers.new_full((len(frames), (grid.height + 2) * grid.stride), NOTHING)
        counts = places.shape[-1], starts.shape[-1]
        for (spots, covered), number in zip((discs, capsules), numbers.split(counts, dim=1), strict=True):
            number = torch.where(covered, number[:, None], NOTHING)
            canvas.scatter_reduce_(1, spots.flatten(1).long(), number.flatten(1), "amin")

        # 3. its colour, in the mean over a pixel's spots; NaN in a frame with a number that is not finite
        colors = canvas.bitwise_and_(COLOR_MASK).view(-1, grid.height + 2, grid.stride)[:, 1:-1, 1:-1]
        sums = colors.unflatten(1, (-1, fine)).sum(dim=2).unflatten(2, (-1, fine)).sum(dim=3)
        share = 0 * frames.sum(dim=(1, 2)) + 1 / (255 * fine**2)
        return (sums[:, None] & tables.channels) * (share[:, None, None, None] * tables.units)

    def _tables(self, clouds: tuple[int, ...], device: torch.device) -> Tables:
        grid, (fx, fy, cx, cy) = self.grid, self.camera
        size = torch.tensor([grid.width, grid.height], dtype=torch.int32)
        shifts = [CHANNEL_BITS * i for i in range(3)]
        colors = [MOTION_STYLE.joint_color] * NUM_JOINTS
        for i, points in enumerate(clouds):
            colors += [MOTION_STYLE.object_colors[i % len(MOTION_STYLE.object_colors)]] * points
        colors += [color for color in MOTION_STYLE.hand_colors for _ in HAND_BONES]
        tables = Tables(
            focal=(size * torch.tensor([fx, fy])).view(2, 1, 1),
            middle=(size * torch.tensor([cx, cy]) + self.offset - 0.5).view(2, 1, 1),
            ends=size.view(2, 1, 1),
            strides=torch.tensor([1, grid.stride], dtype=torch.int32).view(2, 1, 1),
            radii=torch.tensor([self.joint] * NUM_JOINTS + [self.point] * sum(clouds)),
            nearer=torch.tensor([JOINT_BEFORE_BONES] * NUM_JOINTS + [0.0] * sum(clouds)),
            bones=torch.cat(
                [torch.tensor(HAND_BONES).T + i * JOINTS_PER_HAND for i in range(len(HAND_NAMES))], 1
            ),
            colors=torch.tensor(
                [sum(c << bits for c, bits in zip(color, shifts, strict=True)) for color in colors]
            ),
            channels=torch.tensor([(2**CHANNEL_BITS - 1) << bits for bits in shifts]).view(3, 1, 1),
            units=torch.tensor([2.0**-bits for bits in shifts]).view(3, 1, 1),
        )
        return Tables(*(x.to(device) for x in tables))


def _numbers(depth: Tensor, colors: Tensor) -> Tensor:
    """Depth (F S, metres; infinite: not seen) before colour (S)."""
    steps = (depth.clamp(max=FARTHEST) * DEPTH_STEPS).long()
    return torch.where(depth < math.inf, steps << (3 * CHANNEL_BITS) | colors, NOTHING)


def _discs(centers: Tensor, tables: Tables, widest: float) -> Strokes:
    """Of centres (2 F D, spots)."""
    reach = torch.arange(math.floor(2 * widest) + 1, device=centers.device)
    # from the first that may lie within, 2 F reach D
    places = (centers - tables.radii).ceil()[:, :, None] + reach[:, None]
    across, down = (places - centers[:, :, None]).square()
    covered = across[:, None] + down[:, :, None] <= tables.radii.square()  # F rows columns D
    inside = places.int().clamp(min=-1).minimum(tables.ends[..., None]) + 1
    columns, rows = inside * tables.strides[..., None]
    spots = columns[:, None] + rows[:, :, None]
    return Strokes(spots.flatten(1, 2), covered.flatten(1, 2))


def _capsules(starts: Tensor, ends: Tensor, tables: Tables, radius: float, longest: float) -> Strokes:
    """Of the ends of bones (2 F D each, spots)."""
    # 1. u runs along the axis on which a bone is longer, v across it
    across, down = (ends - starts).abs()
    steep = down > across

    def turned(pair: Tensor) -> Tensor:
        return torch.where(steep, pair.flip(0), pair)

    start = turned(starts)  # all 2 F D
    way = turned(ends) - start
    u_first, v_first = start[:, :, None]  # all F 1 D
    du, dv = way[:, :, None]
    squared = torch.addcmul(du * du, dv, dv).clamp(min=1e-12)  # a bone without length is a disc

    # 2. the spots at each u, and how far they are from the bone
    steps = torch.arange(math.ceil(longest + 2 * radius) + 1, device=du.device)
    reach = radius * math.sqrt(2)  # across a line of 45 degrees
    u = (u_first + du.clamp(max=0) - radius).ceil() + steps[:, None]  # F steps D
    forth = u - u_first
    v = torch.addcmul(v_first - reach, forth, du * dv / (du * du).clamp(min=1e-12)).ceil()
    v = (
        v[:, None] + torch.arange(math.floor(2 * reach) + 1, device=du.device)[:, None, None]
    )  # F reach steps D
    aside = v - v_first[:, None]
    share = torch.addcmul((forth * (du / squared))[:, None], aside, (dv / squared)[:, None])
    share = share.clamp(0, 1)  # of the way, to what is nearest
    forth = torch.addcmul(forth[:, None], share, du[:, None], value=-1)
    aside = torch.addcmul(aside, share, dv[:, None], value=-1)
    covered = torch.addcmul(aside * aside, forth, forth) <= radius**2

    # 3. back to rows and columns
    u_end, v_end = turned(tables.ends)[:, :, None]
    u_stride, v_stride = turned(tables.strides)[:, :, None]
    u = (u.int().clamp(min=-1).minimum(u_end) + 1) * u_stride + v_stride
    spots = torch.addcmul(u[:, None], v.int().clamp(min=-1).minimum(v_end[:, None]), v_stride[:, None])
    return Strokes(spots.flatten(1, 2), covered.flatten(1, 2))


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
