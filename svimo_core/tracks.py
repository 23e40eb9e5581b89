"""Object point clouds -> one canonical cloud and a rigid 6-DoF trajectory, and a surface to show it with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

SHAPE_FRAMES = 1000
"""The shape of a cloud is estimated from at most about this many frames, evenly chosen; its motion from all."""
ONE_PLACE = 1e-5
"""Metres: points this near to each other have no direction."""
THIN = 0.01
"""A cloud thinner than this share of its length counts as a line, or as flat: what noise in its points then says of a
turn about its length would be a spin that nobody saw."""
SURFACE_POINTS = 1000
"""A display surface is built from at most this many points."""
SURFACE_RADIUS = 3.0
"""Chosen by eye on clouds of 128 points: 1 leaves holes, 2 leaves dents, 3 keeps bowls hollow, 4 closes them."""
ROD_RADIUS, PLATE_THICKNESS = 0.004, 0.002
"""Metres: what is shown around one point or a line of them, and around points in one plane."""
PART_FRAMES, PART_POINTS, PART_STARTS = 64, 500, 16
"""Rigid parts are searched for in at most so many frames and points, from so many beginnings."""
RIGID = 1e-4
"""Metres (RMS): points that move together as exactly as this are not taken apart."""


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

    Few points are no dead end. Where they do not tell the whole rotation, it is the smallest that explains them: points
    on one line (two always are) swing with it and never spin about it, and one point, or points in one place, only
    travel.

    Args:
        points: N x K x 3, metres.
        name: what to call the cloud in errors.
        iterations: rounds of alignment; clean data is exact after two.

    Raises:
        ValueError: no frames, no points, or values that are not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 3 or points.shape[2] != 3 or not points.size:
        raise ValueError(
            f"{name}: expected frames x points x 3 with at least one frame and point, got {points.shape}"
        )
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: the points have values that are not finite (NaN or infinity)")

    # 1. Shape
    some = points[:: -(-len(points) // SHAPE_FRAMES)]
    canonical = some[0] - some[0].mean(axis=0)
    weights = np.full(points.shape[1], 1 / points.shape[1])
    for _ in range(iterations):
        rotations, translations = align_any(some, canonical, weights)
        local = (some - translations[:, None]) @ rotations
        canonical = np.median(local, axis=0)
        canonical -= canonical.mean(axis=0)
        stillness = np.median(np.linalg.norm(local - canonical, axis=-1), axis=0)
        weights = 1 / (stillness + 1e-3)  # 1 mm keeps a perfectly rigid point from taking all the weight
        weights /= weights.sum()

    # 2. Motion
    rotations, translations = align_any(points, canonical, weights)
    to_first = rotations[0]  # the canonical cloud is turned as in the first frame, which then has no rotation
    canonical, rotations = canonical @ to_first.T, rotations @ to_first.T
    posed = canonical @ rotations.swapaxes(1, 2) + translations[:, None]
    return RigidTrack(
        points=canonical,
        rotations=rotations,
        translations=translations,
        residual=np.linalg.norm(points - posed, axis=-1),
    )


def rigid_parts(
    points: np.ndarray, count: int, *, name: str = "object", seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Take apart a cloud that moves as several rigid bodies: scissors, a laptop, a box and its lid.

    K-means whose centres are rigid tracks: each point goes to the track that leaves it most still. It begins anew from
    random points and those whose distance to them changes least, and keeps the smallest sum of residuals. A point on a
    hinge moves with both sides and may go to either.

    Args:
        points: N x K x 3, metres; a point keeps its index over time.
        count: number of parts, 1 to K.
        name: what to call the cloud in errors.
        seed: of the beginnings.

    Returns:
        For each part the indices of its points, ascending; the largest part first.

    Raises:
        ValueError: see :func:`fit_rigid_track`; a count that cannot be, or points that move as fewer rigid bodies.
    """
    whole = fit_rigid_track(points, name=name)  # which checks the points
    points = np.asarray(points, dtype=np.float64)
    total = points.shape[1]
    if not 1 <= count <= total:
        raise ValueError(f"{name}: its {total} points can be 1 to {total} rigid parts, got {count}")
    if count == 1:
        return (np.arange(total),)
    if whole.residual_mm < 1000 * RIGID:
        raise ValueError(
            f"{name}: its points already move as one rigid body, to {whole.residual_mm:.2g} mm; ask for 1 part"
        )
    rng = np.random.default_rng(seed)
    points = points[:: -(-len(points) // PART_FRAMES)]
    sample = points[:, np.sort(rng.permutation(total)[:PART_POINTS])]
    best, smallest = None, np.inf
    for _ in range(PART_STARTS):
        seeds = _spread_seeds(sample, count, rng)
        unrest = np.stack([_distance_changes(sample, seed) for seed in seeds])
        for _ in range(20):
            labels = unrest.argmin(axis=0)
            groups = [sample[:, labels == i] for i in range(count)]
            if min(group.shape[1] for group in groups) == 0:
                break
            tracks = [fit_rigid_track(group, name=name, iterations=2) for group in groups]
            unrest = np.stack([_unrest(sample, track) for track in tracks])
            if unrest.min(axis=0).sum() < smallest:
                best, smallest = tracks, unrest.min(axis=0).sum()
            if (unrest.argmin(axis=0) == labels).all():
                break
    labels = np.zeros(total, int)
    if best is not None:
        labels = np.stack([_unrest(points, track) for track in best]).argmin(axis=0)
    parts = [np.flatnonzero(labels == i) for i in range(count)]
    if not all(len(part) for part in parts):
        raise ValueError(f"{name}: its points move as fewer than {count} rigid parts: ask for fewer")
    return tuple(sorted(parts, key=len, reverse=True))


def _spread_seeds(points: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Indices of `count` points that move apart from each other, drawn as k-means++ draws its centres."""
    seeds = [int(rng.integers(points.shape[1]))]
    while len(seeds) < count:
        apart = np.min([_distance_changes(points, seed) for seed in seeds], axis=0) ** 2 + 1e-18
        seeds.append(int(rng.choice(points.shape[1], p=apart / apart.sum())))
    return seeds


def _distance_changes(points: np.ndarray, index: int) -> np.ndarray:
    """How much the distance of each point from one of them changes over time, K: 0 on the same rigid body."""
    return np.linalg.norm(points - points[:, index, None], axis=-1).std(axis=0)


def _unrest(points: np.ndarray, track: RigidTrack) -> np.ndarray:
    """How far each point moves from its middle place on a rigid body, K, metres (RMS)."""
    local = track.to_local(points)
    return np.sqrt(np.mean(np.sum((local - np.median(local, axis=0)) ** 2, axis=-1), axis=0))


def extent(points: np.ndarray) -> int:
    """In how many directions a cloud (K x 3, metres) extends: 0 one place, 1 a line, 2 a plane, 3 space.

    A side shorter than :data:`THIN` of the longest does not count.
    """
    sides = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return int(np.sum(sides > max(ONE_PLACE, THIN * sides[0])))


def align_any(
    points: np.ndarray, canonical: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`align`, with the smallest rotations where `canonical` is a line or one place and leaves them open."""
    size = extent(canonical)
    if size >= 2:
        return align(points, canonical, weights)
    centre = weights @ canonical
    centres = np.einsum("k,nkc->nc", weights, points)
    rotations = np.tile(np.eye(3), (len(points), 1, 1))
    if size == 1:
        axis = np.linalg.svd(canonical - centre)[2][0]
        along = (canonical - centre) @ axis
        directions = np.einsum("k,nkc->nc", weights * along, points - centres[:, None])
        rotations = _follow(axis, directions, shortest=1e-3 * (weights @ along**2))
    return rotations, centres - rotations @ centre


def _follow(axis: np.ndarray, directions: np.ndarray, shortest: float) -> np.ndarray:
    """Rotations (N x 3 x 3) that turn `axis` (3) to the first of `directions` (N x 3) and from each to the next without
    any spin about it. Directions not longer than `shortest` are as the one before."""
    known = np.append(True, np.linalg.norm(directions, axis=1) > shortest)
    directions = np.concatenate([axis[None], directions])
    directions = directions[np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))]
    rotations = smallest_turns(directions[:-1], directions[1:])
    for i in range(1, len(rotations)):
        rotations[i] = rotations[i] @ rotations[i - 1]
    return rotations


def smallest_turns(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotations (N x 3 x 3) that turn directions `start` (N x 3, or 3 for all) to `end` (N x 3)."""
    start, end = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9) for v in (start, end))
    start = np.broadcast_to(start, end.shape)
    cosine = np.sum(start * end, axis=-1)
    axis = np.cross(start, end)
    # Half a turn has no smallest axis: take any perpendicular one.
    back = cosine < -1 + 1e-9
    axis[back] = np.cross(start, np.eye(3)[np.abs(start).argmin(axis=-1)])[back]
    return Rotation.from_quat(np.concatenate([axis, 1 + cosine[:, None]], axis=-1)).as_matrix()


def align(points: np.ndarray, canonical: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N x 3 x 3) and translations (N x 3) that carry `canonical` (K x 3) to each frame of `points`.

    Least squares with `weights` (K, or N x K; adding up to 1): Kabsch 1976, one batched singular value decomposition.
    """
    weights = np.broadcast_to(weights, points.shape[:2])
    centres, middles = np.einsum("nk,nkc->nc", weights, points), weights @ canonical
    moments = np.einsum("nkc,nk,kd->ncd", points, weights, canonical, optimize=True)
    left, _, right = np.linalg.svd(moments - centres[:, :, None] * middles[:, None])
    left[..., 2] *= np.linalg.det(left @ right)[:, None]  # a rotation, not a mirror
    rotations = left @ right
    return rotations, centres - np.einsum("nij,nj->ni", rotations, middles)


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
    :data:`SURFACE_RADIUS` times the smallest radius at which every point is still part of a tetrahedron. Points that
    enclose nothing get a body: a ball around one place, a rod along a line, a plate in a plane.

    Args:
        points: K x 3, metres; above :data:`SURFACE_POINTS` a random subset is used.
        seed: of that subset.

    Returns:
        Vertices (V x 3) and faces (F x 3, outside counter-clockwise).

    Raises:
        ValueError: no points, or values that are not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not points.size or not np.isfinite(points).all():
        raise ValueError(f"a surface needs points x 3 of finite values and at least one, got {points.shape}")
    if len(points) > SURFACE_POINTS:
        points = points[np.random.default_rng(seed).choice(len(points), SURFACE_POINTS, replace=False)]
    size = extent(points)
    points = _thickened(points, size)
    tetrahedra = np.arange(4)[None]  # of four points there is one, and Qhull wants five
    if len(points) > 4:
        tetrahedra = Delaunay(points, qhull_options="QJ Pp").simplices  # QJ joggles what would be ambiguous

    radii = _circumradii(points[tetrahedra])
    smallest_at_point = np.full(len(points), np.inf)
    np.minimum.at(smallest_at_point, tetrahedra, radii[:, None])
    limit = SURFACE_RADIUS * smallest_at_point[np.isfinite(smallest_at_point)].max() if size >= 2 else np.inf
    kept = tetrahedra[np.isfinite(radii) & (radii <= limit)]  # a flat one encloses nothing and has no outside

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


def _thickened(points: np.ndarray, size: int) -> np.ndarray:
    """Points (K x 3) of this :func:`extent`, or those around them that enclose a body."""
    if size == 3:
        return points
    middle = points.mean(axis=0)
    length, _, normal = np.linalg.svd(points - middle)[2]
    if size == 2:
        return np.concatenate([points + side * PLATE_THICKNESS / 2 * normal for side in (1, -1)])
    if size == 1:
        along = (points - middle) @ length
        points = middle + np.array([[along.min()], [along.max()]]) * length
    return (points[:, None] + ROD_RADIUS * _ball()).reshape(-1, 3)


def _ball(count: int = 64) -> np.ndarray:
    """Directions evenly around, `count` x 3: a Fibonacci lattice."""
    i = np.arange(count) + 0.5
    z, angle = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=-1)


def _circumradii(corners: np.ndarray) -> np.ndarray:
    """Radius of the sphere through the corners of each tetrahedron (T x 4 x 3); infinite when it is flat."""
    a, b, c = (corners[:, i] - corners[:, 0] for i in (1, 2, 3))
    square = lambda v: np.einsum("tc,tc->t", v, v)[:, None]  # noqa: E731
    numerator = square(a) * np.cross(b, c) + square(b) * np.cross(c, a) + square(c) * np.cross(a, b)
    volume = 2 * np.abs(np.einsum("tc,tc->t", a, np.cross(b, c)))
    solid = volume > 1e-9 * np.sqrt(square(a) * square(b) * square(c))[:, 0]  # beyond rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(solid, np.linalg.norm(numerator, axis=1) / volume, np.inf)
