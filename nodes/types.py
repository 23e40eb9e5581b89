"""How things travel between nodes.

Core's own types wherever core has a word for the thing:

- MODEL: core's patcher around a `comfy.model_base.BaseModel` (`backbone.py`), patched by the loop (`loop.py`).
- VAE, CLIP: objects with the methods that core's encode and decode nodes call (`vae.py`, `clip.py`).
- CONDITIONING: text features as core encodes them, the reference image under core's `concat_latent_image`, a given
  motion under `svimo_guidance`.
- LATENT: video latents in VAE space (unscaled), B C T h w; with a SViMo model core's NestedTensor of video and drawing,
  and what a sampler read off them beside it (`latents.py`).

Our own types only for what core has no word for.
"""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_management
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

CATEGORY = "SViMo"

Interaction = io.Custom("SVIMO_INTERACTION")
"""VID with its motion statistics: a `loop.InteractionHandle`."""
Feedback = io.Custom("SVIMO_FEEDBACK")
"""The closed loop for the sampler of earlier workflows: a `loop.FeedbackPatch`."""
Motion = io.Custom("SVIMO_MOTION")
"""One clip of 3D motion: a `svimo_core.motion.HandObjectMotion`."""
ObjectMeshes = io.Custom("SVIMO_MESHES")
"""Surfaces of a motion's objects by name: `svimo_core.rigged.ObjectMesh`, each tied to the points of its object."""
RiggedMotionType = io.Custom("SVIMO_RIGGED_MOTION")
"""Skinned hands and rigid objects: a `svimo_core.rigged.RiggedMotion`."""


def check_choice(name: str, value: str, options: Iterable[str]) -> None:
    """Refuse a value that a Combo does not offer; ComfyUI 0.3 lets API users send anything.

    Raises:
        ValueError: not one of the options.
    """
    if value not in options:
        raise ValueError(f"{name} is {value!r}: choose one of {', '.join(options)}")


def throw_if_interrupted() -> None:
    """Stop here if the user cancelled; for work between core's layers, which look for themselves."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def frames_to_image_batch(frames: Tensor) -> Tensor:
    """B N H W C frames to core's IMAGE, (B N) H W C."""
    return rearrange(frames, "b n h w c -> (b n) h w c")
