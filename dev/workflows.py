"""Write the workflows that ship with the pack, each for the page and, the same graph, for the API.

    python -m dev.workflows

A workflow is described once, below; the inputs' order and defaults come from a real ComfyUI, so that a changed node
needs no hand-edited JSON. Thumbnails are pictures of results and are not made here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from dev.comfy import ROOT, ComfyClient, ComfyServer

FOLDER = ROOT / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, NODE_WIDTH, ROW_GAP, MARGIN, SLOT, WIDGET, TEXT = 380, 310, 70, 16, 20, 24, 90
"""Layout in pixels: columns, space between nodes (their titles take 30 of it), and what a node's own height is made of:
its margin, its slots, and its widgets, of which fields of several lines are taller."""


class Link(NamedTuple):
    """An input fed by another node: its name in the graph and the number of its output."""

    node: str
    output: int = 0


class Node(NamedTuple):
    """One node: its class, its place on the canvas, and the inputs that differ from their defaults."""

    type: str
    place: tuple[int, int]
    """Column from the left, and row from its top."""
    inputs: dict[str, Any]
    size: tuple[int, int] | None = None
    """Pixels on the canvas, for nodes that show pictures."""


Graph = dict[str, Node]
"""Nodes by a name that says what they do, in the order of their ids."""


def image_to_video_and_motion(feedback: bool = True) -> Graph:
    """Reference image and prompt to video, rendered motion and 3D motion."""
    return {
        "checkpoint": Node("SViMoCheckpointLoader", (0, 0), {"ckpt_name": "svimo-tiny.safetensors"}),
        "image": Node("LoadImage", (0, 1), {"image": "stir_cup.png"}, (NODE_WIDTH, 330)),
        "prompt": Node("SViMoPrompt", (0, 2), {"tool": "spoon", "action": "stir", "target": "cup"}),
        "positive": Node("SViMoTextEncode", (1, 0), {"clip": Link("checkpoint", 3), "text": Link("prompt")}),
        "negative": Node("SViMoTextEncode", (1, 1), {"clip": Link("checkpoint", 3), "text": ""}),
        "conditions": Node(
            "SViMoImageEncode",
            (2, 0),
            {
                "positive": Link("positive"),
                "negative": Link("negative"),
                "vae": Link("checkpoint", 2),
                "image": Link("image"),
            },
        ),
        "feedback": Node(
            "SViMoFeedback",
            (2, 1),
            {"interaction": Link("checkpoint", 1), "vae": Link("checkpoint", 2), "enabled": feedback},
        ),
        "sampler": Node(
            "SViMoSampler",
            (3, 0),
            {
                "model": Link("checkpoint"),
                "positive": Link("conditions"),
                "negative": Link("conditions", 1),
                "latent_image": Link("conditions", 2),
                "feedback": Link("feedback"),
                "seed": 42,
                "steps": 10,
                "cfg": 1.0,
                "cfg_schedule": "constant",
            },
            (NODE_WIDTH, 480),
        ),
        "frames": Node("SViMoDecodeVideo", (4, 0), {"vae": Link("checkpoint", 2), "latent": Link("sampler")}),
        "motion": Node(
            "SViMoDecodeMotion", (4, 1), {"interaction": Link("checkpoint", 1), "latent": Link("sampler")}
        ),
        "save_motion": Node(
            "SViMoSaveMotion", (5, 2), {"motion": Link("motion"), "filename_prefix": "svimo/motion"}
        ),
        "rig": Node("SViMoRigMotion", (4, 2), {"motion": Link("motion")}),
        "save_glb": Node(
            "SViMoSaveGLB", (4, 3), {"rigged_motion": Link("rig"), "filename_prefix": "svimo/motion"}
        ),
        "video": Node("CreateVideo", (5, 0), {"images": Link("frames"), "fps": 8.0}),
        "save_video": Node(
            "SaveVideo",
            (6, 0),
            {"video": Link("video"), "filename_prefix": "svimo/video", "format": "mp4"},
            (NODE_WIDTH, 330),
        ),
        "motion_video": Node("CreateVideo", (5, 1), {"images": Link("frames", 1), "fps": 8.0}),
        "save_motion_video": Node(
            "SaveVideo",
            (6, 1),
            {"video": Link("motion_video"), "filename_prefix": "svimo/motion_video", "format": "mp4"},
            (NODE_WIDTH, 330),
        ),
        "viewer": Node(
            "SViMoMotionViewer",
            (5, 3),
            {"motion": Link("motion"), "video": Link("frames"), "rendered_motion": Link("frames", 1)},
            (COLUMN + NODE_WIDTH, 540),
        ),
    }


def given_motion_to_video() -> Graph:
    """A motion that exists already guides the video."""
    graph = {
        name: node._replace(
            place=(node.place[0] + (node.place[0] >= 3), node.place[1])
        )  # room for the new node
        for name, node in image_to_video_and_motion().items()
    }
    graph["load_motion"] = Node("SViMoLoadMotion", (0, 3), {"motion": "stir_cup_short.npz [example]"})
    graph["guided"] = Node(
        "SViMoMotionEncode",
        (3, 0),
        {
            "positive": Link("conditions"),
            "negative": Link("conditions", 1),
            "vae": Link("checkpoint", 2),
            "motion": Link("load_motion"),
            "latent": Link("conditions", 2),
        },
    )
    sampler = graph["sampler"]
    graph["sampler"] = sampler._replace(
        inputs=sampler.inputs | {"positive": Link("guided"), "negative": Link("guided", 1)}
    )
    return graph


def full_size(model_name: str, vae_name: str, size: tuple[int, int], prompt: str) -> Graph:
    """Reference image and prompt to video with a full-size model that the user has; T5-XXL through core's loader."""
    return {
        "model": Node("SViMoDiffusionModelLoader", (0, 0), {"model_name": model_name}),
        "clip": Node(
            "CLIPLoader", (0, 1), {"clip_name": "t5xxl_fp16.safetensors", "type": "sd3", "device": "default"}
        ),
        "vae": Node("SViMoVAELoader", (0, 2), {"vae_name": vae_name}),
        "image": Node("LoadImage", (0, 3), {"image": "coffee.png"}, (NODE_WIDTH, 330)),
        "positive": Node("SViMoTextEncode", (1, 0), {"clip": Link("clip"), "text": prompt}),
        "negative": Node("SViMoTextEncode", (1, 1), {"clip": Link("clip"), "text": ""}),
        "conditions": Node(
            "SViMoImageEncode",
            (2, 0),
            {
                "positive": Link("positive"),
                "negative": Link("negative"),
                "vae": Link("vae"),
                "image": Link("image"),
                "width": size[0],
                "height": size[1],
                "frames": 49,
                "noise_augmentation": 0.0,
            },
        ),
        "sampler": Node(
            "SViMoSampler",
            (3, 0),
            {
                "model": Link("model"),
                "positive": Link("conditions"),
                "negative": Link("conditions", 1),
                "latent_image": Link("conditions", 2),
                "seed": 42,
            },
            (NODE_WIDTH, 480),
        ),
        "frames": Node("SViMoDecodeVideo", (4, 0), {"vae": Link("vae"), "latent": Link("sampler")}),
        "video": Node("CreateVideo", (5, 0), {"images": Link("frames"), "fps": 8.0}),
        "save_video": Node(
            "SaveVideo",
            (6, 0),
            {"video": Link("video"), "filename_prefix": "svimo/video", "format": "mp4"},
            (NODE_WIDTH, 330),
        ),
    }


