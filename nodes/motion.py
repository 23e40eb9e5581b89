"""3D motion in the graph: load it and look at it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..svimo_core.clean import place_in_view
from ..svimo_core.importing.read import read_motion
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.render import render_motion, render_view
from .compat import aliases
from .types import CATEGORY, Motion, check_choice

SUFFIXES = (".npz", ".npy", ".json", ".bvh")
VIEWS = ["side", "camera"]
NO_FILE = "none"
MANO_SUFFIX = "_mano.npz"
"""Of MANO parameters, which are no motion to load."""
UNITS = {"usual": None, "metres": 1.0, "centimetres": 0.01, "millimetres": 0.001, "inches": 0.0254}
EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "motions"


def folders() -> dict[str, Path]:
    """Where motions may lie, by the mark that core puts behind a name: "walk.npz [output]"; input needs none."""
    return {
        "input": Path(folder_paths.get_input_directory()),
        "output": Path(folder_paths.get_output_directory()),
        "example": EXAMPLES,
    }


def list_motions() -> list[str]:
    """Motion files of all folders, marked."""
    found = []
    for kind, root in folders().items():
        names = sorted(Path(file).relative_to(root).as_posix() for file in motions_in(str(root)))
        found += [name if kind == "input" else f"{name} [{kind}]" for name in names]
    return found


def motions_in(folder: str) -> list[str]:
    """Paths of the motion files in a folder and all below it.

    The page and the validation of every run ask for the list several times, and output folders hold tens of thousands
    of files: a folder is read again only when it has changed, as `folder_paths` does for models.
    """
    try:
        changed = os.stat(folder).st_mtime_ns
        if folder not in _contents or _contents[folder][0] != changed:
            _contents[folder] = (changed, *read_folder(folder))
    except OSError:  # not made yet, removed meanwhile, or not ours to read
        return []
    _, files, subfolders = _contents[folder]
    return files + [file for subfolder in subfolders for file in motions_in(subfolder)]


def read_folder(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the motion files, and of the folders, directly in a folder."""
    files, subfolders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                subfolders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.endswith(MANO_SUFFIX):
                files.append(entry.path)
    return files, subfolders


_contents: dict[str, tuple[int, list[str], list[str]]] = {}
"""What :func:`motions_in` has read: folder -> its time of change, motion files and subfolders."""


