from dataclasses import replace

import numpy as np
import pytest

from svimo_core.clean import scale
from svimo_core.motion import Camera, HandObjectMotion
from svimo_core.render import check_in_view, render_motion, render_view

FAR = (0.0, 0.0, 1e4)
"""Everything put here shrinks to the image centre."""


def scene(**points) -> HandObjectMotion:
    """One frame with only the given things away from the image centre."""
    hands = np.tile(np.array(FAR), (1, 2, 21, 1))
    for side, name in enumerate(("left", "right")):
        hands[0, side] = points.get(name, FAR)
    objects = {name: np.array([[points.get(name, FAR)]]) for name in ("tool", "target")}
    camera = Camera(fx=100, fy=100, cx=96, cy=64, width=192, height=128)
    return HandObjectMotion(hands=hands, objects=objects, camera=camera, fps=8)


@pytest.mark.parametrize("size", [(192, 128), (624, 416), (48, 32)])
@pytest.mark.parametrize(
    ("name", "color"), [("tool", (236, 52, 217)), ("target", (20, 35, 222)), ("left", (255, 255, 0))]
)
def test_a_point_is_drawn_where_the_camera_sees_it(name, color, size):
    width, height = size
    frame = render_motion(scene(**{name: (0.5, -0.3, 1.0)}), width, height)[0].astype(int)
    x, y = int((96 + 50) * width / 192), int((64 - 30) * height / 128)
    assert frame.shape == (height, width, 3)
    around = frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
    assert np.abs(around - color).sum(axis=1).min() < 0.75 * sum(
        color
    )  # at 48 pixels a joint is a third of one
    assert frame[0, 0].tolist() == [0, 0, 0]


def test_bones_have_the_hands_colours():
    hands = np.tile(np.array(FAR), (1, 2, 21, 1))
    hands[0, 0, :, :] = [(-0.5 + 0.02 * i, 0.3, 1.0) for i in range(21)]
    hands[0, 1, :, :] = [(0.1 + 0.02 * i, 0.3, 1.0) for i in range(21)]
    motion = HandObjectMotion(hands=hands, objects={}, camera=Camera.from_fov(624, 416), fps=8)
    frame = render_motion(motion, 624, 416)[0]
    left, right = frame[:, :312].reshape(-1, 3), frame[:, 312:].reshape(-1, 3)
    assert (left == (255, 0, 0)).all(axis=1).any()
    assert (right == (0, 255, 0)).all(axis=1).any()
    assert not (right == (255, 0, 0)).all(axis=1).any()


def test_near_covers_far():
    near_tool = render_motion(scene(tool=(0.25, 0, 0.5), target=(0.5, 0, 1.0)), 192, 128)[0]
    near_target = render_motion(scene(tool=(0.5, 0, 1.0), target=(0.25, 0, 0.5)), 192, 128)[0]
    assert near_tool[64, 146].tolist() == [236, 52, 217]
    assert near_target[64, 146].tolist() == [20, 35, 222]


def test_behind_the_camera_is_not_drawn():
    behind = scene(tool=(0.5, 0.3, -1.0))
    magenta = (render_motion(behind, 192, 128) == (236, 52, 217)).all(axis=-1)
    assert not magenta.any()


def test_what_cannot_be_seen_is_refused(motion):
    check_in_view(motion)
    check_in_view(scale(motion, 1000))  # millimetres look the same
    away = np.array([50.0, 0, 0], np.float32)
    for hidden in (
        scale(motion, 1e-4),
        replace(motion, hands=motion.hands * (1, 1, -1), objects={}),
        replace(motion, hands=motion.hands + away, objects={}),
    ):
        assert not render_motion(hidden, 48, 32).any()
        with pytest.raises(ValueError, match=r"nothing of the motion is in view .* between \(.*\) and \("):
            check_in_view(hidden)
    hands_away = replace(motion, hands=motion.hands + away)
    check_in_view(hands_away)  # its objects can be seen


def test_view_shows_motion(motion):
    frames = render_view(motion, 96, 64)
    assert frames.shape == (len(motion), 64, 96, 3)
    assert (frames[0] != frames[-1]).any()
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 20
