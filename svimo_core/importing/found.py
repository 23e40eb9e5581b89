"""What a reader found in a file, before anyone has asked whether it can be hands."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..motion import Camera


@dataclass(frozen=True, kw_only=True)
class FoundMotion:
    """Hands and objects in the file's own units, axes and order of joints, and what the file says of these."""

    name: str
    """What to call the file in errors."""
    hands: np.ndarray
    """Joints, N x 2 x J x 3 (left, right) float64; NaN where a hand is absent. J is 21, or as many as `order` has."""
    sideless: bool = False
    """There is one hand, whose side the file does not say; it stands in the right one's place."""
    flat: bool = False
    """Both hands came as one row of joints, of which InterHand2.6M has the right one's first."""
    origins: np.ndarray | None = None
    """The points, N x 2 x 3, that a tracker gave the joints of each hand relative to, where it did."""
    objects: dict[str, np.ndarray] = field(default_factory=dict)
    """Point clouds, N x K x 3, in the same units and axes."""
    fps: float | None = None
    """Frames per second, where the file says."""
    camera: Camera | None = None
    """The camera that saw the motion, where the file says."""
    order: str | None = None
    """The order of joints, where the file names them: a key of :data:`svimo_core.importing.orders.ORDERS`."""
    metres_per_unit: float | None = None
    """The unit of lengths, where the file says; None leaves it to the format's habit and to a look at the bones."""
    up: str = "-y"
    """The file's axis that points up."""
    forward: str = "+z"
    """The file's axis that points away from the camera or viewer."""
    seen_by_camera: bool = True
    """The motion stands where a camera at the origin saw it; skeletons of animation programs stand elsewhere."""
    prompt: str = ""
    notes: tuple[str, ...] = ()
    """What was decided or left out on the way, a sentence each, for the person who imports."""
