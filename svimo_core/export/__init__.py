"""Files that other programs open: GLB, BVH, JSON. The way back is :mod:`svimo_core.importing`.

NPZ, the native format, is :meth:`svimo_core.motion.HandObjectMotion.save`. Every writer is atomic: a file appears
whole or not at all. `docs/motion-format.md` describes all of them for the people who use the files.

Everything inside SViMo is in camera space (x right, y down, z forward). GLB and BVH have y up and look along -z: half
a turn about x, :data:`FLIP`, leads from one to the other, and the camera becomes the default camera of both.
"""

import numpy as np

FLIP = np.array([1.0, -1.0, -1.0])
"""Factors on x, y, z between camera space and y-up space, either way."""


def flip_rotations(rotations: np.ndarray) -> np.ndarray:
    """Rotations (... x 3 x 3) of camera space seen in y-up space, or back."""
    return FLIP[:, None] * rotations * FLIP
