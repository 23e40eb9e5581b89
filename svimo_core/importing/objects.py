"""Objects as people have them: a mesh that poses move, or markers that were tracked -> points of a motion."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..clean import resample
from ..files import plain_arrays, reading
from ..motion import HandObjectMotion
from ..rigged import ObjectMesh
from ..tracks import align, extent
from .axes import UNITS

MESHES = (".obj", ".ply", ".stl", ".glb", ".off")
MARKERS = (".npz", ".npy", ".csv")
POSES = (".npz", ".npy")
SIZES = (0.001, 5.0)
"""Metres from the smallest to the largest thing that hands may move; another size is a mistaken unit."""
FARTHEST = 100.0
"""Metres from the origin to a pose; farther is a mistaken unit."""
LAYOUTS = {
    "auto": None,
    "translation_xyzw": ([0, 1, 2], [3, 4, 5, 6]),
    "translation_wxyz": ([0, 1, 2], [4, 5, 6, 3]),
    "xyzw_translation": ([4, 5, 6], [0, 1, 2, 3]),
    "wxyz_translation": ([4, 5, 6], [1, 2, 3, 0]),
    "arctic": ([4, 5, 6], [1, 2, 3]),
}
"""Columns of the translation and of the rotation (x y z w, or x y z of a rotation vector) among seven numbers, whose
meaning no one can tell from the numbers. ARCTIC's first is the angle of a hinge, which is left out."""
EXPECTED_POSES = (
    "expected N x 4 x 4 matrices, N x 7 (a translation and a quaternion, or ARCTIC's) or N x 6 (a rotation vector in "
    "radians, then a translation)"
)
EXPECTED_MARKERS = (
    "expected frames x markers x 3, or a row for each frame with x, y, z of each marker in turn"
)
ROTATION = re.compile("(rot|rotation|rotvec)[xyz]?$|quat|euler|roll$|pitch$|yaw$")
"""In the title of a column, letters alone, that has no coordinate of a marker."""
SAMPLES = 20
"""Random points on a surface for each that is kept."""


@dataclass(frozen=True, kw_only=True)
class ImportedObject:
    """An object's points in camera space, and what is known beside them."""

    points: np.ndarray
    """N x K x 3 float32, metres; one frame if it stands still."""
    mesh: ObjectMesh | None = None
    """Its own surface, for :func:`svimo_core.rigged.rig_motion`."""
    notes: tuple[str, ...] = ()
    """What was decided on the way, a sentence each."""


def read_posed_mesh(
    mesh: str | os.PathLike,
    poses: str | os.PathLike | None = None,
    *,
    count: int = 128,
    metres_per_mesh_unit: float = 1.0,
    metres_per_pose_unit: float = 1.0,
    layout: str = "auto",
    key: str | None = None,
    axes: np.ndarray | None = None,
    seed: int = 0,
) -> ImportedObject:
    """Points on a mesh, moved by poses.

    TACO: a mesh in centimetres (0.01), poses in metres. ARCTIC: both in millimetres, layout "arctic".

    Args:
        mesh: .obj, .ply, .stl, .glb or .off.
        poses: see :func:`read_poses`; None for an object that stands still where the mesh has it.
        count: points to take, evenly on the surface.
        metres_per_mesh_unit: such as 0.01 for centimetres.
        metres_per_pose_unit: the same for the translations of the poses.
        layout: a key of :data:`LAYOUTS`.
        key: which array of an .npz has the poses.
        axes: rotation (3 x 3) from the poses' axes to the camera's; None if they are the camera's.
        seed: of the points: the same mesh, count and seed give the same points.

    Raises:
        FileNotFoundError: no such file.
        ImportError: trimesh is not installed.
        ValueError: files that hold something else, or an object of implausible size or place.
    """
    mesh = Path(mesh)
    vertices, faces = read_mesh(mesh, metres_per_unit=metres_per_mesh_unit)
    try:
        points = sample_surface(vertices, faces, count, seed=seed)
    except ValueError as error:
        raise ValueError(f"{mesh.name}: {error}") from error
    rotations, translations, notes = np.eye(3)[None], np.zeros((1, 3)), ()
    if poses is not None:
        rotations, translations, notes = read_poses(
            poses, layout=layout, metres_per_unit=metres_per_pose_unit, key=key
        )
    placed = points @ rotations.swapaxes(1, 2) + translations[:, None]
    return ImportedObject(
        points=_turned(placed, axes),
        mesh=ObjectMesh(vertices=vertices, faces=faces, points=points),
        notes=notes,
    )


