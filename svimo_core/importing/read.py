"""Any supported file -> a motion, and what was understood of it on the way.

Nothing is read wrongly in silence: order of joints, unit, axes, left and right, and place are each decided by what was
asked for, by what the file says, or by what hands look like; each decision is a sentence of the report, and what is
neither certain nor said is refused with the way out.
"""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..clean import MISSING_HANDS, add_missing_hands, distance_to_see, place_in_view, trim_to_hands
from ..files import plain_arrays, reading, reason
from ..mano import ManoModel
from ..motion import HAND_NAMES, Camera, HandObjectMotion
from ..render import check_in_view
from . import decide
from .arrays import EXPECTED, IMAGE, find_arrays, has_detected_joints
from .bvh import find_bvh
from .decide import AUTO, LEAVE, TRIM, ImportOptions
from .found import FoundMotion
from .json_ import read_json
from .orders import OPENPOSE
from .parameters import find_parameters, has_parameters


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A motion, and a sentence for each decision that led to it."""

    motion: HandObjectMotion
    report: tuple[str, ...]


def read_motion(paths: str | os.PathLike | Sequence[str | os.PathLike], **options) -> HandObjectMotion:
    """The motion of :func:`import_motion`, with :class:`ImportOptions` by name."""
    return import_motion(paths, ImportOptions(**options)).motion


def import_motion(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    options: ImportOptions = ImportOptions(),  # noqa: B008, it is frozen
    *,
    mano: Callable[[], Mapping[str, ManoModel]] | None = None,
) -> Imported:
    """Read a motion from one file, or from one BVH per hand.

    SViMo's own .npz and .json come back as they were. Others: .bvh (:func:`svimo_core.importing.bvh.find_bvh`); .npz,
    .npy and .json with joints (:func:`svimo_core.importing.arrays.find_arrays`) or with MANO parameters
    (:func:`svimo_core.importing.parameters.find_parameters`).

    Args:
        paths: the file, or two .bvh files.
        options: see there.
        mano: gives the user's MANO models by side, asked only for a file of parameters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is none of these, or that can only be misread with these options.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    names = [path.name for path in paths] or ["no file"]
    # Whatever stands under a name that is known, in whatever shape: it is one error to the user.
    with reading(names[0], "has arrays that are not what they are called", EXPECTED):
        try:
            found = _find(paths, options, mano)
            if isinstance(found, HandObjectMotion):
                return _own(names[0], found, options)
            return _import(found, options)
        except ValueError as error:
            if any(name in str(error) for name in names):
                raise
            raise ValueError(f"{names[0]}: {reason(error)}") from error


def _import(found: FoundMotion, options: ImportOptions) -> Imported:
    """What a file from elsewhere has, as a motion."""
    # 1. Joints in our order, metres and camera axes
    report = [f"{found.name}: {decide.count(found)}.", *found.notes]
    fps = decide.frame_rate(found, options, report)
    hands = decide.in_our_order(found, options, report)
    scale = decide.unit(found, hands, options, report)
    axes = decide.axes(found, options, report)
    to_metres = lambda points: points * scale @ axes.T  # noqa: E731
    hands, objects = decide.sided(
        found.name,
        to_metres(hands),
        {key: to_metres(points) for key, points in found.objects.items()},
        options,
        report,
        sideless=found.sideless,
        origins=None if found.origins is None else to_metres(found.origins),
    )

    # 2. In front of a camera
    camera = found.camera or Camera.from_fov(*IMAGE)
    if found.camera is None:
        report.append(
            f"The file has no camera: one of {IMAGE[0]} x {IMAGE[1]} pixels, 50 degrees wide, looks at it."
        )
    if found.seen_by_camera:
        by_tracker = found.origins is not None and bool(np.nanmax(np.abs(found.origins)))
        hands = decide.placed(found.name, hands, options, report, placed_by_tracker=by_tracker)
    motion = HandObjectMotion(hands=hands, objects=objects, camera=camera, fps=fps, prompt=found.prompt)
    report += decide.oddities(motion, found.seen_by_camera and not options.distance)

    # 3. In every frame
    return _finished(motion, report, options)


