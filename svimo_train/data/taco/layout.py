"""TACO's files: what lies where, and what is in it.

From the authors' README and loaders (github.com/leolyliu/TACO-Instructions). Every folder has one of the same
sequences, `(action, tool, target)/<date>_<number>`; frames are counted alike in all of them, at 30 a second. Poses are
metres in one world, and a camera's matrices take them to its own axes (x right, y down, z forward).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svimo_core.files import plain_arrays, reading
from svimo_core.importing.objects import read_poses
from svimo_core.motion import Camera

from .pickles import read_pickle

FPS = 30
EGOCENTRIC = "egocentric"
ALLOCENTRIC = "allocentric"
"""All cameras around the table; one of them goes by its serial number, such as "22070938"."""
EGOCENTRIC_SIZE = (1920, 1080)
"""Pixels that the egocentric intrinsics are meant for; no file says so."""
MODELS = ("Object_Models", "object_models_released")
"""The folder of meshes, in the README and in the authors' own copy."""
MARKERS = {
    "removed-first": ("Marker_Removed_Allocentric_RGB_Videos", "Allocentric_RGB_Videos"),
    "removed": ("Marker_Removed_Allocentric_RGB_Videos",),
    "seen": ("Allocentric_RGB_Videos",),
}
"""Which allocentric videos to take: with the motion capture's markers painted over, or as filmed."""
METRES_PER_MESH_UNIT = 0.01
NO_CAMERA = "holds no camera"

_LINE = re.compile(r"\(([^,()]+), ([^,()]+), ([^,()]+)\)[ /](\S+)")


class Sequence(NamedTuple):
    """One recording."""

    action: str
    tool: str
    target: str
    name: str
    """Date and number, such as "20230927_032"; no two sequences share it."""

    @property
    def triplet(self) -> tuple[str, str, str]:
        """Action, tool, target."""
        return self[:3]

    @property
    def folder(self) -> str:
        """Its place in each of TACO's folders."""
        return f"({', '.join(self.triplet)})/{self.name}"

    @property
    def prompt(self) -> str:
        """As SViMo's paper words it."""
        return f"use {self.tool} to {self.action} {self.target}"

    def __str__(self) -> str:
        """As in TACO's lists."""
        return f"({', '.join(self.triplet)}) {self.name}"


def parse_sequence(line: str) -> Sequence:
    """A line of TACO's lists, "(action, tool, target) name".

    Raises:
        ValueError: it is none.
    """
    match = _LINE.fullmatch(line.strip())
    if not match:
        raise ValueError(f'expected a sequence as "(action, tool, target) name", got {line.strip()!r}')
    return Sequence(*match.groups())


def read_sequences(path: str | os.PathLike) -> list[Sequence]:
    """The sequences of one of TACO's lists, `data_lists/v1_*_sequences.txt`, in its order.

    Raises:
        OSError: no such file.
        ValueError: a line that is no sequence.
    """
    with reading(path, "is no list of TACO's sequences"):
        return [parse_sequence(line) for line in Path(path).read_text().splitlines() if line.strip()]


def find_sequences(source: Path) -> list[Sequence]:
    """The sequences that have a folder of object poses, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    folders = (path.relative_to(source / "Object_Poses") for path in source.glob("Object_Poses/(*)/*"))
    found = [parse_sequence(path.as_posix()) for path in folders if _LINE.fullmatch(path.as_posix())]
    if not found:
        raise FileNotFoundError(
            f"no sequence in {source / 'Object_Poses'}: expected TACO's folders, unpacked beside each other, with "
            "sequences as (action, tool, target)/name"
        )
    return sorted(found, key=lambda sequence: sequence.name)


# Hands


class HandParameters(NamedTuple):
    """One hand in MANO's terms; N frames."""

    pose: np.ndarray
    """N x 48 rotation vectors, radians: the wrist in the world, then 15 finger joints from the flat hand."""
    wrist: np.ndarray
    """N x 3, metres: where joint 0 is in the world."""
    shape: np.ndarray
    """10."""


def read_hand(source: Path, sequence: Sequence, side: str) -> HandParameters:
    """The left or right hand: one pickle for all frames, or a folder with one for each, as TACO's loader takes both.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged or hostile, or holds something else.
    """
    folder = source / "Hand_Poses" / sequence.folder
    each = sorted((folder / f"{side}_hand").glob("*.pkl"))
    if each:
        frames = [_numbers(path, read_pickle(path), hand_pose=48, hand_trans=3) for path in each]
    else:
        path = folder / f"{side}_hand.pkl"
        with reading(path, "holds no poses of a hand by frame"):
            content = read_pickle(path)
            frames = [_numbers(path, content[key], hand_pose=48, hand_trans=3) for key in sorted(content)]
            if not frames:
                raise ValueError("it is empty")
    path = folder / f"{side}_hand_shape.pkl"
    (shape,) = _numbers(path, read_pickle(path), hand_shape=10)
    pose, wrist = (np.stack(values) for values in zip(*frames, strict=True))
    return HandParameters(pose=pose, wrist=wrist, shape=shape)


def _numbers(path: Path, content: Any, **sizes: int) -> list[np.ndarray]:
    """Arrays of these names, of so many numbers each, float64."""
    with reading(path, f"lacks numbers of a hand ({', '.join(sizes)})"):
        arrays = [np.reshape(content[name], size).astype(np.float64) for name, size in sizes.items()]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("some of them are not finite")
        return arrays


# Objects


