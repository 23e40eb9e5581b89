"""TACO's files, written from a motion that is known: what its reader must give back."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import trimesh
from helpers.synthetic_mano import mano_arrays
from scipy.spatial.transform import Rotation

from svimo_core.mano import FROM_MANO, ManoModel, hand_joints, hand_vertices, load_mano

TIPS = {"left": [745, 317, 445, 556, 673], "right": [745, 317, 444, 556, 673]}
"""TACO-Instructions, dataset_utils/manopth/manopth/manolayer.py."""
SERIAL = "22070938"
SIZES = {"egocentric": (480, 270), SERIAL: (512, 376)}
CALIBRATED = {"egocentric": (1920, 1080), SERIAL: (4096, 3008)}
"""Pixels that the calibrations are for; the videos are smaller, so that tests are quick."""
DOTS = {"left": (255, 0, 0), "right": (0, 255, 0)}
"""RGB of the wrist in the videos."""


@dataclass
class Truth:
    """What was written for one sequence; N frames."""

    joints: np.ndarray
    """N x 2 x 21 x 3 in the world, metres."""
    boxes: dict[str, tuple[np.ndarray, np.ndarray]]
    """Poses of tool and target, N x 4 x 4, and the half sizes of their boxes in metres."""
    world_to_camera: dict[str, np.ndarray]
    """N x 4 x 4 of each view."""


def write_mano(folder: Path, left_shape: str = "official") -> Path:
    folder.mkdir(parents=True)
    for side in DOTS:
        np.savez(folder / f"MANO_{side.upper()}.npz", **mano_arrays(side, left_shape=left_shape))
    return folder


def write_sequence(
    root: Path, mano: Path, folder: str, *, frames: int = 60, seed: int = 0, one_file_a_frame: bool = False
) -> Truth:
    """One sequence in all of TACO's folders, with an egocentric and an allocentric view."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 30
    joints = []
    hand_folder = _made(root / "Hand_Poses" / folder)
    for side, sign in (("left", -1), ("right", 1)):
        pose = 0.25 * np.sin(rng.uniform(1, 3, 48) * time[:, None] + rng.uniform(0, 6, 48))
        wrist = np.stack(
            [sign * 0.1 + 0.05 * np.sin(4 * time), 0.06 * np.cos(5 * time), 0.1 + 0.02 * time], 1
        )
        shape = rng.normal(size=10)
        joints.append(taco_joints(load_mano(mano / f"MANO_{side.upper()}.npz", side), pose, wrist, shape))
        _write_hand(hand_folder, side, pose, wrist, shape, one_file_a_frame)
    boxes = {}
    for number, (role, half) in enumerate((("tool", (0.01, 0.05, 0.01)), ("target", (0.05, 0.03, 0.04)))):
        poses = np.tile(np.eye(4), (frames, 1, 1))
        turns = np.stack([time, 0.5 * time, np.full(frames, 0.3 * number)], 1)
        poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
        poses[:, :3, 3] = np.stack([0.1 - 0.12 * number + 0.02 * time, 0.02 * time, 0 * time + 0.1], 1)
        np.save(_made(root / "Object_Poses" / folder) / f"{role}_{17 + number:03d}.npy", poses)
        mesh = trimesh.creation.box(extents=2 * np.array(half) * 100)
        mesh.export(_made(root / "Object_Models") / f"{17 + number:03d}_cm.obj")
        boxes[role] = poses, np.array(half)
    truth = Truth(np.stack(joints, axis=1), boxes, _write_cameras(root, folder, time))
    for view, matrices in truth.world_to_camera.items():
        video = _draw(truth.joints[:, :, 0], matrices, view)
        if view == "egocentric":
            write_video(_made(root / "Egocentric_RGB_Videos" / folder) / "color.mp4", video)
        else:
            write_video(_made(root / "Allocentric_RGB_Videos" / folder) / f"{view}.mp4", video)
    return truth


