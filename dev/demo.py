"""`make demo`: one image and a prompt become a video and its 3D motion, through a real ComfyUI.

The image is of the synthetic world that svimo-tiny is trained on; its results lie in `output/demo/`. A photograph,
which is unlike anything the model has seen, goes the same way to `output/demo/photograph/`. Everything goes the way of
any API user: upload, queue, follow, download.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import tomlkit
from PIL import Image, ImageDraw, ImageFont

from dev.comfy import ROOT, ComfyClient, ComfyError, ComfyServer, Progress, Result, api_workflow
from svimo_core.motion import HandObjectMotion
from svimo_core.render import render_view

OUTPUT = ROOT / "output" / "demo"
PROMPT = {"tool": "spoon", "action": "stir", "target": "cup"}
RUNS = (
    (ROOT / "assets" / "stir_cup.png", OUTPUT, "synthetic, as the clips that svimo-tiny was trained on"),
    (
        ROOT / "assets" / "coffee.png",
        OUTPUT / "photograph",
        "a photograph, unlike anything svimo-tiny has seen",
    ),
)
"""Reference image, where its results go, and what to expect of it."""


def main() -> int:
    """Runs the demo; the exit status is 0 when every file was made."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a demo told to end still stops its server
    started = time.perf_counter()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    print("Starting ComfyUI ...")
    with tempfile.TemporaryDirectory() as base, ComfyServer(Path(base), log=OUTPUT / "comfyui.log") as server:
        boot_seconds = time.perf_counter() - started
        with ComfyClient(server.url) as client:
            reports = [run(client, *arguments) for arguments in RUNS]
            system = client.system_stats()["system"]
            peak_memory = server.peak_memory()

    report = {
        "prompt": "use {tool} to {action} {target}".format(**PROMPT),
        "seconds": {"total": round(time.perf_counter() - started, 2), "boot": round(boot_seconds, 2)},
        "runs": reports,
        "peak_memory_mb": round(peak_memory / 2**20),
        "versions": {
            "comfyui-svimo": tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]["version"],
            "comfyui": system["comfyui_version"],
            "python": system["python_version"].split()[0],
            "torch": system["pytorch_version"],
            "diffusers": importlib.metadata.version("diffusers"),
        },
    }
    (OUTPUT / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{report['seconds']['total']:.1f} s in all. Results in {OUTPUT}:")
    for path in sorted(path for path in OUTPUT.rglob("*") if path.is_file()):
        print(f"  {path.relative_to(OUTPUT)}  {path.stat().st_size:,} bytes")
    return 0


def run(client: ComfyClient, image: Path, folder: Path, about: str) -> dict:
    """The main workflow on one reference image: fill it in, run it, fetch what it made, and draw that; a report."""
    print(f"\n{image.name}: {about}")
    folder.mkdir(exist_ok=True)
    began = time.perf_counter()
    workflow = api_workflow("image_to_video_and_motion")
    the_node(workflow, "LoadImage")["inputs"]["image"] = client.upload_image(image)
    set_prompt(workflow, PROMPT)
    result = client.run(workflow, on_progress=ProgressLine(workflow))
    print()
    for name, file in files_made(workflow, result).items():
        (folder / name).write_bytes(client.download(file))
    seconds = time.perf_counter() - began
    return {
        "image": f"{image.name}: {about}",
        "frames": contact_sheet(folder),
        "sampler": sampler_report(result),
        "seconds": round(seconds, 2),
        "node_seconds": {
            f"{workflow[node]['class_type']} ({node})": round(s, 3) for node, s in result.seconds.items()
        },
        "previews": len(result.previews),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()},
    }


def the_node(workflow: dict, class_type: str) -> dict:
    """The only node of its class in an API-format workflow."""
    (node,) = (node for node in workflow.values() if node["class_type"] == class_type)
    return node


