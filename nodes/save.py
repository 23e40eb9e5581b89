"""Savers of 3D motion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..svimo_core.export.json_ import write_json
from ..svimo_core.motion import HandObjectMotion
from .types import CATEGORY, Motion, check_choice

FORMATS = ["npz", "json"]


class SViMoSaveMotion(io.ComfyNode):
    """3D motion to a file in ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSaveMotion",
            display_name="Save SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Save 3D motion as .npz: plain arrays in metres that numpy opens without pickle.",
            inputs=[
                Motion.Input("motion", tooltip="3D motion."),
                io.String.Input(
                    "filename_prefix",
                    default="svimo/motion",
                    tooltip="Folder and beginning of the file's name.",
                ),
                io.Combo.Input(
                    "format",
                    options=FORMATS,
                    default="npz",
                    tooltip="npz: plain arrays, small. json: the same as text that any program reads.",
                ),
            ],
            outputs=[Motion.Output(display_name="motion", tooltip="The same motion.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, motion: HandObjectMotion, filename_prefix: str, format: str) -> io.NodeOutput:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        check_choice("format", format, FORMATS)
        file = f"{name}_{counter:05}_.{format}"
        motion_with_graph = replace(motion, metadata=motion.metadata | graph_metadata(cls))
        if format == "npz":
            motion_with_graph.save(Path(folder) / file)
        else:
            write_json(Path(folder) / file, motion_with_graph)
        saved = ui.SavedResult(file, subfolder, io.FolderType.output)
        return io.NodeOutput(motion, ui={"svimo_motion": [saved]})


def graph_metadata(node: type[io.ComfyNode]) -> dict[str, str]:
    """The graph that made a file, as core's savers embed it, unless the server runs with --disable-metadata."""
    if args.disable_metadata or node.hidden is None:
        return {}
    values = {"prompt": node.hidden.prompt, **(node.hidden.extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in values.items() if value is not None}


NODES = [SViMoSaveMotion]
