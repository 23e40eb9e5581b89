"""A motion in 3D in the graph: the viewer's files. The viewer itself is in `js/viewer/`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..svimo_core.export.json_ import write_json
from ..svimo_core.motion import HandObjectMotion
from .compat import aliases
from .save import temporary
from .types import CATEGORY, Motion

MAX_POINTS = 2000
"""Points of an object that the viewer shows: more only hide each other."""
MAX_NUMBERS = 1_500_000
"""Coordinates of all objects in all frames that the page loads, about 15 MB; a long clip shows fewer points."""
MAX_SHEET = 4096
"""Pixels of a sheet of frames along each side: what every graphics card takes as a texture."""


class SViMoMotionViewer(io.ComfyNode):
    """A motion to look at from all sides."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoMotionViewer",
            display_name="SViMo Motion Viewer",
            category=f"{CATEGORY}/motion",
            description="Look at 3D motion from all sides or through its own camera, in step with the video.",
            **aliases("3d viewer", "preview 3d", "view motion", "hand pose", "mocap"),
            inputs=[
                Motion.Input("motion", tooltip="3D motion."),
                io.Image.Input(
                    "video",
                    optional=True,
                    tooltip="Frames of the video, one for each frame of the motion: shown beside it, and behind it in the camera's view.",
                ),
                io.Image.Input(
                    "rendered_motion",
                    optional=True,
                    tooltip="Frames of the rendered motion, one for each frame of the motion: shown beside it.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, motion: HandObjectMotion, video: Tensor | None = None, rendered_motion: Tensor | None = None
    ) -> io.NodeOutput:
        pictures = {"video": video, "rendered_motion": rendered_motion}
        pictures = {role: frames for role, frames in pictures.items() if frames is not None}
        for role, frames in pictures.items():
            if len(frames) != len(motion):
                raise ValueError(
                    f"{role} has {len(frames)} frames and the motion {len(motion)}: "
                    "connect frames of the same clip, or resample the motion"
                )
        stem, subfolder = temporary("SViMoViewer")
        files = [write_json(stem.with_suffix(".json"), for_display(motion))]
        entries: list[dict[str, Any]] = [{"role": "motion"}]
        for role, frames in pictures.items():
            files.append(stem.with_name(f"{stem.name}{role}.jpg"))
            entries.append({"role": role, **save_sheet(files[-1], frames)})
        for entry, file in zip(entries, files, strict=True):
            entry |= {"filename": file.name, "subfolder": subfolder, "type": io.FolderType.temp.value}
        return io.NodeOutput(ui={"svimo_viewer": entries})


def for_display(motion: HandObjectMotion) -> HandObjectMotion:
    """A motion without what a viewer does not show: the graph that made it, and more points than there is use for."""
    most = min(MAX_POINTS, max(1, MAX_NUMBERS // (3 * len(motion) * max(1, len(motion.objects)))))
    objects = {
        name: points[:, :: math.ceil(points.shape[1] / most)] for name, points in motion.objects.items()
    }
    return replace(motion, objects=objects, metadata={})


def save_sheet(path: Path, frames: Tensor) -> dict[str, int]:
    """Write all frames (N H W 3 in [0, 1]) into one picture, row by row: a page can show any of them at once.

    Returns:
        columns and rows of the sheet, and width and height of one frame on it in pixels.
    """
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = min(1.0, MAX_SHEET / (columns * width), MAX_SHEET / (rows * height))
    size = (max(1, int(height * scale)), max(1, int(width * scale)))
    cells = F.interpolate(rearrange(frames[..., :3], "n h w c -> n c h w"), size, mode="area")
    cells = torch.cat([cells, cells.new_zeros(columns * rows - count, 3, *size)])
    sheet = rearrange(cells, "(r k) c h w -> (r h) (k w) c", k=columns)
    Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().cpu().numpy()).save(path, quality=92)
    return {"columns": columns, "rows": rows, "width": size[1], "height": size[0]}


NODES = [SViMoMotionViewer]
