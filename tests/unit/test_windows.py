"""Long clips in windows: where they lie, and how they are put together."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from svimo_core.clean import trim
from svimo_core.motion import Camera
from svimo_core.sampling.pipeline import fit_image
from svimo_core.windows import join_motions, join_videos, window_starts


@pytest.mark.parametrize("total", [9, 10, 14, 15, 21, 100])
def test_windows_cover_a_clip_and_end_with_it(total):
    starts = window_starts(total, 9, 3)
    assert starts[0] == 0
    assert starts[-1] == total - 9
    assert all(0 < b - a <= 6 for a, b in itertools.pairwise(starts))
    assert window_starts(total, 9) == window_starts(total, 9, 4)
    for bad in ((8, 9, 3), (20, 9, 9), (20, 9, -1)):
        with pytest.raises(ValueError, match="windows of 9 frames need"):
            window_starts(*bad)


def test_windows_of_a_motion_give_it_back(motion):
    starts = [0, 2, 4]
    windows = [trim(motion, start, start + 4) for start in starts]
    for follow in (False, True):
        joined = join_motions(windows, starts, follow)
        np.testing.assert_allclose(joined.hands, motion.hands, atol=1e-6)
        for name, points in motion.objects.items():
            np.testing.assert_allclose(joined.objects[name], points, atol=1e-6)
    videos = [torch.arange(9.0).reshape(9, 1, 1, 1)[start : start + 5] for start in starts]
    for blend in (False, True):
        assert join_videos(videos, starts, blend).flatten().tolist() == list(range(9))


def test_where_windows_differ_they_are_blended_or_follow(motion):
    first, second = trim(motion, 0, 5), trim(motion, 3, 8)
    off = replace(second, hands=second.hands + np.float32(0.04))
    joined = join_motions([first, off], [0, 3])
    by = (joined.hands - motion.hands)[:, 0, 0, 0]
    np.testing.assert_allclose(by, [0, 0, 0, 0.01, 0.02, 0.03, 0.04, 0.04, 0.04], atol=1e-6)
    np.testing.assert_allclose(join_motions([first, off], [0, 3], follow=True).hands, motion.hands, atol=1e-6)
    touching = join_motions([trim(motion, 0, 3), replace(trim(motion, 4, 8))], [0, 4], follow=True)
    np.testing.assert_allclose(touching.hands, motion.hands, atol=1e-6)


def test_a_video_goes_over_from_one_window_to_the_next():
    windows = torch.zeros(6, 1, 1, 1), torch.ones(6, 1, 1, 1)
    hard, soft = (join_videos(windows, [0, 3], blend).flatten().tolist() for blend in (False, True))
    assert hard == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert soft == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert not windows[0].any()


def test_an_object_keeps_its_points_and_goes_on_as_the_next_window_moves(motion):
    """However many points that shows, and wherever it has the object."""
    turns = Rotation.from_euler("z", np.arange(9)[:, None] * 10, degrees=True).as_matrix()
    points = np.einsum("nij,kj->nki", turns, motion.objects["tool"][0] - (0, 0, 0.6)) + (0, 0, 0.6)
    whole = replace(motion, objects={"tool": points})
    first, second = trim(whole, 0, 5), trim(whole, 3, 8)
    other = replace(second, objects={"tool": second.objects["tool"][:, ::-1][:, :8] + np.float32(0.02)})
    joined = join_motions([first, other], [0, 3], follow=True).objects["tool"]
    assert joined.shape == points.shape
    np.testing.assert_allclose(joined[:6], points[:6], atol=1e-6)
    shape = np.linalg.norm(joined[:, :, None] - joined[:, None], axis=-1)
    np.testing.assert_allclose(shape, shape[:1].repeat(9, 0), atol=1e-5)
    turned = points - points.mean(1, keepdims=True)
    np.testing.assert_allclose(joined - joined.mean(1, keepdims=True), turned, atol=1e-5)
    with pytest.raises(ValueError, match="the same objects and points"):
        join_motions([first, other], [0, 3])


def test_a_window_seen_through_another_lens_lies_where_it_did_in_the_image(motion):
    first, second = trim(motion, 0, 5), trim(motion, 3, 8)
    camera = Camera(fx=70.0, fy=60.0, cx=50.0, cy=30.0, width=96, height=64)
    joined = join_motions([first, replace(second, camera=camera)], [0, 3])
    assert joined.camera == first.camera
    tools = joined.objects["tool"][6:], second.objects["tool"][3:]
    for points, before in ((joined.hands[6:], second.hands[3:]), tools):
        expected = camera.project(before) * (first.camera.width / camera.width)
        np.testing.assert_allclose(first.camera.project(points), expected, atol=1e-3)
        np.testing.assert_allclose(
            points[..., 2] / before[..., 2], first.camera.fx / 48 / (70 / 96), rtol=1e-5
        )


def test_a_hand_that_one_window_lacks_comes_from_the_other(motion):
    first, second = trim(motion, 0, 5), trim(motion, 3, 8)
    hands = first.hands.copy()
    hands[3:, 1] = np.nan
    for follow in (False, True):
        joined = join_motions([replace(first, hands=hands), second], [0, 3], follow)
        assert joined.present.all()
        np.testing.assert_allclose(joined.hands, motion.hands, atol=1e-6)


def test_windows_that_do_not_fit_are_refused(motion):
    first, second = trim(motion, 0, 5), trim(motion, 3, 8)
    for other, start, says in (
        (replace(second, fps=24.0), 3, "one rate, got 8 and 24"),
        (replace(second, objects={"tool": second.objects["tool"]}), 3, "the same objects and points"),
        (second, 7, "a gap of 1 frames lies behind the first 6"),
    ):
        with pytest.raises(ValueError, match=says):
            join_motions([first, other], [0, start])
    with pytest.raises(ValueError, match=r"one size and leave no gap.*frame 4 of 3 x 2 x 2 x 3"):
        join_videos([torch.zeros(3, 2, 2, 3), torch.zeros(3, 2, 2, 3)], [0, 4])


def test_a_camera_is_cropped_as_its_image_is():
    """A white pixel of a wide photograph and the point that it shows stay together."""
    camera = Camera.from_fov(192, 108)
    point = np.array([[(30.5 - camera.cx) / camera.fx * 0.6, 0.0, 0.6]])
    photograph = torch.zeros(108, 192, 3)
    photograph[50:58, 26:35] = 1
    found = np.argwhere(fit_image(photograph, 96, 64)[..., 0].numpy() > 0.5).mean(axis=0)[::-1] + 0.5
    np.testing.assert_allclose(camera.cropped(96, 64).project(point)[0], found, atol=0.3)
    assert abs(camera.resized(96, 64).project(point)[0, 0] - found[0]) > 2