def _find(paths: list[Path], options: ImportOptions, mano) -> FoundMotion | HandObjectMotion:
    """What the files have."""
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".bvh"}:
        return find_bvh(paths)
    if len(paths) != 1:
        raise ValueError(
            f"expected one file, or two .bvh files, got {', '.join(path.name for path in paths) or 'none'}"
        )
    (path,) = paths
    if suffixes == {".json"}:
        content = read_json(path)
        if isinstance(content, HandObjectMotion):
            return content
    elif suffixes == {".npz"} and "format" in _names(path):
        return HandObjectMotion.load(path)
    elif suffixes == {".npz"}:
        content = plain_arrays(path)
    elif suffixes == {".npy"}:
        content = {"hands": plain_arrays(path)[path.stem]}
    else:
        raise ValueError(f"{path.name}: a motion comes as .npz, .npy, .json or .bvh")
    if has_parameters(content) and not has_detected_joints(content):
        return find_parameters(
            path.name, content, mano() if mano else {}, mean=options.mano_mean, left=options.mano_left
        )
    return find_arrays(path.name, content)


def _own(name: str, motion: HandObjectMotion, options: ImportOptions) -> Imported:
    """A motion of ours is what it says it is: what else is asked for is done or refused, not ignored."""
    asked = {
        "unit": options.unit,
        "joint_order": options.joint_order,
        "up": options.up,
        "forward": options.forward,
    }
    for key, value in asked.items():
        if value not in (AUTO, "metres", OPENPOSE):
            raise ValueError(
                f"{name} is a SViMo motion, in metres, camera space and OpenPose order: set {key} to auto, got {value} "
                "(Clean SViMo Motion scales)"
            )
    report = [f"{name}: a SViMo motion of {len(motion)} frames at {motion.fps:g} per second."]
    if options.fps:
        report.append(f"It plays at {options.fps:g} frames per second now, as asked for.")
        motion = replace(motion, fps=options.fps)
    if options.sides not in ("check", "keep"):
        hands, objects = decide.sided(name, motion.hands, motion.objects, options, report)
        motion = replace(motion, hands=hands, objects=objects)
    return _finished(motion, report, options)


def _finished(motion: HandObjectMotion, report: list[str], options: ImportOptions) -> Imported:
    """Gaps and absent hands treated as asked for, and the whole put before the camera."""
    ways = (LEAVE, TRIM, *MISSING_HANDS)
    if options.missing_hands not in ways:
        raise ValueError(f"missing_hands is one of {', '.join(ways)}, got {options.missing_hands!r}")
    if options.max_gap:
        hands, filled = fill_gaps(motion.hands, options.max_gap)
        motion = replace(motion, hands=hands)
        report.append(
            f"{filled} frames of a hand were filled with straight lines, gaps of up to {options.max_gap}."
        )
    absent = {side: int((~there).sum()) for side, there in zip(HAND_NAMES, motion.present.T, strict=True)}
    absent = [
        f"the {side} hand in {count} of {len(motion)} frames" for side, count in absent.items() if count
    ]
    if absent:
        report.append(f"Absent: {' and '.join(absent)}; missing_hands is {options.missing_hands}.")
    if options.missing_hands == TRIM:
        before = len(motion)
        motion = trim_to_hands(motion)
        report.append(f"{len(motion)} of {before} frames were kept.")
    if options.missing_hands == "mirror":  # both are then in the middle of the picture
        motion = add_missing_hands(motion, options.missing_hands)
    if options.distance:
        motion = place_in_view(motion, options.distance)
    if options.missing_hands in MISSING_HANDS:  # what is parked is outside of it, and does not count
        motion = add_missing_hands(motion, options.missing_hands)
    if options.distance:
        report.append(f"The middle of the motion was moved to {options.distance:g} m before the camera.")
    try:
        check_in_view(motion)
    except ValueError:
        report.append(
            "Note: nothing of it is in view of its camera: set distance, from about "
            f"{distance_to_see(motion):.2g} on."
        )
    return Imported(motion=motion, report=tuple(filter(None, report)))


def fill_gaps(hands: np.ndarray, max_gap: int) -> tuple[np.ndarray, int]:
    """Fill runs of up to `max_gap` frames without a hand (N x 2 x 21 x 3) that lie between frames with it, by straight
    lines; and how many frames of a hand that were."""
    hands = np.array(hands, dtype=np.float64)
    filled = 0
    for i in range(hands.shape[1]):
        seen = np.flatnonzero(np.isfinite(hands[:, i, 0, 0]))
        for before, after in itertools.pairwise(seen):
            if 1 < after - before <= max_gap + 1:
                share = np.linspace(0, 1, after - before + 1)[1:-1, None, None]
                hands[before + 1 : after, i] = (1 - share) * hands[before, i] + share * hands[after, i]
                filled += after - before - 1
    return hands, filled


def _names(path: Path) -> set[str]:
    """Arrays in an .npz, or none if it is no such file."""
    if not zipfile.is_zipfile(path):
        return set()
    with reading(path, "is no complete archive"), zipfile.ZipFile(path) as file:
        return {name.removesuffix(".npy") for name in file.namelist()}