def set_prompt(workflow: dict, prompt: dict[str, str]) -> None:
    """Fills in the one node that takes the prompt in parts."""
    (node,) = (node for node in workflow.values() if prompt.keys() <= node["inputs"].keys())
    node["inputs"].update(prompt)


def files_made(workflow: dict, result: Result) -> dict[str, dict]:
    """Name in `output/demo` -> where ComfyUI keeps the file. The filename prefix tells the videos apart."""
    files = {}
    for node in result.outputs:
        class_type, inputs = workflow[node]["class_type"], workflow[node]["inputs"]
        if class_type == "SaveVideo":
            (files[f"{Path(inputs['filename_prefix']).name}.mp4"],) = result.files(node)
        elif class_type == "SViMoSaveMotion":
            (files["motion.npz"],) = (
                file for file in result.files(node) if file["filename"].endswith(".npz")
            )
        elif class_type == "SViMoSaveGLB":
            (files["motion.glb"],) = result.files(node)
    return {name: files[name] for name in ("video.mp4", "motion_video.mp4", "motion.npz", "motion.glb")}


def sampler_report(result: Result) -> dict:
    """What the sampler says about itself: steps, feedback passes, where its time went."""
    (report,) = (reported["svimo"][0] for reported in result.outputs.values() if "svimo" in reported)
    return report


def contact_sheet(folder: Path, *, columns: int = 9, cell: tuple[int, int] = (216, 144)) -> int:
    """Draws video, rendered motion and a 3D view over time into `contact_sheet.png`; returns the frame count.

    Args:
        folder: where `video.mp4`, `motion_video.mp4` and `motion.npz` lie.
        columns: most frames to show, evenly spread from the first to the last.
        cell: width and height of one frame on the sheet, in pixels.
    """
    motion = HandObjectMotion.load(folder / "motion.npz")
    rows = {
        "video": read_video(folder / "video.mp4"),
        "rendered\nmotion": read_video(folder / "motion_video.mp4"),
        "3D motion\nfrom the\nside": render_view(motion, *cell),
    }
    count = len(rows["video"])
    if any(len(frames) != count for frames in rows.values()):
        lengths = ", ".join(f"{len(frames)}" for frames in rows.values())
        raise ComfyError(
            f"video, rendered motion and motion should have the same number of frames, got {lengths}"
        )

    shown = np.unique(np.linspace(0, count - 1, min(columns, count)).round().astype(int))
    left, top, gap = 100, 28, 4  # room for the names of rows and columns, and between cells
    width, height = cell[0] + gap, cell[1] + gap
    sheet = Image.new("RGB", (left + width * len(shown), top + height * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for column, index in enumerate(shown):
        draw.text((left + column * width, 4), f"frame {index + 1}", fill="black", font=font)
    for row, (name, frames) in enumerate(rows.items()):
        draw.multiline_text((gap, top + row * height), name, fill="black", font=font)
        for column, index in enumerate(shown):
            frame = Image.fromarray(frames[index]).resize(cell, Image.Resampling.LANCZOS)
            sheet.paste(frame, (left + column * width, top + row * height))
    sheet.save(folder / "contact_sheet.png")
    return count


def read_video(path: Path) -> np.ndarray:
    """All frames of a video, N x H x W x 3, 8-bit RGB."""
    with av.open(io.BytesIO(path.read_bytes())) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


class ProgressLine:
    """Prints which node is at work and how far it is: one line in a terminal, one per node elsewhere."""

    def __init__(self, workflow: dict):
        self.workflow = workflow
        self.started = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        line = f"{time.perf_counter() - self.started:6.1f} s  {self.workflow[progress.node]['class_type']}"
        if progress.maximum:
            line += f"  {progress.value:.0f}/{progress.maximum:.0f}"
        if sys.stdout.isatty():
            print(f"\r{line:<78}", end="", flush=True)
        elif not progress.maximum or progress.value == progress.maximum:
            print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except ComfyError as error:
        sys.exit(str(error))