def motion_path(name: str) -> Path:
    """Path of a motion file named as :func:`list_motions` names it.

    Raises:
        ValueError: a path that leads out of the input and output folders.
        FileNotFoundError: no such file.
    """
    marked = re.fullmatch(r"(.+) \[(input|output|example)\]", name)
    bare, kind = marked.groups() if marked else (name, "input")
    root = folders()[kind].resolve()
    path = (root / bare).resolve()
    if not path.is_relative_to(root):
        raise ValueError(
            f"{name!r} lies outside of ComfyUI's input and output folders: copy the file into input"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no motion file {name!r}: copy the .npz into ComfyUI's input folder")
    return path


class SViMoLoadMotion(io.ComfyNode):
    """A saved motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoLoadMotion",
            display_name="Load SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Load 3D motion: what Save SViMo Motion wrote, a BVH with both hands, or arrays of 21 joints per hand from a hand tracker. Import SViMo Motion has settings for motion from elsewhere.",
            **aliases(
                "hand pose", "hand tracking", "hamer", "wilor", "mocap", "motion capture", "bvh", "npz"
            ),
            inputs=[
                io.Combo.Input(
                    "motion",
                    options=list_motions(),
                    tooltip='A .npz in ComfyUI\'s input folder, one of its own results ("[output]"), or one that comes with the pack ("[example]").',
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.5,
                    tooltip="Frame rate, for arrays that do not say theirs. 0: as in the file.",
                ),
            ],
            outputs=[
                Motion.Output(
                    display_name="motion",
                    tooltip="Joints of both hands and points of all objects, in metres.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, motion: str) -> bool | str:
        """Accept files that came after the list was made."""
        try:
            motion_path(motion)
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, motion: str, **_others) -> str:
        """Load again when the file changes."""
        state = motion_path(motion).stat()
        return f"{state.st_mtime_ns} {state.st_size}"

    @classmethod
    def execute(cls, motion: str, fps: float) -> io.NodeOutput:
        return io.NodeOutput(read_motion(motion_path(motion), fps=fps or None))


class SViMoImportMotion(io.ComfyNode):
    """A motion that was made elsewhere, fitted to what SViMo expects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list_motions()
        return io.Schema(
            node_id="SViMoImportMotion",
            display_name="Import SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Load motion from elsewhere, such as motion capture or a hand tracker: one BVH per hand, other units, gaps, and a place in front of the camera.",
            **aliases("mocap", "motion capture", "bvh", "hand tracking", "hamer", "wilor", "hand pose"),
            inputs=[
                io.Combo.Input(
                    "motion",
                    options=files,
                    tooltip="A .bvh of a body or of one hand, or arrays of 21 joints per hand (.npz, .npy).",
                ),
                io.Combo.Input(
                    "other_hand",
                    options=[NO_FILE, *(file for file in files if ".bvh" in file.lower())],
                    default=NO_FILE,
                    tooltip="The .bvh of the other hand, where each hand has its own.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.5,
                    tooltip="Frame rate, for arrays that do not say theirs. 0: as in the file.",
                ),
                io.Combo.Input(
                    "unit",
                    options=list(UNITS),
                    default="usual",
                    tooltip="Unit of lengths in the file. usual: centimetres for BVH, metres for arrays.",
                ),
                io.Int.Input(
                    "max_gap",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Frames in a row in which a tracker may have lost a hand; they are filled with straight lines.",
                ),
                io.Float.Input(
                    "distance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Metres from the camera to the middle of the motion, to move it there. 0: leave it where it is, for motion that was seen by a camera.",
                ),
            ],
            outputs=[
                Motion.Output(display_name="motion", tooltip="Joints of both hands, in metres. No objects.")
            ],
        )

    @classmethod
    def validate_inputs(cls, motion: str, other_hand: str) -> bool | str:
        """Accept files that came after the list was made."""
        try:
            motion_paths(motion, other_hand)
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, motion: str, other_hand: str, **_others) -> str:
        """Load again when a file changes."""
        states = [path.stat() for path in motion_paths(motion, other_hand)]
        return " ".join(f"{state.st_mtime_ns} {state.st_size}" for state in states)

    @classmethod
    def execute(
        cls, motion: str, other_hand: str, fps: float, unit: str, max_gap: int, distance: float
    ) -> io.NodeOutput:
        check_choice("unit", unit, list(UNITS))
        imported = read_motion(
            motion_paths(motion, other_hand), fps=fps or None, metres_per_unit=UNITS[unit], max_gap=max_gap
        )
        return io.NodeOutput(place_in_view(imported, distance) if distance else imported)


def motion_paths(motion: str, other_hand: str) -> list[Path]:
    """The files of a motion, one or one per hand."""
    return [motion_path(name) for name in (motion, other_hand) if name != NO_FILE]


class SViMoPreviewMotion(io.ComfyNode):
    """A motion drawn, in the node and as frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoPreviewMotion",
            display_name="Preview SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Draw 3D motion from the side, or through its own camera as the model sees it.",
            **aliases("view motion", "draw hands", "hand skeleton", "hand pose"),
            inputs=[
                Motion.Input("motion", tooltip="3D motion."),
                io.Combo.Input(
                    "view",
                    options=VIEWS,
                    default="side",
                    tooltip="side: from the side, above a ground grid. camera: the rendered motion video, through the clip's camera.",
                ),
                io.Int.Input("width", default=480, min=16, max=4096, step=16, tooltip="Pixels."),
                io.Int.Input("height", default=320, min=16, max=4096, step=16, tooltip="Pixels."),
            ],
            outputs=[io.Image.Output(display_name="frames", tooltip="The drawn frames.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, motion: HandObjectMotion, view: str, width: int, height: int) -> io.NodeOutput:
        check_choice("view", view, VIEWS)
        frames = (render_view if view == "side" else render_motion)(motion, width, height)
        directory = folder_paths.get_temp_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path("SViMoPreview", directory)
        file = f"{name}_{counter:05}_.webp"
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(
            Path(folder) / file,
            save_all=True,
            append_images=rest,
            duration=round(1000 / motion.fps),
            loop=0,
            quality=85,
        )
        preview = ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.temp)])
        return io.NodeOutput(torch.from_numpy(frames).float() / 255, ui=preview)


NODES = [SViMoLoadMotion, SViMoImportMotion, SViMoPreviewMotion]
