"""One view of one sequence, read from TACO's files and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svimo_core.importing.objects import read_mesh, sample_surface
from svimo_core.mano import ManoModel
from svimo_core.motion import HAND_NAMES

from .hands import world_joints
from .layout import METRES_PER_MESH_UNIT, Sequence, View, find_video, read_hand, read_object, read_view
from .settings import Settings
from .video import VideoSize, video_size

ROLES = ("tool", "target")
"""The objects of a clip, by the names that the models know."""


class LeftOut(Exception):
    """A clip, or all of a view or sequence, is not made, for a reason that is counted and a detail that is not."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Make whatever is wrong with a file of TACO a reason to leave it out: "missing ..." or "bad ...".

    Raises:
        LeftOut: a file is missing or damaged.
        ImportError: a library is missing, which no other file would mend.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise LeftOut(f"missing {what}", str(error)) from error
    except ImportError:
        raise
    except Exception as error:  # damaged files fail in any way
        raise LeftOut(f"bad {what}", str(error) or repr(error)) from error


class Scene(NamedTuple):
    """Everything but pixels; N frames."""

    sequence: Sequence
    view_name: str
    hands: np.ndarray
    """N x 2 x 21 x 3, metres, in the world."""
    objects: dict[str, np.ndarray]
    """N x K x 3 each, by the names of :data:`ROLES`."""
    view: View
    """At the size of the video."""
    video: Path


def read_scene(
    source: Path, sequence: Sequence, view_name: str, models: dict[str, ManoModel], settings: Settings
) -> Scene:
    """Read a view of a sequence: both hands, both objects, its camera, and where its video is.

    Raises:
        LeftOut: a file is missing or damaged, or they have different numbers of frames.
        ImportError: PyAV or trimesh is missing.
    """
    with reading("video"):
        video = find_video(source, sequence, view_name, settings.markers)
        size = video_size(video)
    with reading("calibration"):
        view = _resized(read_view(source, sequence, view_name), size)
    with reading("object poses"):
        things = {role: read_object(source, sequence, role) for role in ROLES}
    with reading("hands"):
        hands = {side: read_hand(source, sequence, side) for side in HAND_NAMES}
    with reading("mesh"):
        points = {role: _points(thing.mesh, settings.points, settings.seed) for role, thing in things.items()}

    lengths = {"video": size.frames}
    lengths |= {f"{side} hand": len(hand.pose) for side, hand in hands.items()}
    lengths |= {role: len(thing.rotations) for role, thing in things.items()}
    if len(view.world_to_camera) > 1:
        lengths["camera"] = len(view.world_to_camera)
    frames = min(lengths.values())
    if max(lengths.values()) - frames > settings.lost_frames:
        reason = "video shorter than poses" if size.frames == frames else "lengths differ"
        raise LeftOut(reason, ", ".join(f"{name} {length}" for name, length in lengths.items()))
    return Scene(
        sequence=sequence,
        view_name=view_name,
        hands=np.stack([world_joints(models[side], hands[side])[:frames] for side in HAND_NAMES], axis=1),
        objects={
            role: (points[role] @ thing.rotations.swapaxes(1, 2) + thing.translations[:, None])[:frames]
            for role, thing in things.items()
        },
        view=view,
        video=video,
    )


@cache
def _points(mesh: Path, count: int, seed: int) -> np.ndarray:
    """The points of an object, count x 3, metres in the mesh's own axes: the same ones in every clip."""
    vertices, faces = read_mesh(mesh, metres_per_unit=METRES_PER_MESH_UNIT)
    return sample_surface(vertices, faces, count, seed=seed)


def _resized(view: View, size: VideoSize) -> View:
    """The view at the size of its video."""
    camera = view.camera
    if abs(camera.width * size.height / (camera.height * size.width) - 1) > 0.01:
        raise ValueError(
            f"it is for {camera.width} x {camera.height} pixels, the video has {size.width} x {size.height}"
        )
    resized = camera.resized(size.width, size.height)
    return View(camera=resized, world_to_camera=view.world_to_camera)
