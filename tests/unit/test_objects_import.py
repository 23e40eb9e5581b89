"""Objects from meshes with poses and from markers, as people have them."""

import sys

import numpy as np
import pytest
import trimesh
from helpers.moving_hands import motion as moving_motion
from helpers.moving_hands import object_points
from scipy.spatial.transform import Rotation

from svimo_core.importing.objects import (
    MESHES,
    ObjectMesh,
    add_object,
    fill_lost_markers,
    read_markers,
    read_mesh,
    read_posed_mesh,
    read_poses,
    sample_surface,
)
from svimo_core.rigged import rig_motion
from svimo_core.tracks import fit_rigid_track

FRAMES = 17
TURNS = Rotation.from_rotvec(np.linspace(0, 1, FRAMES)[:, None] * (1.5, -1, 2))
PLACES = np.linspace(0, 1, FRAMES)[:, None] * (0.1, 0.2, -0.05) + (0, 0, 0.6)
MATRICES = np.tile(np.eye(4), (FRAMES, 1, 1))
MATRICES[:, :3, :3], MATRICES[:, :3, 3] = TURNS.as_matrix(), PLACES


@pytest.fixture
def box(tmp_path):
    """A box of 8 x 4 x 2 cm, in metres."""
    path = tmp_path / "box.obj"
    trimesh.creation.box((0.08, 0.04, 0.02)).export(path)
    return path


@pytest.fixture
def save(tmp_path):
    def write(values, name="poses.npy"):
        path = tmp_path / name
        if isinstance(values, str):
            path.write_text(values)
        else:
            np.savez(path, **values) if isinstance(values, dict) else np.save(path, values)
        return path

    return write


@pytest.mark.parametrize("suffix", MESHES)
def test_every_kind_of_mesh_is_read(tmp_path, suffix):
    path = tmp_path / f"box{suffix}"
    trimesh.creation.box((8, 4, 2)).export(path)
    vertices, faces = read_mesh(path, metres_per_unit=0.01)
    np.testing.assert_allclose(np.ptp(vertices, axis=0), (0.08, 0.04, 0.02), atol=1e-7)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    assert np.einsum("fi,fi->", a, np.cross(b, c)) / 6 == pytest.approx(0.08 * 0.04 * 0.02)


def test_points_are_even_on_the_surface_and_the_same_again(box):
    vertices, faces = read_mesh(box)
    points = sample_surface(vertices, faces, 128)
    on = np.isclose(np.abs(points), (0.04, 0.02, 0.01), atol=1e-9)
    assert on.any(axis=1).all()
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + np.eye(128)
    assert apart.min() > 0.5 * np.sqrt(trimesh.load(box).area / 128)
    np.testing.assert_array_equal(points, sample_surface(vertices, faces, 128))
    assert np.abs(points - sample_surface(vertices, faces, 128, seed=1)).max() > 0.001
    assert sample_surface(vertices, faces, 1).shape == (1, 3)
    corner = sample_surface(np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)]), np.array([[0, 1, 2]]), 50)
    assert corner[:, :2].sum(axis=1).max() <= 1


