"""Object point clouds -> one canonical cloud and a rigid 6-DoF trajectory, and a surface to show it with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay, QhullError

SURFACE_POINTS = 1000
"""A display surface is built from at most this many points."""
SURFACE_RADIUS = 3.0
"""Chosen by eye on clouds of 128 points: 1 leaves holes, 2 leaves dents, 3 keeps bowls hollow, 4 closes them."""


@dataclass(frozen=True, kw_only=True)
class RigidTrack:
    """A cloud that moves without changing shape: in frame i, point k is rotations[i] @ points[k] + translations[i]."""

    points: np.ndarray
    """Canonical cloud, K x 3, metres, centred on its mean, turned as in the first frame."""
    rotations: np.ndarray
    """N x 3 x 3."""
    translations: np.ndarray
    """N x 3, metres."""
    residual: np.ndarray
    """Distance of every observed point from its place on the rigid cloud, N x K, metres."""

    def posed(self) -> np.ndarray:
        """The cloud in every frame, N x K x 3, metres."""
        return np.einsum("nij,kj->nki", self.rotations, self.points) + self.translations[:, None]

    def to_local(self, points: np.ndarray) -> np.ndarray:
        """Camera-space points, N x ... x 3, seen from the moving object."""
        moved = points - self.translations.reshape(-1, *(1,) * (points.ndim - 2), 3)
        return np.einsum("nji,n...j->n...i", self.rotations, moved)

    @property
    def residual_mm(self) -> float:
        """Root mean square of the residual in millimetres: 0 for a truly rigid object."""
        return float(np.sqrt(np.mean(self.residual**2)) * 1000)


def fit_rigid_track(points: np.ndarray, *, name: str = "object", iterations: int = 5) -> RigidTrack:
    """Find the rigid motion that best explains points which keep their index over time.

    Generalised Procrustes analysis: align every frame to the canonical cloud, take the median of the aligned
    frames as the next canonical cloud, and trust points by how still they are in it. The median over time and
    the weights over points keep single bad frames and single loose points from bending the track.

    Args:
        points: N x K x 3, metres; K >= 3.
        name: what to call the cloud in errors.
        iterations: rounds of alignment; clean data is exact after two.

    Raises:
        ValueError: points that are too few, lie on one line, or are not finite, so that no rotation exists.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 3 or points.shape[2] != 3 or not len(points):
        raise ValueError(f"{name}: expected frames x points x 3 with at least one frame, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: the points have values that are not finite (NaN or infinity)")
    if points.shape[1] < 3:
        raise ValueError(f"{name}: a rigid track needs at least 3 points, got {points.shape[1]}")

    canonical = points[0] - points[0].mean(axis=0)
    weights = np.full(points.shape[1], 1 / points.shape[1])
    for _ in range(iterations):
        spread = np.linalg.svd(canonical, compute_uv=False)
        if spread[1] <= 1e-3 * spread[0]:
            raise ValueError(
                f"{name}: all points lie on one line or in one place, so the object's rotation is undefined"
            )
        rotations, translations = align(points, canonical, weights)
        track = RigidTrack(
            points=canonical,
            rotations=rotations,
            translations=translations,
            residual=np.zeros(points.shape[:2]),
        )
        local = track.to_local(points)
        canonical = np.median(local, axis=0)
        canonical -= canonical.mean(axis=0)
        stillness = np.median(np.linalg.norm(local - canonical, axis=-1), axis=0)
        weights = 1 / (stillness + 1e-3)  # 1 mm keeps a perfectly rigid point from taking all the weight
        weights /= weights.sum()

    rotations, translations = align(points, canonical, weights)
    to_first = rotations[0]  # the canonical cloud is turned as in the first frame, which then has no rotation
    canonical, rotations = canonical @ to_first.T, rotations @ to_first.T
    posed = np.einsum("nij,kj->nki", rotations, canonical) + translations[:, None]
    return RigidTrack(
        points=canonical,
        rotations=rotations,
        translations=translations,
        residual=np.linalg.norm(points - posed, axis=-1),
    )


