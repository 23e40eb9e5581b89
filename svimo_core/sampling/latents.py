"""What one diffusion process makes: the latents of the video and of the drawing of its motion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class JointLatents(NamedTuple):
    """Two streams that are denoised together. In video-only mode there is no drawing."""

    video: Tensor
    """B C T h w."""
    drawing: Tensor | None = None
    """B C T h w: the rendered motion video's latent."""

    def to(self, *args) -> JointLatents:
        """`Tensor.to` on both."""
        return JointLatents(*(x if x is None else x.to(*args) for x in self))


class Known(NamedTuple):
    """What of a clip is given and not generated: a whole stream, or some latent frames of both (method, section 12).

    The network hears it clean at timestep 0, and it comes out as it went in, under every solver.
    """

    latents: JointLatents
    """Clean; what of it is not known does not matter."""
    frames: Tensor
    """Which latent frames of which stream are known, 1 or B S T booleans, on the latents' device."""

    @property
    def drawing(self) -> bool:
        """Whether the drawing is given as a whole."""
        return self.frames.shape[1] > 1 and bool(self.frames[:, 1].all())

    def put_into(self, latents: JointLatents) -> JointLatents:
        """Latents (noisy or predicted) with what is known in its place."""
        masks = self.frames[:, :, None, :, None, None].unbind(dim=1)
        streams = zip(masks, self.latents, latents, strict=False)  # video-only: no drawing, and one mask
        return JointLatents(*(torch.where(mask, clean, x) for mask, clean, x in streams))

    def timesteps(self, timestep: Tensor) -> Tensor:
        """Of every frame, B S T: 0 where it is known, else that of all (B,) or of its stream (B S)."""
        of_streams = timestep[:, None] if timestep.ndim == 1 else timestep
        frames = self.frames.repeat(len(timestep) // len(self.frames), 1, 1).to(timestep.device)
        return torch.where(frames, 0, of_streams[..., None])


def known_frames(latent_frames: int, video: bool, motion: bool, first: int = 0, last: int = 0) -> Tensor:
    """`Known.frames`, 1 2 T: whole streams, and so many latent frames of both at the beginning and the end."""
    frames = torch.zeros(1, 2, latent_frames, dtype=torch.bool)
    frames[:, 0] |= video
    frames[:, 1] |= motion
    frames[..., :first] = True
    frames[..., latent_frames - last :] = True
    return frames


def noise_like(latents: JointLatents, generator: torch.Generator) -> JointLatents:
    """Fresh Gaussian noise for every stream, drawn on the CPU so that a seed means the same on every device."""
    return JointLatents(
        *(
            x if x is None else torch.randn(x.shape, generator=generator).to(x.device, torch.float32)
            for x in latents
        )
    )