def taco_joints(model: ManoModel, pose: np.ndarray, wrist: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Joints as TACO's loader has them, by smplx's route: a translation that puts joint 0 at `wrist`."""
    rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    rest = model.J_regressor[0] @ (model.v_template + model.shapedirs @ shape)
    place = shape, rotations, wrist - rest
    joints = hand_joints(model, *place)
    joints[:, np.flatnonzero(FROM_MANO >= 16)] = hand_vertices(model, *place)[:, TIPS[model.side]]
    return joints


def _write_hand(folder: Path, side: str, pose, wrist, shape, one_file_a_frame: bool) -> None:
    poses = {
        f"{i + 1:05d}": {
            "hand_pose": torch.tensor(pose[i], dtype=torch.float32, requires_grad=True),
            "hand_trans": torch.tensor(wrist, dtype=torch.float64)[i],  # a part of a larger storage
        }
        for i in range(len(pose))
    }
    if one_file_a_frame:
        for key, frame in poses.items():
            (_made(folder / f"{side}_hand") / f"hand_{key}.pkl").write_bytes(pickle.dumps(frame, protocol=2))
    else:
        backwards = dict(reversed(poses.items()))  # TACO's loader sorts the frames
        (folder / f"{side}_hand.pkl").write_bytes(pickle.dumps(backwards))
    shape = torch.tensor(shape[None], dtype=torch.float32) if side == "left" else shape
    (folder / f"{side}_hand_shape.pkl").write_bytes(pickle.dumps({"hand_shape": shape}))


def _write_cameras(root: Path, folder: str, time: np.ndarray) -> dict[str, np.ndarray]:
    moving = np.tile(np.eye(4), (len(time), 1, 1))
    moving[:, :3, :3] = Rotation.from_rotvec(
        np.stack([0 * time, 0.06 * np.sin(time), 0.1 * time], 1)
    ).as_matrix()
    moving[:, :3, 3] = (0.0, 0.02, 0.5)
    still = np.eye(4)
    still[:3, :3] = Rotation.from_rotvec((0.3, -0.2, 0.1)).as_matrix()
    still[:3, 3] = (0.03, 0.0, 0.6)
    ego = _made(root / "Egocentric_Camera_Parameters" / folder)
    np.savetxt(ego / "egocentric_intrinsic.txt", _intrinsics("egocentric"))
    np.save(ego / "egocentric_frame_extrinsic.npy", moving)
    calibration = {
        SERIAL: {
            "imgSize": CALIBRATED[SERIAL],
            "K": _intrinsics(SERIAL).ravel().tolist(),
            "R": still[:3, :3].ravel().tolist(),
            "T": still[:3, 3].tolist(),
        }
    }
    path = _made(root / "Allocentric_Camera_Parameters" / folder) / "calibration.json"
    path.write_text(json.dumps(calibration))
    return {"egocentric": moving, SERIAL: np.tile(still, (len(time), 1, 1))}


def _intrinsics(view: str) -> np.ndarray:
    width, height = CALIBRATED[view]
    return np.array([[0.9 * width, 0, 0.52 * width], [0, 0.91 * width, 0.47 * height], [0, 0, 1]])


def _draw(wrists: np.ndarray, world_to_camera: np.ndarray, view: str) -> np.ndarray:
    """A disc at each wrist, counting pixels from the middle of the first, as calibrations do."""
    width, height = SIZES[view]
    scale = CALIBRATED[view][0] / width
    video = np.full((len(wrists), height, width, 3), 40, np.uint8)
    for frame, points, matrix in zip(video, wrists, world_to_camera, strict=True):
        for point, color in zip(points, DOTS.values(), strict=True):
            x, y, z = _intrinsics(view) @ (matrix[:3, :3] @ point + matrix[:3, 3])
            at = (np.array([x, y]) / z + 0.5) / scale - 0.5
            cv2.circle(frame, tuple(int(v) for v in np.rint(at * 16)), 7 * 16, color, -1, cv2.LINE_AA, 4)
    return video


def write_video(path: Path, video: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "8"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Hostile:
    """Runs code when an ordinary unpickler reads it."""

    def __init__(self, inside: bool):
        self.inside = inside

    def __reduce__(self):
        if not self.inside:
            return print, ("run",)
        buffer = io.BytesIO()
        torch.save(Hostile(False), buffer, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (buffer.getvalue(),)