def converted_checkpoint() -> Graph:
    """A checkpoint started from CogVideoX-I2V: video and its rendered motion, to watch while it trains."""
    file = "svimo-from-cogvideox.safetensors"
    graph = full_size(file, file, (624, 416), "use spoon to stir cup")
    graph["motion_video"] = Node("CreateVideo", (5, 1), {"images": Link("frames", 1), "fps": 8.0})
    graph["save_motion_video"] = graph["save_video"]._replace(
        place=(6, 1),
        inputs={"video": Link("motion_video"), "filename_prefix": "svimo/motion_video", "format": "mp4"},
    )
    return graph


def retarget_and_export() -> Graph:
    """A motion that exists already, cleaned, rigged and saved for other programs; needs no model."""
    return {
        "load": Node("SViMoLoadMotion", (0, 0), {"motion": "stir_cup.npz [example]"}),
        "clean": Node("SViMoCleanMotion", (1, 0), {"motion": Link("load"), "fps": 24.0}),
        "rig": Node("SViMoRigMotion", (2, 0), {"motion": Link("clean")}),
        "glb": Node(
            "SViMoSaveGLB", (3, 0), {"rigged_motion": Link("rig"), "filename_prefix": "svimo/motion"}
        ),
        "bvh": Node("SViMoSaveBVH", (3, 1), {"rigged_motion": Link("rig"), "filename_prefix": "svimo/hand"}),
        "json": Node(
            "SViMoSaveMotion",
            (2, 1),
            {"motion": Link("clean"), "filename_prefix": "svimo/motion", "format": "json"},
        ),
        "preview": Node("SViMoPreviewMotion", (2, 2), {"motion": Link("clean")}, (NODE_WIDTH, 380)),
    }


