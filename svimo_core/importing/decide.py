"""What is decided about hands from elsewhere: each by what was asked for, what the file says, or what hands look like.

Every decision gives a sentence for the report; what is neither certain nor said is refused with the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..clean import APART
from ..hand_rig import PALM_LENGTH_RANGE
from ..motion import HAND_NAMES, HandObjectMotion
from .axes import PALMS, UNITS, guess_unit, to_camera
from .found import FoundMotion
from .orders import INTERHAND, JOINT_COUNTS, ORDERS, guess_order
from .sides import CERTAIN, CHOICES, bends, check_sides, guess_side, sides_named

AUTO = "auto"
LEAVE, TRIM = "leave out", "trim"
RATES = (1.0, 1000.0)
"""Frames per second."""
OFF_CENTRE, FAR, OBJECT_SIZES = 0.3, 4.0, (0.001, 5.0)
"""Of the image from its middle; metres from the camera or an object to hands; metres across an object."""
AT_THE_LENS = 0.15
"""Metres. A hand whose middle stays nearer to the camera was not seen by it: its joints are relative to itself."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the person who imports knows or wants; the defaults leave it to the file and to how hands look."""

    fps: float | None = None
    """Frames per second, over what the file says."""
    unit: str = AUTO
    """A key of :data:`svimo_core.importing.axes.UNITS`."""
    joint_order: str = AUTO
    """A key of :data:`svimo_core.importing.orders.ORDERS`."""
    up: str = AUTO
    """The file's axis that points up, a key of :data:`svimo_core.importing.axes.AXES`."""
    forward: str = AUTO
    """The file's axis that points away from the viewer."""
    sides: str = "check"
    """"check" refuses hands whose fingers bend backwards, "keep" takes them. "swap" exchanges left and right; "mirror"
    mirrors everything about the camera's axis, "mirror left" and "mirror right" that hand alone."""
    max_gap: int = 0
    """Fill up to so many frames in a row between two that have a hand, by straight lines."""
    missing_hands: str = LEAVE
    """Of what is absent then: "leave out", "trim" from the first frame with all hands to the last, or one of
    :data:`svimo_core.clean.MISSING_HANDS`."""
    distance: float = 0.0
    """Metres from the camera to the middle of the motion, to move it there; 0 leaves it where it is."""
    mano_mean: str = AUTO
    mano_left: str = AUTO
    """`mean` and `left` of :func:`svimo_core.importing.parameters.find_parameters`, for MANO parameters."""


def count(found: FoundMotion) -> str:
    """What there is, in words."""
    there = np.isfinite(found.hands[:, :, 0, 0]).sum(axis=0)
    hands = ", ".join(
        f"the {side} hand in {count}" for side, count in zip(HAND_NAMES, there, strict=True) if count
    )
    objects = f", objects {', '.join(found.objects)}" if found.objects else ""
    return f"{len(found.hands)} frames, {hands or 'no hand in any'}{objects}"


def frame_rate(found: FoundMotion, options: ImportOptions, report: list[str]) -> float:
    """Frames per second."""
    fps = options.fps or found.fps
    if not fps:
        raise ValueError(f"{found.name} does not say its frame rate: set fps")
    if not RATES[0] <= fps <= RATES[1]:
        raise ValueError(
            f"{found.name}: {fps:.4g} frames per second cannot be: set fps, to {RATES[0]:g} to {RATES[1]:g}"
            + (" (the file may have the time of a frame in its place)" if fps < 1 else "")
        )
    told = "as asked for" if options.fps else "as the file says"
    if options.fps and found.fps and not np.isclose(options.fps, found.fps, rtol=1e-3):
        told = f"as asked for; the file says {found.fps:g}"
    report.append(f"{fps:g} frames per second, {told}.")
    return fps


def in_our_order(found: FoundMotion, options: ImportOptions, report: list[str]) -> np.ndarray:
    """Joints in our order, N x 2 x 21 x 3."""
    order, why = options.joint_order, f"Joints are taken to be in {options.joint_order} order, as asked for."
    if found.order:
        if order not in (AUTO, found.order):
            raise ValueError(
                f"{found.name} names its joints, so joint_order cannot be {order}: set it to auto"
            )
        order, why = found.order, ""
    joints = found.hands[np.isfinite(found.hands[..., 0, 0])]
    if not len(joints):
        raise ValueError(f"{found.name} has no hand in any frame")
    if order == AUTO:
        order, why = guess_order(found.name, joints)
    if order not in ORDERS:
        raise ValueError(f"joint_order is one of {', '.join([AUTO, *ORDERS])}, got {order!r}")
    if found.hands.shape[2] != JOINT_COUNTS[order]:
        raise ValueError(
            f"{found.name}: {order} order has {JOINT_COUNTS[order]} joints, these hands have {found.hands.shape[2]}"
        )
    report.append(why)
    hands = found.hands[:, :, ORDERS[order]]
    return hands[:, ::-1] if found.flat and order == INTERHAND else hands