XYZW = TURNS.as_quat()
LAYOUTS = {
    "matrices": (MATRICES, "auto", 1.0),
    "row vectors": (MATRICES.swapaxes(1, 2), "auto", 1.0),
    "centimetres": (MATRICES * np.array((1, 1, 1, 100)) * ((1,), (1,), (1,), (0.01,)), "auto", 0.01),
    "translation, xyzw": (np.concatenate([PLACES, XYZW], 1), "translation_xyzw", 1.0),
    "translation, wxyz": (np.concatenate([PLACES, XYZW[:, [3, 0, 1, 2]]], 1), "translation_wxyz", 1.0),
    "xyzw, translation": (np.concatenate([XYZW, PLACES], 1), "xyzw_translation", 1.0),
    "wxyz, translation": (np.concatenate([XYZW[:, [3, 0, 1, 2]], PLACES], 1), "wxyz_translation", 1.0),
    "rotation vectors": (np.concatenate([TURNS.as_rotvec(), PLACES], 1), "auto", 1.0),
    "arctic": (np.concatenate([PLACES[:, :1], TURNS.as_rotvec(), 1000 * PLACES], 1), "arctic", 0.001),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_poses_move_the_mesh(box, save, kind):
    poses, layout, unit = LAYOUTS[kind]
    found = read_posed_mesh(box, save(poses), count=40, layout=layout, metres_per_pose_unit=unit)
    expected = np.einsum("nij,kj->nki", TURNS.as_matrix(), found.mesh.points) + PLACES[:, None]
    assert found.points.dtype == np.float32
    np.testing.assert_allclose(found.points, expected, atol=1e-6)
    noted = {"row vectors": "row vectors", "arctic": "hinge"}.get(kind)
    assert (noted in found.notes[0]) if noted else not found.notes


def test_axes_turn_the_poses_and_not_the_mesh(box, save):
    y_up = np.diag((1.0, -1, -1))
    path = save(MATRICES)
    found = read_posed_mesh(box, path, axes=y_up)
    np.testing.assert_allclose(found.points, read_posed_mesh(box, path).points * (1, -1, -1), atol=1e-7)
    with pytest.raises(ValueError, match="axes must be a rotation"):
        read_posed_mesh(box, path, axes=np.diag((1, 1, -1)))


def test_poses_of_several_objects_in_one_file(box, save):
    path = save({"mug": MATRICES, "box": MATRICES[:3]}, "poses.npz")
    assert len(read_posed_mesh(box, path, key="box").points) == 3
    with pytest.raises(ValueError, match="several arrays, mug, box: name the object"):
        read_posed_mesh(box, path, key="bowl")


QUATERNIONS = LAYOUTS["translation, xyzw"][0]


@pytest.mark.parametrize(
    ("poses", "layout", "message"),
    [
        (QUATERNIONS, "auto", "cannot tell in which order: choose one of translation_xyzw"),
        (QUATERNIONS, "xyzw_translation", "quaternions have lengths from .* choose the layout"),
        (QUATERNIONS, "euler", "one of auto, .* got 'euler'"),
        (MATRICES, "translation_xyzw", r"shape \(17, 4, 4\).* choose auto"),
        (MATRICES[:, :2], "auto", r"shape \(17, 2, 4\); expected N x 4 x 4"),
        (np.ones((3, 4, 4)), "auto", "neither the last row nor the last column"),
        (MATRICES * np.array((2, 2, 2, 1)), "auto", "matrix of frame 0 scales"),
        (MATRICES * np.array((-1, 1, 1, 1)), "auto", "mirrors"),
        (np.where(np.arange(FRAMES)[:, None, None] == 4, np.nan, MATRICES), "auto", "first in frame 4"),
        (MATRICES * np.array((1, 1, 1, 1000)) * ((1,), (1,), (1,), (0.001,)), "auto", "choose the unit of the poses"),
        (np.concatenate([TURNS.as_rotvec(degrees=True), PLACES], 1), "auto", "more than a full turn in radians"),
        (np.array([[{}]]), "auto", "cannot be read as plain arrays"),
        (np.array(["a", "b"]), "auto", "instead of numbers"),
    ],
)  # fmt: skip
def test_poses_that_cannot_be_are_refused(save, poses, layout, message):
    with pytest.raises(ValueError, match=rf"(poses\.npy|layout of poses).*{message}"):
        read_poses(save(poses), layout=layout)


def test_rotations_alone_are_noted(save):
    turns = MATRICES * np.array((1, 1, 1, 0)) + np.diag((0, 0, 0, 1))
    rotations, translations, notes = read_poses(save(turns))
    np.testing.assert_allclose(rotations, TURNS.as_matrix(), atol=1e-9)
    assert not translations.any()
    assert "column vectors" in notes[0]


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (100, r"box\.obj would be 8 m long, .* \(0\.08 m in metres, "),
        (0.01, r"would be 0\.0008 m long"),
    ],
)
def test_implausible_sizes_are_refused_with_the_units_that_fit(box, unit, message):
    with pytest.raises(ValueError, match=message):
        read_mesh(box, metres_per_unit=unit)


def test_meshes_that_are_none(tmp_path, box, save, monkeypatch):
    cloud = tmp_path / "cloud.ply"
    trimesh.PointCloud(np.eye(3)).export(cloud)
    with pytest.raises(ValueError, match=r"cloud\.ply has no triangles"):
        read_mesh(cloud)
    for suffix in (".ply", ".stl", ".glb"):
        with pytest.raises(ValueError, match=rf"torn\{suffix} (cannot be read|has no triangles)"):
            read_mesh(save("nothing", f"torn{suffix}"))
    with pytest.raises(ValueError, match=r"box\.fbx: a mesh comes as \.obj"):
        read_mesh("box.fbx")
    with pytest.raises(FileNotFoundError):
        read_mesh(tmp_path / "gone.obj")
    line = save("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "line.obj")
    with pytest.raises(ValueError, match=r"line\.obj: its triangles have no area"):
        read_posed_mesh(line)
    with pytest.raises(ValueError, match="at least 1 point"):
        read_posed_mesh(box, count=0)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"box\.obj: .* pip install trimesh"):
        read_mesh(box)


