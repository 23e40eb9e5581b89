"""Hands out of any BVH that names their joints.

:mod:`names` says what single names mean; here the skeleton decides: a finger is the longest chain of its joints below
the wrist, and a joint's place on it counts from the base to the tip.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..files import reading
from ..hand_rig import FINGER_BASES
from ..motion import HAND_NAMES, JOINT_NAMES, JOINTS_PER_HAND
from .found import FoundMotion
from .names import FINGERS, JointName, parse_joint_name
from .orders import OPENPOSE

RATES = (1.0, 1000.0)
"""Frames per second that a file may mean; its frame time is a mistake beyond."""
USUAL_WITHIN = 2e-3
"""Share of a rate by which a usual one may differ from it: times of three digits and fewer are left as they are."""
TIP_LENGTH = 0.8
"""Of a finger's last bone over the one before, where the file ends at the last joint."""
NOT_BVH = {
    b"version https://git-lfs": "it is a Git LFS pointer in place of the file: run git lfs pull",
    b"Kaydara": "it is an FBX: export the motion as BVH",
    b"PK": "it is a zip archive: unpack it",
    b"<": "it is a web page or XML: download the file itself",
}
"""What other files begin with, and what to do about them."""
MOST_JOINTS = 2000
"""Of a skeleton: faces and muscles of the largest rigs have a few hundred."""
LISTED, LONGEST = 24, 60
"""Joints that an error lists at most, and letters of each."""


@dataclass(frozen=True, kw_only=True)
class Bvh:
    """A BVH file: skeleton and channels, in the file's own units and axes."""

    file: str
    names: list[str]
    """Joints in file order, parents before children; an end site has its parent's name and "_end"."""
    parents: list[int]
    offsets: np.ndarray
    """J x 3, from the parent."""
    channels: list[list[str]]
    """Of each joint, as "xposition" or "zrotation", in the order in which they apply."""
    end_sites: frozenset[int]
    values: np.ndarray
    """N x C: the channels of all joints."""
    fps: float | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.values)

    def above(self, joint: int) -> list[int]:
        """The joint itself, its parent and so on up to a root."""
        line = []
        while joint >= 0:
            line.append(joint)
            joint = self.parents[joint]
        return line

    def bone(self, joint: int) -> np.ndarray:
        """From its parent to the joint, 3 numbers: the offset, or what position channels mostly put in its place."""
        bone = self.offsets[joint].copy()
        for column, axis in _position_columns(self.channels, joint):
            bone[axis] = _usual(self.values[:, column])
        return bone

    def with_end_site(self, joint: int, offset: np.ndarray) -> Bvh:
        """The same with one more end site, the last joint."""
        return replace(
            self,
            names=[*self.names, f"{self.names[joint]}_end"],
            parents=[*self.parents, joint],
            offsets=np.concatenate([self.offsets, [offset]]),
            channels=[*self.channels, []],
            end_sites=self.end_sites | {len(self.names)},
        )

    def positions(self, joints: Sequence[int]) -> np.ndarray:
        """These joints in space, N x len(joints) x 3 float64, by forward kinematics of what they hang from."""
        needed = sorted({above for joint in joints for above in self.above(joint)})
        first = np.cumsum([0, *map(len, self.channels)])
        places: dict[int, np.ndarray] = {-1: np.zeros((len(self), 3))}
        turns: dict[int, np.ndarray] = {-1: np.tile(np.eye(3), (len(self), 1, 1))}
        for joint in needed:
            offset = np.tile(self.offsets[joint], (len(self), 1))
            turn = turns[self.parents[joint]].copy()
            for column, channel in enumerate(self.channels[joint], start=first[joint]):
                axis, kind = "xyz".index(channel[0]), channel[1:]
                if kind == "position":
                    offset[:, axis] = self.values[:, column]  # replaces the offset
                elif kind == "rotation":  # about its own axis: the other two columns mix
                    b, c = (axis + 1) % 3, (axis + 2) % 3
                    angle = np.radians(self.values[:, column, None])
                    cos, sin = np.cos(angle), np.sin(angle)
                    turn[..., b], turn[..., c] = (
                        cos * turn[..., b] + sin * turn[..., c],
                        cos * turn[..., c] - sin * turn[..., b],
                    )
            above = self.parents[joint]
            places[joint] = places[above] + np.einsum("nij,nj->ni", turns[above], offset)
            turns[joint] = turn
        return np.stack([places[joint] for joint in joints], axis=1)


