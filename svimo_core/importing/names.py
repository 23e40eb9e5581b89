"""What a joint's name says: side, part of the hand, and place along the finger, in the habits of many programs.

Text alone. Which joints belong together is for the skeleton to say (:mod:`svimo_core.importing.bvh`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FINGERS = ("thumb", "index", "middle", "ring", "pinky")

_SIDES = {"left": "left lft lf l", "right": "right rgt rt r"}
_FINGERS = {
    "thumb": "thumb first",  # Xsens counts: LeftFirstMC, LeftSecondPP
    "index": "index second",
    "middle": "middle mid third",
    "ring": "ring fourth",
    "pinky": "pinky pinkie little fifth",
}
_SEGMENTS = {  # those that come before a number in a name that has both stand first
    "end": "end nub null",  # what programs add beyond the last joint of a chain
    "tip": "tip",
    "metacarpal": "metacarpal carpal mc cmc base start in",  # ARKit's IndexStart, Perception Neuron's InHandIndex
    "proximal": "proximal pp mcp",
    "intermediate": "intermediate inter medial mp pip middle mid",
    "distal": "distal dp dip ip",
}
_BEFORE_NUMBERS = ("end", "tip", "metacarpal")
_PARTS = {"wrist": "wrist", "hand": "hand", "arm": "arm forearm lowerarm upperarm elbow"}
_HELPERS = (
    "ik fk pole target twist roll weapon prop item attach socket ctrl control controller c mch helper extra half "
    "bulge corrective"
)
_FEET = "toe toes foot"


def _meanings(table: dict[str, str]) -> dict[str, str]:
    return {word: meaning for meaning, words in table.items() for word in words.split()}


_SIDE, _FINGER, _SEGMENT, _PART = map(_meanings, (_SIDES, _FINGERS, _SEGMENTS, _PARTS))
_HELPER, _FOOT = set(_HELPERS.split()), set(_FEET.split())
_KNOWN = sorted(
    {w for w in (*_SIDE, *_FINGER, *_SEGMENT, *_PART, *_HELPER, *_FOOT, "finger", "joint") if len(w) > 1},
    key=len,
    reverse=True,
)
_RUN = re.compile(f"([lr]?)((?:{'|'.join(_KNOWN)})+)")
_ANY_KNOWN = re.compile("|".join(_KNOWN))
LONGEST_RUN = 40
"""Letters in a row that may be words without gaps; of longer ones there are too many ways to take them apart."""
_NAMESPACE = re.compile(r".*[:|]|CC_Base_", re.IGNORECASE)
_COPY = re.compile(r"\.(\d{3})$")


@dataclass(frozen=True, kw_only=True)
class JointName:
    """What one name says; None where it says nothing."""

    side: str | None = None
    """ "left" or "right"."""
    part: str | int | None = None
    """ "wrist", "hand", "arm", one of :data:`FINGERS`, or a finger's number, which counts from 0 or 1."""
    segment: str | int | None = None
    """Of a finger: "metacarpal", "proximal", "intermediate", "distal", "tip", "end", or a number from 0 or 1."""
    helper: bool = False
    """A control, twist, prop or the like, which stands beside the chain of joints."""

    @property
    def is_finger(self) -> bool:
        """Whether it is a joint of a finger."""
        return isinstance(self.part, int) or self.part in FINGERS


def words_of(name: str) -> list[str]:
    """Lower-case words and numbers of a name, without its namespace.

    Words end at signs, digits and capitals, and a run of known words in one case comes apart: LeftHandIndex1,
    LEFTHANDINDEX1 and left_hand_index_1 are alike.
    """
    words = []
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", _NAMESPACE.sub("", name, count=1)):
        word = word.lower()
        run = None if word in _KNOWN or len(word) > LONGEST_RUN else _RUN.fullmatch(word)
        words += [*run[1], *_ANY_KNOWN.findall(run[2])] if run else [word]
    return words


def parse_joint_name(name: str) -> JointName:
    """What a joint's name says of a hand, in any case and any of the known habits.

    Known are Mixamo, MotionBuilder, Rigify, Auto-Rig Pro, Unreal, Unity, VRM, Godot, OpenXR, Rokoko, Xsens, Biped,
    MakeHuman, Daz, Character Creator, Perception Neuron, ARKit, SMPL-X, and whatever is built of the same words.
    """
    copy = _COPY.search(name)  # Blender's number for a name that is taken
    words = words_of(_COPY.sub("", name))
    sides = sorted((word for word in words if word in _SIDE), key=len, reverse=True)
    side = _SIDE[sides[0]] if sides else None
    helper = not _HELPER.isdisjoint(words) or name.startswith("__")  # MakeHuman's links to bones set apart
    if not _FOOT.isdisjoint(words):
        return JointName(side=side, helper=helper)

    fingers = sorted(
        (i for i, word in enumerate(words) if word in _FINGER), key=lambda i: words[i][:3] == "mid"
    )
    if fingers:
        at = fingers[0]
        part: str | int = _FINGER[words[at]]
        numbers = _numbers(words[at:]) or ([int(copy[1])] if copy else [])
    elif "finger" in words and (digits := _numbers(words[words.index("finger") :], as_text=True)):
        at = words.index("finger")
        if len(digits) == 1 and len(digits[0]) == 2:  # Biped: Finger0, Finger01, Finger02; Finger1, Finger11
            digits = list(digits[0])
        part, *numbers = map(int, digits)
    else:
        parts = [_PART[word] for word in words if word in _PART]
        return JointName(side=side, part=parts[-1] if parts else None, helper=helper)
    said = [_SEGMENT[word] for i, word in enumerate(words) if word in _SEGMENT and i != at]
    before, after = ([s for s in said if (s in _BEFORE_NUMBERS) is first] for first in (True, False))
    number = [n for n in numbers[:1] if n < 10]
    segment = min(before, key=_BEFORE_NUMBERS.index) if before else next(iter([*number, *after]), None)
    return JointName(side=side, part=part, segment=segment, helper=helper)


def _numbers(words: list[str], *, as_text: bool = False) -> list:
    return [word if as_text else int(word) for word in words if word.isdigit()]
