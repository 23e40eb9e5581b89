"""The painter: from hands and objects in 3D to the drawing that a video model reads, and to its latent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..model.vae import VideoVAE
from ..motion import HandObjectMotion
from ..normalization import MotionNormalizer
from ..render import render_motion
from .reader import Reading

Encode = Callable[[Tensor], Tensor]
"""Frames, B N H W 3 uint8, to their scaled latents, B C T h w."""


class MotionPainter:
    """Draws readings at the clip's size and encodes the drawings.

    Args:
        encode: of the video VAE.
        width, height: pixels of the clip; the drawing has the video's size.
    """

    def __init__(self, encode: Encode, normalizer: MotionNormalizer, width: int, height: int):
        self.encode = encode
        self.normalizer = normalizer
        self.width = width
        self.height = height

    def __call__(self, reading: Reading) -> Tensor:
        """The latent of a reading's drawing: zG, B C T h w float32."""
        frames = self.draw(*reading).to(reading.hands.device)
        return self.encode(frames).to(reading.hands.device, torch.float32)

    def draw(self, hands: Tensor, points: Tensor) -> Tensor:
        """Frames of normalised motion (B N 42 3, B N P 3), B N H W 3 uint8 on the CPU."""
        size = self.width, self.height
        motions = [
            self.normalizer.to_motion(h, p, *size, fps=1.0) for h, p in zip(hands, points, strict=True)
        ]
        return draw_motions(motions, *size)


def draw_motions(motions: list[HandObjectMotion], width: int, height: int) -> Tensor:
    """Rendered motion videos of motions of equal length, B N H W 3 uint8."""
    return torch.from_numpy(np.stack([render_motion(motion, width, height) for motion in motions]))


def encode_motions(vae: VideoVAE, motions: list[HandObjectMotion], width: int, height: int) -> Tensor:
    """Drawing latents (B C T h w float32, scaled) of motions of equal length."""
    return vae.encode(draw_motions(motions, width, height)).float()