# Reading


def read_bvh(path: str | os.PathLike) -> Bvh:
    """Read any BVH: UTF-8 or UTF-16, any case, decimal points or commas.

    What can be read is read, and the notes say what was not: a frame cut off at the end, another number of frames than
    the header promises, a frame time that means nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a BVH, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no BVH file at {path}")
    text = _text(path)
    parts = re.split(r"^[ \t]*MOTION[ \t]*$", text, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)
    with reading(path, "is not a BVH file this version understands", "export or copy it again"):
        names, parents, rests, channels, end_sites = _hierarchy(parts[0])
        if len(parts) < 2:
            raise ValueError("it ends early, before the line MOTION")
    offsets, width = np.array(rests), sum(map(len, channels))
    notes = []
    if any(channel.endswith("scale") for own in channels for channel in own):
        notes.append(f"{path.name}: joints change their scale, which was left out.")
    values, fps, more = _motion(path.name, parts[1], width)
    if _add_offsets(parents, offsets, channels, values):
        notes.append(f"{path.name}: positions of joints count from their offsets.")
    return Bvh(
        file=path.name,
        names=names,
        parents=parents,
        offsets=offsets,
        channels=channels,
        end_sites=frozenset(end_sites),
        values=values,
        fps=fps,
        notes=(*notes, *more),
    )


def _text(path: Path) -> str:
    """The file's text with plain line ends, if it begins as a BVH does."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig", errors="replace").lstrip()
    if text[:9].upper() != "HIERARCHY":
        begins = f"it begins with {text[:20]!r}" if text else "it is empty"
        other = next((what for start, what in NOT_BVH.items() if content.startswith(start)), None)
        raise ValueError(
            f"{path.name} is not a BVH file: {other or f'expected HIERARCHY, but {begins}: choose or export a BVH'}"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hierarchy(text: str) -> tuple[list[str], list[int], list[list[float]], list[list[str]], set[int]]:
    """Names, parents, offsets, channels and end sites of all joints."""
    words = iter(re.sub(r"[{}]", r" \g<0> ", text).split()[1:])
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    end_sites: set[int] = set()
    open_joints: list[int] = []
    try:
        for word in words:
            keyword = word.upper()
            if keyword in ("ROOT", "JOINT", "END"):
                name = " ".join(iter(words.__next__, "{"))  # 3ds Max writes names of several words
                parents.append(open_joints[-1] if open_joints else -1)
                if keyword == "END":
                    end_sites.add(len(names))
                    name = f"{names[parents[-1]]}_end"
                open_joints.append(len(names))
                names.append(name)
                offsets.append([0.0, 0.0, 0.0])
                channels.append([])
            elif keyword == "OFFSET":
                offsets[open_joints[-1]] = [_number(next(words)) for _ in range(3)]
            elif keyword == "CHANNELS":
                channels[open_joints[-1]] = [next(words).lower() for _ in range(int(next(words)))]
            elif word == "}":
                open_joints.pop()
            else:
                raise ValueError(f"unexpected {word!r} in the hierarchy")
    except StopIteration:
        raise ValueError("it ends early, within the hierarchy") from None
    except IndexError:
        raise ValueError(f"{word!r} stands outside of any joint in the hierarchy") from None
    unknown = next(
        (c for own in channels for c in own if not re.fullmatch("[xyz](position|rotation|scale)", c)), None
    )
    if unknown:
        raise ValueError(f"unknown channel {unknown!r}: expected positions and rotations about x, y and z")
    if not names:
        raise ValueError("it has no joints")
    if len(names) > MOST_JOINTS:
        raise ValueError(f"it has {len(names)} joints, and no skeleton has more than {MOST_JOINTS}")
    if not np.isfinite(offsets).all():
        raise ValueError("an OFFSET is not finite")
    return names, parents, offsets, channels, end_sites


def _number(word: str) -> float:
    return float(word.strip(",").replace(",", "."))


def _motion(name: str, text: str, width: int) -> tuple[np.ndarray, float | None, list[str]]:
    """Channels, N x width, the frame rate, and what was decided."""
    notes = []
    lines = [line for line in text.split("\n") if line.strip()]
    header = {}
    for i, line in enumerate(lines):
        match = re.match(r"\s*(frames|frame\s*time)\s*:?(.*)", line, re.IGNORECASE)
        if match is None:
            lines = lines[i:]
            break
        header["".join(match[1].lower().split())] = match[2].strip()
    else:
        lines = []

    # 1. Frame rate
    try:
        fps = _rate(header.get("frametime", ""))
    except (ValueError, ZeroDivisionError):
        fps = float("nan")
    if not RATES[0] <= round(fps, 3) <= RATES[1]:
        said = (
            f"its frame time is {header['frametime']!r}" if "frametime" in header else "it has no frame time"
        )
        notes.append(f"{name} does not say its frame rate: {said}.")
        fps = None

    # 2. Frames, a line each; or wherever lines break, if the numbers are exactly as many as promised
    if any("," in line for line in lines):
        decimal = not any("." in line for line in lines)
        lines = [line.replace(",", "." if decimal else " ") for line in lines]
    counts = [len(line.split()) for line in lines]
    total = sum(counts)
    promised = header.get("frames", "no")
    wrapped = promised.isdecimal() and total == int(promised) * width
    if counts and counts[-1] < width and not wrapped:
        notes.append(f"{name}: its last line has {counts.pop()} of {width} numbers and was left out.")
        lines.pop()
    wrong = next((i for i, count in enumerate(counts) if count != width), None)
    if wrong is not None and not wrapped:
        raise ValueError(
            f"{name} is damaged: frame {wrong} has {counts[wrong]} numbers and its skeleton {width} channels: "
            "export or copy it again"
        )
    values = np.concatenate(
        [np.zeros(0), *(_numbers(name, lines[i : i + 512]) for i in range(0, len(lines), 512))]
    )
    values = values.reshape(-1, width) if width else np.zeros((0, 0))
    if not len(values):
        raise ValueError(
            f"{name} is damaged: its header promises {promised} frames of {width} numbers, {total} numbers were found: "
            "export or copy it again"
        )
    if promised != str(len(values)):
        notes.append(f"{name}: its header promises {promised} frames, and {len(values)} were found and read.")
    return values, fps, notes


def _rate(frame_time: str) -> float:
    """Frames per second of a frame time as it is written: the whole rate or NTSC's that its last digit leaves open, so
    that 0.033333 is 30 and not 30.0003, or else its inverse."""
    seconds = _number(frame_time)
    rate, last_digit = 1 / seconds, 10.0 ** -len(frame_time.replace(",", ".").partition(".")[2])
    usual = (round(rate * by) / by for by in (1, 1.001)) if 0.5 < rate < 2 * RATES[1] else ()
    near = (r for r in usual if abs(r / rate - 1) < USUAL_WITHIN and abs(1 / r - seconds) < last_digit)
    return next(near, rate)


def _position_columns(channels: list[list[str]], joint: int) -> list[tuple[int, int]]:
    """Columns with one joint's position, and their axes."""
    first = sum(map(len, channels[:joint]))
    return [(first + i, "xyz".index(c[0])) for i, c in enumerate(channels[joint]) if c.endswith("position")]


def _add_offsets(
    parents: list[int], offsets: np.ndarray, channels: list[list[str]], values: np.ndarray
) -> bool:
    """Make positions count from the parent joint, in place; whether they counted from the offset, as MakeHuman's do.

    Told by what most joints do: bones keep about their length, so positions are about the offsets or about zero.
    """
    columns = {
        joint: _position_columns(channels, joint) for joint, parent in enumerate(parents) if parent >= 0
    }
    cells = [(joint, column, axis) for joint, pairs in columns.items() for column, axis in pairs]
    rests = np.array([offsets[joint, axis] for joint, _, axis in cells])
    places = np.array([_usual(values[:, column]) for _, column, _ in cells])
    if not np.nansum(np.abs(places)) < np.nansum(np.abs(places - rests)):
        return False
    for joint, column, axis in cells:
        values[:, column] += offsets[joint, axis]
    return True


def _usual(values: np.ndarray) -> float:
    """The median of the finite ones, or NaN."""
    seen = values[np.isfinite(values)]
    return float(np.median(seen)) if seen.size else np.nan


def _numbers(name: str, lines: list[str]) -> np.ndarray:
    """All numbers of these lines, NaN for those that are not finite."""
    try:
        values = np.array(" ".join(lines).split(), dtype=np.float64)
        return np.where(np.isfinite(values), values, np.nan)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: its motion holds what is no number ({error})") from error


# Finding hands


def find_bvh(paths: Sequence[str | os.PathLike]) -> FoundMotion:
    """The hands in one BVH of a body or a hand, or in one BVH per hand.

    Joints are found by their names and by what hangs from what: see :func:`names.parse_joint_name` for the known
    habits. A fingertip may be a joint or an end site; where it is neither, it is put on, and a note says so.
    Metacarpals of the four fingers, twist bones, controls and props are left out.

    Returns:
        Hands, N x 2 x 21 x 3 float64 in the file's units and axes, all NaN for a hand that no file has, and for both in
        frames whose numbers are not finite; the frame rate, or None where no file says it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no BVH, a damaged one, one without fingers or with a part of them, or files that do not belong
            together: of different length or rate, or with the same hand.
    """
    files = [read_bvh(path) for path in paths]
    if not files:
        raise ValueError("no BVH file was given: choose one of a body or of each hand")
    first = files[0]
    fps = next((file.fps for file in files if file.fps is not None), None)
    hands = np.full((len(first), len(HAND_NAMES), JOINTS_PER_HAND, 3), np.nan)
    owners: dict[str, str] = {}
    notes: list[str] = []
    for file in files:
        if len(file) != len(first):
            raise ValueError(
                f"{first.file} and {file.file} have {len(first)} and {len(file)} frames: export both alike"
            )
        if file.fps is not None and not np.isclose(file.fps, fps, rtol=1e-3):
            raise ValueError(
                f"{first.file} and {file.file} have different frame rates, {fps:g} and {file.fps:g}: export both alike"
            )
        found, more = _find_hands(file)
        notes += [*file.notes, *more]
        for side, joints in found.items():
            if side in owners:
                raise ValueError(
                    f"{owners[side]} and {file.file} both have the {side} hand: choose one file of each"
                )
            owners[side] = file.file
            hands[:, HAND_NAMES.index(side)] = joints
    name = " and ".join(file.file for file in files)
    notes += [f"{name}: no {side} hand was found." for side in HAND_NAMES if side not in owners]
    return FoundMotion(
        name=name,
        hands=hands,
        fps=fps,
        order=OPENPOSE,
        up="+y",
        forward="-z",
        seen_by_camera=False,
        notes=tuple(notes),
    )


def _find_hands(bvh: Bvh) -> tuple[dict[str, np.ndarray], list[str]]:
    """Side -> joints, N x 21 x 3, of the hands in one file, and what was decided."""
    said, notes = _read_names(bvh)
    hands = {}
    for side in HAND_NAMES:
        fingers = [j for j, name in enumerate(said) if name.side == side and name.is_finger]
        if not fingers:
            continue
        skeleton, index, more = _hand(bvh, said, side, fingers)
        joints = skeleton.positions(index)
        bad = ~np.isfinite(joints).all(axis=(1, 2))
        if bad.all():
            raise ValueError(
                f"{bvh.file} is damaged: the {side} hand has numbers that are not finite in every frame"
            )
        if bad.any():
            more.append(
                f"{bvh.file}: the {side} hand has numbers that are not finite in {bad.sum()} of {len(bvh)} frames."
            )
            joints[bad] = np.nan
        hands[side] = joints
        notes += more
    if hands:
        return hands, notes
    if any(name.is_finger for name in said):
        raise ValueError(
            f"{bvh.file}: no name says which hand it is: put left or right into the names of the file or its joints"
        )
    parts = [j for j, name in enumerate(said) if name.part in ("hand", "wrist") and j not in bvh.end_sites]
    if parts:
        raise ValueError(
            f"{bvh.file} has {_listed(bvh, parts)} but no finger joints: hands need the joints of all five fingers, so "
            "export or capture with fingers"
        )
    raise ValueError(
        f"{bvh.file} has no joint named as part of a hand: expected names such as LeftHandIndex1 or index_01_l, found "
        f"{_listed(bvh, range(len(bvh.names)))}"
    )


def _hand(bvh: Bvh, said: list[JointName], side: str, fingers: list[int]) -> tuple[Bvh, list[int], list[str]]:
    """The skeleton, with tips that it lacked, its 21 joints of one hand, and what was decided."""
    wrist, chains, notes = _chains(bvh, said, fingers)
    index: dict[str, int | None] = {"wrist": wrist}
    for finger, base in zip(FINGERS, FINGER_BASES, strict=True):
        joints, more = _places(bvh, said, chains.get(finger, []), finger=f"{side} {finger}")
        index |= dict(zip(JOINT_NAMES[base : base + 4], joints, strict=True))
        notes += more
    tips = {JOINT_NAMES[base + 3]: JOINT_NAMES[base + 2] for base in FINGER_BASES}
    missing = [name for name in JOINT_NAMES if index[name] is None and name not in tips]
    if missing:
        found = [joint for joint in fingers if not said[joint].helper] or fingers
        raise ValueError(
            f"{bvh.file}: the {side} hand lacks {', '.join(missing)}; found were "
            f"{_listed(bvh, found if wrist is None else [wrist, *found])}"
        )
    put_on = [tip for tip in tips if index[tip] is None]
    for tip in put_on:
        last = index[tips[tip]]
        index[tip], bvh = len(bvh.names), bvh.with_end_site(last, TIP_LENGTH * bvh.bone(last))
    if put_on:
        notes.append(
            f"{bvh.file} ends at the last joints of the {side} hand: {', '.join(put_on)} put on at {TIP_LENGTH} of the "
            "bones before."
        )
    return bvh, [index[name] for name in JOINT_NAMES], notes


def _read_names(bvh: Bvh) -> tuple[list[JointName], list[str]]:
    """What the names say, with the side of what a joint hangs from, or of the file, where they say none."""
    file_side = parse_joint_name(Path(bvh.file).stem).side
    said: list[JointName] = []
    by_file = False
    for joint, parent in enumerate(bvh.parents):
        if joint in bvh.end_sites:
            # An end site that lies on its joint says nothing about the tip.
            length, before = (np.linalg.norm(bvh.bone(j)) for j in (joint, parent))
            said.append(replace(said[parent], segment="end") if length > 0.01 * before else JointName())
            continue
        name = parse_joint_name(bvh.names[joint])
        if name.side is None and parent >= 0:
            name = replace(name, side=said[parent].side)
        said.append(name)
    if file_side and not any(name.side for name in said if name.is_finger):
        by_file = any(name.is_finger for name in said)
        said = [replace(name, side=file_side) for name in said]
    return said, [f"{bvh.file}: the {file_side} hand, by the file's name."] if by_file else []


def _chains(
    bvh: Bvh, said: list[JointName], fingers: list[int]
) -> tuple[int | None, dict[str, list[int]], list[str]]:
    """The wrist of one hand, the joints of each finger below it from base to tip, and what was decided."""
    # The wrist is the joint called so that most fingers hang from; other joints called hand hold things or pull on it.
    wrists = {joint: _wrist(bvh, said, joint) for joint in fingers}
    kinds = defaultdict(set)
    for joint, wrist in wrists.items():
        kinds[wrist].add(said[joint].part)
    wrist = max(kinds, key=lambda joint: len(kinds[joint]))
    members = defaultdict(list)
    for joint in fingers:
        if wrists[joint] == wrist:
            members[said[joint].part].append(joint)

    # Numbered fingers count from the thumb, or from the index finger where the thumb has a name.
    numbers = sorted(part for part in members if isinstance(part, int))
    names = FINGERS[1:] if "thumb" in members and numbers and numbers[-1] < len(FINGERS) else FINGERS
    for number in numbers:
        place = number - min(1, numbers[0])
        joints = members.pop(number)
        if place < len(names):
            members[names[place]] += joints
    chains = {finger: _longest(bvh, said, joints) for finger, joints in members.items()}
    if wrist is not None:
        others = [
            joint for joint in kinds if joint not in (wrist, None) and len(kinds[joint]) == len(FINGERS)
        ]
        note = (
            f"{bvh.file}: fingers hang from {_listed(bvh, [wrist, *others])}; the first of these was taken."
        )
        return wrist, chains, [note] if others else []
    above = [set(bvh.above(chain[0])[1:]) for chain in chains.values()]
    wrist = max(set.intersection(*above), default=None) if above else None
    if wrist is None or said[wrist].is_finger or said[wrist].part == "arm":
        return None, chains, []
    note = f"{bvh.file}: no joint is called hand or wrist; {bvh.names[wrist]}, which all fingers hang from, was taken."
    return wrist, chains, [note]


def _wrist(bvh: Bvh, said: list[JointName], joint: int) -> int | None:
    """What a finger's joint hangs from and is called wrist, or else hand."""
    called = [j for j in bvh.above(joint)[1:] if said[j].part in ("wrist", "hand")]
    return min(called, key=lambda j: (said[j].helper, said[j].part != "wrist"), default=None)


def _longest(bvh: Bvh, said: list[JointName], joints: list[int]) -> list[int]:
    """The longest chain of parents and children among one finger's joints, from base to tip."""
    candidates = {joint for joint in joints if not said[joint].helper} or set(joints)
    chains = []
    for joint in sorted(candidates):
        chain: list[int] = []
        for above in reversed(bvh.above(joint)):
            # A joint with the same place as the one it hangs from is its deforming or twisting double.
            if above in candidates and not (chain and said[chain[-1]].segment == said[above].segment):
                chain.append(above)
        chains.append(chain)
    return max(chains, key=len)


def _places(
    bvh: Bvh, said: list[JointName], chain: list[int], *, finger: str
) -> tuple[list[int | None], list[str]]:
    """One finger's four joints, None for those that are missing, and what was decided."""
    thumb = finger.endswith("thumb")
    by: dict[str | int | None, int] = {}
    for joint in chain:
        by.setdefault(said[joint].segment, joint)
    numbers = [segment for segment in by if isinstance(segment, int)]
    if numbers and None in by:  # Finger1, Finger11, Finger12
        numbers.append(min(numbers) - 1)
        by[numbers[-1]] = by.pop(None)

    # 1. Bones from base to tip, with a gap where a number or a word is left out
    if numbers:
        order: list = [*range(min(1, *numbers), max(numbers) + 1)]
    elif None in by:
        order = [None]
    else:
        order = ["proximal", "intermediate", "distal"]
        if thumb and "intermediate" not in by:
            order = ["metacarpal", "proximal", "distal"]
    if thumb and "metacarpal" in by and "metacarpal" not in order:
        order.insert(0, "metacarpal")
    bones = [by.get(segment) for segment in order]
    tip, end = by.get("tip"), by.get("end")

    # 2. More than three: a metacarpal comes first, or the tip comes last
    in_palm = []
    while len(bones) > 4:
        in_palm.append(bones.pop(0))
    if len(bones) == 4 and tip is None and not (end is not None and _starts_in_palm(bvh, said, bones, thumb)):
        tip = bones.pop()
    elif len(bones) == 4:
        in_palm.append(bones.pop(0))
    notes = [
        f"{bvh.file}: {bvh.names[joint]} is taken for a bone of the palm, not of the {finger}."
        for joint in in_palm
        if joint is not None
    ]
    bones += [None] * (3 - len(bones))
    return [*bones, tip if tip is not None else end], notes


def _starts_in_palm(bvh: Bvh, said: list[JointName], bones: list[int | None], thumb: bool) -> bool:
    """Whether the first of four bones lies in the palm, so that the tip is the end site and not the fourth.

    A finger begins further from the wrist than its first bone is long; a bone of the palm does not. The thumb begins
    near the wrist, and only its numbers tell.
    """
    first, second = bones[:2]
    if first is None or second is None:
        return first is None
    if thumb:
        return said[first].segment in (0, "metacarpal")
    return np.linalg.norm(bvh.bone(first)) < np.linalg.norm(bvh.bone(second))


def _listed(bvh: Bvh, joints: Iterable[int]) -> str:
    """Names of joints in one sentence, not too many, without end sites."""
    names = [bvh.names[joint][:LONGEST] for joint in joints if joint not in bvh.end_sites]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