def read_markers(
    path: str | os.PathLike, *, metres_per_unit: float = 1.0, axes: np.ndarray | None = None
) -> dict[str, ImportedObject]:
    """Markers of one object, or of several in one .npz, by the names of the arrays.

    A marker that is lost (NaN, or an empty cell) in some frames is filled in from the others: see
    :func:`fill_lost_markers`.

    Args:
        path: .npy or .csv with one object, called as the file, or .npz with one array for each. An array is N x K x 3,
            or N x 3 K as the rows of a .csv: x, y, z of the first marker, and so on; a .csv may have a row of titles
            and first a column of frames or times.
        metres_per_unit: such as 0.001 for millimetres.
        axes: rotation (3 x 3) from the file's axes to the camera's; None if they are the camera's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds something else, markers that cannot be filled in, or an implausible size.
    """
    path = Path(path)
    arrays = {path.stem: _read_csv(path)} if path.suffix.lower() == ".csv" else _read_arrays(path)
    found = {}
    for name, values in arrays.items():
        title = f"{path.name}, {name}" if len(arrays) > 1 else path.name
        if values.ndim == 2 and values.shape[1] % 3 == 0:
            values = values.reshape(len(values), -1, 3)
        if values.ndim != 3 or values.shape[2] != 3 or not values.size:
            raise ValueError(f"{title} has shape {values.shape}; {EXPECTED_MARKERS}")
        if np.isinf(values).any():
            raise ValueError(f"{title} has infinite values, first in frame {_first(np.isinf(values))}")
        lost = np.isnan(values).any(axis=2)
        markers = fill_lost_markers(values, name=title)
        if markers.shape[1] > 1:
            _check_size(title, float(np.median(np.ptp(markers, axis=1).max(axis=1))), metres_per_unit)
        notes = (f"{int(lost.sum())} lost markers were filled in",) if lost.any() else ()
        found[name] = ImportedObject(points=_turned(markers * metres_per_unit, axes), notes=notes)
    return found


def add_object(
    motion: HandObjectMotion,
    name: str,
    points: np.ndarray,
    *,
    fps: float | None = None,
    fit: bool = False,
    first_frame: int = 0,
) -> HandObjectMotion:
    """The motion with one more object.

    Args:
        motion: unchanged.
        name: what to call the object.
        points: N x K x 3, metres, camera space; one frame stands still throughout.
        fps: of the points; None if it is the motion's. The points are resampled to the motion's.
        fit: cut frames off that the motion does not have, and hold the first and last pose where it has more.
        first_frame: with `fit`, the frame of the motion in which the points begin; may be negative.

    Raises:
        ValueError: a name that is empty or taken, or, without `fit`, another number of frames.
    """
    name = name.strip()
    if not name or name in motion.objects:
        known = ", ".join(motion.objects) or "none"
        raise ValueError(
            f"an object needs a name that no other of the motion has, got {name!r} beside {known}"
        )
    if first_frame and not fit:
        raise ValueError(f"{name}: it can only begin in frame {first_frame} if it may be fitted: choose fit")
    given, rate = len(points), fps or motion.fps
    if fps and fps != motion.fps and given > 1:
        absent = np.full((given, *motion.hands.shape[1:]), np.nan)
        alone = HandObjectMotion(hands=absent, objects={name: points}, camera=motion.camera, fps=fps)
        points = resample(alone, motion.fps).objects[name]
    if len(points) not in (1, len(motion)) and not fit:
        raise ValueError(
            f"{name} has {given} frames at {rate:g} fps, which is {len(points)} of the motion, and the motion "
            f"{len(motion)} at {motion.fps:g} fps: set the object's own frame rate, or choose fit to cut and hold it"
        )
    frames = (np.arange(len(motion)) - first_frame).clip(0, len(points) - 1)
    return dataclasses.replace(motion, objects={**motion.objects, name: points[frames]})


def _turned(points: np.ndarray, axes: np.ndarray | None) -> np.ndarray:
    """Points (N x K x 3) turned by `axes` (3 x 3, None for not at all), float32.

    Raises:
        ValueError: axes that are no rotation.
    """
    axes = np.eye(3) if axes is None else np.asarray(axes, dtype=np.float64)
    if axes.shape != (3, 3) or _no_rotation(axes[None]).any():
        raise ValueError(f"axes must be a rotation, 3 x 3, got {axes.tolist()}")
    return (points @ axes.T).astype(np.float32)


