"""CogVideoX files in the forms they are passed around in, told apart by what they hold.

The image-to-video 5b model and its VAE are mapped key by key onto :class:`MMDiT` and diffusers' VAE; everything else is
refused by name. Forms: a diffusers pipeline or model folder, sharded or not; one safetensors file with diffusers' keys
(as kijai's files have) or with those of ComfyUI's own CogVideoX, alone or inside a whole checkpoint; in bf16, fp16,
fp32, or fp8 with or without scales. What shapes cannot tell (epsilon, norm groups, position grid) comes from
`config.json` where there is one, and is otherwise what CogVideoX-5b-I2V has.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import BackboneConfig, ScheduleConfig, VAEConfig
from .files import reading
from .weights import DTYPES, SHARD, StoredTensor, open_weights

log = logging.getLogger(__name__)

ADVICE = "Choose CogVideoX-5b-I2V (zai-org/CogVideoX-5b-I2V, version 1.0), its VAE, or a SViMo checkpoint"

BACKBONE_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
VAE_PREFIXES = ("", "first_stage_model.", "vae.")
BACKBONE_MARK = "patch_embed.text_proj.weight"
VAE_MARK = "decoder.mid_block.resnets.0.norm1.norm_layer.weight"
LORA_MARK = re.compile(r"\.lora[._]|lora_(A|B|up|down)\b|^lora_(unet|te)")

COMFYUI_BLOCK_NAMES = {
    "norm1.linear": "norm1.linear",
    "norm1.norm": "norm1.norm",
    "q": "attn1.to_q",
    "k": "attn1.to_k",
    "v": "attn1.to_v",
    "norm_q": "attn1.norm_q",
    "norm_k": "attn1.norm_k",
    "attn_out": "attn1.to_out.0",
    "norm2.linear": "norm2.linear",
    "norm2.norm": "norm2.norm",
    "ff_proj": "ff.net.0.proj",
    "ff_out": "ff.net.2",
}
"""ComfyUI's layer names inside `blocks.<i>` (comfy/ldm/cogvideo, since 0.21) to diffusers' and ours."""
COMFYUI_NAMES = {
    "time_embedding_linear_1": "time_embedding.linear_1",
    "time_embedding_linear_2": "time_embedding.linear_2",
}
"""The same outside of the blocks."""

LORA_PREFIXES = "", "transformer.", "diffusion_model.", "base_model.model.", "transformer.base_model.model."
"""What LoRA files put before a dotted layer name."""
FP8_EXTRAS = "scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant"
"""Last parts of the names of what fp8 files hold beside weights, in ComfyUI's old and new form."""

POSITION_TABLE = "patch_embed.position_table.weight"
SIZE_5B = 3072, 42
"""Width and depth of CogVideoX-5b."""
TABLE_GRID_5B = 13, 30, 45
"""Latent frames, height and width in tokens of CogVideoX-5b-I2V's position table: 49 frames of 480 x 720."""

FOREIGN = {
    "patch_embed.motion_proj.weight": "a SViMo transformer that lost its metadata in another program: get the original",
    "SelfAttention.relative_attention_bias.weight": "a T5 text encoder: load it with ComfyUI's CLIP loader",
    "blocks.0.self_attn.q.weight": "a Wan transformer",
    "double_blocks.0.img_mod.lin.weight": "a Flux transformer",
    "double_blocks.0.img_mod.linear.weight": "a HunyuanVideo transformer",
    "double_blocks.0.img_attn_qkv.weight": "a HunyuanVideo transformer",
    "patchify_proj.weight": "an LTX-Video transformer",
    "t5_yproj.weight": "a Mochi transformer",
    "input_blocks.0.0.weight": "a Stable Diffusion model",
    "decoder.middle.0.residual.0.gamma": "a Wan VAE",
    "decoder.mid.block_1.norm1.weight": "an image VAE",
}
"""Ends of tensor names that give away models people confuse with ours."""

SWITCHES = {
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "norm_elementwise_affine": True,
    "attention_bias": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "patch_bias": True,
    "temporal_compression_ratio": 4,
}
"""What a transformer's config.json must say, where it says it, for its weights to mean what ours mean."""

