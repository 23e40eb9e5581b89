"""What decides how clips look."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .layout import FPS
from .split import HELD_OUT, TEST_SHARE


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one folder of clips; the defaults are the paper's where it gives any.

    Raises:
        ValueError: a setting that makes no clip.
    """

    frames: int = 49
    stride: float = FPS / 8
    """Frames of TACO from one frame of a clip to the next, which is the nearest: 3.75 is 8 fps, 4 is 7.5 fps."""
    hop: int = 16
    """Frames of a clip from the start of one to the start of the next of the same sequence."""
    width: int = 624
    height: int = 416
    margin: float = 0.1
    """Around hands and objects, as a share of their extent on each side."""
    points: int = 128
    """On each object."""
    markers: str = "removed-first"
    """A key of :data:`.layout.MARKERS`."""
    hands_in_view: float = 0.9
    """Least share of the joints of each hand, over a clip, that lie within its crop."""
    lost_frames: int = 0
    """Most frames by which a sequence's video, cameras and poses may differ in number. No one knows which are lost, so
    TACO's own loader takes no video that differs."""
    test_share: float = TEST_SHARE
    held_out: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(HELD_OUT))
    seed: int = 0
    """Of the split and of the points on objects."""

    def __post_init__(self):
        if min(self.frames, self.hop, self.width, self.height, self.points, self.stride) < 1:
            raise ValueError(f"frames, stride, hop, width, height and points must be 1 or more, got {self}")

    @property
    def fps(self) -> float:
        """Of the clips."""
        return FPS / self.stride

    @property
    def span(self) -> int:
        """Frames of TACO from the first of a clip to its last, both included."""
        return int(self._steps[-1] + 0.5) + 1

    def windows(self, frames: int) -> list[np.ndarray]:
        """The numbers of the frames of each clip, in a sequence that has so many."""
        starts = np.arange(0, frames, self.hop * self.stride)
        windows = [np.floor(start + self._steps + 0.5).astype(int) for start in starts]
        return [window for window in windows if window[-1] < frames]

    @property
    def _steps(self) -> np.ndarray:
        return np.arange(self.frames) * self.stride
