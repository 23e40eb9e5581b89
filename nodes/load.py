"""Loaders: files to MODEL, SVIMO_INTERACTION, VAE and CLIP, all under ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import nn

from ..svimo_core.checkpoint import (
    CheckpointHeader,
    convert,
    describe,
    load_part,
    read_header,
    with_diffusers_positions,
)
from ..svimo_core.cogvideox import lora_key_map
from ..svimo_core.config import SViMoConfig
from ..svimo_core.files import reading
from ..svimo_core.model.drawing import DrawingEncoder
from ..svimo_core.model.interaction import InteractionModel
from ..svimo_core.weights import weight_files
from .backbone import attention, backbone_of, dtypes_of, load_backbone, make_patcher, operations_for
from .clip import SViMoCLIP
from .compat import aliases
from .loop import DrawingHandle, InteractionHandle
from .types import CATEGORY, Interaction, check_choice, throw_if_interrupted
from .vae import SViMoVAE

FOLDER = "svimo"
"""Model category: `models/svimo`, anything extra_model_paths.yaml adds to it, and what ships with the pack."""
BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "models"

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
ROTARY_POSITIONS = ["as_trained", "diffusers"]


def register_folder() -> None:
    """Make ComfyUI list our models."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    folder_paths.add_model_folder_path(FOLDER, str(BUNDLED))
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".sft"})


register_folder()


def list_files(*categories: str) -> list[str]:
    """Model files of several categories, each name once."""
    return sorted({name for category in categories for name in folder_paths.get_filename_list(category)})


def find_file(name: str, *categories: str) -> str:
    """Path of a listed model file.

    Raises:
        FileNotFoundError: it is gone.
    """
    for category in categories:
        path = folder_paths.get_full_path(category, name)
        if path is not None:
            return path
    raise FileNotFoundError(
        f"no model file {name!r} in models/{' or models/'.join(categories)}: refresh the node list"
    )


def load_network(
    header: CheckpointHeader, part: str, build: Callable[[SViMoConfig, Any], nn.Module], disable_dynamic: bool
) -> tuple[ModelPatcher, torch.dtype]:
    """One of our networks of core's layers in a patcher, and what it computes in. Core asks for one without dynamic VRAM
    where it clones models, to compile or for several GPUs.

    Args:
        build: makes it of a configuration and a namespace of layers.
    """
    device = comfy.model_management.get_torch_device()
    stored, compute = dtypes_of(header, part, None, device)
    operations = operations_for(stored, compute, device)
    network = load_part(header, part, build=lambda config: build(config, operations))
    return make_patcher(network, disable_dynamic), compute


def load_interaction(header: CheckpointHeader, disable_dynamic: bool = False) -> InteractionHandle:
    """SVIMO_INTERACTION."""
    patcher, compute = load_network(
        header,
        "interaction",
        lambda config, operations: InteractionModel(config.interaction, operations, attention),
        disable_dynamic,
    )
    patcher.cached_patcher_init = (_patcher_of(load_interaction), (header,))
    return InteractionHandle(
        patcher=patcher,
        config=header.config.interaction,
        vae_config=header.config.vae,
        last_timestep=header.config.schedule.num_train_timesteps - 1,
        normalizer=header.normalizer,
        compute_dtype=compute,
        fps=header.config.fps,
        drawing=load_drawing_encoder(header) if "drawing_encoder" in header.parts else None,
    )


def load_drawing_encoder(header: CheckpointHeader, disable_dynamic: bool = False) -> DrawingHandle:
    """What encodes the loop's drawings in place of the VAE."""
    patcher, compute = load_network(
        header,
        "drawing_encoder",
        lambda config, operations: DrawingEncoder(config.drawing, config.vae, operations),
        disable_dynamic,
    )
    patcher.cached_patcher_init = (_patcher_of(load_drawing_encoder), (header,))
    return DrawingHandle(patcher=patcher, compute_dtype=compute)


def load_vae(header: CheckpointHeader, disable_dynamic: bool = False) -> SViMoVAE:
    """VAE, in bfloat16 where the device computes in it; used whole either way."""
    device = comfy.model_management.vae_device()
    dtype = comfy.model_management.vae_dtype(device, [torch.bfloat16, torch.float32])
    vae = SViMoVAE.of_svimo(load_part(header, "vae", dtype), header.config, header.preview)
    vae.patcher.cached_patcher_init = (_patcher_of(load_vae), (header,))
    return vae