def unit(found: FoundMotion, hands: np.ndarray, options: ImportOptions, report: list[str]) -> float:
    """Metres per unit of the file."""
    if options.unit not in (AUTO, *UNITS):
        raise ValueError(f"unit is one of {', '.join([AUTO, *UNITS])}, got {options.unit!r}")
    palm = float(np.nanmedian(np.linalg.norm(hands[:, :, 9] - hands[:, :, 0], axis=-1)))
    size = f"wrist to middle knuckle is {palm:.4g}"
    people = f"{PALMS[0] * 100:g} to {PALMS[1] * 100:g} cm"
    if options.unit != AUTO:
        scale, told = UNITS[options.unit], f"{options.unit}, as asked for"
    elif found.metres_per_unit:
        scale, told = found.metres_per_unit, f"{found.metres_per_unit:g} m, as the file says"
    else:
        guess = guess_unit(palm)
        if guess is None:
            raise ValueError(
                f"{found.name}: {size}, which is a person's {people} in none of {', '.join(UNITS)}: set unit, and "
                "scale the motion afterwards with Clean SViMo Motion"
            )
        scale, told = UNITS[guess], f"{guess}, the only one in which that is a person's"
    low, high = PALM_LENGTH_RANGE
    fitting = guess_unit(palm)
    if fitting and not low <= palm * scale <= high:
        raise ValueError(
            f"{found.name}: {size}, or {palm * scale * 100:.3g} cm as the unit is {told}, and no hand is outside of "
            f"{low * 100:g} to {high * 100:g} cm: set unit to {fitting}"
        )
    report.append(f"{size.capitalize()}, or {palm * scale * 100:.3g} cm; the unit is {told}.")
    if not PALMS[0] <= palm * scale <= PALMS[1]:
        report.append(
            f"Note: a person's is {people}. Clean SViMo Motion brings it to 9 cm by scale {0.09 / (palm * scale):.3g}."
        )
    return scale


def axes(found: FoundMotion, options: ImportOptions, report: list[str]) -> np.ndarray:
    """The rotation into camera space."""
    up = found.up if options.up == AUTO else options.up
    forward = found.forward if options.forward == AUTO else options.forward
    told = "as such files have them" if (options.up, options.forward) == (AUTO, AUTO) else "as asked for"
    try:
        rotation = to_camera(up, forward)
    except ValueError as error:
        raise ValueError(f"{found.name}: {error}: set both up and forward") from error
    blender = "; Blender writes up +z and forward +y" if up == "+y" and options.up == AUTO else ""
    report.append(f"Up is {up} and forward is {forward}, {told}{blender}.")
    return rotation


