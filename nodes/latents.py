"""LATENT: how video, drawing and the 3D motion read off them travel between nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.sampling.latents import JointLatents
from ..svimo_core.sampling.reader import Reading

READING = "svimo_reading"
"""LATENT key: a :class:`StoredReading`. Core's latent nodes keep it while they change the samples."""
PROMPT = "svimo_prompt"
"""CONDITIONING and LATENT key: the prompt in words, so that saved motion knows it."""


WINDOW = "svimo_window"
"""LATENT key: a :class:`Window`."""


class Window(NamedTuple):
    """Where a clip lies in a longer one that it is a window of."""

    first_frame: int
    follows: bool
    """It goes on from the window before, which it was given the end of."""

    def metadata(self) -> dict[str, str]:
        """For the window's motion."""
        return {"first_frame": str(self.first_frame), "follows": str(self.follows)}

    @classmethod
    def of(cls, motion: HandObjectMotion) -> Window:
        """Of a motion that was read off a window, or of one that is a clip by itself."""
        found = motion.metadata
        return cls(int(found.get("first_frame", 0)), found.get("follows") == str(True))


class JointLatent(NestedTensor):
    """Core's nested latent of video and drawing, which says what to do where a node wants one tensor."""

    def _copy(self) -> JointLatent:
        return JointLatent(self.tensors)

    def repeat(self, *repeats: Any) -> JointLatent:
        """Each stream repeated: batches of a clip (core's Repeat Latent Batch)."""
        return self.apply_operation(None, lambda x, _: x.repeat(*repeats))

    def clone(self) -> JointLatent:
        """A copy of each stream."""
        return self.apply_operation(None, lambda x, _: x.clone())

    def __getitem__(self, key: Any) -> JointLatent:
        # A slice takes some clips of a batch; all else would cut along other axes than a picture's.
        if not isinstance(key, slice):
            raise TypeError(self._advice("cutting"))
        return self.apply_operation(None, lambda x, _: x[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(self._advice("pasting"))

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name if name.startswith("__") else self._advice(name))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise TypeError(cls._advice(getattr(function, "__name__", "operation")))

    @staticmethod
    def _advice(what: str) -> str:
        return (
            f"this latent holds video and drawing together, which this node cannot change ({what}): put SViMo Split "
            "Latent before it, and SViMo Join Latents behind it"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredReading:
    """A run's 3D motion, the mean of its steps, and the very latents that it belongs to."""

    reading: Reading
    """On the CPU."""
    latents: JointLatents
    """In VAE space, on the CPU."""

    def belongs_to(self, latents: JointLatents) -> bool:
        """Whether nothing was done to the latents since."""
        return all(
            x is y or (x is not None and y is not None and torch.equal(x, y))
            for x, y in zip(self.latents, latents, strict=True)
        )


def streams_of(latent: dict[str, Any]) -> JointLatents:
    """The streams of a LATENT, in VAE space.

    Raises:
        ValueError: not video latents of one or two streams.
    """
    samples = latent["samples"]
    streams = samples.unbind() if samples.is_nested else (samples,)
    if len(streams) > 2 or any(x.ndim != 5 for x in streams):
        shapes = " and ".join(" x ".join(map(str, x.shape)) for x in streams)
        raise ValueError(
            f"the latent must hold a video, or a video and its drawing, each batch x channels x frames x height x width; "
            f"got {shapes}: connect the latent of SViMo Image Encode or of a sampler"
        )
    return JointLatents(*streams)


def packed(latents: JointLatents) -> Tensor | JointLatent:
    """Streams to `samples` of a LATENT."""
    return latents.video if latents.drawing is None else JointLatent(latents)