def test_markers_come_as_arrays_and_tables(save):
    points = object_points(FRAMES, 4)
    rows = points.reshape(FRAMES, 12)
    titles = ",".join(f"{marker}_{axis}" for marker in "abcd" for axis in "xyz")
    table = "\n".join(",".join(map(repr, row.tolist())) for row in 1000 * rows)
    numbered = "\n".join(f"{i},{row}" for i, row in enumerate(table.splitlines()))
    for path, unit in (
        (save(points, "a.npy"), 1),
        (save(rows, "b.npy"), 1),
        (save(table, "c.csv"), 0.001),
        (save(f"{titles}\n{table}\n\n", "d.csv"), 0.001),
        (save(f"Frame,{titles}\n{numbered}", "e.csv"), 0.001),
    ):
        found = read_markers(path, metres_per_unit=unit)
        assert list(found) == [path.stem]
        np.testing.assert_allclose(found[path.stem].points, points, atol=1e-6)
    both = read_markers(save({"mug": points, "one": points[:, :1]}, "f.npz"), axes=np.diag((1, -1, -1)))
    assert list(both) == ["mug", "one"]
    np.testing.assert_allclose(both["one"].points, points[:, :1] * (1, -1, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2,3,4\n1,2,3,4", "has the columns 4; expected frames x markers x 3"),
        ("x1,x2,y1,y2,z1,z2\n1,2,3,4,5,6", "columns x1, x2"),
        ("x_a,x_b,y_a,y_b,z_a,z_b\n1,2,3,4,5,6", "columns x_a, x_b"),
        ("x,y,z,rx,ry,rz\n1,2,3,.4,.5,.6", r"has rotations \(rx, ry, rz\), which are no markers"),
        ("mug_x,mug_y,mug_z,mug_rot_x,mug_rot_y,mug_rot_z\n1,2,3,.4,.5,.6", r"has rotations \(mug_rot_x"),
        ("time,x,y,z,Roll,Pitch,Yaw\n0,1,2,3,.4,.5,.6", r"has rotations \(roll, pitch, yaw\)"),
        ("1,2,3\n1,2", "rows with one number of cells"),
        ("1,2,3\n1,two,3", "a cell that is no number .*two"),
        ("a,b,c", "rows with one number of cells"),
        ("1,2,3,1,2,inf", "infinite values, first in frame 0"),
        ("1,2,3,1.5,2,300", r"would be 297 m long, .* \(2\.97 m in centimetres, 0\.297 m in millimetres\)"),
    ],
)
def test_tables_that_are_no_markers_are_refused(save, content, message):
    with pytest.raises(ValueError, match=rf"m\.csv .*{message}"):
        read_markers(save(content, "m.csv"))


def test_lost_markers_are_where_the_rigid_body_has_them(save):
    points = object_points(60, 6)
    lost = points.copy()
    lost[10:20, 0] = np.nan
    lost[15:30, 1] = np.nan
    lost[:40, 5, 1] = np.nan  # not seen at first, and one number is enough to be lost
    lost[0, 2:4] = np.nan
    found = read_markers(save(lost, "m.npy"))["m"]
    np.testing.assert_allclose(found.points, points, atol=1e-6)
    assert "filled" in found.notes[0]
    noisy = lost + np.random.default_rng(0).normal(scale=0.001, size=lost.shape)
    assert np.abs(fill_lost_markers(noisy) - points).max() < 0.01
    whole = fill_lost_markers(points[:, :2])
    assert whole.shape[1] == 2


@pytest.mark.parametrize(
    ("count", "lose", "message"),
    [
        (4, np.s_[5:7, :2], "in 2 of 17 frames, first in 5, 2 of 4 markers are lost"),
        (2, np.s_[3, 0], "at least 3 others"),
        (5, np.s_[:, 4], r"marker 4 \(from 0\) is never seen"),
        (4, np.s_[:], "in 17 of 17 frames"),
    ],
)
def test_markers_that_cannot_be_filled_are_named(save, count, lose, message):
    points = object_points(FRAMES, count)
    points[lose] = np.nan
    with pytest.raises(ValueError, match=rf"m\.npy: .*{message}"):
        read_markers(save(points, "m.npy"))


