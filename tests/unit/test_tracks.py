import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion
from helpers.moving_hands import object_points
from scipy.spatial.transform import Rotation

from svimo_core.clean import resample, smooth
from svimo_core.hand_rig import fit_capsule_hand
from svimo_core.tracks import SURFACE_POINTS, display_surface, fit_rigid_track, rigid_parts


def signed_volume(vertices, faces):
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.einsum("fi,fi->", a, np.cross(b, c)) / 6


def test_rigid_motion_is_found_exactly():
    points = object_points(frames=25)
    track = fit_rigid_track(points)
    np.testing.assert_allclose(track.posed(), points, atol=1e-9)
    np.testing.assert_allclose(track.points, points[0] - points[0].mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(track.rotations[0], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(track.rotations), 1, atol=1e-9)
    assert track.residual_mm < 1e-6
    np.testing.assert_allclose(track.to_local(points), np.broadcast_to(track.points, points.shape), atol=1e-9)


def test_noise_is_the_residual_and_the_track_is_closer_than_the_points():
    points = object_points(frames=49)
    noisy = points + np.random.default_rng(1).normal(scale=0.002, size=points.shape)
    track = fit_rigid_track(noisy)
    assert track.residual_mm == pytest.approx(2 * np.sqrt(3), rel=0.05)
    assert np.sqrt(np.mean((track.posed() - points) ** 2)) < 0.0006


def test_loose_points_and_bad_frames_do_not_bend_the_track():
    points = object_points(frames=33)
    broken = points.copy()
    rng = np.random.default_rng(2)
    broken[:, :20] += rng.normal(scale=0.03, size=broken[:, :20].shape)
    broken[5] += rng.normal(scale=0.03, size=broken[5].shape)
    error = np.delete(np.linalg.norm(fit_rigid_track(broken).posed() - points, axis=-1)[:, 20:], 5, axis=0)
    assert error.max() < 0.004


def test_flat_cloud_keeps_its_proper_rotation():
    flat = object_points() @ np.diag([1, 1, 0])
    assert fit_rigid_track(flat[:1].repeat(3, axis=0)).residual_mm < 1e-6


def test_many_points():
    points = object_points(frames=3, points=100_000)
    assert fit_rigid_track(points).residual_mm < 1e-6
    vertices, faces = display_surface(points[0])
    assert len(vertices) <= SURFACE_POINTS
    assert faces.max() == len(vertices) - 1


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 5, 3)), "at least one frame"),
        (np.zeros((4, 5)), r"frames x points x 3"),
        (np.zeros((4, 0, 3)), "at least one frame and point"),
        (np.full((4, 5, 3), np.nan), "not finite"),
    ],
)
def test_clouds_without_a_rigid_motion_are_refused(points, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit_rigid_track(points, name="mug")
    assert str(caught.value).startswith("mug: ")


def test_surface_is_closed_and_faces_outwards():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(300, 3))
    ball *= 0.04 / np.linalg.norm(ball, axis=1, keepdims=True)
    vertices, faces = display_surface(ball)
    assert signed_volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.04**3, rel=0.1)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()


def test_surface_keeps_a_cavity():
    u, v = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 800))
    ring = np.stack(
        [(0.05 + 0.012 * np.cos(v)) * np.cos(u), (0.05 + 0.012 * np.cos(v)) * np.sin(u), 0.012 * np.sin(v)],
        -1,
    )
    torus, disc = 2 * np.pi**2 * 0.05 * 0.012**2, np.pi * 0.062**2 * 0.024
    assert signed_volume(*display_surface(ring)) < (torus + disc) / 2


def few_points(kind: str, frames: int = 33) -> np.ndarray:
    """A mug's points, so many or in such a place, turning and travelling."""
    cloud = object_points(frames)
    if kind == "line":
        return cloud[:, :1] + np.array([0, 0.1, 0.5, 1])[:, None] * (cloud[:, 1:2] - cloud[:, :1])
    if kind == "flat":
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
        sides = cloud[:, 1:3] - cloud[:, :1]
        return cloud[:, :1] + np.einsum("kj,njc->nkc", corners, sides)
    return cloud[:, : int(kind)]


