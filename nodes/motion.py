"""3D motion in the graph: load it and look at it."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..svimo_core.clean import MISSING_HANDS
from ..svimo_core.importing.axes import AXES, UNITS
from ..svimo_core.importing.decide import AUTO, LEAVE, TRIM, ImportOptions
from ..svimo_core.importing.orders import ORDERS
from ..svimo_core.importing.parameters import MEANS
from ..svimo_core.importing.read import import_motion
from ..svimo_core.importing.sides import CHOICES
from ..svimo_core.mano import LEFT_SHAPES
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.render import draw_motion, draw_view, render_named
from .compat import aliases
from .files import accept_files, written_when
from .rig import find_mano
from .save import progress, say, temporary
from .types import CATEGORY, Motion, check_choice

SUFFIXES = (".npz", ".npy", ".json", ".bvh")
MOST_BYTES = 2**30
"""That the frames of a preview take in the graph."""
MOST_SHOWN, FASTEST = 600, 50
"""Frames of the preview in the node, in all and per second."""
VIEWS = ["side", "camera"]
NO_FILE = "none"
MANO_SUFFIX = "_mano.npz"
"""Of MANO parameters, which are no motion to load."""
USUAL = "usual"
"""What `unit` calls AUTO."""
PICTURE = (480, 320)
"""Pixels of each of the two views of what was imported."""
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
        raise FileNotFoundError(f"no motion file {name!r}: copy the file into ComfyUI's input folder")
    return path


class SViMoLoadMotion(io.ComfyNode):
    """A saved motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoLoadMotion",
            display_name="Load SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Load 3D motion: what Save SViMo Motion wrote, a BVH, or joints or MANO parameters of a hand tracker or data set. The node says what it understood; Import SViMo Motion has settings for what it cannot know.",
            **aliases(
                "hand pose", "hand tracking", "hamer", "wilor", "mocap", "motion capture", "bvh", "npz"
            ),
            inputs=[
                io.Combo.Input(
                    "motion",
                    options=list_motions(),
                    tooltip='A .npz, .npy, .json or .bvh in ComfyUI\'s input folder, one of its own results ("[output]"), or one that comes with the pack ("[example]").',
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.5,
                    tooltip="Frames per second, for a file that does not say, or instead of what it says. 0: as in the file.",
                ),
            ],
            outputs=[
                Motion.Output(
                    display_name="motion",
                    tooltip="Joints of the hands and points of all objects, in metres.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, motion: str | None) -> bool | str:
        return accept_files(motion_paths, motion)

    @classmethod
    def fingerprint_inputs(cls, motion: str | None, **_others) -> str | float:
        return written_when(motion_paths, motion)

    @classmethod
    def execute(cls, motion: str, fps: float) -> io.NodeOutput:
        imported = import_motion(motion_path(motion), ImportOptions(fps=fps or None), mano=find_mano)
        say(cls, "\n".join(imported.report))
        return io.NodeOutput(imported.motion, ui={"text": ["\n".join(imported.report)]})


class SViMoImportMotion(io.ComfyNode):
    """A motion that was made elsewhere, fitted to what SViMo expects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = list_motions()
        return io.Schema(
            node_id="SViMoImportMotion",
            display_name="Import SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Load motion from elsewhere, such as motion capture, a hand tracker or a data set: one hand or both, other names, orders, units and axes, gaps, and a place in front of the camera. It says what it understood, and shows it.",
            **aliases("mocap", "motion capture", "bvh", "hand tracking", "hamer", "wilor", "hand pose"),
            inputs=[
                io.Combo.Input(
                    "motion",
                    options=files,
                    tooltip="A .bvh of a body or of a hand; joints (.npz, .npy, .json); or MANO parameters (.npz, .json).",
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
                    tooltip="Frames per second, for a file that does not say, or instead of what it says. 0: as in the file.",
                ),
                io.Combo.Input(
                    "unit",
                    options=[USUAL, *UNITS],
                    default=USUAL,
                    tooltip="Unit of lengths in the file. usual: the one in which the hands are a person's.",
                ),
                io.Int.Input(
                    "max_gap",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Frames in a row, between two that have a hand, to fill with straight lines where a tracker lost it.",
                ),
                io.Float.Input(
                    "distance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Metres from the camera to the middle of the motion, to move it there. 0: leave it where it is, for motion that was seen by a camera.",
                ),
                io.Combo.Input(
                    "joint_order",
                    options=[AUTO, *ORDERS],
                    default=AUTO,
                    optional=True,
                    tooltip="Order of joints in arrays without names. auto: the one in which they make fingers. OpenPose: also MediaPipe, HaMeR, WiLoR, FreiHAND, DexYCB. MANO: 16 joints, then five tips; also HO-3D.",
                ),
                io.Combo.Input(
                    "up",
                    options=[AUTO, *AXES],
                    default=AUTO,
                    optional=True,
                    tooltip="The file's axis that points up. auto: -y for arrays (a camera's), +y for BVH. Blender's world: +z.",
                ),
                io.Combo.Input(
                    "forward",
                    options=[AUTO, *AXES],
                    default=AUTO,
                    optional=True,
                    tooltip="The file's axis that points away from the viewer. auto: +z for arrays, -z for BVH. Blender's world: +y.",
                ),
                io.Combo.Input(
                    "sides",
                    options=list(CHOICES),
                    default=CHOICES[0],
                    optional=True,
                    tooltip="check: refuse hands whose fingers bend backwards, as mirrored ones do. keep: take them. swap: left is right. mirror: all of it, for left-handed axes such as Unity's; or one hand alone.",
                ),
                io.Combo.Input(
                    "missing_hands",
                    options=[LEAVE, TRIM, *MISSING_HANDS],
                    default=LEAVE,
                    optional=True,
                    tooltip="Where a hand is absent. leave out: it stays so. trim: from the first frame with all hands to the last. hold: as last seen. mirror: as the other hand. park: still, below the picture.",
                ),
                io.Combo.Input(
                    "mano_mean",
                    options=list(MEANS),
                    default=AUTO,
                    optional=True,
                    tooltip="Of MANO parameters: whether a pose of zeros is the flat hand or the relaxed one (flat_hand_mean in smplx). auto: as the data set is known to have it.",
                ),
                io.Combo.Input(
                    "mano_left",
                    options=[AUTO, *LEFT_SHAPES],
                    default=AUTO,
                    optional=True,
                    tooltip="Of MANO parameters: which left hand the shape is for. official: MANO's own file, whose shape directions are mirrored wrongly along x. mended: corrected. auto: as the data set is known to have it.",
                ),
            ],
            outputs=[
                Motion.Output(display_name="motion", tooltip="Joints of the hands, in metres."),
                io.String.Output(
                    display_name="report", tooltip="What was understood, a line for each decision."
                ),
                io.Image.Output(
                    display_name="picture",
                    tooltip="The first frame, left and right named: through the camera and from the side.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, motion: str | None, other_hand: str | None) -> bool | str:
        return accept_files(motion_paths, motion, other_hand)

    @classmethod
    def fingerprint_inputs(cls, motion: str | None, other_hand: str | None, **_others) -> str | float:
        return written_when(motion_paths, motion, other_hand)

    @classmethod
    def execute(
        cls,
        motion: str,
        other_hand: str,
        fps: float,
        unit: str,
        max_gap: int,
        distance: float,
        joint_order: str = AUTO,
        up: str = AUTO,
        forward: str = AUTO,
        sides: str = CHOICES[0],
        missing_hands: str = LEAVE,
        mano_mean: str = AUTO,
        mano_left: str = AUTO,
    ) -> io.NodeOutput:
        options = ImportOptions(
            fps=fps or None,
            unit=AUTO if unit == USUAL else unit,
            joint_order=joint_order,
            up=up,
            forward=forward,
            sides=sides,
            max_gap=max_gap,
            missing_hands=missing_hands,
            distance=distance,
            mano_mean=mano_mean,
            mano_left=mano_left,
        )
        imported = import_motion(motion_paths(motion, other_hand), options, mano=find_mano)
        report = "\n".join(imported.report)
        picture = torch.from_numpy(render_named(imported.motion, *PICTURE))[None].float() / 255
        say(cls, report)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | {"text": [report]}
        return io.NodeOutput(imported.motion, report, picture, ui=shown)


def motion_paths(motion: str, other_hand: str = NO_FILE) -> list[Path]:
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
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, motion: HandObjectMotion, view: str, width: int, height: int) -> io.NodeOutput:
        check_choice("view", view, VIEWS)
        # 1. Draw; of a long motion every so many frames, as a graph holds all that it is given
        every = math.ceil(len(motion) / max(1, MOST_BYTES // (width * height * 3 * 4)))
        thinned = every_so_many(motion, every)
        if every > 1:
            say(
                cls,
                f"1 frame in {every} is drawn: {len(motion)} of {width} x {height} are too many for a graph.",
            )
        images = torch.empty(len(thinned), height, width, 3)
        report = progress()
        draw = draw_view if view == "side" else draw_motion
        for i, frame in enumerate(draw(thinned, width, height)):
            images[i] = torch.from_numpy(frame).float() / 255
            report(i + 1, len(thinned))

        # 2. Show; browsers slow down pictures that change faster than every 20 milliseconds
        skip = max(math.ceil(thinned.fps / FASTEST), math.ceil(len(thinned) / MOST_SHOWN))
        shown = [Image.fromarray((frame * 255).round().byte().numpy()) for frame in images[::skip]]
        times = (torch.arange(len(shown) + 1) * skip * 1000 / thinned.fps).round().int()
        stem, subfolder = temporary("SViMoPreview")
        path = stem.with_suffix(".webp")
        shown[0].save(
            path,
            save_all=True,
            append_images=shown[1:],
            duration=times.diff().tolist(),
            loop=0,
            quality=85,
        )
        preview = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.temp)])
        return io.NodeOutput(images, ui=preview)


def every_so_many(motion: HandObjectMotion, every: int) -> HandObjectMotion:
    """One frame in `every`, at the rate that keeps its speed."""
    return replace(motion.take(slice(None, None, every)), fps=motion.fps / every)


NODES = [SViMoLoadMotion, SViMoImportMotion, SViMoPreviewMotion]