SCHEDULER_SWITCHES = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class CogVideoXFiles:
    """What was found; tensors stay on disk."""

    layout: str
    grid: tuple[int, int, int]
    """Latent frames, height and width in tokens of the clips that the transformer was made for."""
    backbone: BackboneConfig | None
    vae: VAEConfig | None
    schedule: ScheduleConfig
    tensors: dict[str, StoredTensor]
    """By our names, those of the transformer below `backbone.`, those of the VAE below `vae.`."""


def is_pipeline(path: Path) -> bool:
    """Whether this is a diffusers pipeline folder, which holds its models in folders of their own."""
    return (path / "model_index.json").is_file()


def open_cogvideox(path: Path) -> CogVideoXFiles:
    """Find CogVideoX-I2V's transformer, VAE, or both; no data is read.

    Raises:
        FileNotFoundError: no such file, or a part of it is missing.
        ValueError: anything else; the message says what it is and what to do.
    """
    with reading(path, "is no CogVideoX model that can be read", "download it again"):
        return _open(path)


def _open(path: Path) -> CogVideoXFiles:
    folders = [path]
    if is_pipeline(path):
        folders = [path / part for part in ("transformer", "vae") if (path / part).is_dir()]
    backbone, vae, grid, found, layouts = None, None, TABLE_GRID_5B, {}, []
    for folder in folders:
        stored, _ = open_weights(folder)
        declared = _declared_config(folder)
        if tensors := _part(stored, BACKBONE_MARK, BACKBONE_PREFIXES):
            tensors, layout = _rename(_fold_scales(path.name, tensors))
            backbone = _backbone_config(path.name, tensors, declared)
            grid = _native_grid(declared, backbone.patch_size)
            found |= {f"backbone.{name}": tensor for name, tensor in tensors.items()}
            layouts.append(layout)
        if tensors := _part(stored, VAE_MARK, VAE_PREFIXES):
            vae = _vae_config(path.name, tensors, declared)
            found |= {f"vae.{name}": tensor for name, tensor in tensors.items()}
        if not found:
            raise ValueError(f"{path.name} is {_what(stored)}. {ADVICE}")
    if not found:
        raise ValueError(f"{path.name} is a pipeline folder without a transformer or VAE. {ADVICE}")
    return CogVideoXFiles(
        layout=f"{'diffusers folder' if path.is_dir() else 'file'}, {' and '.join(layouts) or 'diffusers keys'}",
        grid=grid,
        backbone=backbone,
        vae=vae,
        schedule=_schedule_config(path) if is_pipeline(path) else ScheduleConfig(),
        tensors=found,
    )


def lora_key_map(names: list[str], prefix: str = "diffusion_model.") -> dict[str, str]:
    """Every name under which published LoRAs for CogVideoX-I2V address a layer, to our weight, for ComfyUI's LoRA code.

    Diffusers and PEFT say `transformer.transformer_blocks.0.attn1.to_q`, older PEFT files `base_model.model...`; kohya
    and CogVideoX-Fun say `lora_unet_transformer_blocks_0_attn1_to_q`; files made for ComfyUI's own model say
    `diffusion_model.blocks.0.q`.

    Args:
        names: of an MMDiT's weights.
        prefix: of these weights in the model that is patched.
    """
    comfyui_names = {ours: theirs for theirs, ours in COMFYUI_BLOCK_NAMES.items()}
    outside = {ours: theirs for theirs, ours in COMFYUI_NAMES.items()}
    keys = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        flat = layer.replace(".", "_")
        aliases = [f"{dotted}{layer}" for dotted in LORA_PREFIXES]
        aliases += [f"lora_unet_{flat}", f"lora_unet__{flat}", f"lora_transformer_{flat}", f"lycoris_{flat}"]
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer)
        if block is not None:
            aliases.append(f"diffusion_model.blocks.{block[1]}.{comfyui_names[block[2]]}")
        elif layer in outside:
            aliases.append(f"diffusion_model.{outside[layer]}")
        keys |= dict.fromkeys(aliases, prefix + name)
    return keys


def _part(tensors: dict[str, StoredTensor], mark: str, prefixes: tuple[str, ...]) -> dict[str, StoredTensor]:
    """The tensors of one network without their prefix; none if it is not there."""
    for prefix in prefixes:
        if prefix + mark in tensors:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return {}


