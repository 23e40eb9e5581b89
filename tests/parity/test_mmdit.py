"""MM-DiT in video-only mode is diffusers' CogVideoX-I2V transformer, weight for weight."""

from dataclasses import replace

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from svimo_core.config import BackboneConfig
from svimo_core.model.mmdit import MMDiT, extend_with_motion

GRID = (3, 4, 6)
"""Latent frames, and height and width in patches."""
CONFIG = BackboneConfig(
    num_layers=3,
    num_heads=2,
    head_dim=32,
    time_embed_dim=48,
    text_dim=40,
    text_length=7,
    motion=False,
    image_padding="zero",
    position_table=GRID,
)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=CONFIG.num_heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=32,
        out_channels=16,
        time_embed_dim=CONFIG.time_embed_dim,
        text_embed_dim=CONFIG.text_dim,
        num_layers=CONFIG.num_layers,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=CONFIG.text_length,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    ).eval()
    for (
        weight
    ) in model.parameters():  # norms and biases start at 1 and 0, where mistakes in them would not show
        torch.nn.init.normal_(weight, mean=float(weight.detach().mean()), std=0.1)
    return model


@pytest.fixture(scope="module")
def weights(reference):
    state = dict(reference.state_dict())
    state["patch_embed.position_table.weight"] = state.pop("patch_embed.pos_embedding")[0]
    return state


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    video, image = (torch.randn(2, 16, 3, 8, 12, generator=generator) for _ in range(2))
    return video, image, torch.randn(2, 7, 40, generator=generator), torch.tensor([900, 17])


@torch.no_grad()
def expected(reference, video, image, text, timestep):
    rotary = get_3d_rotary_pos_embed(CONFIG.head_dim, ((0, 0), GRID[1:]), GRID[1:], GRID[0])
    hidden = torch.cat([video, image], dim=1).transpose(1, 2)
    out = reference(hidden, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]
    return out.transpose(1, 2)


@torch.no_grad()
def test_video_only_equals_diffusers(reference, weights, inputs):
    ours = MMDiT(CONFIG)
    ours.load_state_dict(weights, strict=True)
    video, motion = ours(*inputs)
    assert motion is None
    torch.testing.assert_close(video, expected(reference, *inputs), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["proj_out.weight", "transformer_blocks.1.attn1.norm_q.bias", "time_embedding.linear_1.bias"]
)
def test_one_perturbed_weight_breaks_it(reference, weights, inputs, name):
    ours = MMDiT(CONFIG)
    ours.load_state_dict(weights | {name: weights[name].clone().index_fill_(0, torch.tensor([3]), 0.5)})
    assert (ours(*inputs)[0] - expected(reference, *inputs)).abs().max() > 1e-4


@torch.no_grad()
def test_a_converted_model_without_motion_tokens_is_still_cogvideox(reference, weights, inputs):
    config = replace(CONFIG, motion=True)
    ours = MMDiT(config)
    ours.load_state_dict(dict(extend_with_motion(weights.items(), config)), strict=True)
    torch.testing.assert_close(ours(*inputs)[0], expected(reference, *inputs), rtol=1e-5, atol=1e-5)
