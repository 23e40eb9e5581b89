from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from dev.comfy import ComfyError
from dev.demo import contact_sheet, read_video
from svimo_core.motion import Camera, HandObjectMotion


def write_video(path, colors):
    """A video with one frame of each colour."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for color in colors:
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), color, dtype=np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


@pytest.fixture
def results(tmp_path):
    reds = [(25 * i, 0, 0) for i in range(10)]
    write_video(tmp_path / "video.mp4", reds)
    write_video(tmp_path / "motion_video.mp4", [(0, red, 0) for red, _, _ in reds])
    hands = np.random.default_rng(0).uniform(-0.1, 0.1, (10, 2, 21, 3)) + (0, 0, 0.6)
    HandObjectMotion(hands=hands, objects={}, camera=Camera.from_fov(96, 64), fps=8).save(
        tmp_path / "motion.npz"
    )
    return tmp_path


def test_contact_sheet_shows_first_to_last_frame_of_every_row(results):
    assert contact_sheet(results, columns=4, cell=(96, 64)) == 10
    sheet = np.asarray(Image.open(results / "contact_sheet.png")).astype(int)
    assert sheet.shape == (28 + 3 * 68, 100 + 4 * 100, 3)
    # The middle of each cell: video in red, rendered motion in green, frames 1, 4, 7 and 10.
    middle = sheet[28 + 32 :: 68, 100 + 48 :: 100]
    np.testing.assert_allclose(middle[0, :, 0], [0, 75, 150, 225], atol=8)
    np.testing.assert_allclose(middle[1, :, 1], [0, 75, 150, 225], atol=8)
    assert middle[0, :, 1:].max() < 16
    view = sheet[28 + 2 * 68 :][:64, 100:196]
    assert len(np.unique(view.reshape(-1, 3), axis=0)) > 10


def test_contact_sheet_refuses_video_and_motion_of_different_lengths(results):
    write_video(results / "video.mp4", [(0, 0, 0)] * 9)
    assert len(read_video(results / "video.mp4")) == 9
    with pytest.raises(ComfyError, match=r"same number of frames, got 9, 10, 10"):
        contact_sheet(results)
