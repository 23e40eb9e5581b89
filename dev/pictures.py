"""The pictures of the page in the docs and the workflows' thumbnails, from real runs of a real ComfyUI.

    python -m dev.pictures              all of them
    python -m dev.pictures NAME ...     the thumbnails of these workflows

A thumbnail shows what its workflow makes: the 3D view, the video and the rendered motion. Workflows that need weights
which do not come with the pack have made nothing here, and show the image that they begin with. All of them need a
ComfyUI that runs every workflow (`COMFYUI_PATH`, 0.28 or newer).
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dev.browser import ComfyPage, comfy_page
from dev.comfy import EXAMPLES, ROOT, ComfyClient, ComfyServer, api_workflow
from dev.workflows import BRING_YOUR_OWN, WORKFLOWS
from svimo_train.data.synthetic import generate_clip, write_video

IMAGES = ROOT / "docs" / "images"
THUMBNAIL = 640
"""Pixels; the page shows thumbnails in squares, the upper left corner under a label."""
STRIPS, GAP, BACKGROUND = 3, 4, (22, 23, 29)
CAPTIONS = {
    "image_to_video_and_motion_fast": "EasyCache + TorchCompile",
    "image_to_video_and_motion_with_core_sampler": "SamplerCustomAdvanced",
    "image_to_video_and_motion_without_feedback": "feedback off",
    "image_to_video_and_motion_extended": "goes on three times",
    "motion_to_video": "a given motion",
    "video_to_motion": "out of a video",
    "retarget_and_export": "GLB  BVH  JSON",
    "video_from_cogvideox": "CogVideoX-5b-I2V, your weights",
    "svimo_from_converted_checkpoint": "converted from CogVideoX, your weights",
}
"""What sets a workflow apart from the main one, which needs no words."""
ONLY = "body * { visibility: hidden !important; } %s { visibility: visible !important; }"
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
SAVED_GLB_IN_3D = """() => {
    const save = app.graph.nodes.find(node => node.type === "SViMoSaveGLB");
    const view = LiteGraph.createNode("Preview3D");
    view.pos = [0, 900];
    app.graph.add(view);
    save.connect(0, view, "model_file");
    view.setSize([700, 700]);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [100, -850];
    app.canvas.setDirty(true, true);
}"""


def load(page: ComfyPage, workflow: str) -> None:
    """Load a workflow that ships with the pack."""
    page.load(json.loads((ROOT / "workflows" / f"{workflow}.json").read_text(encoding="utf-8")))


@contextlib.contextmanager
def style(page: ComfyPage, content: str) -> Iterator[None]:
    """The page with a style sheet more."""
    tag = page.page.add_style_tag(content=content)
    yield
    tag.evaluate("tag => tag.remove()")


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
    with style(page, GRAPH_ONLY):
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


# --- thumbnails ---


def thumbnail(page: ComfyPage, client: ComfyClient, name: str) -> None:
    """What a workflow makes, in a square."""
    path = ROOT / "workflows" / f"{name}.jpg"
    lower_edge = THUMBNAIL  # of what the caption lies on
    if name in BRING_YOUR_OWN:
        picture = ImageOps.fit(Image.open(ROOT / "assets" / "coffee.png").convert("RGB"), (THUMBNAIL,) * 2)
    else:
        strips = frames_of(client, name)
        view = saved_glb(page, name) if name == "retarget_and_export" else motion_view(page, name)
        picture, lower_edge = composed(view, strips)
    if name in CAPTIONS:
        caption(picture, CAPTIONS[name], lower_edge)
    picture.save(path, quality=88, optimize=True)
    print(path.relative_to(ROOT))


def frames_of(client: ComfyClient, name: str) -> list[list[Image.Image]]:
    """First, middle and last frame of what a workflow decodes or draws, without loss."""
    workflow = api_workflow(name)
    shows = {"SViMoDecodeVideo": (0, 1), "SViMoPreviewMotion": (0,), "SViMoVideoToMotion": (3,)}
    sources = [(node, i) for node, content in workflow.items() for i in shows.get(content["class_type"], ())]
    if joined := [node for node, content in workflow.items() if "images_before" in content["inputs"]]:
        sources = [(joined[-1], 1)]
    for i, source in enumerate(sources):
        workflow[f"frames{i}"] = {"class_type": "PreviewImage", "inputs": {"images": list(source)}}
    result = client.run(workflow, timeout=1200)
    strips = []
    for i in range(len(sources)):
        files = result.files(f"frames{i}")
        chosen = np.linspace(0, len(files) - 1, STRIPS).round().astype(int)
        strips.append(
            [Image.open(io.BytesIO(client.download(files[frame]))).convert("RGB") for frame in chosen]
        )
    return strips


def motion_view(page: ComfyPage, name: str) -> Image.Image:
    """The viewer's 3D view of what a workflow made, in the middle of the clip."""
    load(page, name)
    page.run(1200)
    page.page.set_viewport_size({"width": 1400, "height": 1000})
    page.page.evaluate(
        """() => {
            const viewer = app.graph.nodes.find(node => node.type === "SViMoMotionViewer");
            viewer.setSize([1300, 860]);
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [40 - viewer.pos[0], 80 - viewer.pos[1]];
            app.canvas.setDirty(true, true);
        }"""
    )
    viewer = page.page.locator(".svimo-ready")
    viewer.wait_for()
    viewer.locator("input[type=range]").fill("4")
    page.page.evaluate("document.activeElement.blur()")
    return photograph(page, ".svimo-viewer canvas")


