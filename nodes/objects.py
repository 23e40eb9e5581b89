"""Objects of the user's own in a motion: a mesh and its poses, or tracked markers."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.latest import io

from ..svimo_core.importing.axes import AXES, UNITS, to_camera
from ..svimo_core.importing.decide import oddities
from ..svimo_core.importing.objects import (
    LAYOUTS,
    MARKERS,
    MESHES,
    POSES,
    ImportedObject,
    add_object,
    read_markers,
    read_posed_mesh,
)
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.rigged import ObjectMesh
from .compat import aliases
from .files import accept_files, written_when
from .types import CATEGORY, Motion, ObjectMeshes, check_choice

NO_POSES = "none"
LENGTHS = ["equal", "fit"]


def input_files(suffixes: Collection[str]) -> list[str]:
    """Files of these kinds in the input folder and all below it, named from there. Core's own loaders look each time."""
    root = Path(folder_paths.get_input_directory())
    return sorted(
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(tuple(suffixes))
    )


def input_file(name: str) -> Path:
    """Path of a file named as :func:`input_files` names it.

    Raises:
        ValueError: a path that leads out of the input folder.
        FileNotFoundError: no such file.
    """
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"{name!r} lies outside of ComfyUI's input folder: copy the file there")
    if not path.is_file():
        raise FileNotFoundError(f"no file {name!r} in ComfyUI's input folder: copy it there")
    return path


def _files(object_file: str, poses_file: str) -> list[Path]:
    return [input_file(name) for name in (object_file, poses_file) if name != NO_POSES]