def test_a_marker_is_placed_by_others_that_had_to_be_placed_first():
    points = object_points(18, 6)
    seen = np.repeat([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]], 6, axis=0).astype(bool)
    np.testing.assert_allclose(
        fill_lost_markers(np.where(seen[..., None], points, np.nan)), points, atol=1e-9
    )


def test_three_markers_on_one_line_cannot_fill_in_a_fourth(save):
    points = object_points(FRAMES, 4)
    points[:, 2] = (points[:, 0] + points[:, 1]) / 2
    points[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"in 1 of 17 frames, first in 3, .* not on one line"):
        read_markers(save(points, "m.npy"))


def test_an_object_joins_a_motion():
    motion, points = moving_motion(FRAMES), object_points(FRAMES, 20, seed=3).astype(np.float32)
    added = add_object(motion, " cup ", points)
    assert list(added.objects) == ["tool", "target", "cup"]
    np.testing.assert_array_equal(added.objects["cup"], points)
    still = add_object(motion, "cup", points[:1]).objects["cup"]
    np.testing.assert_array_equal(still, np.repeat(points[:1], FRAMES, axis=0))
    shifted = add_object(motion, "cup", points, fit=True, first_frame=3).objects["cup"]
    np.testing.assert_array_equal(shifted[3:], points[:-3])
    np.testing.assert_array_equal(shifted[:3], np.repeat(points[:1], 3, axis=0))
    early = add_object(motion, "cup", points, fit=True, first_frame=-3).objects["cup"]
    np.testing.assert_array_equal(early[:-3], points[3:])


def test_an_object_of_another_frame_rate_is_resampled():
    motion = moving_motion(FRAMES, fps=8)
    fast = object_points(2 * (FRAMES - 1) + 1, 20).astype(np.float32)
    added = add_object(motion, "cup", fast, fps=16).objects["cup"]
    np.testing.assert_allclose(added, fast[::2], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cup", {}, "cup has 16 frames at 8 fps, which is 16 of the motion, and the motion 17 at 8 fps"),
        ("cup", {"fps": 24.0}, "cup has 16 frames at 24 fps, which is 6 of the motion"),
        ("cup", {"first_frame": 2}, "begin in frame 2 .* choose fit"),
        ("tool", {}, "got 'tool' beside tool, target"),
        (" ", {}, "needs a name"),
    ],
)
def test_objects_that_do_not_fit_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        add_object(moving_motion(FRAMES), name, object_points(FRAMES - 1), **settings)


def test_the_own_mesh_is_shown_where_the_object_is(box, save):
    """After the motion was moved, trimmed and scaled as well, which the mesh knows nothing of."""
    found = read_posed_mesh(box, save(MATRICES))
    motion = add_object(moving_motion(FRAMES), "box", 2 * found.points[4:] + (0, 0, 1), fit=True)
    thing = rig_motion(motion, meshes={"box": found.mesh}).objects["box"]
    assert isinstance(found.mesh, ObjectMesh)
    placed = thing.vertices @ thing.track.rotations[3].T + thing.track.translations[3]
    corners = 2 * (found.mesh.vertices @ TURNS.as_matrix()[7].T + PLACES[7]) + (0, 0, 1)
    np.testing.assert_allclose(placed, corners, atol=1e-5)
    assert fit_rigid_track(found.points).residual_mm < 1e-3


@pytest.mark.parametrize("count", [1, 2])
def test_a_mesh_whose_points_do_not_tell_how_it_turns_is_refused(box, save, count):
    found = read_posed_mesh(box, save(MATRICES), count=count)
    motion = add_object(moving_motion(FRAMES), "box", found.points)
    assert rig_motion(motion).objects["box"].track.residual_mm < 1e-3  # a ball or a rod of its own
    with pytest.raises(ValueError, match=rf"box: .* points \({count}\) .* take 3 or more"):
        rig_motion(motion, meshes={"box": found.mesh})


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "m.csv").write_bytes("Gr\u00f6\u00dfe,1\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"m\.csv is no table in UTF-8"):
        read_markers(tmp_path / "m.csv")
    np.save(tmp_path / "m.npy", np.zeros((0, 6)))
    with pytest.raises(ValueError, match=r"m\.npy: m is empty"):
        read_markers(tmp_path / "m.npy")
