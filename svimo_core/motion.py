"""The domain's nouns: a pinhole camera, the hand skeleton, and the 3D motion of hands and objects.

Axes everywhere: camera space, metres, x right, y down, z forward.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .files import plain_arrays, reading, whole_file

HAND_NAMES = ("left", "right")
JOINTS_PER_HAND = 21
NUM_JOINTS = len(HAND_NAMES) * JOINTS_PER_HAND
JOINT_NAMES = (
    "wrist",
    *(f"{finger}_{joint}" for finger in ("thumb",) for joint in ("cmc", "mcp", "ip", "tip")),
    *(
        f"{finger}_{joint}"
        for finger in ("index", "middle", "ring", "pinky")
        for joint in ("mcp", "pip", "dip", "tip")
    ),
)
"""OpenPose order: the wrist, then four joints of each finger from its base to its tip."""

HAND_BONES = (
    *((0, 1), (0, 5), (0, 17)),  # wrist to the bases of thumb, index and pinky
    *((5, 9), (9, 13), (13, 17)),  # the chain of finger bases
    *((base + i, base + i + 1) for base in (1, 5, 9, 13, 17) for i in range(3)),  # each finger
)
"""Drawn bones as (joint, joint), as in the paper's rendered motion (figure 2)."""

NPZ_FORMAT = "svimo-motion"
COMPLETE_VERSION, NPZ_VERSION = 1, 2
"""Of the file format: 2 has hands that are absent, which readers of version 1 do not expect."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Pinhole intrinsics in pixels, for an image of `width` x `height` pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self):
        if (
            min(self.fx, self.fy, self.width, self.height) <= 0
            or not np.isfinite([self.fx, self.fy, self.cx, self.cy]).all()
        ):
            raise ValueError(f"a camera needs finite, positive focal lengths and image size, got {self}")

    @property
    def relative(self) -> tuple[float, float, float, float]:
        """fx and cx over the image's width, fy and cy over its height: the same at every size."""
        return self.fx / self.width, self.fy / self.height, self.cx / self.width, self.cy / self.height

    @classmethod
    def from_fov(cls, width: int, height: int, horizontal_degrees: float = 50.0) -> Camera:
        """A camera looking through the image centre with square pixels."""
        focal = 0.5 * width / np.tan(np.radians(horizontal_degrees) / 2)
        return cls(fx=focal, fy=focal, cx=width / 2, cy=height / 2, width=width, height=height)

    def resized(self, width: int, height: int) -> Camera:
        """The same camera for an image scaled to another size."""
        sx, sy = width / self.width, height / self.height
        return Camera(
            fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy, width=width, height=height
        )

    def cropped(self, width: int, height: int) -> Camera:
        """The same camera for an image that was scaled to cover another size and cut equally on both sides, as
        `sampling.pipeline.fit_image` does."""
        scale = max(width / self.width, height / self.height)
        left, top = (self.width * scale - width) / 2, (self.height * scale - height) / 2
        return Camera(
            fx=self.fx * scale,
            fy=self.fy * scale,
            cx=self.cx * scale - left,
            cy=self.cy * scale - top,
            width=width,
            height=height,
        )

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project camera-space points (..., 3) in metres to pixels (..., 2). Points need z > 0 to be meaningful."""
        depth = points[..., 2:3]
        return points[..., :2] / depth * (self.fx, self.fy) + (self.cx, self.cy)


@dataclass(frozen=True, kw_only=True)
class HandObjectMotion:
    """Hands and any number of named objects moving in front of one still camera.

    A hand may be absent, in some frames or throughout: all its numbers are NaN there, so that whoever forgets to ask
    :attr:`present` computes nothing that looks right.

    Raises:
        ValueError: wrong shapes, unequal lengths, other values that are not finite, or nothing that is there at all.
    """

    hands: np.ndarray
    """Joints, N x 2 x 21 x 3 float32: frames, (left, right), OpenPose order, metres in camera space."""
    objects: dict[str, np.ndarray]
    """Point clouds, N x K x 3 float32 each (K may differ); a point keeps its index over time."""
    camera: Camera
    fps: float
    prompt: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        hands = np.ascontiguousarray(self.hands, dtype=np.float32)
        if hands.ndim != 4 or hands.shape[1:] != (len(HAND_NAMES), JOINTS_PER_HAND, 3) or not len(hands):
            raise ValueError(f"hands must be frames x 2 x 21 x 3 with at least one frame, got {hands.shape}")
        objects = {
            name: np.ascontiguousarray(points, dtype=np.float32) for name, points in self.objects.items()
        }
        for name, points in objects.items():
            if (
                points.ndim != 3
                or points.shape[0] != len(hands)
                or points.shape[2] != 3
                or not points.shape[1]
            ):
                raise ValueError(
                    f"object {name!r} must be {len(hands)} frames x points x 3, got {points.shape}"
                )
        absent = np.isnan(hands).all(axis=(2, 3))[..., None, None]
        for name, values in {"hands": np.where(absent, 0, hands), **objects}.items():
            if not np.isfinite(values).all():
                bad = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise ValueError(
                    f"{name} has values that are not finite (NaN or infinity), first in frame {bad}"
                )
        if absent.all() and not objects:
            raise ValueError("the motion has no hand in any frame and no object: there is nothing in it")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be positive, got {self.fps}")
        object.__setattr__(self, "hands", hands)
        object.__setattr__(self, "objects", objects)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.hands)

    def take(self, frames: slice | np.ndarray) -> HandObjectMotion:
        """These frames, by a slice or their numbers."""
        objects = {name: points[frames] for name, points in self.objects.items()}
        return replace(self, hands=self.hands[frames], objects=objects)

    @cached_property
    def present(self) -> np.ndarray:
        """Which hands are there, N x 2 bool: frames, (left, right)."""
        return np.isfinite(self.hands[:, :, 0, 0])

    def require_both_hands(self, purpose: str) -> None:
        """Refuse a motion in which a hand is absent from any frame.

        Raises:
            ValueError: it says which hand, in how many frames, and how to add it.
        """
        for side, present in zip(HAND_NAMES, self.present.T, strict=True):
            if not present.all():
                raise ValueError(
                    f"{purpose} needs both hands in every frame, and the {side} one is absent in "
                    f"{int((~present).sum())} of {len(self)}, first in frame {int(np.argmin(present))}: import the "
                    "motion with missing_hands set to hold, mirror or park, or trim it"
                )

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return len(self) / self.fps

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest coordinate over all frames, hands and objects: two arrays of 3, metres."""
        points = np.concatenate(
            [self.hands[self.present].reshape(-1, 3), *(o.reshape(-1, 3) for o in self.objects.values())]
        )
        return points.min(axis=0), points.max(axis=0)

    def save(self, path: str | os.PathLike) -> Path:
        """Write plain arrays to a .npz that needs no pickle. The file appears whole or not at all."""
        path = Path(path)
        arrays = {
            "format": np.array(NPZ_FORMAT),
            "version": np.array(NPZ_VERSION if not self.present.all() else COMPLETE_VERSION),
            "hands": self.hands,
            "object_names": np.array(list(self.objects), dtype=np.str_),
            **{f"object_{i}": points for i, points in enumerate(self.objects.values())},
            "fps": np.array(self.fps, dtype=np.float64),
            "intrinsics": np.array(
                [self.camera.fx, self.camera.fy, self.camera.cx, self.camera.cy], dtype=np.float64
            ),
            "image_size": np.array([self.camera.width, self.camera.height], dtype=np.int64),
            "prompt": np.array(self.prompt, dtype=np.str_),
            "metadata_keys": np.array(list(self.metadata), dtype=np.str_),
            "metadata_values": np.array(list(self.metadata.values()), dtype=np.str_),
        }
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> HandObjectMotion:
        """Read a motion written by :meth:`save`. Pickled arrays are refused, never run.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a SViMo motion file, damaged, or of a newer version.
        """
        path = Path(path)
        arrays = plain_arrays(path)
        missing = {"format", "version", "hands", "object_names", "fps", "intrinsics", "image_size"} - set(
            arrays
        )
        if missing or str(arrays["format"]) != NPZ_FORMAT:
            raise ValueError(
                f"{path.name} is not a SViMo motion: it lacks {sorted(missing) or 'the format mark'}"
            )
        with reading(path, "is a damaged SViMo motion"):
            version = str(arrays["version"])
            if not version.isdecimal():
                raise ValueError(f"its version is {version!r}")
            if int(version) > NPZ_VERSION:
                raise ValueError(
                    f"{path.name} has motion format {version}; "
                    f"this version reads up to {NPZ_VERSION}: update the pack"
                )
            fx, fy, cx, cy = (float(value) for value in arrays["intrinsics"])
            width, height = (int(value) for value in arrays["image_size"])
            keys, values = arrays.get("metadata_keys", ()), arrays.get("metadata_values", ())
            return cls(
                hands=arrays["hands"],
                objects={str(name): arrays[f"object_{i}"] for i, name in enumerate(arrays["object_names"])},
                camera=Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height),
                fps=float(arrays["fps"]),
                prompt=str(arrays.get("prompt", "")),
                metadata={str(key): str(value) for key, value in zip(keys, values, strict=True)},
            )
