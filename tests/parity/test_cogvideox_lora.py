"""LoRAs trained for CogVideoX-I2V, under every naming in use, change our model as merging them changes diffusers'."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from einops import rearrange
from helpers.tiny_cogvideox import COMFYUI_NAMES, save_file_of, tiny_transformer
from safetensors.torch import load_file
from torch import Tensor

from svimo_core.checkpoint import load_part, read_header
from svimo_core.cogvideox import lora_key_map

TARGETS = (
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn1.to_k",
    "transformer_blocks.1.attn1.to_v",
    "transformer_blocks.1.attn1.to_out.0",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.ff.net.2",
    "transformer_blocks.1.norm1.linear",
    "time_embedding.linear_2",
    "patch_embed.text_proj",
    "norm_out.linear",
    "proj_out",
)
RANK, ALPHA = 4, 2.0


def native(layer: str) -> str:
    """A diffusers layer under the name it has in ComfyUI's own CogVideoX."""
    name = layer + "."
    for theirs, ours in COMFYUI_NAMES:
        name = name.replace(theirs, ours)
    return name.removesuffix(".")


PEFT = {"A": "lora_A.weight", "B": "lora_B.weight"}
KOHYA = {"A": "lora_down.weight", "B": "lora_up.weight"}
NAMINGS = {
    "diffusers": (lambda layer: f"transformer.{layer}", PEFT),
    "peft": (lambda layer: f"base_model.model.{layer}", PEFT),
    "bare": (lambda layer: layer, PEFT),
    "kohya": (lambda layer: "lora_unet_" + layer.replace(".", "_"), KOHYA),
    "cogvideox-fun": (lambda layer: "lora_unet__" + layer.replace(".", "_"), KOHYA),
    "comfyui": (lambda layer: f"diffusion_model.{native(layer)}", PEFT),
}


@pytest.fixture(scope="module")
def changes() -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each target."""
    generator = torch.Generator().manual_seed(0)
    shapes = {layer: tiny_transformer().get_submodule(layer).weight.shape for layer in TARGETS}
    return {
        layer: (
            torch.randn(RANK, columns, generator=generator) / 8,
            torch.randn(rows, RANK, generator=generator) / 8,
        )
        for layer, (rows, columns) in shapes.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("naming", NAMINGS)
def test_lora_equals_merged_weights(naming: str, changes: dict[str, tuple[Tensor, Tensor]], tmp_path):
    # 1. diffusers' model with the LoRA merged
    reference = tiny_transformer()
    reference.save_pretrained(tmp_path / "transformer")
    for layer, (a, b) in changes.items():
        reference.get_submodule(layer).weight += ALPHA / RANK * b @ a

    # 2. a file in this naming
    name, suffix = NAMINGS[naming]
    state = {}
    for layer, (a, b) in changes.items():
        state |= {f"{name(layer)}.{suffix['A']}": a, f"{name(layer)}.{suffix['B']}": b}
        state[f"{name(layer)}.alpha"] = torch.tensor(ALPHA)
    lora = load_file(save_file_of(tmp_path / "lora.safetensors", state))

    # 3. our model, patched where the key map says
    ours = load_part(read_header(tmp_path / "transformer"), "backbone")
    weights = ours.state_dict()
    keys = lora_key_map(list(weights), prefix="")
    for up in [key for key in lora if key.endswith(suffix["B"])]:
        layer = up.removesuffix("." + suffix["B"])
        a, alpha = lora[f"{layer}.{suffix['A']}"], lora[f"{layer}.alpha"]
        weights[keys[layer]] = weights[keys[layer]] + alpha / len(a) * lora[up] @ a
    ours.load_state_dict(weights)

    generator = torch.Generator().manual_seed(1)
    video, image = (torch.randn(1, 16, 3, 8, 12, generator=generator) for _ in range(2))
    text, time = torch.randn(1, 6, 24, generator=generator), torch.tensor([500])
    hidden = rearrange(torch.cat([video, image], dim=1), "b c t h w -> b t c h w")
    rotary = get_3d_rotary_pos_embed(32, ((0, 0), (4, 6)), (4, 6), 3)
    expected = reference(hidden, text, time, image_rotary_emb=rotary, return_dict=False)[0]
    found, _ = ours(video, image, text, time)
    torch.testing.assert_close(found, rearrange(expected, "b t c h w -> b c t h w"), rtol=1e-5, atol=1e-5)


def test_every_weight_has_every_name():
    weights = [f"{name}.weight" for name in TARGETS]
    keys = lora_key_map(weights)
    assert set(keys.values()) == {f"diffusion_model.{name}" for name in weights}
    for name, _ in NAMINGS.values():
        for layer in TARGETS:
            assert keys[name(layer)] == f"diffusion_model.{layer}.weight"
    assert not any(re.search(r"\.(weight|bias)$", key) for key in keys)
