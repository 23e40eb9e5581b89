"""A complete model of a few thousand weights, and a motion: what most tests need."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from svimo_core.checkpoint import PARTS, init_part, save_checkpoint
from svimo_core.config import (
    TINY,
    BackboneConfig,
    DrawingConfig,
    InteractionConfig,
    SViMoConfig,
    TextConfig,
    VAEConfig,
)
from svimo_core.motion import Camera, HandObjectMotion
from svimo_core.normalization import MotionNormalizer
from svimo_core.sampling.pipeline import SViMo

FRAMES, HEIGHT, WIDTH = 9, 32, 48


@pytest.fixture(scope="session")
def config() -> SViMoConfig:
    """Every switch of the tiny preset at the smallest size that still exercises it."""
    return replace(
        TINY,
        name="test",
        frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        backbone=BackboneConfig(
            num_layers=2, num_heads=2, head_dim=16, time_embed_dim=16, text_dim=16, text_length=8
        ),
        interaction=InteractionConfig(
            pyramid_channels=(8, 8),
            denoiser_channels=(16, 16),
            num_heads=2,
            points_per_object=6,
            norm_groups=4,
            read_channels=(8, 4, 16),
            align_channels=(8, 8),
            align_points=3,
        ),
        vae=VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4),
        text=TextConfig(
            vocab_size=640, dim=16, ff_dim=16, num_layers=1, num_heads=2, head_dim=8, text_length=8
        ),
        drawing=DrawingConfig(channels=8, blocks=2),
    )


def moving_motion(seed: int = 0, frames: int = FRAMES) -> HandObjectMotion:
    """Hands and two clouds half a metre away that drift to the right."""
    rng = np.random.default_rng(seed)
    drift = np.linspace(0, 0.1, frames)[:, None, None] * np.array([1.0, 0.0, 0.0])
    hands = rng.normal(scale=0.03, size=(2, 21, 3)) + np.array([[[-0.08, 0, 0.5]], [[0.08, 0, 0.5]]])
    clouds = {name: rng.normal(scale=0.03, size=(1, 10, 3)) + (0, 0.05, 0.6) for name in ("tool", "target")}
    return HandObjectMotion(
        hands=hands[None] + drift[:, None],
        objects={name: cloud + drift for name, cloud in clouds.items()},
        camera=Camera.from_fov(WIDTH, HEIGHT),
        fps=8,
        prompt="use spoon to stir cup",
    )


@pytest.fixture(scope="session")
def motion() -> HandObjectMotion:
    return moving_motion()


@pytest.fixture(scope="session")
def normalizer(motion, config) -> MotionNormalizer:
    return MotionNormalizer.fit([motion, moving_motion(1)], config.interaction.object_names)


@pytest.fixture(scope="session")
def parts(config) -> dict[str, torch.nn.Module]:
    parts = {part: init_part(config, part, seed=i) for i, part in enumerate(PARTS)}
    alignment, generator = parts["interaction"].alignment, torch.Generator().manual_seed(9)
    for last in (alignment.shift, alignment.joint):  # which start at zero, so that it would change nothing
        torch.nn.init.normal_(last.weight, generator=generator)
    return parts


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory, config, parts, normalizer):
    path = tmp_path_factory.mktemp("checkpoint") / "test.safetensors"
    return save_checkpoint(path, config, parts, normalizer, torch.zeros(17, 3), {"source": "seeds 0 to 4"})


@pytest.fixture(scope="session")
def model(checkpoint_file) -> SViMo:
    return SViMo.load(checkpoint_file)
