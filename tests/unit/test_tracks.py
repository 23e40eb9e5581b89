import numpy as np
import pytest
from helpers.moving_hands import object_points

from svimo_core.tracks import SURFACE_POINTS, display_surface, fit_rigid_track


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
        (np.zeros((4, 2, 3)), "at least 3 points"),
        (np.full((4, 5, 3), np.nan), "not finite"),
        (np.zeros((4, 5, 3)), "one line or in one place"),
        (np.linspace(0, 1, 5)[None, :, None] * np.ones((4, 1, 3)), "one line or in one place"),
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


def test_surface_needs_points():
    with pytest.raises(ValueError, match="at least 4"):
        display_surface(np.zeros((3, 3)))
