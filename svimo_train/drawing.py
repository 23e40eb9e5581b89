"""The drawing encoder's stage: what a VAE makes of drawings, learned from random motions alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from svimo_core.files import plain_arrays, reading, whole_file
from svimo_core.model.vae import VideoVAE
from svimo_core.motion import HandObjectMotion
from svimo_core.rasterize import NUM_JOINTS, Rasterizer
from svimo_core.render import render_motion

from .data.wild import AWAY, MOST_OBJECTS, wild_motion
from .encoded import fingerprint
from .settings import Batch, Shape, TrainConfig

log = logging.getLogger(__name__)

CAMERA = (0.9, 1.35, 0.5, 0.5)
"""All motions of a batch are seen through this one: fx and cx over the width, fy and cy over the height."""
HELD_OUT = 32
"""Motions behind the errors."""


class DrawingPool:
    """Random motions, and what a VAE makes of their drawings, made when they are first asked for and kept in a folder,
    apart by VAE weights, clip size and number of points.

    Args:
        count: how many there are to train on. The held-out ones have numbers of their own.
    """

    def __init__(self, folder: Path, count: int, model: SimpleNamespace):
        self.folder = Path(folder)
        self.count = count
        self.config = model.config
        self.vae = VideoVAE(model.parts["vae"], model.config.vae)
        self.root = self.folder / fingerprint(model.parts["vae"].state_dict())

    def __len__(self) -> int:
        return self.count

    def motion(self, index: int, shape: Shape, split: str = "train") -> HandObjectMotion:
        """One of them."""
        points = self.config.interaction.points_per_object
        return wild_motion(index, shape.frames, shape.height, shape.width, self.config.fps, points, split)

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """Metres of joints and of as many objects as there may be (B N 42+P 3) and latents (B C T h w)."""
        metres, latents = zip(*(self.latent(index, shape) for index in indices), strict=True)
        return {
            "metres": self.filled(metres),
            "latents": torch.stack(latents),
            "size": (shape.height, shape.width),
        }

    def filled(self, metres: Sequence[Tensor]) -> Tensor:
        """Motions of fewer objects among others: what they lack is behind the camera."""
        most = NUM_JOINTS + MOST_OBJECTS * self.config.interaction.points_per_object
        return torch.stack([F.pad(x, (0, 0, 0, most - x.shape[1]), value=AWAY) for x in metres])

    @torch.no_grad()
    def latent(self, index: int, shape: Shape, split: str = "train") -> tuple[Tensor, Tensor]:
        """Metres of one motion (N 42+P 3, seen through :data:`CAMERA`) and the scaled latent of its drawing (C T h w),
        float32."""
        points, fps = self.config.interaction.points_per_object, self.config.fps
        size = f"{shape.frames}x{shape.height}x{shape.width}-{points}-points-{fps:g}-fps"
        path = self.root / size / f"{split}-{index:06d}.npz"
        expected = self.vae.config.latent_shape(shape.frames, shape.height, shape.width)
        try:
            with reading(path, "is damaged"):
                stored = plain_arrays(path)
                metres, latent = (torch.from_numpy(stored[name]).float() for name in ("metres", "latent"))
            if (
                latent.shape == expected
                and len(metres) == shape.frames
                and latent.isfinite().all()
                and metres.isfinite().all()
            ):
                return metres, latent
            log.warning("%s holds something else: made anew", path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s): made anew", path, error)
        motion = self.motion(index, shape, split)
        metres = through_camera(motion, CAMERA)
        drawn = torch.from_numpy(render_motion(motion, shape.width, shape.height))
        latent = self.vae.encode(drawn[None])[0].float().cpu()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial, partial.open("wb") as file:
                np.savez(file, metres=metres, latent=latent.half().numpy())
        except OSError as error:
            raise OSError(
                f"{path} cannot be written ({error}): make room, or choose another folder as clips"
            ) from error
        return torch.from_numpy(metres), latent.half().float()


def through_camera(motion: HandObjectMotion, camera: tuple[float, float, float, float]) -> np.ndarray:
    """Joints and points (N 42+P 3 float32, metres) moved aside so that another camera sees them where the motion's own
    does."""
    fx, fy, cx, cy = camera
    own_fx, own_fy, own_cx, own_cy = motion.camera.relative
    joints = motion.hands.reshape(len(motion), NUM_JOINTS, 3)
    x, y, z = np.moveaxis(np.concatenate([joints, *motion.objects.values()], axis=1), -1, 0)
    x = (own_fx * x + (own_cx - cx) * z) / fx
    y = (own_fy * y + (own_cy - cy) * z) / fy
    return np.stack([x, y, z], axis=-1).astype(np.float32)


class DrawingStage(nn.Module):
    """The drawing encoder gives the VAE's latents of drawings that it sees as the painter draws them."""

    def __init__(self, config: TrainConfig, model: SimpleNamespace, clips: DrawingPool):
        super().__init__()
        self.drawing_encoder = model.parts["drawing_encoder"]
        self.points = model.config.interaction.points_per_object

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        drawing = self.draw(batch["metres"], batch["size"])
        error = F.mse_loss(self.drawing_encoder(drawing).float(), batch["latents"])
        return error / self.spread(batch["latents"]), {"error": error}

    def draw(self, metres: Tensor, size: tuple[int, int]) -> Tensor:
        """What the encoder sees of motions with all their objects (B N 42+P 3)."""
        draw = Rasterizer(CAMERA, size, self.drawing_encoder.config.pixel)
        return draw(metres, (self.points,) * MOST_OBJECTS)

    @staticmethod
    def spread(latents: Tensor) -> Tensor:
        """Variance of latents (B C T h w) around each channel's mean: what of them tells one drawing from another."""
        return latents.var(dim=(0, 2, 3, 4)).mean()

    @torch.inference_mode()
    def finish(self, clips: DrawingPool, shape: Shape) -> dict[str, float]:
        """Errors on motions that were held out, in parts of the latents' variance: of the encoder, and of the painter,
        which is what the encoder makes of its drawing in place of OpenCV's."""
        device = next(self.drawing_encoder.parameters()).device
        height, width, pixel = shape.height, shape.width, self.drawing_encoder.config.pixel
        metres, latents = zip(*(clips.latent(i, shape, "test") for i in range(HELD_OUT)), strict=True)
        latents = torch.stack(latents)
        drawn = [render_motion(clips.motion(i, shape, "test"), width, height) for i in range(HELD_OUT)]
        encoded = []
        for frames, clip in zip(drawn, clips.filled(metres), strict=True):
            frames = rearrange(torch.from_numpy(frames).to(device).float() / 255, "n h w c -> n c h w")
            both = torch.stack(
                [self.draw(clip[None].to(device), (height, width))[0], F.avg_pool2d(frames, pixel)]
            )
            encoded.append(self.drawing_encoder(both).float().cpu())
        painted, exact = torch.stack(encoded, dim=1)
        spread = self.spread(latents)
        errors = {
            "latent_error": F.mse_loss(painted, latents) / spread,
            "painter_difference": F.mse_loss(painted, exact) / spread,
        }
        return {name: round(error.item(), 5) for name, error in errors.items()}