def align(points: np.ndarray, canonical: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N x 3 x 3) and translations (N x 3) that carry `canonical` (K x 3) to each frame of `points`.

    Least squares with `weights` (K, adding up to 1): Kabsch 1976, by one batched singular value decomposition.
    """
    centre = weights @ canonical
    centres = np.einsum("k,nkc->nc", weights, points)
    left, _, right = np.linalg.svd(
        (points - centres[:, None]).swapaxes(1, 2) @ (weights[:, None] * (canonical - centre))
    )
    left[..., 2] *= np.linalg.det(left @ right)[:, None]  # a rotation, not a mirror
    rotations = left @ right
    return rotations, centres - rotations @ centre


def bridge(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Frames (N x ...) in which something is absent from `present` (N bool) by straight lines between their
    neighbours; before the first and after the last, as those are.

    Raises:
        ValueError: it is present in no frame.
    """
    if present.all():
        return values
    if not present.any():
        raise ValueError("it is absent from every frame, so nothing can stand in for it")
    frames, seen = np.arange(len(values)), np.flatnonzero(present)
    after = np.searchsorted(seen, frames).clip(0, len(seen) - 1)
    before = (after - (seen[after] > frames)).clip(0)
    start, end = seen[before], seen[after]
    share = np.clip((frames - start) / np.maximum(end - start, 1), 0, 1).reshape(
        -1, *(1,) * (values.ndim - 1)
    )
    return np.where(present.reshape(share.shape), values, (1 - share) * values[start] + share * values[end])


def display_surface(points: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A triangle surface around a point cloud, for display only.

    An alpha shape: the tetrahedra of the Delaunay triangulation with a small enough circumsphere. The limit is
    :data:`SURFACE_RADIUS` times the smallest radius at which every point is still part of a tetrahedron.

    Args:
        points: K x 3 with K >= 4; above :data:`SURFACE_POINTS` a random subset is used.
        seed: of that subset.

    Returns:
        Vertices (V x 3) and faces (F x 3, outside counter-clockwise).

    Raises:
        ValueError: points that span no surface.
    """
    if len(points) > SURFACE_POINTS:
        points = points[np.random.default_rng(seed).choice(len(points), SURFACE_POINTS, replace=False)]
    points = np.asarray(points, dtype=np.float64)
    try:
        tetrahedra = Delaunay(
            points, qhull_options="QJ Pp"
        ).simplices  # QJ: flat clouds are joggled, not refused
    except (QhullError, ValueError) as error:
        raise ValueError(
            f"no surface around {len(points)} points: at least 4 that differ are needed"
        ) from error

    radii = _circumradii(points[tetrahedra])
    smallest_at_point = np.full(len(points), np.inf)
    np.minimum.at(smallest_at_point, tetrahedra, radii[:, None])
    kept = tetrahedra[radii <= SURFACE_RADIUS * smallest_at_point.max()]

    # The surface is every triangle that belongs to exactly one kept tetrahedron.
    faces = np.concatenate([kept[:, [b, c, d]] for b, c, d in ((1, 2, 3), (0, 3, 2), (0, 1, 3), (0, 2, 1))])
    opposite = np.concatenate([kept[:, a] for a in range(4)])
    _, first, count = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_counts=True)
    faces, opposite = faces[first[count == 1]], opposite[first[count == 1]]

    corner = points[faces[:, 0]]
    normals = np.cross(points[faces[:, 1]] - corner, points[faces[:, 2]] - corner)
    inward = np.einsum("fc,fc->f", normals, points[opposite] - corner) > 0
    faces[inward] = faces[inward][:, ::-1]
    used, faces = np.unique(faces, return_inverse=True)
    return points[used], faces.reshape(-1, 3)


def _circumradii(corners: np.ndarray) -> np.ndarray:
    """Radius of the sphere through the corners of each tetrahedron (T x 4 x 3); infinite when it is flat."""
    a, b, c = (corners[:, i] - corners[:, 0] for i in (1, 2, 3))
    square = lambda v: np.einsum("tc,tc->t", v, v)[:, None]  # noqa: E731
    numerator = square(a) * np.cross(b, c) + square(b) * np.cross(c, a) + square(c) * np.cross(a, b)
    volume = 2 * np.abs(np.einsum("tc,tc->t", a, np.cross(b, c)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(volume > 0, np.linalg.norm(numerator, axis=1) / volume, np.inf)