def _fold_scales(source: str, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Attach fp8 scales to their weights and drop what only fp8 arithmetic needs, in ComfyUI's old and new form."""
    kept = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if name == "scaled_fp8" or kind in FP8_EXTRAS:
            continue
        scale = None
        if kind == "weight":
            scale = tensors.get(f"{layer}.scale_weight", tensors.get(f"{layer}.weight_scale"))
        if tensor.dtype not in DTYPES or (scale is not None and scale.numel not in (1, tensor.shape[0])):
            raise ValueError(
                f"{source} is quantised in a form that this pack does not read ({name} is {tensor.dtype}, as in GGUF "
                "blocks inside a safetensors file): use the bf16, fp16 or fp8 file of the same model"
            )
        kept[name] = tensor._replace(scale=scale)
    return kept


def _rename(tensors: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], str]:
    """To our names; a name that is not known stays as it is, for the strict loader to complain about."""
    renamed = {}
    for name, tensor in tensors.items():
        if name == "patch_embed.pos_embedding":  # 1 x tokens x dim
            renamed[POSITION_TABLE] = tensor._replace(shape=tensor.shape[1:])
            continue
        layer, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
        if block is not None and block[2] in COMFYUI_BLOCK_NAMES:
            layer = f"transformer_blocks.{block[1]}.{COMFYUI_BLOCK_NAMES[block[2]]}"
        renamed[f"{COMFYUI_NAMES.get(layer, layer)}.{kind}"] = tensor
    return renamed, "ComfyUI keys" if "time_embedding_linear_1.weight" in tensors else "diffusers keys"