class SViMoAddObject(io.ComfyNode):
    """A motion and the user's own object in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoAddObject",
            display_name="Add Object to SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Add an object of your own to 3D motion: a mesh that poses move or that stands still, or the tracked markers of one or several objects.",
            **aliases("import object", "mesh", "6dof", "object pose", "markers", "obj", "taco", "arctic"),
            inputs=[
                Motion.Input("motion", tooltip="3D motion to add the object to."),
                io.Combo.Input(
                    "object_file",
                    options=input_files((*MESHES, *MARKERS)),
                    tooltip="In ComfyUI's input folder: a mesh (.obj, .ply, .stl, .glb, .off), or markers (.npy, .npz, .csv): frames x markers x 3, NaN or empty where a marker is lost.",
                ),
                io.Combo.Input(
                    "poses_file",
                    options=[NO_POSES, *input_files(POSES)],
                    default=NO_POSES,
                    tooltip="Poses of the mesh (.npy, .npz): matrices (frames x 4 x 4), a rotation vector and a translation (frames x 6), or a translation and a quaternion (frames x 7). none: the mesh stands still, or the file has markers.",
                ),
                io.String.Input(
                    "name",
                    default="object",
                    tooltip="What to call the object. Of an .npz with the poses of several objects, those of this name are taken; several objects of markers keep the names in their file.",
                ),
                io.Combo.Input(
                    "unit",
                    options=list(UNITS),
                    default="metres",
                    tooltip="Unit of lengths in the object's file.",
                ),
                io.Combo.Input(
                    "poses_unit",
                    options=list(UNITS),
                    default="metres",
                    tooltip="Unit of the translations in the poses' file, which may be another: TACO's meshes are in centimetres, its poses in metres.",
                ),
                io.Combo.Input(
                    "poses_layout",
                    options=list(LAYOUTS),
                    default="auto",
                    tooltip="Order of the numbers in poses of seven, which cannot tell it themselves. arctic: an angle, a rotation vector and a translation. auto: for all other poses.",
                ),
                io.Int.Input(
                    "points",
                    default=128,
                    min=1,
                    max=2000,
                    tooltip="Points to take on a mesh, evenly. SViMo's own motion has 128.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="Frame rate of the object, which is brought to that of the motion. 0: as the motion.",
                ),
                io.Combo.Input(
                    "lengths",
                    options=LENGTHS,
                    default="equal",
                    tooltip="equal: refuse an object with another number of frames than the motion. fit: cut off what the motion does not have, and hold the first and last pose where it has more.",
                ),
                io.Int.Input(
                    "first_frame",
                    default=0,
                    min=-100_000,
                    max=100_000,
                    tooltip="With fit: the frame of the motion in which the object's frames begin; negative cuts off its beginning.",
                ),
                io.Combo.Input(
                    "up",
                    options=list(AXES),
                    default="-y",
                    tooltip="Axis of poses and markers that points up. -y: camera space. Blender's world: +z, as for the hands.",
                ),
                io.Combo.Input(
                    "forward",
                    options=list(AXES),
                    default="+z",
                    tooltip="Axis of poses and markers that points away from the viewer. +z: camera space. Blender's world: +y.",
                ),
                ObjectMeshes.Input(
                    "meshes",
                    optional=True,
                    tooltip="Meshes of objects that were added before, to hand on with this one.",
                ),
            ],
            outputs=[
                Motion.Output(display_name="motion", tooltip="The motion with the object in it."),
                io.String.Output(
                    display_name="report", tooltip="What was added, and what was decided about the files."
                ),
                ObjectMeshes.Output(
                    display_name="meshes",
                    tooltip="Meshes of the objects added so far, for Rig SViMo Motion to show.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, object_file: str | None, poses_file: str | None) -> bool | str:
        return accept_files(_files, object_file, poses_file)

    @classmethod
    def fingerprint_inputs(cls, object_file: str | None, poses_file: str | None, **_others) -> str | float:
        return written_when(_files, object_file, poses_file)

    @classmethod
    def execute(
        cls,
        motion: HandObjectMotion,
        object_file: str,
        poses_file: str,
        name: str,
        unit: str,
        poses_unit: str,
        poses_layout: str,
        points: int,
        fps: float,
        lengths: str,
        first_frame: int,
        up: str,
        forward: str,
        meshes: dict[str, ObjectMesh] | None = None,
    ) -> io.NodeOutput:
        for key, value, options in (
            ("unit", unit, UNITS),
            ("poses_unit", poses_unit, UNITS),
            ("poses_layout", poses_layout, LAYOUTS),
            ("lengths", lengths, LENGTHS),
        ):
            check_choice(key, value, options)
        found = read_objects(
            object_file,
            poses_file,
            name.strip(),
            unit,
            poses_unit,
            poses_layout,
            points,
            to_camera(up, forward),
        )
        lines = []
        for key, thing in found.items():
            motion = add_object(
                motion,
                key,
                thing.points,
                fps=fps or None,
                fit=lengths == "fit",
                first_frame=first_frame,
            )
            frames, count, _ = thing.points.shape
            told = [f"{key}: {count} points, {frames} frames, {size_and_place(thing.points)}", *thing.notes]
            lines.append("; ".join(told))
        lines += oddities(motion, seen=False)
        report = "\n".join(lines)
        meshes = (meshes or {}) | {key: thing.mesh for key, thing in found.items() if thing.mesh is not None}
        return io.NodeOutput(motion, report, meshes, ui={"text": [report]})


def size_and_place(points: np.ndarray) -> str:
    """How large an object is and where it stands first, for the person who adds it."""
    size = np.linalg.norm(np.ptp(points[0], axis=0)) * 100
    x, y, z = (f"{value:.2f}" for value in points[0].mean(axis=0))
    return f"{size:.3g} cm large, first at ({x}, {y}, {z}) m"


def read_objects(
    object_file: str,
    poses_file: str,
    name: str,
    unit: str,
    poses_unit: str,
    layout: str,
    points: int,
    axes: np.ndarray,
) -> dict[str, ImportedObject]:
    """The objects of a file by name: one mesh, or one or several sets of markers.

    Raises:
        ValueError: markers with poses, and whatever the readers refuse.
    """
    path = input_file(object_file)
    if path.suffix.lower() not in MARKERS:
        poses = None if poses_file == NO_POSES else input_file(poses_file)
        return {
            name: read_posed_mesh(
                path,
                poses,
                count=points,
                metres_per_mesh_unit=UNITS[unit],
                metres_per_pose_unit=UNITS[poses_unit],
                layout=layout,
                key=name,
                axes=axes,
            )
        }
    if poses_file != NO_POSES:
        raise ValueError(
            f"{path.name} has markers, which move by themselves: set poses_file to {NO_POSES}, or object_file to a mesh"
        )
    found = read_markers(path, metres_per_unit=UNITS[unit], axes=axes)
    return found if len(found) > 1 else {name: next(iter(found.values()))}


NODES = [SViMoAddObject]
