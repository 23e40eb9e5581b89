"""Latents of training clips, encoded once and kept on disk.

Reference images are not among them: they are encoded with new noise every time.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from svimo_core.config import ClipSize
from svimo_core.files import plain_arrays, whole_file
from svimo_core.model.vae import VideoVAE
from svimo_core.render import render_motion
from svimo_core.sampling.pipeline import SViMo, encode_image

from .clips import ClipFolder, resize_video
from .settings import Shape


class LatentCache:
    """Video and motion latents of a folder's clips under one VAE, filled as clips are asked for.

    Files lie in `latents` inside the folder, apart by VAE weights and clip size, so they are never stale.
    """

    def __init__(self, clips: ClipFolder, model: SimpleNamespace):
        self.clips = clips
        self.model = model
        self.vae = VideoVAE(model.parts["vae"], model.config.vae)
        self.root = clips.folder / "latents" / fingerprint(model.parts["vae"])

    def batch(
        self, indices: list[int], shape: Shape, with_images: bool = False, first_frames: bool = False
    ) -> dict[str, Any]:
        """Clips as tensors.

        Args:
            first_frames: take clips that have only their first frame as well.

        Returns:
            video, motion: latents, B C T h w float32; zero where the clip has no video.
            whole: which clips have one, B.
            hands, points: normalised motion, B N 42 3 and B N P 3.
            prompts; and images with `with_images`: first frames, B H W 3 in [0, 1].
        """
        whole = [not first_frames or self.clips.has_video(index) for index in indices]
        size = self.model.config.vae.latent_shape(shape.frames, shape.height, shape.width)
        latents = torch.stack(
            [
                self.latents(index, shape) if has_video else torch.zeros(2, *size)
                for index, has_video in zip(indices, whole, strict=True)
            ]
        )
        batch: dict[str, Any] = {"video": latents[:, 0], "motion": latents[:, 1]}
        batch["whole"] = torch.tensor(whole)
        motions = [self.clips.motion(index, shape.frames) for index in indices]
        points = self.model.config.interaction.points_per_object
        normalized = [self.model.normalizer.normalize(motion, points) for motion in motions]
        batch["hands"], batch["points"] = (torch.stack(x) for x in zip(*normalized, strict=True))
        batch["prompts"] = [motion.prompt for motion in motions]
        if with_images:
            videos = (self.clips.video(index) for index in indices)
            first = [resize_video(video[:1], shape.height, shape.width)[0] for video in videos]
            batch["images"] = torch.from_numpy(np.stack(first)).float() / 255
        return batch

    @torch.no_grad()
    def latents(self, index: int, shape: Shape) -> Tensor:
        """Video and motion latent of one clip, 2 C T h w float32, scaled by the VAE's present factor."""
        path = self._path(index, shape)
        if path.is_file():
            (stored,) = plain_arrays(path).values()
            expected = (2, *self.vae.config.latent_shape(shape.frames, shape.height, shape.width))
            if stored.shape != expected or stored.dtype != np.float16:
                raise ValueError(f"{path} holds {stored.shape} {stored.dtype} instead of latents: delete it")
        else:
            unscaled = self._make(index, shape).float().cpu() / self.vae.config.scaling_factor
            stored = unscaled.numpy().astype(np.float16)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial, partial.open("wb") as file:
                np.save(file, stored)
        return torch.from_numpy(stored).float() * self.vae.config.scaling_factor

    def _make(self, index: int, shape: Shape) -> Tensor:
        """Video and motion latent, 2 C T h w."""
        clip = self.clips.clip(index, shape.frames)
        video = resize_video(clip.video, shape.height, shape.width)
        drawing = render_motion(clip.motion, shape.width, shape.height)
        return self.vae.encode(torch.from_numpy(np.stack([video, drawing])).float() / 255)

    def _path(self, index: int, shape: Shape) -> Path:
        size = f"{shape.frames}x{shape.height}x{shape.width}"
        return self.root / size / f"{self.clips.names[index]}.npy"


class SampledLatents(LatentCache):
    """Latents that the MM-DiT samples from each clip's first frame and prompt with the loop open, kept likewise,
    apart by the weights of all that makes them.

    Args:
        features: of every prompt, L text_dim each.
        steps: of the sampler.
    """

    def __init__(self, clips: ClipFolder, model: SimpleNamespace, features: dict[str, Tensor], steps: int):
        super().__init__(clips, model)
        self.backbone = model.parts["backbone"]
        self.features = features
        self.steps = steps
        networks = {part: model.parts[part] for part in ("backbone", "text_encoder") if part in model.parts}
        self.root = self.root / f"sampled-{steps}-{fingerprint(nn.ModuleDict(networks))}"

    def _make(self, index: int, shape: Shape) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        image = torch.from_numpy(np.array(self.clips.video(index)[0])).float() / 255
        text = self.features[self.clips.motion(index).prompt][None]
        image = encode_image(self.vae.encode, image, shape.width, shape.height, generator=generator)
        size = ClipSize(shape.frames, shape.height, shape.width)
        model = SViMo(config=self.model.config, backbone=self.backbone, vae=self.vae)
        latents, _, _ = model.denoise(
            image, text, text, size, generator, self.steps, guidance_scale=1.0, guidance_schedule="constant"
        )
        return torch.cat(latents)


def fingerprint(module: nn.Module) -> str:
    """A name for these exact weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
