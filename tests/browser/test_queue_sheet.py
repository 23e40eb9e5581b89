"""The contact sheet of a batch, opened from the disk."""

import shutil
from datetime import datetime, timezone

import av
import numpy as np
import pytest

from dev.browser import chromium, find_browser
from dev.comfy import ROOT
from svimo_queue.jobs import read_jobs
from svimo_queue.outputs import Outputs


@pytest.fixture
def no_complaints():
    """In place of the folder's own, which is about ComfyUI's page."""


def video(path) -> None:
    # VP8: what a browser without licensed decoders plays, too.
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for value in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), value * 16, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def sheet(tmp_path):
    for image in ("a", "b"):
        (tmp_path / f"{image}.png").write_bytes(image.encode())
    (tmp_path / "jobs.csv").write_text(
        "workflow,image,prompt,seed\n"
        "image_to_video_and_motion,a.png,stir,0-2\nimage_to_video_and_motion,b.png,<b>pour</b>,0-2\n"
    )
    jobs = read_jobs(tmp_path / "jobs.csv")
    with Outputs(tmp_path / "out", jobs) as outputs:
        for job in jobs[:4]:
            folder = outputs.begin(job)
            if job is jobs[3]:  # of a workflow that saves no picture
                with folder.file("motion.npz") as path:
                    shutil.copy(ROOT / "assets" / "motions" / "stir_cup.npz", path)
            else:
                for name in ("video.webm", "motion.webm"):
                    with folder.file(name) as path:
                        video(path)
            now = datetime.now(timezone.utc)
            folder.finish(started=now, seconds=9 - job.values["seed"], where="here", versions={})
        outputs.fail(jobs[4], "out of memory")
        return outputs.write_sheet("a night")


@pytest.mark.skipif(find_browser() is None, reason="no browser: install Chromium or Chrome")
def test_the_sheet_plays_searches_filters_and_sorts(sheet):
    with chromium() as browser:
        page, problems = browser.new_page(), []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(sheet.as_uri())
        titles = lambda: page.locator(".card h2").all_text_contents()  # noqa: E731
        stir, pour = "a.png \u00b7 stir", "b.png \u00b7 <b>pour</b>"
        assert titles() == [stir] * 3 + [pour] * 3
        drawn = page.locator(".card").nth(3)
        assert drawn.locator("img").evaluate("image => image.naturalWidth / image.naturalHeight") == 3
        assert drawn.locator(".links").text_content() == "motion.npz"
        assert page.text_content(".counts") == "4 of 6 done, 1 failed, 1 waiting"
        assert page.locator(".failed .empty").text_content() == "out of memory"

        page.hover(".card .shot")
        page.wait_for_function(
            "[...document.querySelectorAll('.card video')].every(v => v.currentTime > 0.1)"
        )
        assert page.locator(".card video").count() == 2
        page.hover("h1")
        assert page.locator(".card video").count() == 0

        page.fill("input[type=search]", "pour seed 1")
        assert page.text_content(".shown") == "1 of 6"
        page.fill("input[type=search]", "")
        page.select_option("select[aria-label=seed]", "2")
        assert titles() == [stir, pour]
        page.select_option("select[aria-label=seed]", "")
        page.select_option(".sort", "seconds")
        assert "seed 2" in page.locator(".card").first.text_content()

        page.click(".card .shot")
        page.wait_for_function(
            "[...document.querySelectorAll('dialog video')].every(v => v.currentTime > 0.1)"
        )
        page.keyboard.press("ArrowRight")
        assert "seed-1" in page.text_content("dialog h2")
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        assert problems == []
