"""Hands out of any BVH that names their joints."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..export import FLIP
from ..export.bvh import METRES_PER_UNIT
from ..hand_rig import FINGER_BASES
from ..motion import HAND_NAMES, JOINT_NAMES, JOINTS_PER_HAND


@dataclass(frozen=True, kw_only=True)
class Bvh:
    """A BVH file with its joints in space, in the file's own units and axes."""

    names: list[str]
    """Joints in file order; an end site has its parent's name and "_end"."""
    parents: list[int]
    positions: np.ndarray
    """N x J x 3."""
    fps: float


def read_bvh(path: str | os.PathLike) -> Bvh:
    """Read any BVH: hierarchy and motion, with forward kinematics done.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a BVH, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no BVH file at {path}")
    words = iter(path.read_text(encoding="utf-8", errors="replace").split())
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    try:
        # 1. Hierarchy
        _expect(words, "HIERARCHY")
        open_joints: list[int] = []
        while (word := next(words)) != "MOTION":
            if word in ("ROOT", "JOINT", "End"):
                parents.append(open_joints[-1] if open_joints else -1)
                name = " ".join(iter(words.__next__, "{"))  # 3ds Max writes names of several words
                names.append(f"{names[parents[-1]]}_end" if word == "End" else name)
                offsets.append([0.0, 0.0, 0.0])
                channels.append([])
                open_joints.append(len(names) - 1)
            elif word == "OFFSET":
                offsets[open_joints[-1]] = [float(next(words)) for _ in range(3)]
            elif word == "CHANNELS":
                channels[open_joints[-1]] = [next(words).lower() for _ in range(int(next(words)))]
            elif word == "}":
                open_joints.pop()
            else:
                raise ValueError(f"unexpected {word!r} in the hierarchy")

        # 2. Motion
        _expect(words, "Frames:")
        frames = int(next(words))
        _expect(words, "Frame")
        _expect(words, "Time:")
        fps = 1 / float(next(words))
        values = np.array([float(word) for word in words])
    except (StopIteration, IndexError, ZeroDivisionError, ValueError) as error:
        raise ValueError(
            f"{path.name} is not a BVH file this version understands: {str(error) or 'it ends early'}"
        ) from error
    width = sum(map(len, channels))
    if frames < 1 or not names or values.size != frames * width or not np.isfinite(values).all():
        raise ValueError(
            f"{path.name} is damaged: its header promises {frames} frames of {width} numbers, {values.size} were found"
        )

    # 3. Forward kinematics
    columns = iter(values.reshape(frames, width).T)
    positions = np.zeros((frames, len(names), 3))
    rotations = np.zeros((frames, len(names), 3, 3))
    for joint, parent in enumerate(parents):
        local = np.tile(np.eye(3), (frames, 1, 1))
        place = np.tile(np.array(offsets[joint]), (frames, 1))
        for channel in channels[joint]:
            axis, column = "xyz".find(channel[0]), next(columns)
            if axis < 0 or channel[1:] not in ("position", "rotation"):
                raise ValueError(f"{path.name}: unknown channel {channel!r}")
            if channel[1:] == "position":
                place[:, axis] = column  # replaces the offset
            else:
                local = local @ Rotation.from_euler(channel[0], column[:, None], degrees=True).as_matrix()
        if parent < 0:
            positions[:, joint], rotations[:, joint] = place, local
        else:
            positions[:, joint] = positions[:, parent] + np.einsum("nij,nj->ni", rotations[:, parent], place)
            rotations[:, joint] = rotations[:, parent] @ local
    return Bvh(names=names, parents=parents, positions=positions, fps=fps)


def read_bvh_hands(
    paths: Sequence[str | os.PathLike], *, metres_per_unit: float = METRES_PER_UNIT
) -> tuple[np.ndarray, float]:
    """Both hands' joints out of one BVH of a body, or of one BVH per hand.

    Joints are found by name: a side (left, right, l, r), then a finger and a number or anatomical name, as SViMo,
    Mixamo, MotionBuilder, Rigify, Unreal and VRM write them; a fingertip may be the end site of the third joint, and
    the wrist is the joint called hand or wrist that the middle finger hangs from.

    Returns:
        Joints, N x 2 x 21 x 3 (left, right; OpenPose order; metres; y-up turned into camera axes), and the frame rate.

    Raises:
        FileNotFoundError: no such file.
        ValueError: joints that are missing, or files of different length or rate.
    """
    found: dict[str, np.ndarray] = {}
    fps = None
    for path in paths:
        bvh = read_bvh(path)
        if fps is not None and not np.isclose(fps, bvh.fps, rtol=1e-3):
            raise ValueError(
                f"the BVH files have different frame rates, {fps:g} and {bvh.fps:g}: export both alike"
            )
        fps = bvh.fps
        for side in HAND_NAMES:
            index = _hand_joints(bvh, side)
            if len(index) == JOINTS_PER_HAND:
                found[side] = bvh.positions[:, [index[name] for name in JOINT_NAMES]]
            elif len(index) > 1:
                missing = ", ".join(name for name in JOINT_NAMES if name not in index)
                raise ValueError(f"{Path(path).name}: the {side} hand lacks {missing}")
    files = " and ".join(Path(path).name for path in paths) or "no file"
    for side in HAND_NAMES:
        if side not in found:
            raise ValueError(
                f"no {side} hand in {files}: both hands are needed, in one BVH or one each, with joint names such as "
                f"{side}_index_mcp or {side.capitalize()}HandIndex1"
            )
    if len(found["left"]) != len(found["right"]):
        raise ValueError(
            f"the hands have {len(found['left'])} and {len(found['right'])} frames: export both alike"
        )
    hands = np.stack([found[side] for side in HAND_NAMES], axis=1)
    return hands * metres_per_unit * FLIP, fps


def _hand_joints(bvh: Bvh, side: str) -> dict[str, int]:
    """Our joint name -> index in the file, for one hand."""
    fingers = {"thumb": "thumb", "index": "index", "middle": "middle", "mid": "middle", "ring": "ring"}
    fingers |= {"pinky": "pinky", "little": "pinky"}
    index: dict[str, int] = {}
    wrists = set()
    for joint, name in enumerate(bvh.names):
        # "mixamorig:LeftHandIndex1", "index_01_l", "f_index.01.L", "left_index_mcp" -> words and numbers
        words = [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name.rsplit(":", 1)[-1])]
        if not {side, side[0]} & set(words) or "end" in words or "metacarpal" in words:
            continue
        found = next((i for i, word in enumerate(words) if word in fingers), None)
        if found is None:
            if {"hand", "wrist"} & set(words):
                wrists.add(joint)
            continue
        ours = [j for j in JOINT_NAMES if j.startswith(fingers[words[found]])]  # from base to tip
        numbers = [int(word) for word in words[found:] if word.isdigit()]
        for place, joint_name in enumerate(ours, start=1):
            if joint_name.split("_")[1] in words or numbers[:1] == [place]:
                index[joint_name] = joint
    # Rigs have further joints called hand, for IK or for things held: the wrist is the one with the fingers.
    above = bvh.parents[index["middle_mcp"]] if "middle_mcp" in index else -1
    while above >= 0 and above not in wrists:
        above = bvh.parents[above]
    if above >= 0:
        index["wrist"] = above
    for base in FINGER_BASES:
        last, tip = JOINT_NAMES[base + 2], JOINT_NAMES[base + 3]
        if last in index and tip not in index:
            ends = [j for j, parent in enumerate(bvh.parents) if parent == index[last]]
            if ends:
                index[tip] = ends[0]
    return index


def _expect(words, wanted: str) -> None:
    got = next(words)
    if got != wanted:
        raise ValueError(f"expected {wanted!r}, got {got!r}")
