"""A glTF player of a few lines, written from the specification alone: what a GLB shows at each of its frames."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

DTYPES = {5126: "<f4", 5121: "u1", 5125: "<u4"}
WIDTHS = {"SCALAR": (), "VEC3": (3,), "VEC4": (4,), "MAT4": (4, 4)}


class Glb:
    """The JSON of a GLB, and its animation evaluated."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON"
        self.json = json.loads(data[20 : 20 + size])
        self.binary = data[28 + size :]

    def array(self, index: int) -> np.ndarray:
        accessor = self.json["accessors"][index]
        start = self.json["bufferViews"][accessor["bufferView"]]["byteOffset"]
        shape = (accessor["count"], *WIDTHS[accessor["type"]])
        values = np.frombuffer(
            self.binary, DTYPES[accessor["componentType"]], int(np.prod(shape)), start
        ).reshape(shape)
        return values.transpose(0, 2, 1) if values.ndim == 3 else values

    def node(self, name: str) -> int:
        return next(i for i, node in enumerate(self.json["nodes"]) if node["name"] == name)

    @property
    def times(self) -> np.ndarray:
        return self.array(self.json["animations"][0]["samplers"][0]["input"])

    def world(self, frame: int | None) -> list[np.ndarray]:
        """4 x 4 matrix of every node; None is the file's rest pose."""
        nodes = [dict(node) for node in self.json["nodes"]]
        if frame is not None:
            animation = self.json["animations"][0]
            for channel in animation["channels"]:
                target, sampler = channel["target"], animation["samplers"][channel["sampler"]]
                nodes[target["node"]][target["path"]] = self.array(sampler["output"])[frame]
        matrices: list = [None] * len(nodes)

        def place(index: int, parent: np.ndarray) -> None:
            x, y, z, w = nodes[index].get("rotation", (0, 0, 0, 1))
            local = np.eye(4)
            local[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
            local[:3, :3] *= nodes[index].get("scale", (1, 1, 1))
            local[:3, 3] = nodes[index].get("translation", (0, 0, 0))
            matrices[index] = parent @ local
            for child in nodes[index].get("children", ()):
                place(child, matrices[index])

        for root in self.json["scenes"][0]["nodes"]:
            place(root, np.eye(4))
        return matrices

    def triangles(self, name: str, frame: int | None) -> tuple[np.ndarray, np.ndarray]:
        """World vertices and faces of a node's mesh, skinned if it has a skin."""
        node = self.json["nodes"][self.node(name)]
        primitive = self.json["meshes"][node["mesh"]]["primitives"][0]
        attributes = {key: self.array(value) for key, value in primitive["attributes"].items()}
        points = np.concatenate([attributes["POSITION"], np.ones((len(attributes["POSITION"]), 1))], axis=1)
        world = self.world(frame)
        if "skin" in node:
            skin = self.json["skins"][node["skin"]]
            bones = np.stack([world[j] for j in skin["joints"]]) @ self.array(skin["inverseBindMatrices"])
            matrices = np.einsum("vk,vkij->vij", attributes["WEIGHTS_0"], bones[attributes["JOINTS_0"]])
            points = np.einsum("vij,vj->vi", matrices, points)
        else:
            points = points @ world[self.node(name)].T
        return points[:, :3], self.array(primitive["indices"]).reshape(-1, 3)