class PosedObject(NamedTuple):
    """A rigid thing; N frames."""

    mesh: Path
    """In centimetres."""
    rotations: np.ndarray
    """N x 3 x 3, from the mesh's axes to the world's."""
    translations: np.ndarray
    """N x 3, metres."""


def read_object(source: Path, sequence: Sequence, role: str) -> PosedObject:
    """The "tool" or the "target"; its mesh is only named here, not read.

    Raises:
        FileNotFoundError: there is no file of poses.
        ValueError: there are several, or it holds something else.
    """
    folder = source / "Object_Poses" / sequence.folder
    files = sorted(folder.glob(f"{role}_*.npy"))
    if not files:
        raise FileNotFoundError(f"there is no {role}_<number>.npy")
    if len(files) > 1:
        raise ValueError(f"there are {len(files)} files {role}_<number>.npy")
    number = files[0].stem.removeprefix(f"{role}_")
    meshes = [source / name / f"{number}_cm.obj" for name in MODELS]
    mesh = next((path for path in meshes if path.is_file()), meshes[0])
    rotations, translations, _ = read_poses(files[0])
    return PosedObject(mesh, rotations, translations)


# Cameras and videos


@dataclass(frozen=True, kw_only=True)
class View:
    """A camera that may move; F frames, or 1 if it stands still.

    Raises:
        ValueError: matrices that no camera has.
    """

    camera: Camera
    world_to_camera: np.ndarray
    """F x 4 x 4."""

    def __post_init__(self):
        if self.world_to_camera.ndim != 3 or self.world_to_camera.shape[1:] != (4, 4):
            raise ValueError(f"its extrinsics must be frames x 4 x 4, got {self.world_to_camera.shape}")
        turns = self.world_to_camera[:, :3, :3]
        square = np.abs(turns @ turns.swapaxes(1, 2) - np.eye(3)).max()
        if not (np.isfinite(self.world_to_camera).all() and square < 0.01 and np.linalg.det(turns).min() > 0):
            raise ValueError("its extrinsics are no rotation and translation")

    def look(self, points: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """World (N x P x 3, metres) to camera space in the frames of these numbers (N)."""
        matrices = self.world_to_camera[frames if len(self.world_to_camera) > 1 else np.zeros_like(frames)]
        return points @ matrices[:, :3, :3].swapaxes(1, 2) + matrices[:, None, :3, 3]


def read_view(source: Path, sequence: Sequence, view: str) -> View:
    """The camera of a view: "egocentric", or the serial number of an allocentric one.

    Raises:
        FileNotFoundError: there is no calibration.
        ValueError: it holds something else, or numbers that no camera has.
    """
    if view == EGOCENTRIC:
        folder = source / "Egocentric_Camera_Parameters" / sequence.folder
        path, poses = folder / "egocentric_intrinsic.txt", folder / "egocentric_frame_extrinsic.npy"
        with reading(path, NO_CAMERA):
            camera = _camera(np.loadtxt(path), *EGOCENTRIC_SIZE)
        with reading(poses, NO_CAMERA):
            (matrices,) = plain_arrays(poses).values()
            return View(camera=camera, world_to_camera=matrices.astype(np.float64))
    path = source / "Allocentric_Camera_Parameters" / sequence.folder / "calibration.json"
    with reading(path, NO_CAMERA):
        content = json.loads(path.read_text())
        if view not in content:
            raise FileNotFoundError(f"{path.name} has no camera {view}")
        found = content[view]
        matrices = np.eye(4)[None]
        matrices[0, :3, :3] = np.reshape(found["R"], (3, 3))
        matrices[0, :3, 3] = np.reshape(found["T"], 3)
        width, height = (int(value) for value in found["imgSize"])
        camera = _camera(np.array(found["K"], dtype=float), width, height)
        return View(camera=camera, world_to_camera=matrices)


def _camera(intrinsics: np.ndarray, width: int, height: int) -> Camera:
    (fx, _, cx), (_, fy, cy), _ = np.reshape(intrinsics, (3, 3)).tolist()
    if not (0 <= cx + 0.5 <= width and 0 <= cy + 0.5 <= height):
        raise ValueError("its principal point lies outside of the image")
    # A calibration counts from the middle of the first pixel, a Camera from its corner.
    return Camera(fx=fx, fy=fy, cx=cx + 0.5, cy=cy + 0.5, width=width, height=height)


def find_video(source: Path, sequence: Sequence, view: str, markers: str = "removed-first") -> Path:
    """The video of a view.

    Args:
        source: TACO's folder.
        sequence: which recording.
        view: "egocentric", or the serial number of an allocentric one.
        markers: a key of :data:`MARKERS`, for allocentric views.

    Raises:
        FileNotFoundError: there is none.
    """
    if view == EGOCENTRIC:
        choices = [source / "Egocentric_RGB_Videos" / sequence.folder / "color.mp4"]
    else:
        choices = [source / folder / sequence.folder / f"{view}.mp4" for folder in MARKERS[markers]]
    for path in choices:
        if path.is_file():
            return path
    raise FileNotFoundError(" and ".join(path.relative_to(source).parts[0] for path in choices) + " lack it")


def find_views(source: Path, sequence: Sequence, views: Iterable[str], markers: str) -> list[str]:
    """The views asked for, with "allocentric" replaced by the serial numbers of which there are videos, if any."""
    folders = [source / folder / sequence.folder for folder in MARKERS[markers]]
    serials = sorted({path.stem for folder in folders for path in folder.glob("*.mp4")})
    found = [name for view in views for name in (serials if view == ALLOCENTRIC and serials else [view])]
    return list(dict.fromkeys(found))
