"""Motion for other programs: clean it, rig it, and save it as GLB or BVH."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..svimo_core import clean
from ..svimo_core.export.bvh import write_bvh, write_hands_bvh
from ..svimo_core.export.glb import write_glb
from ..svimo_core.export.names import NAMINGS
from ..svimo_core.hand_rig import HandAnimation
from ..svimo_core.mano import WHERE_TO_GET, ManoModel, left_shape, load_mano, save_mano, with_left_shape
from ..svimo_core.motion import HAND_NAMES, HandObjectMotion
from ..svimo_core.render import draw_motion
from ..svimo_core.rigged import ObjectMesh, RiggedMotion, rig_motion
from .compat import File3D, File3DGLB, aliases
from .load import FOLDER
from .save import progress, with_graph
from .types import CATEGORY, Motion, ObjectMeshes, RiggedMotionType, check_choice

HANDS = ["capsule", "mano"]
MENDED = "mended"
MANO_LEFT = ["as in the file", MENDED]
BVH_FILES = ["one per hand", "both hands in one"]


def find_mano() -> dict[str, ManoModel]:
    """The user's own MANO models.

    Raises:
        FileNotFoundError: they are not in models/svimo/mano; the message says where to get them.
    """
    models = {}
    for side in HAND_NAMES:
        names = [f"MANO_{side.upper()}{ending}" for ending in (".pkl", ".npz")]
        folders = [Path(folder) / "mano" for folder in folder_paths.get_folder_paths(FOLDER)]
        found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
        if not found:
            raise FileNotFoundError(f"no {' or '.join(names)} in models/{FOLDER}/mano. {WHERE_TO_GET}")
        models[side] = load_mano(found[0], side)
    return models


def parts_by_name(text: str) -> dict[str, int]:
    """Numbers by name, out of a text such as "scissors: 2, laptop: 2".

    Raises:
        ValueError: anything else.
    """
    parts = {}
    for entry in filter(None, (entry.strip() for entry in text.replace("\n", ",").split(","))):
        name, _, count = entry.rpartition(":")
        if not name.strip() or not count.strip().isdigit() or int(count) < 1:
            raise ValueError(
                f"rigid_parts has {entry!r}: expected the name of an object and a number, as scissors: 2"
            )
        parts[name.strip()] = int(count)
    return parts


class SViMoCleanMotion(io.ComfyNode):
    """A motion made smoother, shorter, or of another frame rate or size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoCleanMotion",
            display_name="Clean SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Smooth 3D motion without losing contact between hands and objects, trim it, and change its frame rate or scale.",
            **aliases("smooth motion", "filter motion", "jitter", "resample", "frame rate"),
            inputs=[
                Motion.Input("motion", tooltip="3D motion."),
                io.Float.Input(
                    "smooth_seconds",
                    default=0.05,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Width of the filter over time, in seconds. 0: none.",
                ),
                io.Float.Input(
                    "fps", default=0.0, min=0.0, max=240.0, step=0.5, tooltip="New frame rate. 0: as it is."
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.001,
                    max=1000.0,
                    step=0.01,
                    tooltip="Factor on all lengths, such as 0.01 for centimetres.",
                ),
                io.Int.Input(
                    "first_frame",
                    default=0,
                    optional=True,
                    min=0,
                    max=10_000_000,
                    tooltip="First frame to keep, counted from 0.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    optional=True,
                    min=0,
                    max=10_000_000,
                    tooltip="Number of frames to keep from there. 0: all that follow.",
                ),
            ],
            outputs=[Motion.Output(display_name="motion", tooltip="The cleaned motion.")],
        )

    @classmethod
    def execute(
        cls,
        motion: HandObjectMotion,
        smooth_seconds: float,
        fps: float,
        scale: float,
        first_frame: int = 0,
        frames: int = 0,
    ) -> io.NodeOutput:
        if first_frame or frames:
            motion = clean.trim(motion, first_frame, first_frame + frames - 1 if frames else len(motion) - 1)
        if scale != 1:
            motion = clean.scale(motion, scale)
        if smooth_seconds:
            motion = clean.smooth(motion, smooth_seconds)
        if fps:
            motion = clean.resample(motion, fps)
        return io.NodeOutput(motion)


