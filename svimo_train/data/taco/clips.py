"""Clips of a scene: which part of time and image, the motion in it, and its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from svimo_core.motion import HAND_NAMES, HandObjectMotion

from .crop import Box, crop_around
from .scene import LeftOut, Scene, reading
from .settings import Settings
from .video import read_frames

NEAR = 0.05
"""Metres in front of a camera; what should be nearer is out of view."""


class PlannedClip(NamedTuple):
    """A clip before it has pixels."""

    frames: np.ndarray
    """Their numbers in the video."""
    box: Box
    """What is kept of each of them."""
    motion: HandObjectMotion


def plan_clip(scene: Scene, frames: np.ndarray, settings: Settings) -> PlannedClip:
    """The crop and the motion of the clip that has the frames of these numbers.

    Raises:
        LeftOut: the hands are out of view.
    """
    camera = scene.view.camera
    hands = scene.view.look(scene.hands[frames].reshape(len(frames), -1, 3), frames)
    objects = {role: scene.view.look(cloud[frames], frames) for role, cloud in scene.objects.items()}
    everything = np.concatenate([hands, *objects.values()], axis=1)
    ahead = everything[..., 2] > NEAR
    if not ahead.any():
        raise LeftOut("hands out of view", "everything is behind the camera")
    image, size = (camera.width, camera.height), (settings.width, settings.height)
    box = crop_around(camera.project(everything[ahead]), image, size, settings.margin)

    ahead = hands[..., 2] > NEAR
    seen = ahead & box.contains(camera.project(np.where(ahead[..., None], hands, 1)))
    for side, share in zip(HAND_NAMES, seen.reshape(len(frames), 2, -1).mean(axis=(0, 2)), strict=True):
        if share < settings.hands_in_view:
            raise LeftOut("hands out of view", f"{share:.0%} of the {side} hand's joints are in the picture")

    sequence = scene.sequence
    motion = HandObjectMotion(
        hands=hands.reshape(len(frames), 2, -1, 3),
        objects=objects,
        camera=box.camera(camera).resized(*size),
        fps=settings.fps,
        prompt=sequence.prompt,
        metadata={
            "tool": sequence.tool,
            "action": sequence.action,
            "target": sequence.target,
            "sequence": sequence.name,
            "view": scene.view_name,
            "first_frame": str(frames[0]),
            "crop": " ".join(map(str, box)),
            "video": scene.video.parts[-4],
            "source": "TACO (Liu et al., CVPR 2024), CC BY 4.0",
        },
    )
    return PlannedClip(frames, box, motion)


def film_clips(video: Path, clips: dict[str, PlannedClip], settings: Settings) -> dict[str, np.ndarray]:
    """The pixels of clips, N x H x W x 3 uint8 RGB each, from one pass over the video.

    Raises:
        LeftOut: the video is damaged.
        ImportError: PyAV is missing.
    """
    size = (settings.width, settings.height)
    pixels = {name: np.empty((settings.frames, *size[::-1], 3), np.uint8) for name in clips}
    wanted = {frame for clip in clips.values() for frame in clip.frames.tolist()}
    with reading("video"):
        for number, image in read_frames(video, wanted):
            for name, clip in clips.items():
                for i in np.flatnonzero(clip.frames == number):
                    pixels[name][i] = cv2.resize(clip.box.cut(image), size, interpolation=cv2.INTER_AREA)
    return pixels