def body_volume(kind: str, points: np.ndarray) -> float:
    """Of the body that is shown for them: a ball or rod of 4 mm radius, a plate of 2 mm, a tetrahedron."""
    if kind in ("1", "2", "line"):
        length = np.linalg.norm(np.ptp(points, axis=0))
        return np.pi * 0.004**2 * (length + 4 / 3 * 0.004)
    sides = (points - points[0])[[1, -1]] if kind != "4" else (points - points[0])[1:]
    if kind == "4":
        return abs(np.linalg.det(sides)) / 6
    return 0.002 * np.linalg.norm(np.cross(*sides)) / (2 if kind == "3" else 1)


KINDS = ("1", "2", "3", "4", "line", "flat")


@pytest.mark.parametrize("kind", KINDS)
def test_few_points_have_a_motion_and_a_closed_body(kind):
    points = few_points(kind)
    track = fit_rigid_track(points)
    np.testing.assert_allclose(track.posed(), points, atol=1e-9)
    np.testing.assert_allclose(track.rotations[0], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(track.rotations), 1, atol=1e-9)
    vertices, faces = display_surface(track.points)
    assert signed_volume(vertices, faces) == pytest.approx(body_volume(kind, track.points), rel=0.15)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    reach = np.linalg.norm(track.points[:, None] - vertices, axis=-1)
    assert reach.min(axis=0).max() < 0.005  # it keeps to the points
    if kind != "line":  # whose middle points lie within the rod
        assert reach.min(axis=1).max() < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_motions_of_few_points_can_be_smoothed_and_resampled(kind):
    motion = replace(moving_motion(33), objects={"thing": few_points(kind)})
    for changed in (resample(motion, 2 * motion.fps), smooth(motion, 0.1)):
        residual = fit_rigid_track(changed.objects["thing"]).residual_mm
        assert residual < 0.01
    np.testing.assert_allclose(
        resample(motion, 2 * motion.fps).objects["thing"][::2], motion.objects["thing"], atol=1e-6
    )


def test_a_rod_swings_and_never_spins():
    """It goes once around a cone: whatever the turn, its speed about the rod's own axis is nothing."""
    angle = np.linspace(0, 2 * np.pi, 400)
    rod = np.stack([np.cos(angle), np.sin(angle), np.ones_like(angle)], -1) * 0.1
    points = np.array([-1, 0.2, 1])[:, None] * rod[:, None]
    track = fit_rigid_track(points)
    steps = Rotation.from_matrix(track.rotations[1:] @ track.rotations[:-1].swapaxes(1, 2)).as_rotvec()
    axes = rod / np.linalg.norm(rod, axis=1, keepdims=True)
    assert np.abs(np.sum(steps * (axes[1:] + axes[:-1]), axis=1)).max() < 1e-9
    assert np.linalg.norm(steps, axis=1).max() < 0.02


def test_a_rod_with_noise_its_ends_exchanged_or_in_one_place_does_not_jump():
    rng = np.random.default_rng(0)
    rod = np.tile(np.linspace(-0.15, 0.15, 3)[:, None] * (1, 0, 0), (60, 1, 1)) + (0, 0, 0.6)
    noisy = rod + rng.normal(scale=0.0005, size=rod.shape)
    assert Rotation.from_matrix(fit_rigid_track(noisy).rotations).magnitude().max() < 0.02
    turns = Rotation.from_rotvec(np.linspace(0, 2, 60)[:, None] * (0, 0, 1)).as_matrix()
    rod = rod @ turns.swapaxes(1, 2)
    rod[30:] = rod[30:, ::-1]
    rod[40] = rod[40].mean(axis=0)
    rotations = fit_rigid_track(rod).rotations
    assert np.isfinite(rotations).all()
    np.testing.assert_allclose(rotations[40], rotations[39], atol=1e-9)
    np.testing.assert_allclose(rotations[50] @ (1, 0, 0), -turns[50] @ (1, 0, 0), atol=1e-9)