def read_mesh(path: str | os.PathLike, *, metres_per_unit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """All triangles of a mesh file: vertices (V x 3, metres) and faces (F x 3).

    Raises:
        FileNotFoundError: no such file.
        ImportError: trimesh is not installed.
        ValueError: not a mesh, or of implausible size.
    """
    path = Path(path)
    if path.suffix.lower() not in MESHES:
        raise ValueError(f"{path.name}: a mesh comes as {', '.join(MESHES)}")
    _require_file(path)
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(
            f"{path.name}: meshes are read by trimesh, which is missing: pip install trimesh"
        ) from error
    with reading(path, "cannot be read as a mesh", "export it again"):
        mesh = trimesh.load(path, force="mesh", process=False, skip_materials=True)
        vertices = np.asarray(mesh.vertices, np.float64).reshape(-1, 3)
        faces = np.asarray(getattr(mesh, "faces", ()), np.int64)  # older trimesh gives points alone as such
        if faces.size and not 0 <= faces.min() <= faces.max() < len(vertices):
            raise ValueError(f"its triangles have corners beyond its {len(vertices)} vertices")
    if not len(faces):
        raise ValueError(
            f"{path.name} has no triangles: expected a mesh, not a point cloud or an empty scene"
        )
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path.name} has vertices that are not finite (NaN or infinity): export it again")
    used, faces = np.unique(faces, return_inverse=True)  # a stray vertex has no say in the size
    _check_size(path.name, float(np.ptp(vertices[used], axis=0).max()), metres_per_unit)
    return vertices[used] * metres_per_unit, faces.reshape(-1, 3)


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Points evenly on a surface, `count` x 3: of many random ones, each next is the farthest from those before.

    Raises:
        ValueError: a count below 1, or triangles without area.
    """
    if count < 1:
        raise ValueError(f"at least 1 point must be taken of a mesh, got {count}")
    rng = np.random.default_rng(seed)
    corner, *others = np.moveaxis(vertices[faces], 1, 0)
    first, second = (other - corner for other in others)
    area = np.linalg.norm(np.cross(first, second), axis=1)
    if not area.sum() > 0:
        raise ValueError("its triangles have no area, so no point lies on them: export the mesh again")
    chosen = rng.choice(len(faces), SAMPLES * count, p=area / area.sum())
    along, across = rng.random((2, len(chosen), 1))
    along, across = np.where(along + across > 1, (1 - along, 1 - across), (along, across))
    points = corner[chosen] + along * first[chosen] + across * second[chosen]

    kept, nearest = np.zeros(count, int), np.full(len(points), np.inf)
    for i in range(1, count):
        nearest = np.minimum(nearest, np.sum((points - points[kept[i - 1]]) ** 2, axis=1))
        kept[i] = nearest.argmax()
    return points[kept]


def read_poses(
    path: str | os.PathLike, *, layout: str = "auto", metres_per_unit: float = 1.0, key: str | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Poses of an object: from its own axes to those it was captured in.

    Args:
        path: .npy, or .npz with one array or one called `key`: N x 4 x 4 matrices (which may stand for row vectors),
            N x 6 (rotation vector in radians, translation), or N x 7, which needs a `layout`.
        layout: a key of :data:`LAYOUTS`.
        metres_per_unit: of translations.
        key: which of several arrays.

    Returns:
        Rotations (N x 3 x 3), translations (N x 3, metres), and what was decided on the way.

    Raises:
        FileNotFoundError: no such file.
        ValueError: something else, numbers that cannot be such poses, or implausible distances.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"the layout of poses is one of {', '.join(LAYOUTS)}, got {layout!r}")
    arrays = _read_arrays(path)
    if len(arrays) > 1 and key not in arrays:
        raise ValueError(
            f"{path.name} has several arrays, {', '.join(arrays)}: name the object as one of them"
        )
    poses = arrays[key] if key in arrays else next(iter(arrays.values()))
    if poses.shape == (4, 4):
        poses = poses[None]
    if not poses.size or poses.shape[1:] not in ((4, 4), (6,), (7,)):
        raise ValueError(f"{path.name} has shape {poses.shape}; {EXPECTED_POSES}")
    if not np.isfinite(poses).all():
        raise ValueError(
            f"{path.name} has poses that are not finite (NaN or infinity), first in frame "
            f"{_first(~np.isfinite(poses))}: an object needs a pose in every frame"
        )
    if layout != "auto" and poses.shape[1:] != (7,):
        raise ValueError(
            f"{path.name} has shape {poses.shape}, and {layout} is a layout of N x 7: choose auto"
        )
    notes = ()
    if poses.ndim == 3:
        rotations, translations, notes = _from_matrices(path.name, poses)
    elif poses.shape[1] == 6:
        rotations, translations = _from_vectors(path.name, poses[:, :3]), poses[:, 3:]
    elif layout == "auto":
        choices = ", ".join(name for name in LAYOUTS if name != "auto")
        raise ValueError(
            f"{path.name} is N x 7, and its numbers cannot tell in which order: choose one of {choices}"
        )
    else:
        places, turns = LAYOUTS[layout]
        read = _from_quaternions if len(turns) == 4 else _from_vectors
        rotations, translations = read(path.name, poses[:, turns]), poses[:, places]
        if layout == "arctic" and np.ptp(poses[:, 0]) > 0.01:
            notes = ("the object's hinge moves, and is left as it stands in the mesh",)
    translations = translations * metres_per_unit
    far = float(np.linalg.norm(translations, axis=1).max())
    if far > FARTHEST:
        raise ValueError(
            f"{path.name} puts the object up to {far:.4g} m away, beyond {FARTHEST:g} m: choose the unit of the poses"
        )
    return rotations, translations, notes


def fill_lost_markers(markers: np.ndarray, *, name: str = "the object") -> np.ndarray:
    """Markers in every frame: those that are lost are where the others, as a rigid body, have them.

    Args:
        markers: N x K x 3; NaN where a marker is lost.
        name: what to call the object in errors.

    Raises:
        ValueError: a frame with a lost marker in which fewer than three others are seen that span a plane, or a marker
            that is never seen beside three others.
    """
    seen = np.isfinite(markers).all(axis=2)
    if seen.all():
        return markers
    best = int(seen.sum(axis=1).argmax())
    shape = np.where(seen[best, :, None], markers[best], np.nan)
    # Each round finds the places of markers that were seen beside known ones, until one finds no more.
    places, more = 0, True
    while more:
        known = seen & np.isfinite(shape).all(axis=1)
        patterns, which = np.unique(known, axis=0, return_inverse=True)
        firm = np.array([p.sum() >= 3 and extent(shape[p]) >= 2 for p in patterns])[which.reshape(-1)]
        if not firm.any():
            break
        weights = known[firm] / known[firm].sum(axis=1, keepdims=True)
        whole = np.where(known[firm, :, None], markers[firm], 0)
        rotations, translations = align(whole, np.nan_to_num(shape), weights)
        local = (markers[firm] - translations[:, None]) @ rotations
        found = seen[firm].any(axis=0)
        shape = np.full_like(shape, np.nan)
        shape[found] = np.nanmedian(np.where(seen[firm, :, None], local, np.nan)[:, found], axis=0)
        places, more = found.sum(), found.sum() > places
    never = np.flatnonzero(np.isnan(shape).any(axis=1))
    loose = np.flatnonzero(~firm & ~seen.all(axis=1))
    if len(loose):
        frame = int(loose[0])
        raise ValueError(
            f"{name}: in {len(loose)} of {len(markers)} frames, first in {frame}, {int((~seen[frame]).sum())} of "
            f"{markers.shape[1]} markers are lost, and to fill them in takes at least 3 others that are seen and not "
            "on one line: cut these frames, or leave out the marker"
        )
    if len(never):
        raise ValueError(
            f"{name}: marker {int(never[0])} (from 0) is never seen beside three others: leave it out"
        )
    filled = markers.copy()
    filled[firm] = np.where(
        seen[firm, :, None], markers[firm], shape @ rotations.swapaxes(1, 2) + translations[:, None]
    )
    return filled


def _from_matrices(name: str, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Rotations, translations and a note from N x 4 x 4, for column or row vectors."""
    end = np.array((0, 0, 0, 1))
    columns = np.allclose(poses[:, 3], end, atol=1e-6)
    rows = np.allclose(poses[:, :, 3], end, atol=1e-6)
    notes = ()
    if rows and columns:
        notes = ("no pose has a translation, so the matrices are taken to stand for column vectors",)
    elif rows:
        poses = poses.swapaxes(1, 2)
        notes = ("the matrices stand for row vectors (the translation is the last row)",)
    elif not columns:
        raise ValueError(
            f"{name}: neither the last row nor the last column of its matrices is 0 0 0 1, so they are no poses"
        )
    rotations, bad = poses[:, :3, :3], _no_rotation(poses[:, :3, :3])
    if bad.any():
        raise ValueError(
            f"{name}: the matrix of frame {_first(bad)} scales, mirrors or shears: expected a rotation and a "
            "translation; leave a scale to the unit of the mesh"
        )
    return Rotation.from_matrix(rotations).as_matrix(), poses[:, :3, 3], notes