WORKFLOWS = {
    "image_to_video_and_motion": image_to_video_and_motion(),
    "image_to_video_and_motion_without_feedback": image_to_video_and_motion(feedback=False),
    "given_motion_to_video": given_motion_to_video(),
    "retarget_and_export": retarget_and_export(),
    "cogvideox_image_to_video": full_size(
        "cogvideox-5b-i2v.safetensors",
        "cogvideox-vae.safetensors",
        (720, 480),
        "A spoon stirs a cup of coffee on a wooden table, steam rising, soft morning light.",
    ),
    "svimo_from_converted_checkpoint": converted_checkpoint(),
}
BRING_YOUR_OWN = ("cogvideox_image_to_video", "svimo_from_converted_checkpoint")
"""Workflows that need weights which do not come with the pack."""


def to_api(graph: Graph, info: dict[str, dict]) -> dict[str, dict]:
    """API format: every input that is linked, set, or has a default."""
    ids = {name: str(i) for i, name in enumerate(graph, start=1)}
    workflow = {}
    for name, node in graph.items():
        inputs = {}
        for key, _, options in _inputs(info[node.type]):
            value = node.inputs.get(key, options.get("default"))
            if isinstance(value, Link):
                inputs[key] = [ids[value.node], value.output]
            elif value is not None:
                inputs[key] = value
        unknown = node.inputs.keys() - {key for key, _, _ in _inputs(info[node.type])}
        assert not unknown, f"{node.type} has no inputs {unknown}"
        workflow[ids[name]] = {
            "class_type": node.type,
            "inputs": inputs,
            "_meta": {"title": info[node.type]["display_name"]},
        }
    return workflow


def to_page(graph: Graph, info: dict[str, dict]) -> dict[str, Any]:
    """The page's format: nodes with positions, slots and widget values, and a list of links."""
    ids = {name: i for i, name in enumerate(graph, start=1)}
    nodes, links = {}, []
    for order, (name, node) in enumerate(graph.items()):
        slots, widgets, fields = [], [], 0
        for key, kind, options in _inputs(info[node.type]):
            value = node.inputs.get(key, options.get("default"))
            if kind not in WIDGET_TYPES:
                slots.append({"name": key, "type": kind, "link": None})
                continue
            if isinstance(value, Link):
                slots.append({"name": key, "type": kind, "widget": {"name": key}, "link": None})
                value = options.get("default", "")
            widgets.append(value)
            fields += TEXT if options.get("multiline") else WIDGET
            if options.get("control_after_generate"):
                widgets.append("fixed")
                fields += WIDGET
            if options.get("image_upload"):
                widgets.append("image")
        outputs = [
            {"name": label, "type": kind, "links": []}
            for label, kind in zip(info[node.type]["output_name"], info[node.type]["output"], strict=True)
        ]
        sockets = max(len([slot for slot in slots if "widget" not in slot]), len(outputs))
        size = node.size or (NODE_WIDTH, MARGIN + SLOT * sockets + fields)
        nodes[name] = {
            "id": ids[name],
            "type": node.type,
            "pos": [node.place[0] * COLUMN, 0],
            "size": list(size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": slots,
            "outputs": outputs,
            "properties": {"Node name for S&R": node.type},
            "widgets_values": widgets,
        }
    bottoms: dict[int, int] = {}
    for name, node in sorted(graph.items(), key=lambda item: item[1].place[::-1]):  # row by row
        width, height = nodes[name]["size"]
        columns = range(node.place[0], node.place[0] + -(-width // COLUMN))  # a wide node covers several
        top = max(bottoms.get(column, 0) for column in columns)
        nodes[name]["pos"][1] = top
        bottoms.update(dict.fromkeys(columns, top + height + ROW_GAP))
    for name, node in graph.items():
        for slot, entry in enumerate(nodes[name]["inputs"]):
            source = node.inputs.get(entry["name"])
            if isinstance(source, Link):
                link = [len(links) + 1, ids[source.node], source.output, ids[name], slot, entry["type"]]
                links.append(link)
                entry["link"] = link[0]
                nodes[source.node]["outputs"][source.output]["links"].append(link[0])
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _inputs(info: dict) -> list[tuple[str, str, dict]]:
    """Name, type and options of each input of a node, in order."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = dict(rest[0]) if rest else {}
            if isinstance(kind, list):  # a classic node's combo: the type is its list of options
                options.setdefault("default", kind[0] if kind else None)
                kind = "COMBO"
            elif kind == "COMBO":
                options.setdefault("default", (options.get("options") or [None])[0])
            found.append((name, kind, options))
    return found


def main() -> int:
    """Write every workflow."""
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(Path(base)) as server,
        ComfyClient(server.url) as client,
    ):
        info = client.object_info()
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for name, graph in WORKFLOWS.items():
        for path, workflow in (
            (FOLDER / f"{name}.json", to_page(graph, info)),
            (FOLDER / "api" / f"{name}.json", to_api(graph, info)),
        ):
            path.write_text(json.dumps(workflow, indent=2) + "\n", encoding="utf-8")
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
