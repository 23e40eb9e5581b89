import zipfile

import numpy as np
import pytest

from svimo_core.motion import HAND_BONES, JOINT_NAMES, Camera, HandObjectMotion


def test_skeleton_is_one_connected_hand():
    assert len(JOINT_NAMES) == 21
    assert JOINT_NAMES[4] == "thumb_tip"
    assert JOINT_NAMES[17] == "pinky_mcp"
    reached, edges = {0}, set(HAND_BONES)
    while grown := {b for a, b in edges if a in reached} - reached:
        reached |= grown
    assert reached == set(range(21))


def test_camera_projects_by_hand():
    camera = Camera(fx=100, fy=200, cx=50, cy=40, width=100, height=80)
    assert camera.project(np.array([0.5, -0.1, 2.0])).tolist() == [75.0, 30.0]
    half = camera.resized(50, 40)
    assert half.project(np.array([0.5, -0.1, 2.0])).tolist() == [37.5, 15.0]
    wide = Camera.from_fov(200, 100, horizontal_degrees=90)
    np.testing.assert_allclose(wide.project(np.array([1.0, 0.0, 1.0])), [200, 50])


def test_npz_round_trip_without_pickle(tmp_path, motion):
    path = motion.save(tmp_path / "m.npz")
    back = HandObjectMotion.load(path)
    np.testing.assert_array_equal(back.hands, motion.hands)
    assert list(back.objects) == ["tool", "target"]
    for name, points in motion.objects.items():
        np.testing.assert_array_equal(back.objects[name], points)
    assert (back.camera, back.fps, back.prompt) == (motion.camera, motion.fps, motion.prompt)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hands": np.zeros((4, 2, 20, 3))}, "frames x 2 x 21 x 3"),
        ({"hands": np.zeros((0, 2, 21, 3))}, "at least one frame"),
        (
            {"hands": np.where(np.arange(63).reshape(21, 3) == 5, np.nan, np.ones((9, 2, 21, 3)))},
            "not finite .* frame 0",
        ),
        ({"hands": np.full((9, 2, 21, 3), np.nan), "objects": {}}, "nothing in it"),
        ({"objects": {"cup": np.zeros((8, 5, 3))}}, "'cup' must be 9 frames"),
        ({"objects": {"cup": np.zeros((9, 0, 3))}}, "'cup' must be 9 frames"),
        ({"fps": 0}, "fps must be positive"),
    ],
)
def test_wrong_motion_is_refused(motion, change, message):
    values = {"hands": motion.hands, "objects": motion.objects, "camera": motion.camera, "fps": motion.fps}
    with pytest.raises(ValueError, match=message):
        HandObjectMotion(**(values | change))


class Hostile:
    """Leaves a trace if anybody unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_hostile_and_damaged_files_are_refused(tmp_path, motion):
    trace = tmp_path / "trace"
    hostile = tmp_path / "hostile.npz"
    np.savez(hostile, hands=np.array([Hostile(str(trace))], dtype=object))
    with pytest.raises(ValueError, match=r"hostile\.npz cannot be read as plain arrays"):
        HandObjectMotion.load(hostile)
    assert not trace.exists()

    good = motion.save(tmp_path / "good.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz .* truncated"):
        HandObjectMotion.load(cut)

    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz is not a SViMo motion"):
        HandObjectMotion.load(other)

    empty = tmp_path / "empty.npz"
    with zipfile.ZipFile(empty, "w"):
        pass
    with pytest.raises(ValueError, match=r"empty\.npz"):
        HandObjectMotion.load(empty)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        HandObjectMotion.load(tmp_path / "absent.npz")


def test_newer_format_asks_for_an_update(tmp_path, motion):
    path = motion.save(tmp_path / "m.npz")
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"version": np.array(99)}))
    with pytest.raises(ValueError, match="update the pack"):
        HandObjectMotion.load(path)
    np.savez(path, **(arrays | {"version": np.array("x")}))
    with pytest.raises(ValueError, match=r"m\.npz is a damaged SViMo motion: its version is 'x'"):
        HandObjectMotion.load(path)