class SViMoRigMotion(io.ComfyNode):
    """Joints and points to skinned hands and rigid objects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoRigMotion",
            display_name="Rig SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Turn joints into skinned hands of constant bone lengths, and point clouds into rigid objects, for GLB and BVH.",
            **aliases("skeleton", "retarget", "hand rig", "mano", "skinning"),
            inputs=[
                Motion.Input("motion", tooltip="3D motion."),
                io.Combo.Input(
                    "hands",
                    options=HANDS,
                    default="capsule",
                    tooltip="capsule: built-in hands, free of any licence. mano: your own MANO files in models/svimo/mano.",
                ),
                io.Float.Input(
                    "smoothness",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the MANO fit keeps neighbouring frames alike. Has no effect on capsule hands.",
                ),
                io.Combo.Input(
                    "mano_left",
                    options=MANO_LEFT,
                    default=MANO_LEFT[0],
                    optional=True,
                    tooltip="The official left hand's shape directions are mirrored wrongly along x. as in the file: for programs that use the same file. mended: turned round, for those that do so, too. What was used is saved with the parameters.",
                ),
                io.String.Input(
                    "rigid_parts",
                    default="",
                    optional=True,
                    tooltip="Objects that bend at a hinge, and their number of rigid parts: scissors: 2, laptop: 2. The others stay one.",
                ),
                ObjectMeshes.Input(
                    "meshes",
                    optional=True,
                    tooltip="From Add Object to SViMo Motion: your own meshes, to show instead of surfaces wrapped around the points.",
                ),
            ],
            outputs=[
                RiggedMotionType.Output(
                    display_name="rigged_motion", tooltip="Skinned hands and rigid objects."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How far hands and objects are from the given motion, in millimetres.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        motion: HandObjectMotion,
        hands: str,
        smoothness: float,
        mano_left: str = MANO_LEFT[0],
        rigid_parts: str = "",
        meshes: dict[str, ObjectMesh] | None = None,
    ) -> io.NodeOutput:
        check_choice("hands", hands, HANDS)
        check_choice("mano_left", mano_left, MANO_LEFT)
        mano = find_mano() if hands == "mano" else None
        if mano and mano_left == MENDED:
            mano["left"] = with_left_shape(mano["left"], MENDED, mano["right"])
        rigged = rig_motion(
            motion,
            mano=mano,
            smoothness=smoothness,
            parts=parts_by_name(rigid_parts),
            meshes=meshes,
            on_progress=progress(),
        )
        residuals = ", ".join(f"{name} {residual:.2f} mm" for name, residual in rigged.residuals_mm().items())
        if mano:
            residuals += f"; the left hand's shape is MANO's {left_shape(mano['left'], mano['right'])} one"
        return io.NodeOutput(rigged, residuals, ui={"text": [residuals]})


def bone_names_input() -> io.Input:
    """The choice of what bones are called in a file; optional, as workflows that were saved before do not have it."""
    return io.Combo.Input(
        "bone_names",
        options=list(NAMINGS),
        default=NAMINGS[0],
        optional=True,
        tooltip="What bones are called, for retargeters that go by names: SViMo's own, or those of Mixamo, Unreal's mannequin, VRM 1 or Blender's Rigify.",
    )


def model_3d_outputs() -> list[io.Output]:
    """The GLB as core's own 3D nodes hand it on, where this ComfyUI can.

    Behind `model_file`, which links of saved workflows count on as the first output and as text.
    """
    if File3DGLB is None:
        return []
    tooltip = "The file itself, for core's Preview 3D (Advanced), Save 3D Model and other 3D nodes."
    return [File3DGLB.Output(display_name="model_3d", tooltip=tooltip)]


class SViMoSaveGLB(io.ComfyNode):
    """A rigged motion to an animated GLB."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSaveGLB",
            display_name="Save SViMo Motion as GLB",
            category=f"{CATEGORY}/motion",
            description="Save an animated GLB: skinned hands, rigid objects and the camera, for Blender, game engines and core's Preview 3D. MANO hands are saved as parameters as well.",
            **aliases("glb", "gltf", "export 3d model", "save animation", "blender", "mano"),
            inputs=[
                RiggedMotionType.Input("rigged_motion", tooltip="From Rig SViMo Motion."),
                io.String.Input(
                    "filename_prefix",
                    default="svimo/motion",
                    tooltip="Folder and beginning of the file's name.",
                ),
                bone_names_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="model_file", tooltip="Path within the output folder, for core's Preview 3D."
                ),
                *model_3d_outputs(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, rigged_motion: RiggedMotion, filename_prefix: str, bone_names: str = NAMINGS[0]
    ) -> io.NodeOutput:
        check_choice("bone_names", bone_names, NAMINGS)
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = f"{name}_{counter:05}_.glb"
        write_glb(
            Path(folder) / file, with_graph(rigged_motion, cls), naming=bone_names, on_progress=progress()
        )
        saved = {"3d": [ui.SavedResult(file, subfolder, io.FolderType.output)]}
        if rigged_motion.mano:
            parameters = f"{name}_{counter:05}_mano.npz"
            save_mano(Path(folder) / parameters, rigged_motion.mano, rigged_motion.fps)
            saved["svimo_mano"] = [ui.SavedResult(parameters, subfolder, io.FolderType.output)]
        model_file = (Path(subfolder) / file).as_posix()
        model_3d = [File3D(str(Path(folder) / file))] if File3DGLB else []
        return io.NodeOutput(model_file, *model_3d, ui=saved)


