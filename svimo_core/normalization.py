"""Between 3D motion in metres and the normalised tensors that VID denoises, with the statistics of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .motion import HAND_NAMES, JOINTS_PER_HAND, NUM_JOINTS, Camera, HandObjectMotion
from .once import OnceForEach

NEAR = 0.05
"""Metres; nearer to the camera than anything that is seen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionNormalizer:
    """Mean and spread of training motion per joint and per object, and the camera that motion was seen through.

    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """

    hands_mean: Tensor
    """42 x 3, metres."""
    hands_std: Tensor
    objects_mean: Tensor
    """objects x 3, metres."""
    objects_std: Tensor
    object_names: tuple[str, ...]
    camera: tuple[float, float, float, float]
    """fx and cx over the image width, fy and cy over its height: generated motion is drawn through this camera."""

    def __post_init__(self):
        hands, objects = (NUM_JOINTS, 3), (len(self.object_names), 3)
        shapes = {"hands_mean": hands, "hands_std": hands, "objects_mean": objects, "objects_std": objects}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name} must be {shape} numbers, got {tuple(values.shape)}")
        if len(self.camera) != 4 or not np.isfinite(self.camera).all() or min(self.camera[:2]) <= 0:
            raise ValueError(f"a camera has two focal lengths above 0 and a middle, got {self.camera}")
        object.__setattr__(self, "_on", OnceForEach(self._statistics_on))

    def _statistics_on(self, points: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and spread of hands (42 x 3) and of so many points (P x 3) on a device."""
        each = points // len(self.object_names)
        clouds = (x.repeat_interleave(each, dim=0) for x in (self.objects_mean, self.objects_std))
        return tuple(x.float().to(device) for x in (self.hands_mean, self.hands_std, *clouds))

    @classmethod
    def fit(cls, motions: Sequence[HandObjectMotion], object_names: tuple[str, ...]) -> MotionNormalizer:
        """Statistics over clips that all have the named objects.

        Raises:
            ValueError: no clips, or one lacks an object or a hand.
        """
        if not motions:
            raise ValueError("motion statistics need at least one clip")
        for motion in motions:
            missing = set(object_names) - set(motion.objects)
            if missing:
                raise ValueError(f"a clip lacks {sorted(missing)}; it has {sorted(motion.objects)}")
            motion.require_both_hands("training")
        hands = np.concatenate([motion.hands.reshape(len(motion), NUM_JOINTS, 3) for motion in motions])
        clouds = [
            np.concatenate([motion.objects[name].reshape(-1, 3) for motion in motions])
            for name in object_names
        ]
        cameras = [motion.camera.relative for motion in motions]
        return cls(
            hands_mean=torch.from_numpy(hands.mean(axis=0)),
            hands_std=torch.from_numpy(hands.std(axis=0)).clamp(min=1e-3),
            objects_mean=torch.from_numpy(np.stack([cloud.mean(axis=0) for cloud in clouds])),
            objects_std=torch.from_numpy(np.stack([cloud.std(axis=0) for cloud in clouds])).clamp(min=1e-3),
            object_names=tuple(object_names),
            camera=tuple(np.mean(cameras, axis=0).tolist()),
        )

    def normalize(self, motion: HandObjectMotion, points_per_object: int) -> tuple[Tensor, Tensor]:
        """Motion in metres to (hands N x 42 x 3, points N x P x 3); clouds are thinned or repeated to size.

        Raises:
            ValueError: an object that the model knows is missing, or a hand is.
        """
        motion.require_both_hands("this model")
        missing = [name for name in self.object_names if name not in motion.objects]
        if missing:
            raise ValueError(
                f"the motion lacks {missing}: this model needs objects named {list(self.object_names)}"
            )
        hands = torch.from_numpy(motion.hands).reshape(len(motion), NUM_JOINTS, 3)
        clouds = []
        for i, name in enumerate(self.object_names):
            cloud = torch.from_numpy(motion.objects[name])
            index = torch.linspace(0, cloud.shape[1] - 1, points_per_object).round().long()
            clouds.append((cloud[:, index] - self.objects_mean[i]) / self.objects_std[i])
        return (hands - self.hands_mean) / self.hands_std, torch.cat(clouds, dim=1)

    def move(
        self, hands: Tensor, points: Tensor, hands_by: Tensor, points_by: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normalised motion (... x 42 x 3, ... x P x 3) moved by so many metres, shaped alike."""
        _, hands_std, _, points_std = self._on(points.shape[-2], points.device)
        return torch.addcdiv(hands, hands_by, hands_std), torch.addcdiv(points, points_by, points_std)

    def denormalize(self, hands: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised (... x 42 x 3, ... x P x 3) to metres, differentiable."""
        hands_mean, hands_std, points_mean, points_std = self._on(points.shape[-2], points.device)
        return torch.addcmul(hands_mean, hands, hands_std), torch.addcmul(points_mean, points, points_std)

    def project(self, hands: Tensor, points: Tensor) -> Tensor:
        """Where normalised joints and points (... x 42 x 3, ... x P x 3) lie in the image: ... x 42 + P x 2, across and
        down from -1 to 1 at its edges. What is not in front of the camera counts as just before it."""
        fx, fy, cx, cy = self.camera
        x, y, z = torch.cat(self.denormalize(hands, points), dim=-2).unbind(dim=-1)
        z = z.clamp(min=NEAR)
        return torch.stack([2 * (fx * x / z + cx) - 1, 2 * (fy * y / z + cy) - 1], dim=-1)

    def to_motion(
        self, hands: Tensor, points: Tensor, width: int, height: int, fps: float, prompt: str = ""
    ) -> HandObjectMotion:
        """One clip of normalised tensors (N x 42 x 3, N x P x 3) to metres, seen at width x height pixels.

        Raises:
            ValueError: values that are not finite.
        """
        hands, points = (x.detach().float().cpu() for x in self.denormalize(hands.float(), points.float()))
        if not torch.isfinite(hands).all():  # in a motion it would mean that a hand is absent
            raise ValueError("hands has values that are not finite (NaN or infinity)")
        fx, fy, cx, cy = self.camera
        return HandObjectMotion(
            hands=hands.reshape(len(hands), len(HAND_NAMES), JOINTS_PER_HAND, 3).numpy(),
            objects={
                name: cloud.numpy()
                for name, cloud in zip(
                    self.object_names, points.chunk(len(self.object_names), dim=1), strict=True
                )
            },
            camera=Camera(
                fx=fx * width, fy=fy * height, cx=cx * width, cy=cy * height, width=width, height=height
            ),
            fps=fps,
            prompt=prompt,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; :meth:`from_dict` is its inverse."""
        return {
            "hands_mean": _short(self.hands_mean),
            "hands_std": _short(self.hands_std),
            "objects_mean": _short(self.objects_mean),
            "objects_std": _short(self.objects_std),
            "object_names": list(self.object_names),
            "camera": list(self.camera),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MotionNormalizer:
        """Rebuild from the plain form.

        Raises:
            ValueError: other shapes, or numbers that are not finite.
        """
        for name, numbers in values.items():
            if (
                name.endswith(("_mean", "_std"))
                and not np.isfinite(np.asarray(numbers, dtype=np.float64)).all()
            ):
                raise ValueError(f"{name} has numbers that are not finite")
        return cls(
            **{
                key: torch.tensor(values[key])
                for key in ("hands_mean", "hands_std", "objects_mean", "objects_std")
            },
            object_names=tuple(values["object_names"]),
            camera=tuple(values["camera"]),
        )


def _short(values: Tensor) -> list[list[float]]:
    """Numbers with no more digits than float32 needs to come back exactly: a header is text."""
    return [[float(str(number)) for number in row] for row in values.float().numpy()]