def saved_glb(page: ComfyPage, name: str) -> Image.Image:
    """What core's own 3D view shows of the file that a workflow saves, in the middle of the clip."""
    load(page, name)
    page.page.set_viewport_size({"width": 1100, "height": 1000})
    page.page.evaluate(SAVED_GLB_IN_3D)
    page.run(1200)
    widget = page.page.locator(".dom-widget:has(canvas)").last
    play = widget.locator("button:has([class*=play])")
    play.wait_for(timeout=180_000)
    play.click()
    page.settle(1500)
    box = widget.locator("canvas").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(14):
        page.page.mouse.wheel(0, -100)
        page.settle(50)
    return in_colour(photograph(page, ".dom-widget canvas"))


def in_colour(image: Image.Image, aspect: float = 4 / 3, room: float = 1.5) -> Image.Image:
    """The part of a picture around what is not grey, but for what core draws near its edges."""
    width, height = image.size
    found = Image.fromarray(np.ptp(np.asarray(image), axis=-1) > 40)
    inner = (width // 6, height // 6, width - width // 6, height - height // 6)
    left, top, right, bottom = found.crop(inner).getbbox()
    x, y = inner[0] + (left + right) / 2, inner[1] + (top + bottom) / 2
    half = room * max((right - left) / 2, aspect * (bottom - top) / 2)
    return image.crop(tuple(round(v) for v in (x - half, y - half / aspect, x + half, y + half / aspect)))


def photograph(page: ComfyPage, selector: str) -> Image.Image:
    """One element and nothing that lies on it."""
    with style(page, ONLY % selector):
        page.settle(1500)
        return Image.open(io.BytesIO(page.page.locator(selector).last.screenshot())).convert("RGB")


def composed(view: Image.Image, strips: list[list[Image.Image]]) -> tuple[Image.Image, int]:
    """A view above strips of frames, and where it ends."""
    width = (THUMBNAIL - GAP * (STRIPS - 1)) / STRIPS
    first = strips[0][0]
    height = round(width * first.height / first.width)
    top = THUMBNAIL - len(strips) * (height + GAP)
    picture = Image.new("RGB", (THUMBNAIL, THUMBNAIL), BACKGROUND)
    picture.paste(ImageOps.fit(view, (THUMBNAIL, top), Image.Resampling.LANCZOS), (0, 0))
    for row, strip in enumerate(strips):
        for column, frame in enumerate(strip):
            left = round(column * (width + GAP))
            cell = frame.resize((round(width), height), Image.Resampling.BICUBIC)
            picture.paste(cell, (left, top + GAP + row * (height + GAP)))
    return picture, top


def caption(picture: Image.Image, text: str, lower_edge: int) -> None:
    """A few words on the lower edge of the view."""
    font = ImageFont.load_default(size=30)
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle((0, lower_edge - 52, THUMBNAIL, lower_edge), fill=(*BACKGROUND, 215))
    draw.text((THUMBNAIL / 2, lower_edge - 26), text, font=font, fill="white", anchor="mm")


def docs(page: ComfyPage) -> None:
    """The viewer and the main graph, for README."""
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
    page.page.evaluate(  # 0.33 shrinks them as it loads, and grows them again a while after the run
        "app.graph.nodes.filter(n => n.type === 'SaveVideo').forEach(n => n.setSize([310, 330]))"
    )
    take(page, IMAGES / "graph.png", width=2600)


def main() -> int:
    """Take every picture, or the thumbnails that are named."""
    names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "input").mkdir()
        for name in EXAMPLES:
            shutil.copy(ROOT / "assets" / name, Path(base) / "input")
        clip = generate_clip(29, height=320, width=480, points=300)
        clip.motion.save(Path(base) / "input" / "clip.npz")
        write_video(Path(base) / "input" / "clip.mp4", clip.video, clip.motion.fps)
        with (
            ComfyServer(Path(base)) as server,
            ComfyClient(server.url) as client,
            comfy_page(server.url, settings={"Comfy.VueNodes.Enabled": False}) as page,
        ):
            if not names:
                docs(page)
            for name in names or WORKFLOWS:
                thumbnail(page, client, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