def _backbone_config(
    source: str, tensors: dict[str, StoredTensor], declared: dict[str, Any]
) -> BackboneConfig:
    """Sizes from shapes, checked against what CogVideoX-I2V is and against config.json."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(
                f"{source} is a CogVideoX transformer, but incomplete: it lacks {name}. Download it again"
            )
        return tensors[name].shape

    # 1. which CogVideoX
    kernel = shape("patch_embed.proj.weight")
    ofs = any(name.startswith("ofs_embedding") for name in tensors)
    if len(kernel) == 2 or ofs or declared.get("patch_size_t") is not None:
        raise ValueError(
            f"{source} is a CogVideoX 1.5 transformer, which patches time and scales latents in another way. {ADVICE}"
        )
    dim, in_channels, patch_size, _ = kernel
    latent_channels = shape("proj_out.weight")[0] // patch_size**2
    size = "2b" if dim == 1920 or not declared.get("use_rotary_positional_embeddings", True) else "5b"
    if in_channels == latent_channels:
        raise ValueError(
            f"{source} is the text-to-video transformer CogVideoX-{size}, which takes no image. {ADVICE}"
        )
    if size == "2b":
        raise ValueError(f"{source} is a CogVideoX-2b transformer, which has no rotary positions. {ADVICE}")
    if in_channels != 2 * latent_channels:
        raise ValueError(
            f"{source} is a CogVideoX variant with {in_channels} input channels, such as CogVideoX-Fun inpainting; "
            f"image-to-video has {2 * latent_channels}. {ADVICE}"
        )
    wrong = [
        f"{key} is {declared[key]!r}" for key, value in SWITCHES.items() if declared.get(key, value) != value
    ]
    if wrong:
        raise ValueError(
            f"{source} is a CogVideoX variant that this pack does not know ({', '.join(wrong)}). {ADVICE}"
        )

    # 2. its sizes
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    num_layers = declared.get("num_layers", SIZE_5B[1] if dim == SIZE_5B[0] else len(blocks))
    if len(blocks) != num_layers or blocks != set(range(len(blocks))):
        raise ValueError(
            f"{source} holds {len(blocks)} transformer blocks of {num_layers}: download it again"
        )
    head_dim = shape("transformer_blocks.0.attn1.norm_q.weight")[0]
    text_length = declared.get("max_text_seq_length", 226)
    table = None
    if POSITION_TABLE in tensors:
        table = _native_grid(declared, patch_size)
        rows, expected = shape(POSITION_TABLE)[0], text_length + table[0] * table[1] * table[2]
        if rows != expected:
            raise ValueError(
                f"{source} has a position table of {rows} tokens, expected {expected}: use the diffusers folder of "
                "this model, whose config.json says its size"
            )
    else:
        log.warning(
            "%s has no position table. That is fine for CogVideoX-5b-I2V, but CogVideoX-Fun Control and Pose models "
            "look the same and give noise",
            source,
        )
    return BackboneConfig(
        num_layers=num_layers,
        num_heads=dim // head_dim,
        head_dim=head_dim,
        latent_channels=latent_channels,
        time_embed_dim=shape("time_embedding.linear_1.weight")[0],
        text_dim=shape(BACKBONE_MARK)[1],
        text_length=text_length,
        patch_size=patch_size,
        norm_eps=declared.get("norm_eps", 1e-5),
        motion=False,
        image_padding="zero",
        position_table=table,
    )


def _native_grid(declared: dict[str, Any], patch_size: int) -> tuple[int, int, int]:
    """Latent frames, height and width in tokens that config.json names, or those of CogVideoX-5b-I2V."""
    if "sample_frames" not in declared:
        return TABLE_GRID_5B
    frames = (declared["sample_frames"] - 1) // 4 + 1
    return frames, declared["sample_height"] // patch_size, declared["sample_width"] // patch_size


def _vae_config(source: str, tensors: dict[str, StoredTensor], declared: dict[str, Any]) -> VAEConfig:
    """Sizes from shapes; both CogVideoX versions share one network and differ in how latents are scaled."""
    if declared.get("invert_scale_latents", False):
        raise ValueError(
            f"{source} is the VAE of CogVideoX 1.5-I2V, which scales its latents in another way. {ADVICE}"
        )
    scaling_factor = declared.get("scaling_factor", 0.7)
    if scaling_factor != 0.7:
        raise ValueError(
            f"{source} is a VAE with scaling factor {scaling_factor}, such as CogVideoX-2b's; 5b has 0.7. {ADVICE}"
        )
    resnets = {
        match.groups()
        for name in tensors
        if (match := re.match(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", name))
    }
    levels = sorted({int(level) for level, _ in resnets})
    widths = [tensors.get(f"encoder.down_blocks.{level}.resnets.0.conv2.conv.weight") for level in levels]
    latent = tensors.get("decoder.conv_in.conv.weight")
    if not levels or None in widths or latent is None:
        raise ValueError(f"{source} is a CogVideoX VAE, but incomplete: download it again")
    return VAEConfig(
        block_out_channels=tuple(tensor.shape[0] for tensor in widths),
        layers_per_block=sum(level == "0" for level, _ in resnets),
        norm_groups=declared.get("norm_num_groups", 32),
        latent_channels=latent.shape[1],
        scaling_factor=scaling_factor,
    )


def _schedule_config(folder: Path) -> ScheduleConfig:
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return ScheduleConfig()
    declared = _read_config(file)
    wrong = [
        f"{key} is {declared.get(key)!r}"
        for key, value in SCHEDULER_SWITCHES.items()
        if declared.get(key) != value
    ]
    if wrong:
        raise ValueError(
            f"{folder.name} has a noise schedule that is not CogVideoX's ({', '.join(wrong)}). {ADVICE}"
        )
    fields = "num_train_timesteps", "beta_start", "beta_end", "snr_shift_scale"
    return ScheduleConfig(**{field: declared[field] for field in fields if field in declared})


def _declared_config(path: Path) -> dict[str, Any]:
    """The config.json of a diffusers model folder, or of the folder that a shard lies in."""
    if not path.is_dir():
        if SHARD.fullmatch(path.name) is None and not path.name.startswith("diffusion_pytorch_model"):
            return {}
        path = path.parent
    file = path / "config.json"
    return _read_config(file) if file.is_file() else {}


def _read_config(file: Path) -> dict[str, Any]:
    with reading(file, "is no configuration of a model", "download it again"):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def _what(tensors: dict[str, StoredTensor]) -> str:
    """A name for tensors that are not ours, with their size."""
    names = list(tensors)
    dtypes = ", ".join(
        dtype for dtype, _ in Counter(tensor.dtype for tensor in tensors.values()).most_common()
    )
    size = f"{len(names)} tensors, {sum(t.numel for t in tensors.values()) / 1e6:.1f} M parameters, {dtypes}"
    if any(LORA_MARK.search(name) for name in names):
        return f"a LoRA ({size}): load it with ComfyUI's LoRA loader on top of a model"
    for end, what in FOREIGN.items():
        if any(name.endswith(end) for name in names):
            return f"{what} ({size})"
    return f"a model that this pack does not know ({size}, such as {', '.join(sorted(names)[:3])})"
