"""3D motion in the graph: load it and look at it."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..svimo_core.export.reading import read_motion
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.render import render_motion, render_view
from .types import CATEGORY, Motion, check_choice

SUFFIXES = (".npz", ".npy", ".json", ".bvh")
VIEWS = ["side", "camera"]
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
        files = (path for path in root.rglob("*") if path.suffix in SUFFIXES)
        names = sorted(path.relative_to(root).as_posix() for path in files)
        found += [name if kind == "input" else f"{name} [{kind}]" for name in names]
    return found


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
            description="Load 3D motion: what Save SViMo Motion wrote, a BVH with both hands, or arrays of 21 joints per hand from a hand tracker.",
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


class SViMoPreviewMotion(io.ComfyNode):
    """A motion drawn, in the node and as frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoPreviewMotion",
            display_name="Preview SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Draw 3D motion from the side, or through its own camera as the model sees it.",
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


NODES = [SViMoLoadMotion, SViMoPreviewMotion]
