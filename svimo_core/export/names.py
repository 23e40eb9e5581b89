"""What other programs call the bones of a hand, so that a retargeter finds them by name.

Names alone change: the rest pose and the axes of bones stay SViMo's, as retargeters take both from the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..motion import HAND_NAMES


@dataclass(frozen=True, kw_only=True)
class _Naming:
    """How one program's names are put together, out of words for {side}, {finger} and {part}."""

    sides: tuple[str, str]
    """Left, right."""
    fingers: tuple[str, ...] = ("thumb", "index", "middle", "ring", "pinky")
    thumb: tuple[str, ...] = ("01", "02", "03")
    """Parts of the thumb from its base on."""
    parts: tuple[str, ...] = ("01", "02", "03")
    """Parts of the other fingers from their base on."""
    wrist: str
    bone: str
    tip: str
    """Where a program has no name for fingertips, its last bone's with "_end": a leaf, as Blender's FBX has it too."""


_TABLE = {
    # As docs/motion-format.md has them.
    "svimo": _Naming(
        sides=("left", "right"),
        thumb=("cmc", "mcp", "ip"),
        parts=("mcp", "pip", "dip"),
        wrist="{side}_wrist",
        bone="{side}_{finger}_{part}",
        tip="{side}_{finger}_tip",
    ),
    # Adobe Mixamo's auto-rigger, "Standard Skeleton (65)", whose fourth joint of a finger is its tip.
    "mixamo": _Naming(
        sides=("Left", "Right"),
        fingers=("Thumb", "Index", "Middle", "Ring", "Pinky"),
        thumb=("1", "2", "3"),
        parts=("1", "2", "3"),
        wrist="mixamorig:{side}Hand",
        bone="mixamorig:{side}Hand{finger}{part}",
        tip="mixamorig:{side}Hand{finger}4",
    ),
    # Epic's mannequins of Unreal Engine 4 and 5 (SK_Mannequin); those of 5 have metacarpals besides.
    "unreal": _Naming(
        sides=("l", "r"), wrist="hand_{side}", bone="{finger}_{part}_{side}", tip="{finger}_03_{side}_end"
    ),
    # VRM 1.0, VRMC_vrm humanoid.md; Unity's HumanBodyBones are the same but for case and the thumb's words.
    "vrm": _Naming(
        sides=("left", "right"),
        fingers=("Thumb", "Index", "Middle", "Ring", "Little"),
        thumb=("Metacarpal", "Proximal", "Distal"),
        parts=("Proximal", "Intermediate", "Distal"),
        wrist="{side}Hand",
        bone="{side}{finger}{part}",
        tip="{side}{finger}Distal_end",
    ),
    # Blender's Rigify, the bones of its "Human" meta-rig.
    "rigify": _Naming(
        sides=("L", "R"),
        fingers=("thumb", "f_index", "f_middle", "f_ring", "f_pinky"),
        wrist="hand.{side}",
        bone="{finger}.{part}.{side}",
        tip="{finger}.03.{side}_end",
    ),
}

NAMINGS = tuple(_TABLE)
"""What :func:`bone_names` knows, SViMo's own first."""


def bone_names(naming: str, side: str) -> list[str]:
    """What the 21 joints of one hand ("left" or "right") are called, in the order of :data:`JOINT_NAMES`.

    Raises:
        ValueError: a naming that is not among :data:`NAMINGS`.
    """
    if naming not in _TABLE:
        raise ValueError(f"bone names are one of {', '.join(NAMINGS)}, got {naming!r}")
    row = _TABLE[naming]
    word = row.sides[HAND_NAMES.index(side)]
    names = [row.wrist.format(side=word)]
    for i, finger in enumerate(row.fingers):
        parts = row.parts if i else row.thumb
        names += [row.bone.format(side=word, finger=finger, part=part) for part in parts]
        names.append(row.tip.format(side=word, finger=finger))
    return names
