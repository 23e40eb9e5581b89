"""The losses, as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(decoded: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1, MSE and gradient L1 between frames (B C N H W in [-1, 1]).

    The last compares differences of neighbouring pixels, which thin bright lines on black are made of.
    """
    down = [x[..., 1:, :] - x[..., :-1, :] for x in (decoded, frames)]
    right = [x[..., 1:] - x[..., :-1] for x in (decoded, frames)]
    return F.l1_loss(decoded, frames), F.mse_loss(decoded, frames), F.l1_loss(*down) + F.l1_loss(*right)


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence from a diagonal Gaussian to the unit one, mean over elements, nats."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


def denoising_loss(clean: Tensor, target: Tensor, abar: Tensor, weighting: str, counted: Tensor) -> Tensor:
    """Error of predicted clean latents (B C T h w), mean over the frames that count (paper equation 6).

    Args:
        abar: signal level of each sample (B,).
        weighting: "x0" leaves the error as it is; "v" divides it by 1 - abar, which gives the MSE of the velocity.
        counted: which latent frames of which sample (B T).
    """
    error = ((clean - target) ** 2).mean(dim=(1, 3, 4))
    if weighting == "v":
        error = error / (1 - abar[:, None])
    return (error * counted).sum() / counted.sum().clamp(min=1)


def chamfer(points: Tensor, target: Tensor) -> Tensor:
    """Squared, two-sided Chamfer distance between clouds (... P 3), mean over all clouds, in their units squared.

    The search for neighbours needs no gradient, so only the points that it finds are kept for the backward pass. It
    takes no matrix product, which autocast would do in bf16: too coarse to tell neighbours apart.
    """
    with torch.no_grad():
        apart = torch.cdist(points, target, compute_mode="donot_use_mm_for_euclid_dist")
        of_target, of_points = (apart.min(dim=dim).indices[..., None] for dim in (-1, -2))
    nearest = target.gather(-2, of_target.expand_as(points)), points.gather(-2, of_points.expand_as(target))
    # mse_loss takes the mean over the three axes too, a squared distance their sum
    return 3 * (F.mse_loss(points, nearest[0]) + F.mse_loss(nearest[1], target))


def interaction_loss(
    hands: Tensor,
    points: Tensor,
    target_hands: Tensor,
    target_points: Tensor,
    num_objects: int,
    point_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """VID's loss on normalised motion: hand MSE + object Chamfer (paper equation 5), and its two terms.

    Args:
        hands: B N 42 3.
        points: B N P 3, all objects in order; each object's cloud is compared with its own.
        point_weight: adds an MSE on points that keep their index over time, which the paper does not have.
    """
    hand_error = F.mse_loss(hands, target_hands)
    clouds, target_clouds = (torch.stack(x.chunk(num_objects, dim=2), dim=2) for x in (points, target_points))
    distance = chamfer(clouds, target_clouds)
    total = hand_error + distance
    if point_weight:
        total = total + point_weight * F.mse_loss(points, target_points)
    return total, hand_error, distance


def distances(
    hands: Tensor,
    points: Tensor,
    target_hands: Tensor,
    target_points: Tensor,
    hands_std: Tensor,
    points_std: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean distance of hands and mean distance of points in units of 5 cm, which the paper's squares are not.

    Args:
        hands, points: as of :func:`interaction_loss`; points are compared with those of the same index.
        hands_std, points_std: spread that the motion was divided by, 42 x 3 and P x 3, metres.
    """
    return tuple(
        # smooth where it vanishes, within 2 mm
        (((x - target) * std / DISTANCE_UNIT).square().sum(dim=-1) + 1e-3).sqrt().mean()
        for x, target, std in ((hands, target_hands, hands_std), (points, target_points, points_std))
    )


def finding_loss(found: Tensor, places: Tensor) -> Tensor:
    """Mean distance in image coordinates (B K 2, -1 to 1 at the edges) in units of a tenth of the image, smooth where
    it vanishes."""
    return (((found - places) / 0.2).square().sum(dim=-1) + 1e-5).sqrt().mean()


DISTANCE_UNIT = 0.05
"""Metres; about the spread of a joint, so that losses stay around 1."""
