"""The pictures of the page in the docs and the workflows' thumbnails, from real runs of a real ComfyUI.

python -m dev.pictures
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from dev.browser import ComfyPage, comfy_page
from dev.comfy import ROOT, ComfyServer
from dev.workflows import BRING_YOUR_OWN, WORKFLOWS
from svimo_core.data.synthetic import generate_clip, write_video

IMAGES = ROOT / "docs" / "images"
GRAPH_ONLY = """
    body * { visibility: hidden !important; }
    #graph-canvas, .dom-widget, .dom-widget *, [data-node-id], [data-node-id] * { visibility: visible !important; }
"""
TWO_VIEWERS = """() => {
    const add = (type, x, y, width, height) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, y];
        app.graph.add(node);
        node.setSize([width, height]);
        return node;
    };
    app.graph.clear();
    const motion = add("SViMoLoadMotion", 0, 0, 310, 90);
    const drawn = add("SViMoPreviewMotion", 0, 140, 310, 250);
    const video = add("LoadVideo", 0, 440, 310, 110);
    const frames = add("GetVideoComponents", 0, 600, 310, 80);
    motion.widgets[0].value = "clip.npz";
    drawn.widgets[0].value = "camera";
    video.widgets[0].value = "clip.mp4";
    motion.connect(0, drawn, 0);
    video.connect(0, frames, 0);
    for (const [i, view] of ["orbit", "camera"].entries()) {
        const viewer = add("SViMoMotionViewer", 380 + 860 * i, 0, 800, 680);
        viewer.properties.svimo_view = { view };
        motion.connect(0, viewer, "motion");
        frames.connect(0, viewer, "video");
        drawn.connect(0, viewer, "rendered_motion");
    }
}"""
"""A clip of the synthetic world, whose video is real in the sense that its motion is known, seen in both ways."""


def load(page: ComfyPage, workflow: str) -> None:
    """Load a workflow that ships with the pack."""
    page.load(json.loads((ROOT / "workflows" / f"{workflow}.json").read_text(encoding="utf-8")))


def take(page: ComfyPage, path: Path, *, width: int, margin: int = 40) -> None:
    """Picture of the whole graph and nothing else, `width` pixels wide."""
    x, y, w, h = page.page.evaluate(
        """() => {
            const boxes = app.graph.nodes.map(node => [...node.getBounding()]);
            const [left, top] = [0, 1].map(i => Math.min(...boxes.map(box => box[i])));
            const [right, bottom] = [0, 1].map(i => Math.max(...boxes.map(box => box[i] + box[i + 2])));
            return [left, top, right - left, bottom - top];
        }"""
    )
    scale = width / (w + 2 * margin)
    size = {"width": width, "height": round(scale * (h + 2 * margin))}
    page.page.set_viewport_size(size)
    page.page.add_style_tag(content=GRAPH_ONLY)
    page.page.evaluate(
        """([x, y, scale]) => {
            const { left, top } = app.canvas.canvas.getBoundingClientRect();
            app.canvas.deselectAll();
            app.canvas.ds.scale = scale;
            app.canvas.ds.offset = [-x - left / scale, -y - top / scale];
            app.canvas.setDirty(true, true);
        }""",
        [x - margin, y - margin, scale],
    )
    page.settle(2000)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.page.screenshot(path=path)
    print(path.relative_to(ROOT))


def main() -> int:
    """Take every picture."""
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "input").mkdir()
        for image in ("stir_cup.png", "coffee.png"):
            shutil.copy(ROOT / "assets" / image, Path(base) / "input")
        clip = generate_clip(29, height=320, width=480, points=300)
        clip.motion.save(Path(base) / "input" / "clip.npz")
        write_video(Path(base) / "input" / "clip.mp4", clip.video, clip.motion.fps)
        with ComfyServer(Path(base)) as server, comfy_page(server.url) as page:
            page.page.evaluate(TWO_VIEWERS)
            page.settle()
            page.run()
            page.page.locator(".svimo-ready").nth(1).wait_for()
            for scrubber in page.page.locator(".svimo-viewer input[type=range]").all():
                scrubber.fill("9")
            page.page.evaluate("document.activeElement.blur()")
            take(page, IMAGES / "viewer.png", width=1800)
            load(page, "image_to_video_and_motion")
            page.run()
            take(page, IMAGES / "graph.png", width=2600)
            for name in WORKFLOWS:
                load(page, name)
                if name not in BRING_YOUR_OWN:
                    page.run()
                take(page, ROOT / "workflows" / f"{name}.jpg", width=1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
