"""The painter: from hands and objects in 3D to the latent of the drawing that a video model reads.

There are two. One draws as people see it and encodes with the VAE, which is the reference. The other draws with tensor
operations and encodes with the drawing encoder, where the tensors are, in a fortieth of the time (tiny size, CPU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import InteractionConfig
from ..model.drawing import DrawingEncoder
from ..motion import HAND_NAMES, JOINTS_PER_HAND, Camera, HandObjectMotion
from ..normalization import NUM_JOINTS, MotionNormalizer
from ..rasterize import Rasterizer
from ..render import check_in_view, in_picture, render_motion
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
        """Frames of normalised motion (B N 42 3, B N P 3), B N H W 3 uint8 on the CPU.

        Raises:
            FloatingPointError: values that are not finite.
        """
        metres = torch.cat(self.normalizer.denormalize(hands, points), dim=2)
        metres = metres.detach().cpu()  # the loop's only wait for a GPU
        fx, fy, cx, cy = self.normalizer.camera
        camera = [fx * self.width, fy * self.height, cx * self.width, cy * self.height]
        return draw_joints(metres, len(self.normalizer.object_names), camera, self.width, self.height)


class QuickPainter:
    """Draws readings for the drawing encoder, and encodes them with it.

    Args:
        width, height: pixels of the clip; the drawing has the video's size.
        dtype: compute type of the encoder.
        on_work: called before it runs; raise there to stop.
    """

    def __init__(
        self,
        encoder: DrawingEncoder,
        normalizer: MotionNormalizer,
        width: int,
        height: int,
        dtype: torch.dtype = torch.float32,
        on_work: Callable[[], None] = lambda: None,
    ):
        self.encoder = encoder
        self.normalizer = normalizer
        self.size = height, width
        self.dtype = dtype
        self.on_work = on_work
        self.rasterizer = Rasterizer(normalizer.camera, self.size, encoder.config.pixel)

    def __call__(self, reading: Reading) -> Tensor:
        """The latent of a reading's drawing: zG, B C T h w float32; NaN where a number is not finite."""
        self.on_work()
        metres = torch.cat(self.normalizer.denormalize(*reading), dim=2)
        objects = len(self.normalizer.object_names)
        clouds = (reading.points.shape[2] // objects,) * objects
        return self.encoder(self.rasterizer(metres, clouds).to(self.dtype)).float()

    def memory(self, frames: int) -> int:
        """Bytes that one clip of so many frames needs, beside the weights: 0.6 GB for 49 x 416 x 624, not all of it at
        once."""
        return self.rasterizer.memory(frames) + self.encoder.memory(frames, *self.size)


BEHIND = np.array([0, 0, -1], dtype=np.float32)
"""Where a hand or an object that is absent is put: nothing behind the camera is drawn."""


def as_known(
    motion: HandObjectMotion, model: InteractionConfig, width: int, height: int
) -> tuple[HandObjectMotion, list[str]]:
    """A given motion as a model knows drawings: through its camera, cropped as the picture is; each object in the
    colour that the model knows, with no more points.

    Returns:
        The motion, and a note for everything in it that is unlike what the model has learned from, or not drawn.

    Raises:
        ValueError: nothing of it is in view.
    """
    motion = replace(motion, camera=motion.camera.cropped(width, height))
    check_in_view(motion)
    objects, notes = _known_objects(motion, model)
    for name, present in zip(HAND_NAMES, motion.present.T, strict=True):
        if not present.all():
            notes.append(
                f"Note: the {name} hand is absent in {_frames(~present)}; this model has learned from both."
            )
    for name, points in _things(motion).items():
        behind, inside = in_picture(points, motion.camera)
        if behind.any():
            notes.append(
                f"Note: {name} is behind the camera, at least in part, in {_frames(behind)}, and what is there is "
                "not drawn. Does it stand where its camera saw it? Import SViMo Motion can place it at a distance."
            )
        elif not inside.any():
            notes.append(f"Note: {name} is outside of the picture in all {len(motion)} frames.")
    return replace(motion, objects=objects), notes


def _known_objects(
    motion: HandObjectMotion, model: InteractionConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Objects in a model's order, which gives them their colours, and notes."""
    names, notes, objects = model.object_names, [], {}
    others = [name for name in motion.objects if name not in names]
    for name in names:
        own = name if name in motion.objects else (others.pop(0) if others else None)
        if own is None:
            objects[name] = np.broadcast_to(BEHIND, (len(motion), 1, 3))
            notes.append(f"Note: there is no {name}; this model has learned from motions that have one.")
            continue
        if own != name:
            notes.append(f"Note: {own} is drawn as this model's {name}.")
        objects[own] = motion.objects[own]
    for own in others:
        objects[own] = motion.objects[own]
        notes.append(
            f"Note: {own} is drawn in a colour that this model has not learned: it knows {len(names)} objects, "
            f"{' and '.join(names)}."
        )
    most = model.points_per_object
    for own in motion.objects:
        count = objects[own].shape[1]
        if count > most:
            objects[own] = objects[own][:, np.linspace(0, count - 1, most).round().astype(int)]
            notes.append(f"Note: of {own}'s {count} points {most} are drawn, as this model knows objects.")
        elif count < most / 2:
            notes.append(f"Note: {own} has {count} points, and this model has learned from {most}.")
    return objects, notes


def _things(motion: HandObjectMotion) -> dict[str, np.ndarray]:
    """What may be drawn, by name: points of all frames, NaN where a hand is absent."""
    hands = {
        f"the {name} hand": motion.hands[:, i]
        for i, name in enumerate(HAND_NAMES)
        if motion.present[:, i].any()
    }
    return hands | motion.objects


def _frames(which: np.ndarray) -> str:
    """Of a flag for each frame."""
    return f"{int(which.sum())} of {len(which)} frames, first in frame {int(np.argmax(which))}"


def quickly_encoded(
    encoder: DrawingEncoder,
    motion: HandObjectMotion,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The latent of a given motion's drawing (1 C T h w float32), as its own camera sees it."""
    clouds = list(motion.objects.values())
    joints = np.where(motion.present[..., None, None], motion.hands, BEHIND).reshape(
        len(motion), NUM_JOINTS, 3
    )
    metres = torch.from_numpy(np.concatenate([joints, *clouds], axis=1))[None].to(device)
    draw = Rasterizer(motion.camera.relative, (height, width), encoder.config.pixel)
    drawing = draw(metres, tuple(cloud.shape[1] for cloud in clouds))
    return encoder(drawing.to(dtype)).float()


@torch.library.custom_op(
    "svimo::draw_joints",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor metres, int objects, float[] camera, int width, int height) -> Tensor",
)
def draw_joints(metres: Tensor, objects: int, camera: list[float], width: int, height: int) -> Tensor:
    """Frames (B N H W 3 uint8) of joints and points (B N 42+P 3, metres) that a camera (fx, fy, cx, cy, pixels) sees.

    An operator of PyTorch's, though OpenCV draws: whoever runs the sampler for its shapes alone, on tensors without
    values, needs only the shape of the frames.

    Raises:
        FloatingPointError: values that are not finite.
    """
    if not torch.isfinite(metres).all():
        raise FloatingPointError(
            "the 3D motion that was read off the latents is not finite (NaN or infinity): what computes it overflows, "
            "or its weights or inputs are broken"
        )
    lens = Camera(**dict(zip(("fx", "fy", "cx", "cy"), camera, strict=True)), width=width, height=height)
    motions = []
    for clip in metres.float():
        clouds = clip[:, NUM_JOINTS:].chunk(objects, dim=1)
        motions.append(
            HandObjectMotion(
                hands=clip[:, :NUM_JOINTS].unflatten(1, (len(HAND_NAMES), JOINTS_PER_HAND)).numpy(),
                objects={f"object {i}": cloud.numpy() for i, cloud in enumerate(clouds, 1)},
                camera=lens,
                fps=1.0,
            )
        )
    return draw_motions(motions, width, height)


@draw_joints.register_fake
def _(metres: Tensor, objects: int, camera: list[float], width: int, height: int) -> Tensor:
    return metres.new_empty(*metres.shape[:2], height, width, 3, dtype=torch.uint8)


def draw_motions(motions: list[HandObjectMotion], width: int, height: int) -> Tensor:
    """Rendered motion videos of motions of equal length, B N H W 3 uint8."""
    return torch.from_numpy(np.stack([render_motion(motion, width, height) for motion in motions]))
