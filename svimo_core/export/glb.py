"""Animated GLB (glTF 2.0): skinned hands, rigid objects and the camera, for Preview3D, Blender and Unreal.

glTF's own units and axes: metres, y up, seconds. The rest pose of each hand is flat and stands where its wrist is on
average; the inverse bind matrices belong to that same pose, so that a rig can be retargeted. As Blender and artists
expect of bones, the y axis of every joint points to the next one, and fingers bend about x.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..files import whole_file
from ..hand_rig import JOINT_PARENTS, HandAnimation, vertex_normals
from ..motion import Camera
from ..rigged import RiggedMotion
from . import FLIP, flip_rotations
from .names import bone_names

HAND_COLORS = {"left": (0.80, 0.25, 0.20), "right": (0.25, 0.65, 0.30)}  # as in the rendered motion
HIDDEN = 1e-4
"""Scale of a hand in frames without it: a tenth of a millimetre at most, as no inverse exists of nothing."""
OBJECT_COLORS = ((0.85, 0.20, 0.75), (0.20, 0.30, 0.85), (0.85, 0.55, 0.15), (0.20, 0.70, 0.75))

# glTF's numbers for what an accessor holds and what a buffer view is for
FLOAT, UNSIGNED_BYTE, UNSIGNED_INT = 5126, 5121, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
COMPONENTS = {np.dtype("<f4"): FLOAT, np.dtype("u1"): UNSIGNED_BYTE, np.dtype("<u4"): UNSIGNED_INT}
SHAPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}


def write_glb(
    path: str | os.PathLike,
    rigged: RiggedMotion,
    *,
    naming: str = "svimo",
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one animated GLB.

    Args:
        path: the file to write or replace.
        rigged: what :func:`svimo_core.rigged.rig_motion` returns. Its metadata goes to `asset.extras`, where ComfyUI
            reads its graph from the keys "prompt" and "workflow", so the prompt in words is called "text".
        naming: what bones are called, one of :data:`svimo_core.export.names.NAMINGS`.
        on_progress: called with (done, total); raising from it cancels and leaves no file.

    Raises:
        ValueError: an unknown naming.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    document = _Document(rigged)
    total = len(rigged.hands) + len(rigged.objects) + 1
    report = on_progress or (lambda done, total: None)

    document.add_camera(rigged.camera)
    for i, hand in enumerate(rigged.hands):
        document.add_hand(hand, HAND_COLORS[hand.rig.side], bone_names(naming, hand.rig.side))
        report(i + 1, total)
    for i, name in enumerate(rigged.objects):
        document.add_object(name, OBJECT_COLORS[i % len(OBJECT_COLORS)])
        report(len(rigged.hands) + 1 + i, total)
    with whole_file(path) as partial:
        partial.write_bytes(document.to_bytes())
        report(total, total)
    return path


class _Document:
    """A glTF document that grows: JSON on one side, one binary buffer on the other."""

    def __init__(self, rigged: RiggedMotion):
        self.rigged = rigged
        self.binary = bytearray()
        self.json: dict[str, Any] = {
            "asset": {
                "version": "2.0",
                "generator": "ComfyUI-SViMo",
                "extras": {
                    **rigged.metadata,
                    "text": rigged.prompt,
                    "fps": rigged.fps,
                    "frames": len(rigged),
                },
            },
            "scene": 0,
            "scenes": [{"name": "SViMo", "nodes": []}],
            "nodes": [],
            "meshes": [],
            "materials": [],
            "skins": [],
            "cameras": [],
            "accessors": [],
            "bufferViews": [],
            "animations": [{"name": "motion", "samplers": [], "channels": []}],
        }
        self.times = self.accessor(np.arange(len(rigged)) / rigged.fps, bounds=True)

    def add_camera(self, camera: Camera) -> None:
        """The camera stands at the origin and looks along -z, which is where glTF cameras look."""
        lens = {
            "yfov": 2 * float(np.arctan(camera.height / 2 / camera.fy)),
            "aspectRatio": (camera.width / camera.fx) / (camera.height / camera.fy),
            "znear": 0.01,
            "zfar": 100.0,
        }
        # A glTF camera has no principal point: the exact intrinsics travel as extras.
        intrinsics = {key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy", "width", "height")}
        self.json["cameras"].append({"type": "perspective", "perspective": lens, "extras": intrinsics})
        self.node(name="camera", camera=0)

    def add_hand(self, hand: HandAnimation, color: tuple[float, float, float], names: list[str]) -> None:
        """A skeleton of 21 nodes of these names that moves, and a mesh that it deforms."""
        rig, side = hand.rig, hand.rig.side
        home = hand.translations.mean(axis=0)  # where the rest pose stands
        rest_joints = (rig.rest_joints + home) * FLIP
        vertices = (rig.vertices + home) * FLIP

        # 1. Skeleton, in rest pose
        first = len(self.json["nodes"])
        axes = _bone_axes(rest_joints, side)
        rest = _relative(axes, rest_joints)
        for joint, (name, turn) in enumerate(zip(names, _quaternions(rest[:, :3, :3]), strict=True)):
            children = [first + child for child, parent in enumerate(JOINT_PARENTS) if parent == joint]
            node = {
                "name": name,
                "translation": rest[joint, :3, 3].tolist(),
                "rotation": turn.tolist(),
            }
            self.json["nodes"].append(node | ({"children": children} if children else {}))
        armature = self.node(name=f"{side}_hand_rig", children=[first])

        # 2. Mesh, bound to it
        bind = np.linalg.inv(_matrices(axes, rest_joints))
        joints, weights = _four_strongest(rig.weights)
        mesh = self.mesh(
            f"{side}_hand", vertices, rig.faces, color,
            NORMAL=self.accessor(vertex_normals(vertices, rig.faces), ARRAY_BUFFER),
            JOINTS_0=self.accessor(joints.astype("u1"), ARRAY_BUFFER),
            WEIGHTS_0=self.accessor(weights, ARRAY_BUFFER),
        )  # fmt: skip
        self.json["skins"].append(
            {
                "name": f"{side}_hand",
                "joints": list(range(first, first + len(names))),
                "skeleton": armature,
                "inverseBindMatrices": self.accessor(bind.transpose(0, 2, 1)),  # glTF stores columns
            }
        )
        self.node(name=f"{side}_hand", mesh=mesh, skin=len(self.json["skins"]) - 1)

        # 3. Movement
        moving = _relative(flip_rotations(hand.global_rotations) @ axes, hand.joints * FLIP)
        self.animate(first, "translation", moving[:, 0, :3, 3])
        for joint in set(JOINT_PARENTS) - {-1}:  # tips, which have no children, do not turn
            self.animate(first + joint, "rotation", _quaternions(moving[:, joint, :3, :3]))
        if not hand.present.all():  # every program knows scale; few know glTF's extension for visibility
            shown = np.where(hand.present, 1.0, HIDDEN)
            self.animate(first, "scale", np.repeat(shown[:, None], 3, axis=1), interpolation="STEP")

    def add_object(self, name: str, color: tuple[float, float, float]) -> None:
        """One rigid node that rests where it is in the first frame. Without normals it is shown with flat faces."""
        thing = self.rigged.objects[name]
        track = thing.track
        mesh = self.mesh(name, thing.vertices * FLIP, thing.faces, color)
        places, turns = track.translations * FLIP, _quaternions(flip_rotations(track.rotations))
        node = self.node(name=name, mesh=mesh, translation=places[0].tolist(), rotation=turns[0].tolist())
        self.animate(node, "translation", places)
        self.animate(node, "rotation", turns)

    def node(self, **fields: Any) -> int:
        """Add a node at the top of the scene and return its index."""
        self.json["nodes"].append(fields)
        self.json["scenes"][0]["nodes"].append(len(self.json["nodes"]) - 1)
        return len(self.json["nodes"]) - 1

    def mesh(
        self,
        name: str,
        vertices: np.ndarray,
        faces: np.ndarray,
        color: tuple[float, float, float],
        **attributes: int,
    ) -> int:
        """Add a mesh of one material and return its index."""
        self.json["materials"].append(
            {
                "name": name,
                "doubleSided": True,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [*color, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.7,
                },
            }
        )
        attributes = {
            "POSITION": self.accessor(vertices, ARRAY_BUFFER, bounds=True),
            **attributes,
        }
        indices = self.accessor(faces.reshape(-1).astype("<u4"), ELEMENT_ARRAY_BUFFER)
        primitive = {
            "attributes": attributes,
            "indices": indices,
            "material": len(self.json["materials"]) - 1,
        }
        self.json["meshes"].append({"name": name, "primitives": [primitive]})
        return len(self.json["meshes"]) - 1

    def animate(self, node: int, path: str, values: np.ndarray, *, interpolation: str = "LINEAR") -> None:
        """Give a node's translation, rotation or scale one value per frame."""
        animation = self.json["animations"][0]
        animation["samplers"].append(
            {"input": self.times, "interpolation": interpolation, "output": self.accessor(values)}
        )
        animation["channels"].append(
            {"sampler": len(animation["samplers"]) - 1, "target": {"node": node, "path": path}}
        )

    def accessor(self, values: np.ndarray, target: int | None = None, *, bounds: bool = False) -> int:
        """Append an array to the binary buffer and return the index of its accessor."""
        values = np.ascontiguousarray(values, values.dtype if values.dtype in COMPONENTS else "<f4")
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": values.nbytes}
        self.json["bufferViews"].append(view | ({"target": target} if target else {}))
        self.binary += values.tobytes()
        self.binary += bytes(-len(self.binary) % 4)
        accessor = {
            "bufferView": len(self.json["bufferViews"]) - 1,
            "componentType": COMPONENTS[values.dtype],
            "count": len(values),
            "type": SHAPES[values.shape[1:]],
        }
        if bounds:
            low, high = (np.atleast_1d(limit).tolist() for limit in (values.min(axis=0), values.max(axis=0)))
            accessor |= {"min": low, "max": high}
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def to_bytes(self) -> bytes:
        """The GLB container: a header, a JSON chunk and a binary chunk, each padded to four bytes."""
        self.json["buffers"] = [{"byteLength": len(self.binary)}]
        text = json.dumps(self.json, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """Rotations (N x 3 x 3) -> quaternions (N x 4, xyzw) that never jump to the far side."""
    quaternions = Rotation.from_matrix(rotations).as_quat()
    flips = np.where(np.sum(quaternions[1:] * quaternions[:-1], axis=1) < 0, -1, 1)
    return quaternions * np.cumprod(np.append(1, flips))[:, None]


def _bone_axes(rest_joints: np.ndarray, side: str) -> np.ndarray:
    """Rest orientation of every joint, 21 x 3 x 3: columns x (fingers bend about it), y (along the bone) and z."""
    index, pinky = rest_joints[5] - rest_joints[0], rest_joints[17] - rest_joints[0]
    back = (
        np.cross(pinky, index) if side == "right" else np.cross(index, pinky)
    )  # out of the back of the hand
    bones = np.zeros_like(rest_joints)
    for joint, parent in enumerate(JOINT_PARENTS):
        if parent > 0:
            bones[parent] = bones[joint] = (
                rest_joints[joint] - rest_joints[parent]
            )  # a tip goes on like its bone
    bones[0] = rest_joints[9] - rest_joints[0]
    x = np.cross(bones, back)
    axes = np.stack([x, bones, np.cross(x, bones)], axis=-1)
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def _matrices(rotations: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rotations (... x 3 x 3) and places (... x 3) as ... x 4 x 4 matrices."""
    matrices = np.zeros((*places.shape[:-1], 4, 4))
    matrices[..., :3, :3], matrices[..., :3, 3], matrices[..., 3, 3] = rotations, places, 1
    return matrices


def _relative(rotations: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Joints in space (... x 21) -> their matrices as seen from their parents, ... x 21 x 4 x 4."""
    world = _matrices(rotations, places)
    parents = world[..., JOINT_PARENTS, :, :]
    parents[..., 0, :, :] = np.eye(4)
    return np.linalg.inv(parents) @ world


def _four_strongest(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """glTF's four joints per vertex: indices and weights, V x 4 each, the weights adding up to 1 in float32."""
    joints = np.argsort(-weights, axis=1)[:, :4]
    strongest = np.take_along_axis(weights, joints, axis=1).astype(np.float32)
    strongest /= strongest.sum(axis=1, keepdims=True)
    return np.where(strongest > 0, joints, 0), strongest
