"""Joints of TACO's hands, as TACO's own layer places them.

TACO-Instructions (`dataset_utils/hand_pose_loader.py`) calls manopth with `use_pca=False, center_idx=0` and
its default flat mean, on MANO's official files: finger rotations count from the flat hand, the left hand's shape
directions are taken as the file has them, and the wrist is moved to the origin before `hand_trans` is added.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from svimo_core.mano import FROM_MANO, WHERE_TO_GET, ManoModel, load_mano, with_left_shape
from svimo_core.mano.model import pose
from svimo_core.motion import HAND_NAMES

from .layout import HandParameters

TIP_VERTICES = {"left": [745, 317, 445, 556, 673], "right": [745, 317, 444, 556, 673]}
"""Vertices at the tips of thumb, index, middle, ring and pinky, as TACO's manopth counts them."""


def load_hands(folder: Path) -> dict[str, ManoModel]:
    """MANO_LEFT and MANO_RIGHT (.pkl or .npz) of a folder, the left one in the official form, which TACO used.

    Raises:
        FileNotFoundError: one of them is missing; says where to get them.
        ValueError: a file is no MANO hand.
    """
    models = {}
    for side in HAND_NAMES:
        files = [path for ending in ("pkl", "npz") for path in folder.glob(f"MANO_{side.upper()}.{ending}")]
        if not files:
            raise FileNotFoundError(f"no MANO_{side.upper()}.pkl or .npz in {folder}. {WHERE_TO_GET}")
        models[side] = load_mano(files[0], side)
    models["left"] = with_left_shape(models["left"], "official", models["right"])
    return models


def world_joints(model: ManoModel, hand: HandParameters) -> np.ndarray:
    """The 21 joints of a hand in TACO's world, N x 21 x 3, OpenPose order, metres."""
    rotations = Rotation.from_rotvec(hand.pose.reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    posed = pose(model, hand.shape, rotations)
    tips = posed.points()[:, TIP_VERTICES[model.side]]
    joints = np.concatenate([posed.places, tips], axis=1)[:, FROM_MANO]
    return joints - joints[:, :1] + hand.wrist[:, None]
