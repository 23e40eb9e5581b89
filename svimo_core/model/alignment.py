"""The loop's look at the image: a 3D reading held against the reference image and corrected.

VID reads latents; whether its reading lies on the hands and things of the image, nothing in the paper's loop says.
Here the image itself is asked where it shows each joint, and the difference from where the reading projects corrects
the whole motion: alignment as feedback, as Zhang et al. 2021 (PyMAF) have it for bodies. Our decision, not the paper's;
docs/results.md has what it gains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import InteractionConfig
from ..motion import HAND_NAMES
from ..once import OnceForEach
from .layers import (
    COORDINATE_CHANNELS,
    Operations,
    ResBlock2D,
    cell_coordinates,
    with_coordinates,
)

NUM_HANDS = len(HAND_NAMES)
IMAGE_BLOCKS = 3
"""Residual blocks over the image latent."""
RESIDUAL_UNIT = 0.04
"""Image coordinates; two pixels of a hundred. Differences are given to the network in this unit."""
SHIFT_UNIT = 0.02
"""Metres. Corrections come from the network in this unit."""


class ImageAlignment(nn.Module):
    """Finds joints and points in the reference image, and says how a reading that projects elsewhere must move."""

    def __init__(self, config: InteractionConfig, operations: Operations = nn):
        super().__init__()
        width, hidden = config.align_channels
        self.num_joints, self.num_points = config.num_joints, config.num_points
        self.num_objects, self.per_object = len(config.object_names), config.align_points
        places = config.num_joints + self.num_objects * self.per_object
        bodies = NUM_HANDS + self.num_objects

        self.stem = operations.Conv2d(config.latent_channels + COORDINATE_CHANNELS, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResBlock2D(width, config.norm_groups, operations) for _ in range(IMAGE_BLOCKS)
        )
        self.norm = operations.GroupNorm(config.norm_groups, width)
        self.maps = operations.Conv2d(width, 3 * places, 1)

        self.compare = operations.Linear(5 * places, hidden)
        self.hidden = operations.Linear(hidden, hidden)
        self.frame = operations.Linear(3 * bodies + hidden, hidden)
        self.shift = operations.Linear(hidden, 3 * bodies)
        self.joint = operations.Conv1d(2 * self.num_joints, 3 * self.num_joints, 1, groups=self.num_joints)
        self.coordinates = OnceForEach(cell_coordinates)
        self.chosen_index = OnceForEach(self._chosen_index)

    def find(self, image: Tensor) -> Tensor:
        """Where a reference image shows every joint and every chosen point.

        For each there is a map of where to look, and of the way from there. Their mean over all cells of the latent is
        finer than the cells are (integral regression, Sun et al. 2018).

        Args:
            image: latent, B C h w.

        Returns:
            B K 2 float32: across and down, from -1 to 1 at the image's edges.
        """
        # in half precision, cells would not be where they are
        where = self.coordinates(*image.shape[-2:], image.device)
        x = self.stem(with_coordinates(image, where))
        for block in self.blocks:
            x = block(x)
        maps = self.maps(F.silu(self.norm(x))).float()
        looked, across, down = rearrange(maps, "b (c k) h w -> c b k (h w)", c=3)
        rows, columns = where[0].flatten(), where[COORDINATE_CHANNELS // 2].flatten()
        height, width = image.shape[-2:]
        places = torch.stack([columns + across * (2 / width), rows + down * (2 / height)], dim=-1)
        return (looked.softmax(dim=-1)[..., None] * places).sum(dim=-2)

    def forward(
        self, found: Tensor, hands: Tensor, points: Tensor, projected: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How a reading must move.

        Args:
            found: of :meth:`find`, B K 2.
            hands, points: normalised reading, B N 42 3 and B N P 3, in the type to compute in.
            projected: where its first frame lies in the image, B 42+P 2, from -1 to 1.

        Returns:
            Metres, for hands and points, shaped as given: every hand and object as a whole, and every joint a little
            for itself.
        """
        dtype = hands.dtype
        apart = ((found - self.chosen_places(projected)) / RESIDUAL_UNIT).to(dtype)
        clouds = self.chosen(points)
        first = torch.cat([hands, clouds], dim=2)[:, 0].to(dtype)
        x = F.silu(self.compare(torch.cat([apart.flatten(1), first.flatten(1)], dim=1)))
        x = F.silu(self.hidden(x))[:, None]

        bodies = (hands.unflatten(2, (NUM_HANDS, -1)), clouds.unflatten(2, (self.num_objects, -1)))
        middles = torch.cat([body.mean(dim=3) for body in bodies], dim=2).flatten(2)  # B N bodies*3
        way = (middles - middles[:, :1]).to(dtype)
        x = x.expand(-1, way.shape[1], -1)
        x = x + F.silu(self.frame(torch.cat([way, x], dim=-1)))
        shift = SHIFT_UNIT * self.shift(x).float().unflatten(-1, (-1, 3))

        alone = SHIFT_UNIT * self.joint(apart[:, : self.num_joints].flatten(1)[..., None]).float()
        of_hands, of_points = shift[:, :, :, None].split([NUM_HANDS, self.num_objects], dim=2)
        of_hands = of_hands + alone.view(len(found), 1, NUM_HANDS, -1, 3)
        of_points = of_points.expand(-1, -1, -1, self.num_points // self.num_objects, -1)
        return of_hands.flatten(2, 3), of_points.flatten(2, 3)

    def chosen(self, points: Tensor) -> Tensor:
        """The points that are looked for, evenly among each object's: B N P c to B N (objects x align_points) c."""
        clouds = points.unflatten(2, (self.num_objects, -1))
        return clouds.index_select(3, self.chosen_index(clouds.shape[3], points.device)).flatten(2, 3)

    def _chosen_index(self, count: int, device: torch.device) -> Tensor:
        return torch.linspace(0, count - 1, self.per_object).round().long().to(device)

    def chosen_places(self, places: Tensor) -> Tensor:
        """Of places of all joints and points (B 42+P 2), those that are looked for: B K 2."""
        joints, points = places[:, : self.num_joints], places[:, None, self.num_joints :]
        return torch.cat([joints, self.chosen(points)[:, 0]], dim=1)


def start_without_corrections(alignment: ImageAlignment) -> None:
    """Weights to train an alignment from: untrained, it changes nothing."""
    for last in (alignment.shift, alignment.joint):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def keep_finding(old: ImageAlignment, new: ImageAlignment) -> None:
    """What finds joints and points in the image, from one alignment into another that is as large there."""
    for name in ("stem", "blocks", "norm", "maps"):
        before, after = (getattr(alignment, name).state_dict() for alignment in (old, new))
        if all(before[key].shape == after[key].shape for key in after):
            getattr(new, name).load_state_dict(before)
