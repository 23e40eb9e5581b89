"""MANO hands (Romero et al. 2017) with the user's own files: reading, posing and fitting.

MANO's files are licensed for research and cannot be shipped or downloaded for anyone; :func:`load_mano` reads
the ones a user has registered for. Posing is written here from the paper's equations, so nothing but these files is
needed.
"""

from .files import WHERE_TO_GET, load_mano
from .fit import ManoFit, fit_mano, save_mano
from .model import (
    FROM_MANO,
    LEFT_SHAPES,
    NUM_BETAS,
    NUM_JOINTS,
    TIP_VERTICES,
    ManoModel,
    hand_joints,
    hand_vertices,
    left_shape,
    with_left_shape,
)

__all__ = [
    "FROM_MANO",
    "LEFT_SHAPES",
    "NUM_BETAS",
    "NUM_JOINTS",
    "TIP_VERTICES",
    "WHERE_TO_GET",
    "ManoFit",
    "ManoModel",
    "fit_mano",
    "hand_joints",
    "hand_vertices",
    "left_shape",
    "load_mano",
    "save_mano",
    "with_left_shape",
]
