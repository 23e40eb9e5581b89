import json
from dataclasses import replace

import pytest
import torch

from svimo_core.config import COGVIDEOX_5B_I2V, PRESETS, TINY, BackboneConfig, SViMoConfig
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.mmdit import MMDiT
from svimo_core.model.vae import build_vae


def count(build) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build().parameters())


def test_full_size_has_the_papers_parameters_and_tokens():
    # Method, section 3: 6.02 B is CogVideoX-5b-I2V with its learned position table, plus the motion stream.
    backbone = COGVIDEOX_5B_I2V.backbone
    without_table = count(lambda: MMDiT(backbone))
    with_table = count(lambda: MMDiT(replace(backbone, position_table=(13, 30, 45))))
    video_only = count(lambda: MMDiT(replace(backbone, motion=False)))
    assert video_only == 5_570_479_680
    assert without_table == video_only + 397_135_872 + 396_288
    assert with_table == without_table + 54_607_872
    assert round(with_table / 1e9, 4) == 6.0226
    assert COGVIDEOX_5B_I2V.num_tokens(49, 416, 624) == 26_590
    assert COGVIDEOX_5B_I2V.latent_shape(49, 416, 624) == (16, 13, 52, 78)
    assert round(count(lambda: build_vae(COGVIDEOX_5B_I2V.vae)) / 1e6, 1) == 215.6
    assert count(lambda: InteractionModel(COGVIDEOX_5B_I2V.interaction)) > 50e6


def test_paper_low_resolution_stage_fits():
    assert COGVIDEOX_5B_I2V.num_tokens(49, 240, 368) == 226 + 2 * 13 * 15 * 23


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_config_survives_json(preset):
    assert SViMoConfig.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_unknown_field_is_refused():
    values = TINY.to_dict()
    values["backbone"]["num_wheels"] = 4
    with pytest.raises(ValueError, match="num_wheels"):
        SViMoConfig.from_dict(values)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((13, 96, 144), r"frames must be 8k .* the nearest is (9|17)"),
        ((17, 100, 144), "height .* multiple of 16 .* nearest is 96"),
        ((17, 96, 0), "width .* multiple of 16"),
    ],
)
def test_clip_sizes_that_do_not_divide_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        TINY.check_clip(*size)


def test_rotary_needs_a_head_it_can_split():
    with pytest.raises(ValueError, match="multiple of 16"):
        BackboneConfig(num_layers=1, num_heads=1, head_dim=24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"snr_shift": 0.0}, "snr_shift must be above 0"),
        ({"snr_shift": float("nan")}, "snr_shift must be above 0"),
        ({"read_grid": (0, 6)}, "read_grid must be"),
        ({"read_grid": (4, 6, 1)}, "read_grid must be"),
        ({"pyramid_channels": (), "denoiser_channels": ()}, "levels, at least one"),
        ({"patch": 0}, "patch and read_blocks must be from 1"),
        ({"read_blocks": 0}, "patch and read_blocks must be from 1"),
        ({"read_channels": (32, 16)}, "read_channels must be three"),
        ({"read_channels": (32, 0, 64)}, "read_channels must be three"),
        ({"read_channels": (33, 16, 64)}, "divisible by norm_groups"),
    ],
)
def test_an_interaction_model_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY.interaction, **change)


def test_no_model_has_a_thousand_levels():
    """Their networks would be built, in minutes and gigabytes, before anything is compared."""
    many = replace(TINY.interaction, pyramid_channels=(16,) * 1000, denoiser_channels=(48,) * 1000)
    with pytest.raises(ValueError, match=r"interaction\.pyramid_channels has 1000 entries"):
        replace(TINY, interaction=many)


def test_vids_patches_must_fit_clips():
    with pytest.raises(ValueError, match=r"interaction\.patch must divide backbone\.patch_size.* 3 and 2"):
        replace(TINY, interaction=replace(TINY.interaction, patch=3))