def sided(
    name: str,
    hands: np.ndarray,
    objects: dict[str, np.ndarray],
    options: ImportOptions,
    report: list[str],
    *,
    sideless: bool = False,
    origins: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Hands in metres and camera axes, each what its name says, or what its fingers say where it has none."""
    if options.sides not in CHOICES:
        raise ValueError(f"sides is one of {', '.join(CHOICES)}, got {options.sides!r}")
    if sideless:
        said = sides_named(name)
        if len(said) == 1:
            side, note = said[0], f"It is a {said[0]} hand, by the name of the file."
        else:
            side, note = guess_side(name, hands[np.isfinite(hands[:, 1, 0, 0]), 1])
        hands = hands if side == "right" else hands[:, ::-1]
        report.append(note)
    before = _bends(hands)
    across = np.array([-1.0, 1, 1])
    if options.sides == "swap":
        hands = hands[:, ::-1]
    elif options.sides == "mirror":
        hands, objects = hands * across, {key: points * across for key, points in objects.items()}
    elif options.sides.startswith("mirror "):
        i = HAND_NAMES.index(options.sides.split()[1])
        hands = hands.copy()
        origin = 0 if origins is None else origins[:, i, None]
        hands[:, i] = (hands[:, i] - origin) * across + origin
    there = _bends(hands)
    if options.sides != "keep":
        check_sides(name, there, options.sides, before)
    curls = {side: float(np.median(values)) for side, values in there.items()}
    said = ", ".join(f"{side} {bend:.2f}" for side, bend in curls.items())
    unsure = (
        "" if any(abs(bend) >= CERTAIN for bend in curls.values()) else ", too little to tell left from right"
    )
    changed = "" if options.sides in ("check", "keep") else f" Sides: {options.sides}, as asked for."
    report.append(f"Fingers bend to the palm's side by {said} palms{unsure}.{changed}")
    return hands, objects


def _bends(hands: np.ndarray) -> dict[str, np.ndarray]:
    """How far fingers bend, by side, of the hands that are there."""
    there = np.isfinite(hands[:, :, 0, 0])
    return {
        side: bends(hands[there[:, i], i], side) for i, side in enumerate(HAND_NAMES) if there[:, i].any()
    }


def placed(
    name: str,
    hands: np.ndarray,
    options: ImportOptions,
    report: list[str],
    *,
    placed_by_tracker: bool = False,
) -> np.ndarray:
    """Hands where a camera can have seen them."""
    middle = hands.mean(axis=2)  # N 2 3
    there = np.isfinite(middle[..., 0])
    relative = [
        i
        for i in range(2)
        if there[:, i].any() and np.nanmedian(np.linalg.norm(middle[:, i], axis=-1)) < AT_THE_LENS
    ]
    if relative:
        if len(relative) == 1 and there.any(axis=0).all():
            raise ValueError(
                f"{name}: the {HAND_NAMES[relative[0]]} hand stays within {AT_THE_LENS * 100:.0f} cm of the camera and "
                "the other does not, so their joints are relative to different things: give both where the camera "
                "saw them"
            )
        if not options.distance:
            sides = " and ".join(HAND_NAMES[i] for i in relative)
            where = "joints are relative to the hand itself, and where it was is not in the file"
            if placed_by_tracker:
                where = (
                    "so near does the tracker's place bring it, after its lens became the motion's (leave focal_length "
                    "out of the file if the place is in metres already)"
                )
            raise ValueError(
                f"{name}: the {sides} hand stays within {AT_THE_LENS * 100:.0f} cm of the camera: {where}; set "
                "distance to place it before the camera"
            )
        if len(relative) == 2:
            hands = hands + np.array([[-APART / 2, 0, 0], [APART / 2, 0, 0]])[:, None]
            report.append(f"Joints are relative to each hand itself, so the hands were put {APART} m apart.")
        return hands
    if not options.distance and np.nanmax(hands[..., 2]) <= 0:
        depths = f"z from {np.nanmin(hands[..., 2]):.2f} to {np.nanmax(hands[..., 2]):.2f} m"
        raise ValueError(
            f"{name}: all of it lies behind the camera ({depths}), as if z pointed backwards as in OpenGL and "
            "Blender's cameras: set up to +y and forward to -z"
        )
    return hands


def oddities(motion: HandObjectMotion, seen: bool) -> list[str]:
    """What is possible, but likely a mistake: notes, each with what it may come from.

    Args:
        motion: in metres and camera space.
        seen: whether it stands where its camera saw it.
    """
    notes = []
    camera, hands = motion.camera, motion.hands[motion.present]
    if max(abs(camera.cx / camera.width - 0.5), abs(camera.cy / camera.height - 0.5)) > OFF_CENTRE:
        notes.append(
            f"Note: the camera looks through pixel ({camera.cx:.0f}, {camera.cy:.0f}) of {camera.width} x "
            f"{camera.height}: are the intrinsics of another size, or the image's height before its width?"
        )
    far = float(np.median(np.linalg.norm(hands.mean(axis=1), axis=-1))) if len(hands) else 0.0
    if seen and far > FAR:
        notes.append(
            f"Note: hands are {far:.3g} m from the camera: are their places in another unit than their joints?"
        )
    for name, points in motion.objects.items():
        size = float(np.linalg.norm(np.ptp(points[0], axis=0)))
        apart = np.linalg.norm(points.mean(axis=1)[:, None] - motion.hands.mean(axis=2), axis=-1)[
            motion.present
        ]
        away = float(apart.min()) if len(apart) else 0.0
        if size > OBJECT_SIZES[1] or away > FAR or (points.shape[1] > 1 and size < OBJECT_SIZES[0]):
            notes.append(
                f"Note: {name} is {size:.3g} m large and at least {away:.3g} m from the hands: is it in their unit and "
                "axes?"
            )
    return notes
