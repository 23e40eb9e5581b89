"""Tiny random CogVideoX-I2V models made by diffusers, with every switch of the published ones, and their file forms."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 32,
    "out_channels": 16,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "num_layers": 2,
    "max_text_seq_length": 6,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}
"""Differs from zai-org/CogVideoX-5b-I2V's transformer/config.json in sizes only."""

PUBLISHED_TABLE = {"max_text_seq_length": 226, "sample_width": 90, "sample_height": 60, "sample_frames": 49}
"""The published position table, which a single file can only be read with, as it has no config.json."""

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}
"""zai-org/CogVideoX-5b-I2V's scheduler/scheduler_config.json."""

COMFYUI_NAMES = (
    ("transformer_blocks.", "blocks."),
    (".attn1.to_q.", ".q."),
    (".attn1.to_k.", ".k."),
    (".attn1.to_v.", ".v."),
    (".attn1.to_out.0.", ".attn_out."),
    (".attn1.norm_q.", ".norm_q."),
    (".attn1.norm_k.", ".norm_k."),
    (".ff.net.0.proj.", ".ff_proj."),
    (".ff.net.2.", ".ff_out."),
    ("time_embedding.linear_", "time_embedding_linear_"),
)
"""Diffusers' names to those of ComfyUI's comfy/ldm/cogvideo/model.py."""


def tiny_transformer(**changes) -> CogVideoXTransformer3DModel:
    """A random transformer."""
    return randomise(CogVideoXTransformer3DModel(**TRANSFORMER | changes).float())


def tiny_vae(**changes) -> AutoencoderKLCogVideoX:
    """A random VAE."""
    sizes = {
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.7,
    }
    blocks = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    }
    return randomise(AutoencoderKLCogVideoX(**blocks | sizes | changes))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight and buffer off its initial value, so that none can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
    return model.eval()


def comfyui_keys(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A diffusers transformer's weights under ComfyUI's names."""
    renamed = {}
    for name, value in state.items():
        for theirs, native in COMFYUI_NAMES:
            name = name.replace(theirs, native)
        renamed[prefix + name] = value
    return renamed


def save_file_of(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """One safetensors file."""
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata or {"format": "pt"})
    return path


def save_pipeline(folder: Path, transformer: nn.Module, vae: nn.Module, shard_size: str = "10GB") -> Path:
    """A pipeline folder as on the hub, without its text encoder."""
    transformer.save_pretrained(folder / "transformer", max_shard_size=shard_size)
    vae.save_pretrained(folder / "vae")
    CogVideoXDDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {"_class_name": "CogVideoXImageToVideoPipeline", "_diffusers_version": "0.31.0"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def fp8(state: dict[str, Tensor], scales: str | None = None) -> dict[str, Tensor]:
    """Weights of linear layers in fp8, the rest in bf16, as kijai's files have them; with scales in ComfyUI's old
    ("scale_weight") or new ("weight_scale") form if asked."""
    stored = {}
    for name, value in state.items():
        if not (name.endswith(".weight") and value.ndim == 2 and "embed" not in name):
            stored[name] = value.bfloat16()
        elif scales is None:
            stored[name] = value.to(torch.float8_e4m3fn)
        else:
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + scales] = scale
            if scales == "weight_scale":
                stored[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(
                    list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8
                )
    if scales == "scale_weight":
        stored["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    return stored