def _no_rotation(matrices: np.ndarray) -> np.ndarray:
    """Which of N x 3 x 3 are no rotations, to a hundredth."""
    square = np.abs(matrices @ matrices.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
    return ~((square < 0.01) & (np.linalg.det(matrices) > 0))


def _from_quaternions(name: str, quaternions: np.ndarray) -> np.ndarray:
    """Rotations, N x 3 x 3, from N x 4 (x y z w) of length 1."""
    lengths = np.linalg.norm(quaternions, axis=1)
    if np.abs(lengths - 1).max() > 0.05:
        raise ValueError(
            f"{name}: its quaternions have lengths from {lengths.min():.3g} to {lengths.max():.3g} instead of 1: "
            "choose the layout in which the file has them"
        )
    return Rotation.from_quat(quaternions).as_matrix()


def _from_vectors(name: str, vectors: np.ndarray) -> np.ndarray:
    """Rotations, N x 3 x 3, from rotation vectors (N x 3) in radians."""
    longest = float(np.linalg.norm(vectors, axis=1).max())
    if longest > 2 * np.pi + 0.1:
        raise ValueError(
            f"{name}: its rotation vectors are up to {longest:.4g} long, more than a full turn in radians: "
            f"{EXPECTED_POSES}"
        )
    return Rotation.from_rotvec(vectors).as_matrix()


def _check_size(name: str, size: float, metres_per_unit: float) -> None:
    """Refuse the size (in the file's unit) of no thing that hands move."""
    low, high = SIZES
    if low <= size * metres_per_unit <= high:
        return
    others = [f"{size * unit:.3g} m in {key}" for key, unit in UNITS.items() if low <= size * unit <= high]
    raise ValueError(
        f"{name} would be {size * metres_per_unit:.4g} m long, and {low:g} to {high:g} m was expected: choose its unit "
        f"({', '.join(others) or 'none of those known fits: scale it in another program'})"
    )


def _first(bad: np.ndarray) -> int:
    """The first frame in which something is bad."""
    return int(np.argwhere(bad)[0, 0])


def _require_file(path: Path) -> None:
    """Refuse a path at which there is no file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Plain arrays of an .npz or .npy as float64, by name."""
    _require_file(path)
    if path.suffix.lower() not in POSES:
        raise ValueError(f"{path.name}: arrays come as {' or '.join(POSES)}")
    arrays = plain_arrays(path)
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{path.name}: {name} holds {values.dtype} instead of numbers: leave it out")
        if not values.size:
            raise ValueError(f"{path.name}: {name} is empty")
    if not arrays:
        raise ValueError(f"{path.name} has no arrays in it")
    return {name: values.astype(np.float64) for name, values in arrays.items()}


def _read_csv(path: Path) -> np.ndarray:
    """A table of numbers, N x 3 K, NaN for empty cells; without its titles and its column of frames or times."""
    _require_file(path)
    with (
        reading(path, "is no table in UTF-8", "save it as CSV UTF-8"),
        path.open(newline="", encoding="utf-8-sig") as file,
    ):
        rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    titles = [cell.strip().lower() for cell in rows[0]] if rows and _is_titles(rows[0]) else []
    rows = rows[1:] if titles else rows
    if not rows or len({len(row) for row in rows}) != 1 or (titles and len(titles) != len(rows[0])):
        raise ValueError(f"{path.name} must have rows with one number of cells, separated by commas")
    try:
        values = np.array([[float(cell) if cell.strip() else np.nan for cell in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path.name} has a cell that is no number ({error})") from error
    first = titles and titles[0].startswith(("frame", "time"))
    values, titles = (values[:, 1:], titles[1:]) if first else (values, titles)
    words = ["".join(filter(str.isalpha, title)) for title in titles]
    short = ("rx", "ry", "rz") if "x" in words else ()  # else they can be those of a marker r
    turns = [
        title for title, word in zip(titles, words, strict=True) if ROTATION.search(word) or word in short
    ]
    if turns:
        raise ValueError(
            f"{path.name} has rotations ({', '.join(turns)}), which are no markers: give the object's mesh and "
            "its poses as .npy or .npz, or leave these columns out"
        )
    columns = "".join(word[:1] for word in words), "".join(word[-1:] for word in words)  # x1, or left_x
    mixed = any(set(axes) == set("xyz") and axes.replace("xyz", "") for axes in columns)
    if mixed or values.shape[1] % 3:
        raise ValueError(
            f"{path.name} has the columns {', '.join(titles) or values.shape[1]}; {EXPECTED_MARKERS}"
        )
    return values


def _is_titles(row: Sequence[str]) -> bool:
    """Whether a row of cells has words in it."""
    try:
        [float(cell) for cell in row if cell.strip()]
    except ValueError:
        return True
    return False