def _patcher_of(load: Callable) -> Callable:
    """How core makes another patcher of what a loader makes."""
    return lambda header, disable_dynamic=False: load(header, disable_dynamic).patcher


def load_text_encoder(header: CheckpointHeader) -> SViMoCLIP:
    """CLIP, float32: it is small."""
    return SViMoCLIP(load_part(header, "text_encoder", torch.float32), header.config.text)


def weights_written(name: str | None, *categories: str) -> list[tuple[int, int]]:
    """A fingerprint of a model's files, so that ComfyUI loads anew what was written anew. Where another node gives the
    name it is not known yet, and is always the same: no model is loaded anew at each run."""
    if name is None:
        return []
    try:
        files = [file.stat() for file in weight_files(Path(find_file(name, *categories)))]
    except (OSError, ValueError):
        return []  # loading says what is wrong
    return [(stat.st_mtime_ns, stat.st_size) for stat in files]


class SViMoCheckpointLoader(io.ComfyNode):
    """All parts of one checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoCheckpointLoader",
            display_name="Load SViMo Checkpoint",
            category=f"{CATEGORY}/loaders",
            description="Load a complete SViMo model from one file: video and motion transformer, 3D interaction model, VAE and text encoder.",
            **aliases("hoi", "hand object interaction", "hand-object", "video model"),
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=list_files(FOLDER),
                    tooltip="A SViMo checkpoint in models/svimo. svimo-tiny.safetensors comes with the pack and runs on any machine.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="Video and motion transformer (MM-DiT)."),
                Interaction.Output(
                    display_name="interaction", tooltip="3D interaction model (VID) that closes the loop."
                ),
                io.Vae.Output(tooltip="Video VAE, for the video and for the rendered motion."),
                io.Clip.Output(
                    tooltip="Text encoder. Empty for full-size checkpoints: use core's CLIP loader with T5-XXL."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str, **_others: Any) -> list[tuple[int, int]]:
        return weights_written(ckpt_name, FOLDER)

    @classmethod
    def execute(cls, ckpt_name: str) -> io.NodeOutput:
        header = read_header(find_file(ckpt_name, FOLDER))
        clip = load_text_encoder(header) if "text_encoder" in header.parts else None
        return io.NodeOutput(load_backbone(header), load_interaction(header), load_vae(header), clip)


class SViMoDiffusionModelLoader(io.ComfyNode):
    """The backbone alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoDiffusionModelLoader",
            display_name="Load SViMo Diffusion Model",
            category=f"{CATEGORY}/loaders",
            description="Load only the video and motion transformer (MM-DiT), or CogVideoX-5b-I2V for video without motion, with a choice of storage type.",
            **aliases("cogvideo", "cogvideox", "mm-dit", "mmdit", "unet loader", "fp8"),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list_files("diffusion_models", FOLDER),
                    tooltip="A SViMo or CogVideoX-5b-I2V file in models/diffusion_models or models/svimo; of a sharded model, any shard.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How weights are stored in memory. default keeps the file's type; fp8 halves memory at some cost in quality.",
                ),
                io.Combo.Input(
                    "rotary_positions",
                    options=ROTARY_POSITIONS,
                    default="as_trained",
                    optional=True,
                    tooltip="Matters at other sizes than the model's native one. as_trained: a token keeps its own row and column. diffusers: rows and columns are fitted into the native size, as in diffusers' CogVideoX.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="Video and motion transformer (MM-DiT).")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_others: Any) -> list[tuple[int, int]]:
        return weights_written(model_name, "diffusion_models", FOLDER)

    @classmethod
    def execute(
        cls, model_name: str, weight_dtype: str, rotary_positions: str = "as_trained"
    ) -> io.NodeOutput:
        check_choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        check_choice("rotary_positions", rotary_positions, ROTARY_POSITIONS)
        header = read_header(find_file(model_name, "diffusion_models", FOLDER))
        if rotary_positions == "diffusers":
            header = with_diffusers_positions(header)
        return io.NodeOutput(load_backbone(header, WEIGHT_DTYPES[weight_dtype]))


class SViMoInteractionLoader(io.ComfyNode):
    """VID alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoInteractionLoader",
            display_name="Load SViMo Interaction Model",
            category=f"{CATEGORY}/loaders",
            description="Load only the 3D interaction model (VID) with its motion statistics, and the drawing encoder if the file has one.",
            **aliases("vid", "vision-aware", "3d interaction diffusion", "hand pose", "point cloud"),
            inputs=[
                io.Combo.Input(
                    "model_name", options=list_files(FOLDER), tooltip="A SViMo file in models/svimo."
                )
            ],
            outputs=[Interaction.Output(display_name="interaction", tooltip="3D interaction model (VID).")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_others: Any) -> list[tuple[int, int]]:
        return weights_written(model_name, FOLDER)

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_interaction(read_header(find_file(model_name, FOLDER))))


class SViMoVAELoader(io.ComfyNode):
    """The VAE alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoVAELoader",
            display_name="Load SViMo VAE",
            category=f"{CATEGORY}/loaders",
            description="Load only the video VAE. It also works in core's VAE Encode and VAE Decode.",
            **aliases("cogvideo vae", "cogvideox vae", "video vae", "3d vae"),
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=list_files("vae", FOLDER),
                    tooltip="A SViMo file, or CogVideoX's VAE, in models/vae or models/svimo.",
                )
            ],
            outputs=[io.Vae.Output(tooltip="Video VAE.")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str, **_others: Any) -> list[tuple[int, int]]:
        return weights_written(vae_name, "vae", FOLDER)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(read_header(find_file(vae_name, "vae", FOLDER))))