def absence_report(hands: Sequence[HandAnimation]) -> list[str]:
    """A sentence for every hand that is absent in some frames, which a BVH does not tell."""
    return [
        f"the {hand.rig.side} hand is absent in {np.sum(~hand.present)} of {len(hand)} frames; BVH cannot say so, it "
        "moves on in straight lines there"
        for hand in hands
        if not hand.present.all()
    ]


class SViMoSaveBVH(io.ComfyNode):
    """The hands of a rigged motion to one BVH each, or to one of both."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSaveBVH",
            display_name="Save SViMo Hands as BVH",
            category=f"{CATEGORY}/motion",
            description="Save the skeletons and movement of the hands as .bvh, in centimetres, one file per hand or one of both, for rigs and motion-capture tools.",
            **aliases("bvh", "mocap", "motion capture", "export skeleton", "save animation"),
            inputs=[
                RiggedMotionType.Input("rigged_motion", tooltip="From Rig SViMo Motion."),
                io.String.Input(
                    "filename_prefix",
                    default="svimo/hand",
                    tooltip="Folder and beginning of the files' names.",
                ),
                bone_names_input(),
                io.Combo.Input(
                    "files",
                    options=BVH_FILES,
                    default=BVH_FILES[0],
                    optional=True,
                    tooltip="both hands in one: one skeleton with both wrists below a root, hands, that stays in the camera.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        rigged_motion: RiggedMotion,
        filename_prefix: str,
        bone_names: str = NAMINGS[0],
        files: str = BVH_FILES[0],
    ) -> io.NodeOutput:
        check_choice("bone_names", bone_names, NAMINGS)
        check_choice("files", files, BVH_FILES)
        hands, fps = rigged_motion.hands, rigged_motion.fps
        if not hands:
            raise ValueError("no hand is present in this motion, so there is nothing to save as BVH")
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        if files == "both hands in one":
            saved = [f"{name}_{counter:05}_hands.bvh"]
            write_hands_bvh(Path(folder) / saved[0], hands, fps, naming=bone_names)
        else:
            saved, report = [], progress()
            for hand in hands:
                saved.append(f"{name}_{counter:05}_{hand.rig.side}.bvh")
                write_bvh(Path(folder) / saved[-1], hand, fps, naming=bone_names)
                report(len(saved), len(hands))
        results = {"3d": [ui.SavedResult(file, subfolder, io.FolderType.output) for file in saved]}
        absent = absence_report(hands)
        return io.NodeOutput(ui=results | ({"text": absent} if absent else {}))


class SViMoOverlayMotion(io.ComfyNode):
    """A motion drawn over frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoOverlayMotion",
            display_name="Overlay SViMo Motion",
            category=f"{CATEGORY}/motion",
            description="Draw 3D motion through its camera over the frames of the video, to see how well they agree.",
            **aliases("draw hands", "hand pose", "compare motion", "blend"),
            inputs=[
                io.Image.Input("images", tooltip="Frames of the video, one for each frame of the motion."),
                Motion.Input("motion", tooltip="3D motion."),
                io.Float.Input(
                    "opacity", default=0.8, min=0.0, max=1.0, step=0.05, tooltip="Of the drawing."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Frames with the motion drawn over them.")
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, motion: HandObjectMotion, opacity: float) -> io.NodeOutput:
        if len(images) != len(motion):
            raise ValueError(
                f"images has {len(images)} frames, the motion {len(motion)}: give both the same length"
            )
        _, height, width, _ = images.shape
        overlaid = images[..., :3].clone()
        report = progress()
        for i, drawn in enumerate(draw_motion(motion, width, height)):
            drawn = torch.from_numpy(drawn).to(overlaid) / 255
            alpha = opacity * (drawn.amax(dim=-1, keepdim=True) > 0)
            overlaid[i] = overlaid[i] * (1 - alpha) + drawn * alpha
            report(i + 1, len(motion))
        return io.NodeOutput(overlaid)


NODES = [SViMoCleanMotion, SViMoRigMotion, SViMoSaveGLB, SViMoSaveBVH, SViMoOverlayMotion]
