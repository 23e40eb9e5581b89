"""What is decided about hands from elsewhere: each by what was asked for, what the file says, or what hands look like.

Every decision gives a sentence for the report; what is neither certain nor said is refused with the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..clean import APART
from ..hand_rig import PALM_LENGTH_RANGE
from ..motion import HAND_NAMES
from .axes import PALMS, UNITS, guess_unit, to_camera
from .found import FoundMotion
from .orders import JOINT_COUNTS, ORDERS, guess_order
from .sides import CHOICES, check_sides, curl

AUTO = "auto"
LEAVE, TRIM = "leave out", "trim"
AT_THE_LENS = 0.15
"""Metres. A hand whose middle stays nearer to the camera was not seen by it: its joints are relative to itself."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the person who imports knows or wants; the defaults decide nothing."""

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
    """Of what is absent then: "leave out", "trim" to the frames in which all hands are there, or one of
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
    return found.hands[:, :, ORDERS[order]]


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
    if not low <= palm * scale <= high:
        guess = guess_unit(palm)
        raise ValueError(
            f"{found.name}: {size}, or {palm * scale * 100:.3g} cm as the unit is {told}, and no hand is outside of "
            f"{low * 100:g} to {high * 100:g} cm: " + (f"set unit to {guess}" if guess else "scale the file")
        )
    report.append(f"{size.capitalize()}, or {palm * scale * 100:.3g} cm; the unit is {told}.")
    if not PALMS[0] <= palm * scale <= PALMS[1]:
        report.append(f"Note: a person's is {people}; Clean SViMo Motion scales.")
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
    report.append(f"Up is {up} and forward is {forward}, {told}.")
    return rotation


def sided(
    name: str,
    hands: np.ndarray,
    objects: dict[str, np.ndarray],
    options: ImportOptions,
    report: list[str],
    *,
    origins: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Hands in metres and camera axes, each what its name says."""
    if options.sides not in CHOICES:
        raise ValueError(f"sides is one of {', '.join(CHOICES)}, got {options.sides!r}")
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
    there = np.isfinite(hands[:, :, 0, 0])
    curls = {
        side: curl(hands[there[:, i], i], side) for i, side in enumerate(HAND_NAMES) if there[:, i].any()
    }
    if options.sides != "keep":
        check_sides(name, curls)
    bends = ", ".join(f"{side} {bend:.2f}" for side, bend in curls.items())
    changed = "" if options.sides in ("check", "keep") else f" Sides: {options.sides}, as asked for."
    report.append(f"Fingers bend to the palm's side by {bends} palms.{changed}")
    return hands, objects


def placed(name: str, hands: np.ndarray, options: ImportOptions, report: list[str]) -> np.ndarray:
    """Hands where a camera can have seen them."""
    middle = hands.mean(axis=2)  # N 2 3
    there = np.isfinite(middle[..., 0])
    relative = [
        i
        for i in range(2)
        if there[:, i].any() and np.nanmedian(np.linalg.norm(middle[:, i], axis=-1)) < AT_THE_LENS
    ]
    if relative:
        if not options.distance:
            sides = " and ".join(HAND_NAMES[i] for i in relative)
            raise ValueError(
                f"{name}: the {sides} hand stays within {AT_THE_LENS * 100:.0f} cm of the camera: joints are relative "
                "to the hand itself, and where it was is not in the file (trackers save that as pred_cam_t_full); set "
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
            "Blender's cameras: set up to +y and forward to -z, or set distance to place it before the camera"
        )
    return hands
