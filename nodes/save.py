"""Savers of 3D motion."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import comfy.utils
import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..svimo_core.export.json_ import write_json
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.rigged import RiggedMotion
from .compat import aliases
from .types import CATEGORY, Motion, check_choice, throw_if_interrupted

AnyMotion = TypeVar("AnyMotion", HandObjectMotion, RiggedMotion)
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
            **aliases("export motion", "npz", "json", "hand pose", "mocap"),
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
        to_save = with_graph(motion, cls)
        if format == "npz":
            to_save.save(Path(folder) / file)
        else:
            write_json(Path(folder) / file, to_save, on_progress=progress())
        saved = ui.SavedResult(file, subfolder, io.FolderType.output)
        return io.NodeOutput(motion, ui={"svimo_motion": [saved]})


def with_graph(motion: AnyMotion, node: type[io.ComfyNode]) -> AnyMotion:
    """A motion with the graph that made it, under the keys of core's savers.

    Where the server runs with --disable-metadata: without it, the prompt, and what the motion was loaded with.
    """
    if args.disable_metadata:
        return replace(motion, prompt="", metadata={})
    values = {"prompt": node.hidden.prompt, **(node.hidden.extra_pnginfo or {})} if node.hidden else {}
    graph = {key: json.dumps(value) for key, value in values.items() if value is not None}
    return replace(motion, metadata=motion.metadata | graph)


def temporary(prefix: str) -> tuple[Path, str]:
    """Where to put files that only the page shows: a path without its ending in the temp folder, and its subfolder.

    The name is a new one each time, as core's previews have it. A server empties the folder when it starts, and a page
    that stayed open would take a file for another that had its name before.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        f"{prefix}_{secrets.token_hex(4)}", folder_paths.get_temp_directory()
    )
    return Path(folder) / f"{name}_{counter:05}_", subfolder


def say(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on a node while its graph runs, as core's API nodes do; the node needs `io.Hidden.unique_id`."""
    # A graph may run without a server, and importing its module starts half of ComfyUI.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node.hidden:
        server.send_progress_text(text, node.hidden.unique_id)


def progress() -> Callable[[int, int], None]:
    """Progress bar of a node that can be cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def on_progress(done: int, total: int) -> None:
        throw_if_interrupted()
        bar.update_absolute(done, total)

    return on_progress


NODES = [SViMoSaveMotion]