class SViMoLoraLoader(io.ComfyNode):
    """A CogVideoX-I2V LoRA, in every naming."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoLoraLoader",
            display_name="Load SViMo LoRA",
            category=f"{CATEGORY}/loaders",
            description="Apply a LoRA trained for CogVideoX-I2V (diffusers/PEFT or kohya names) to CogVideoX or SViMo. Core's LoRA loaders know the kohya names only.",
            **aliases("cogvideo lora", "cogvideox lora", "peft", "kohya"),
            inputs=[
                io.Model.Input("model", tooltip="SViMo or CogVideoX model."),
                io.Combo.Input("lora_name", options=list_files("loras"), tooltip="A LoRA in models/loras."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="How strongly it acts. 0: not at all.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_others: Any) -> list[tuple[int, int]]:
        return weights_written(lora_name, "loras")

    @classmethod
    def execute(cls, model: ModelPatcher, lora_name: str, strength: float) -> io.NodeOutput:
        names = [name for name, _ in backbone_of(model).diffusion_model.named_parameters()]
        path = find_file(lora_name, "loras")
        with reading(path, "is not a LoRA that can be read", "download it again"):
            lora = comfy.utils.load_torch_file(path, safe_load=True)
            patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), lora_key_map(names))
        if not patches:
            raise ValueError(
                f"{lora_name} fits no layer of this model: it needs a LoRA trained for CogVideoX-5b-I2V"
            )
        patched = model.clone()
        try:
            patched.add_patches(patches, strength)
        except ValueError as error:  # which knows of no file
            raise ValueError(f"{lora_name}: {error}") from error
        return io.NodeOutput(patched)


class SViMoConvertCogVideoX(io.ComfyNode):
    """A SViMo checkpoint started from CogVideoX-I2V."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoConvertCogVideoX",
            display_name="Convert CogVideoX to SViMo",
            category=f"{CATEGORY}/loaders",
            description="Start a SViMo checkpoint from CogVideoX-5b-I2V: its weights, with a motion stream that begins as a copy of the video stream. The result is for training.",
            **aliases("cogvideo", "cogvideox", "finetune", "fine-tune", "train from cogvideox"),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list_files("diffusion_models"),
                    tooltip="CogVideoX-5b-I2V in models/diffusion_models; of a sharded model, any shard.",
                ),
                io.String.Input(
                    "filename",
                    default="svimo-from-cogvideox",
                    tooltip="Name of the new file in models/svimo, without its ending.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="Name of the new file, as the loaders list it.")
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model_name: str, filename: str) -> io.NodeOutput:
        folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
        target = folder / f"{filename}.safetensors"
        if not filename.strip() or Path(filename).name != filename or target.exists():
            raise ValueError(f"{filename!r} is no new plain name in models/{FOLDER}: choose another one")
        folder.mkdir(parents=True, exist_ok=True)
        bar = comfy.utils.ProgressBar(100)

        def on_progress(done: int, total: int) -> None:
            throw_if_interrupted()
            bar.update_absolute(100 * done // total, 100)

        convert(find_file(model_name, "diffusion_models"), target, on_progress=on_progress)
        return io.NodeOutput(target.name, ui={"text": [describe(read_header(target))]})


NODES = [
    SViMoCheckpointLoader,
    SViMoDiffusionModelLoader,
    SViMoInteractionLoader,
    SViMoVAELoader,
    SViMoLoraLoader,
    SViMoConvertCogVideoX,
]