def test_a_first_frame_without_shape_does_not_spoil_the_rest():
    turns = Rotation.from_rotvec(np.linspace(0, 8 * np.pi, 81)[:, None] * (0, 1, 0)).as_matrix()
    points = object_points(1)[:1] @ turns.swapaxes(1, 2)
    broken = points.copy()
    broken[0] = points[0].mean(axis=0)
    np.testing.assert_allclose(fit_rigid_track(broken).posed()[1:], points[1:], atol=1e-9)


def test_ten_thousand_frames_are_quick_and_need_little_memory():
    points = object_points(frames=10_000).astype(np.float32)
    tracemalloc.start()
    before = time.perf_counter()
    track = fit_rigid_track(points)
    seconds, (_, peak) = time.perf_counter() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 3
    assert peak < 12 * points.nbytes
    assert track.residual_mm < 1e-3


def test_a_surface_needs_a_point():
    with pytest.raises(ValueError, match="at least one"):
        display_surface(np.zeros((0, 3)))


def test_a_palm_on_one_line_is_no_hand():
    joints = moving_motion(3).hands[:, 1].astype(np.float64)
    joints[:, [1, 5, 9, 13, 17]] = joints[:, :1] + np.arange(1, 6)[:, None] * (0, 0, 0.03)
    with pytest.raises(ValueError, match="right palm: its joints lie on one line"):
        fit_capsule_hand(joints, "right")


def laptop(frames: int = 49, noise: float = 0.0, angle: float = np.pi / 3) -> tuple[np.ndarray, np.ndarray]:
    """A base of 60 points and a lid of 40 that opens, carried about; and their distance from the hinge."""
    rng = np.random.default_rng(5)
    flat = rng.uniform((0, -0.1, 0), (0.2, 0.1, 0.01), (100, 3))
    time = np.linspace(0, 1, frames)[:, None]
    opening = Rotation.from_rotvec(-angle * time * (0, 1, 0)).as_matrix()
    points = np.concatenate([np.tile(flat[:60], (frames, 1, 1)), flat[60:] @ opening.swapaxes(1, 2)], axis=1)
    carried = Rotation.from_rotvec(time * (1, 0.5, -1)).as_matrix()
    points = points @ carried.swapaxes(1, 2) + (time * (0.2, 0, 0) + (0, 0, 0.6))[:, None]
    return points + rng.normal(scale=noise, size=points.shape), flat[:, 0]


def test_rigid_parts_are_found_exactly():
    points, _ = laptop()
    assert fit_rigid_track(points).residual_mm > 5
    base, lid = rigid_parts(points, 2)
    np.testing.assert_array_equal(base, np.arange(60))
    np.testing.assert_array_equal(lid, np.arange(60, 100))
    three = np.concatenate([object_points(17, count, seed=i) for i, count in enumerate((50, 40, 30))], axis=1)
    assert [part.tolist() for part in rigid_parts(three, 3)] == [
        list(range(50)), list(range(50, 90)), list(range(90, 120)),
    ]  # fmt: skip


def test_rigid_parts_of_noisy_points_differ_only_at_the_hinge_and_a_loose_point_is_none():
    points, from_hinge = laptop(noise=0.002, angle=0.3)
    points[:, 7] += np.random.default_rng(1).normal(scale=0.05, size=(49, 3))
    for seed in range(5):
        base, lid = rigid_parts(points, 2, seed=seed)
        wrong = set(base.tolist()) ^ set(range(60))
        assert all(from_hinge[index] < 0.03 for index in wrong - {7})
        assert len(lid) > 30


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (laptop()[0], 0, "1 to 100 rigid parts, got 0"),
        (laptop()[0], 101, "1 to 100 rigid parts, got 101"),
        (object_points(), 2, "already move as one rigid body"),
    ],
)
def test_parts_that_cannot_be_are_refused(points, count, message):
    with pytest.raises(ValueError, match=f"mug: .*{message}"):
        rigid_parts(points, count, name="mug")
    assert len(rigid_parts(points, 1)[0]) == points.shape[1]
