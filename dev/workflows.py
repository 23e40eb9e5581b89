"""Write the workflows that ship with the pack, each for the page and, the same graph, for the API.

    python -m dev.workflows

A workflow is described once, below; the inputs' order and defaults come from a real ComfyUI, so that a changed node
needs no hand-edited JSON. Thumbnails are pictures of results and are not made here.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from dev.comfy import ROOT, ComfyClient, ComfyServer

FOLDER = ROOT / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTE = "MarkdownNote"
"""A node of the page's own, of which the server knows nothing."""
COLUMN, NODE_WIDTH, TITLE, GAP = 390, 310, 30, 60
"""Layout in pixels: columns, a node's width, the height of its title, and the space between nodes below each other."""
MARGIN, SLOT, WIDGET, TEXT = 16, 20, 24, 90
"""What a node's own height is made of: its margin, its slots, and its widgets, of which fields of several lines are
taller."""
ROOM_MARGIN, ROOM_SLOT, ROOM_WIDGET = 58, 22, 32
"""The same in the tallest way to draw it that there is, Nodes 2.0 of ComfyUI 0.33: the room that it is left."""
VIDEO = (NODE_WIDTH, 330)
"""Size of a node that shows a picture or a video."""


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


def note(place: tuple[int, int], text: str, height: int = 330) -> Node:
    """What a workflow is for, on the canvas, in Markdown."""
    return Node(NOTE, place, {"text": inspect.cleandoc(text)}, (NODE_WIDTH, height))


def moved(graph: Graph, since: int, by: int) -> Graph:
    """Everything from a column on, so many columns further to the right: room for new nodes."""
    return {
        name: node._replace(place=(node.place[0] + by * (node.place[0] >= since), node.place[1]))
        for name, node in graph.items()
    }


def changed(graph: Graph, name: str, **inputs: Any) -> Graph:
    """A graph with other inputs at one of its nodes."""
    node = graph[name]
    return graph | {name: node._replace(inputs=node.inputs | inputs)}


# --- the workflows ---


def image_to_video_and_motion() -> Graph:
    """Reference image and prompt to video, rendered motion and 3D motion, with the loop closed."""
    return {
        "checkpoint": Node("SViMoCheckpointLoader", (1, 0), {"ckpt_name": "svimo-tiny.safetensors"}),
        "image": Node("LoadImage", (0, 1), {"image": "stir_cup.png"}, VIDEO),
        "prompt": Node("SViMoPrompt", (1, 1), {"tool": "spoon", "action": "stir", "target": "cup"}),
        "positive": Node("SViMoTextEncode", (2, 0), {"clip": Link("checkpoint", 3), "text": Link("prompt")}),
        "negative": Node("SViMoTextEncode", (2, 1), {"clip": Link("checkpoint", 3), "text": ""}),
        "conditions": Node(
            "SViMoImageEncode",
            (3, 1),
            {
                "positive": Link("positive"),
                "negative": Link("negative"),
                "vae": Link("checkpoint", 2),
                "image": Link("image"),
            },
        ),
        "feedback": Node(
            "SViMoFeedbackLoop",
            (3, 0),
            {
                "model": Link("checkpoint"),
                "interaction": Link("checkpoint", 1),
                "vae": Link("checkpoint", 2),
            },
        ),
        "sampler": Node(
            "SViMoSampler",
            (4, 0),
            {
                "model": Link("feedback"),
                "positive": Link("conditions"),
                "negative": Link("conditions", 1),
                "latent_image": Link("conditions", 2),
                "seed": 42,
                "steps": 10,
                "cfg": 1.0,
                "cfg_schedule": "constant",
            },
            (NODE_WIDTH, 480),
        ),
        "frames": Node("SViMoDecodeVideo", (5, 0), {"vae": Link("checkpoint", 2), "latent": Link("sampler")}),
        "motion": Node(
            "SViMoDecodeMotion", (5, 1), {"interaction": Link("checkpoint", 1), "latent": Link("sampler")}
        ),
        "save_motion": Node(
            "SViMoSaveMotion", (6, 2), {"motion": Link("motion"), "filename_prefix": "svimo/motion"}
        ),
        "rig": Node("SViMoRigMotion", (5, 2), {"motion": Link("motion")}),
        "save_glb": Node(
            "SViMoSaveGLB", (6, 3), {"rigged_motion": Link("rig"), "filename_prefix": "svimo/motion"}
        ),
        "video": Node("CreateVideo", (6, 0), {"images": Link("frames"), "fps": 8.0}),
        "save_video": Node(
            "SaveVideo",
            (7, 0),
            {"video": Link("video"), "filename_prefix": "svimo/video", "format": "mp4"},
            VIDEO,
        ),
        "motion_video": Node("CreateVideo", (6, 1), {"images": Link("frames", 1), "fps": 8.0}),
        "save_motion_video": Node(
            "SaveVideo",
            (7, 1),
            {"video": Link("motion_video"), "filename_prefix": "svimo/motion_video", "format": "mp4"},
            VIDEO,
        ),
        "viewer": Node(
            "SViMoMotionViewer",
            (4, 3),
            {"motion": Link("motion"), "video": Link("frames"), "rendered_motion": Link("frames", 1)},
            (COLUMN + NODE_WIDTH, 540),
        ),
        "note": note(
            (0, 0),
            """
            # Image to video and 3D motion

            One image and a prompt become a short **video**, the **rendered motion** beside it, and the **3D motion**
            of both hands and all objects.

            **SViMo Feedback** closes the loop: at each step the motion is read off the video while it forms, held
            against the image, drawn, and guides the next step. Switch `enabled` off to compare.

            *svimo-tiny* comes with the pack and shows that everything works. It is trained on synthetic clips of 9
            frames, 96 x 64 pixels; a photograph is beyond it.
            """,
        ),
    }


def without_feedback() -> Graph:
    """The same with the loop open."""
    graph = changed(image_to_video_and_motion(), "feedback", enabled=False)
    graph["note"] = note(
        (0, 0),
        """
        # Without feedback

        The main workflow with the loop open: `enabled` of *SViMo Feedback* is off. Video and rendered motion are
        denoised together, and the 3D motion is only read off them.

        Same seed, same everything else: run both and compare how well the hands of the 3D view lie on those of the
        video.
        """,
    )
    return graph


def with_core_sampler() -> Graph:
    """The same with core's sampler, guider and noise."""
    graph = moved(image_to_video_and_motion(), since=5, by=1)
    graph |= {
        "noise": Node("RandomNoise", (4, 0), {"noise_seed": 42}),
        "guider": Node(
            "CFGGuider",
            (4, 1),
            {
                "model": Link("feedback"),
                "positive": Link("conditions"),
                "negative": Link("conditions", 1),
                "cfg": 1.0,
            },
        ),
        "solver": Node("KSamplerSelect", (4, 2), {"sampler_name": "euler"}),
        "sigmas": Node(
            "BasicScheduler", (4, 3), {"model": Link("feedback"), "scheduler": "simple", "steps": 10}
        ),
        "sampler": Node(
            "SamplerCustomAdvanced",
            (5, 0),
            {
                "noise": Link("noise"),
                "guider": Link("guider"),
                "sampler": Link("solver"),
                "sigmas": Link("sigmas"),
                "latent_image": Link("conditions", 2),
            },
            VIDEO,
        ),
    }
    graph["viewer"] = graph["viewer"]._replace(place=(5, 4))
    graph["note"] = note(
        (0, 0),
        """
        # With core's sampler

        The model is one of ComfyUI's own kind, and the loop is a patch of it: any sampler, scheduler and guider of
        core takes both. Here *SamplerCustomAdvanced* with `euler` and `simple`, which sample as *SViMo Sampler* does
        with `ddim`.

        *SViMo Decode Motion* reads the 3D motion off the finished latent. After *SViMo Sampler* it is the mean of
        all steps, which is more exact.

        For a cfg above 1 put *SViMo Growing CFG* before the loop, as CogVideoX was made to be sampled.
        """,
        380,
    )
    return graph


def fast() -> Graph:
    """The same with core's cache and compiler before the loop."""
    graph = moved(image_to_video_and_motion(), since=2, by=1)
    graph |= {
        "cache": Node("EasyCache", (2, 0), {"model": Link("checkpoint")}),
        "compile": Node("TorchCompileModel", (2, 1), {"model": Link("cache"), "backend": "inductor"}),
    }
    graph = changed(graph, "feedback", model=Link("compile"))
    graph["note"] = note(
        (0, 0),
        """
        # Faster

        Core's **EasyCache** leaves out steps that would change little, and **TorchCompileModel** compiles the model.
        Fewer steps save more: the tiny model needs 4. With a checkpoint that has no drawing encoder, `every` = 2 of
        *SViMo Feedback* saves half of what the loop costs.

        - *EasyCache* takes models of two streams from ComfyUI 0.28 on.
        - *TorchCompileModel* needs Triton on a graphics card and a C++ compiler on a CPU. The first run compiles and
          is slow: it pays off with a full-size model.
        """,
        360,
    )
    return graph


ANY_TO_ANY = "svimo-tiny-any.safetensors"


def motion_to_video() -> Graph:
    """A motion that exists already becomes a video."""
    graph = changed(image_to_video_and_motion(), "checkpoint", ckpt_name=ANY_TO_ANY)
    graph |= {
        "load_motion": Node("SViMoLoadMotion", (2, 2), {"motion": "stir_cup_short.npz [example]"}),
        "conditions": Node(
            "SViMoMotionToVideo",
            (3, 1),
            {
                "model": Link("checkpoint"),
                "positive": Link("positive"),
                "negative": Link("negative"),
                "vae": Link("checkpoint", 2),
                "image": Link("image"),
                "motion": Link("load_motion"),
            },
        ),
    }
    graph["note"] = note(
        (0, 0),
        """
        # Motion to video

        A 3D motion that you have becomes a video in your image: keyed, captured, imported (a BVH, the arrays of a hand
        tracker), or an earlier result. It is drawn and given to the sampler as it is. The image should show its first
        frame.

        Of a longer motion this makes the beginning; *SViMo Extend Clip* goes on along it.

        To let a motion only guide, and the model change it, there is *SViMo Motion Encode*.

        *svimo-tiny-any* knows clips of its synthetic world (`assets/stir_cup.png`, into ComfyUI's input folder). Of a
        photograph, or of a motion unlike that world's, it makes what it can, which is little: it shows how this works
        until a large one is trained.
        """,
        430,
    )
    return graph


def video_to_motion() -> Graph:
    """The motion of hands and objects in a video, to skinned hands in a GLB."""
    graph = changed(image_to_video_and_motion(), "checkpoint", ckpt_name=ANY_TO_ANY)
    for name in ("image", "frames", "video", "save_video", "motion_video", "save_motion_video"):
        del graph[name]
    graph |= {
        "load_video": Node("LoadVideo", (0, 1), {"file": "stir_cup.mp4"}, VIDEO),
        "components": Node("GetVideoComponents", (1, 2), {"video": Link("load_video")}),
        "conditions": Node(
            "SViMoVideoToMotion",
            (3, 1),
            {
                "model": Link("checkpoint"),
                "positive": Link("positive"),
                "negative": Link("negative"),
                "vae": Link("checkpoint", 2),
                "images": Link("components"),
                "fps": Link("components", 2),
            },
        ),
        "motion": Node(
            "SViMoDecodeMotion", (5, 0), {"interaction": Link("checkpoint", 1), "latent": Link("sampler")}
        ),
        "joined": Node("SViMoJoinClips", (5, 1), {"motion": Link("motion")}),
        "viewer": Node(
            "SViMoMotionViewer",
            (4, 3),
            {"motion": Link("joined"), "video": Link("conditions", 3)},
            (COLUMN + NODE_WIDTH, 540),
        ),
    }
    for name in ("save_motion", "rig"):
        graph = changed(graph, name, motion=Link("joined"))
    graph["save_motion"] = graph["save_motion"]._replace(place=(6, 0))
    graph["save_glb"] = graph["save_glb"]._replace(place=(6, 1))
    graph["note"] = note(
        (0, 0),
        """
        # Video to 3D motion

        Hands **and objects** out of a video you have. It is seen at the model's rate and size, in windows of its
        length: each gets its motion, and *SViMo Join Clips* puts them together.

        Words help: say what is held and what it does. The camera is taken to stand still.

        *svimo-tiny-any* knows clips of its synthetic world (`assets/stir_cup.mp4`, into ComfyUI's input folder). Of a
        real video it makes what it can, which is little: it shows how this works until a large one is trained.
        """,
        400,
    )
    return graph


def extended() -> Graph:
    """A clip that goes on three times."""
    graph = changed(image_to_video_and_motion(), "checkpoint", ckpt_name=ANY_TO_ANY)
    for name in (
        "video",
        "save_video",
        "motion_video",
        "save_motion_video",
        "save_motion",
        "rig",
        "save_glb",
        "viewer",
    ):
        del graph[name]
    images, motion = Link("frames"), Link("motion")
    for i in range(3):
        column, more, sampled = 6 + 3 * i, f"extend_{i + 1}", f"sampler_{i + 1}"
        graph |= {
            more: Node(
                "SViMoExtendClip",
                (column, 0),
                {
                    "model": Link("checkpoint"),
                    "positive": Link("positive"),
                    "negative": Link("negative"),
                    "vae": Link("checkpoint", 2),
                    "images": images,
                    "motion": motion,
                    "interaction": Link("checkpoint", 1),
                },
            ),
            sampled: graph["sampler"]._replace(
                place=(column + 1, 0),
                inputs=graph["sampler"].inputs
                | {"positive": Link(more), "negative": Link(more, 1), "latent_image": Link(more, 2)},
            ),
            f"frames_{i + 1}": Node(
                "SViMoDecodeVideo", (column, 1), {"vae": Link("checkpoint", 2), "latent": Link(sampled)}
            ),
            f"motion_{i + 1}": Node(
                "SViMoDecodeMotion",
                (column, 2),
                {"interaction": Link("checkpoint", 1), "latent": Link(sampled)},
            ),
            f"joined_{i + 1}": Node(
                "SViMoJoinClips",
                (column + 2, 0),
                {
                    "motion": Link(f"motion_{i + 1}"),
                    "images": Link(f"frames_{i + 1}"),
                    "motion_before": motion,
                    "images_before": images,
                },
            ),
        }
        motion, images = Link(f"joined_{i + 1}"), Link(f"joined_{i + 1}", 1)
    graph |= {
        "video": Node("CreateVideo", (15, 0), {"images": images, "fps": 8.0}),
        "save_video": Node(
            "SaveVideo",
            (16, 0),
            {"video": Link("video"), "filename_prefix": "svimo/video", "format": "mp4"},
            VIDEO,
        ),
        "save_motion": Node(
            "SViMoSaveMotion", (15, 1), {"motion": motion, "filename_prefix": "svimo/motion"}
        ),
        "viewer": Node(
            "SViMoMotionViewer", (13, 2), {"motion": motion, "video": images}, (COLUMN + NODE_WIDTH, 540)
        ),
    }
    graph["note"] = note(
        (0, 0),
        """
        # A clip that goes on

        The first window is made of an image and words. Each further one begins with the last frames of the clip so far,
        of its video and its motion, and *SViMo Join Clips* puts it behind.

        Other words in a later window change what happens there. *SViMo Extend Clip* can also arrive at another clip
        (`next_images`, `next_motion`), or follow a motion that is longer than the video.

        Each window loses a little: the picture blurs where things moved.

        *svimo-tiny-any* knows clips of its synthetic world (`assets/stir_cup.png`, into ComfyUI's input folder). Of a
        photograph, or of a clip from elsewhere, it makes what it can, which is little: it shows how this works until a
        large one is trained.
        """,
        450,
    )
    return graph


def full_size(model_name: str, vae_name: str, size: tuple[int, int], prompt: str) -> Graph:
    """Reference image and prompt to video with a full-size model that the user has; T5-XXL through core's loader."""
    return {
        "model": Node("SViMoDiffusionModelLoader", (1, 0), {"model_name": model_name}),
        "clip": Node(
            "CLIPLoader", (1, 1), {"clip_name": "t5xxl_fp16.safetensors", "type": "sd3", "device": "default"}
        ),
        "vae": Node("SViMoVAELoader", (1, 2), {"vae_name": vae_name}),
        "image": Node("LoadImage", (0, 1), {"image": "coffee.png"}, VIDEO),
        "positive": Node("SViMoTextEncode", (2, 0), {"clip": Link("clip"), "text": prompt}),
        "negative": Node("SViMoTextEncode", (2, 1), {"clip": Link("clip"), "text": ""}),
        "conditions": Node(
            "SViMoImageEncode",
            (3, 0),
            {
                "positive": Link("positive"),
                "negative": Link("negative"),
                "vae": Link("vae"),
                "image": Link("image"),
                "width": size[0],
                "height": size[1],
                "frames": 49,
                "noise_augmentation": 0.0,
                "model": Link("model"),
            },
        ),
        "sampler": Node(
            "SViMoSampler",
            (4, 0),
            {
                "model": Link("model"),
                "positive": Link("conditions"),
                "negative": Link("conditions", 1),
                "latent_image": Link("conditions", 2),
                "seed": 42,
            },
            (NODE_WIDTH, 480),
        ),
        "frames": Node("SViMoDecodeVideo", (5, 0), {"vae": Link("vae"), "latent": Link("sampler")}),
        "video": Node("CreateVideo", (6, 0), {"images": Link("frames"), "fps": 8.0}),
        "save_video": Node(
            "SaveVideo",
            (7, 0),
            {"video": Link("video"), "filename_prefix": "svimo/video", "format": "mp4"},
            VIDEO,
        ),
    }


def cogvideox() -> Graph:
    """CogVideoX-5b-I2V, which makes video without motion."""
    graph = full_size(
        "cogvideox-5b-i2v.safetensors",
        "cogvideox-vae.safetensors",
        (720, 480),
        "A spoon stirs a cup of coffee on a wooden table, steam rising, soft morning light.",
    )
    graph["note"] = note(
        (0, 0),
        """
        # CogVideoX: image to video

        Video alone, with the model that SViMo starts from. Bring three files:

        - `models/diffusion_models`: CogVideoX-5b-I2V, in diffusers' layout (any shard) or in one file
        - `models/text_encoders`: T5-XXL
        - `models/vae`: the VAE of CogVideoX

        Choose them in the three loaders. With less than 16 GB of graphics memory choose `fp8_e4m3fn` as
        `weight_dtype`.
        """,
    )
    return graph


def converted_checkpoint() -> Graph:
    """A checkpoint started from CogVideoX-I2V: video and its rendered motion, to watch while it trains."""
    file = "svimo-from-cogvideox.safetensors"
    graph = full_size(file, file, (624, 416), "use spoon to stir cup")
    graph["motion_video"] = Node("CreateVideo", (6, 1), {"images": Link("frames", 1), "fps": 8.0})
    graph["save_motion_video"] = graph["save_video"]._replace(
        place=(7, 1),
        inputs={"video": Link("motion_video"), "filename_prefix": "svimo/motion_video", "format": "mp4"},
    )
    graph["note"] = note(
        (0, 0),
        """
        # A converted checkpoint

        What *Convert CogVideoX to SViMo* wrote, or a checkpoint of its training: video and rendered motion, to watch
        how it learns. Before training the video is CogVideoX's own, and the motion stream is not yet of use.

        Bring T5-XXL in `models/text_encoders`. The loop joins in when the interaction model is trained: *SViMo
        Feedback* between the model and the sampler.
        """,
    )
    return graph


def retarget_and_export() -> Graph:
    """A motion that exists already, cleaned, rigged and saved for other programs; needs no model."""
    return {
        "load": Node("SViMoLoadMotion", (0, 1), {"motion": "stir_cup.npz [example]"}),
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
        "preview": Node("SViMoPreviewMotion", (1, 1), {"motion": Link("clean")}, (NODE_WIDTH, 380)),
        "note": note(
            (0, 0),
            """
            # Retarget and export

            A 3D motion for other programs; needs no model. It is smoothed without losing contact, brought to 24
            frames per second, put on skinned hands, and saved:

            - **GLB**: both hands and all objects, for Blender, Unity, three.js
            - **BVH**: a skeleton for each hand
            - **JSON**: the numbers
            """,
        ),
    }


WORKFLOWS = {
    "image_to_video_and_motion": image_to_video_and_motion(),
    "image_to_video_and_motion_fast": fast(),
    "image_to_video_and_motion_with_core_sampler": with_core_sampler(),
    "image_to_video_and_motion_without_feedback": without_feedback(),
    "image_to_video_and_motion_extended": extended(),
    "motion_to_video": motion_to_video(),
    "video_to_motion": video_to_motion(),
    "retarget_and_export": retarget_and_export(),
    "video_from_cogvideox": cogvideox(),
    "svimo_from_converted_checkpoint": converted_checkpoint(),
}
BRING_YOUR_OWN = ("video_from_cogvideox", "svimo_from_converted_checkpoint")
"""Workflows that need weights which do not come with the pack."""
NEEDS = {"image_to_video_and_motion_fast": (0, 28)}
"""Workflows that the oldest ComfyUI cannot run yet, and the version that can."""


def to_api(graph: Graph, info: dict[str, dict]) -> dict[str, dict]:
    """API format: every input that is linked, set, or has a default."""
    ids = {name: str(i) for i, name in enumerate(graph, start=1)}
    workflow = {}
    for name, node in graph.items():
        if node.type == NOTE:
            continue
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
            "_meta": {"title": info[node.type]["display_name"] or node.type},
        }
    return workflow


def to_page(graph: Graph, info: dict[str, dict]) -> dict[str, Any]:
    """The page's format: nodes with positions, slots and widget values, and a list of links."""
    ids = {name: i for i, name in enumerate(graph, start=1)}
    nodes, links, room = {}, [], {}
    for order, (name, node) in enumerate(graph.items()):
        shape = _note(node) if node.type == NOTE else _slots_and_widgets(node, info[node.type])
        sockets = max(len([slot for slot in shape["inputs"] if "widget" not in slot]), len(shape["outputs"]))
        fields, texts = shape.pop("fields"), shape.pop("texts")
        size = node.size or (NODE_WIDTH, MARGIN + SLOT * sockets + WIDGET * fields + TEXT * texts)
        least = ROOM_MARGIN + ROOM_SLOT * sockets + ROOM_WIDGET * fields + TEXT * texts
        room[name] = max(size[1], least)
        nodes[name] = {
            "id": ids[name],
            "type": node.type,
            "pos": [node.place[0] * COLUMN, 0],
            "size": list(size),
            "flags": {},
            "order": order,
            "mode": 0,
            **shape,
        }
    bottoms: dict[int, int] = {}
    for name, node in sorted(graph.items(), key=lambda item: item[1].place[::-1]):  # row by row
        columns = range(
            node.place[0], node.place[0] + -(-nodes[name]["size"][0] // COLUMN)
        )  # a wide node covers several
        top = max(bottoms.get(column, 0) for column in columns)
        nodes[name]["pos"][1] = top
        bottoms.update(dict.fromkeys(columns, top + room[name] + TITLE + GAP))
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


def _slots_and_widgets(node: Node, info: dict) -> dict[str, Any]:
    """Slots and widget values of a node as the page saves them, and how many widgets of which height it has."""
    slots, widgets, fields, texts = [], [], 0, 0
    for key, kind, options in _inputs(info):
        value = node.inputs.get(key, options.get("default"))
        if kind not in WIDGET_TYPES:
            slots.append({"name": key, "type": kind, "link": None})
            continue
        if isinstance(value, Link):
            slots.append({"name": key, "type": kind, "widget": {"name": key}, "link": None})
            value = options.get("default", "")
        widgets.append(value)
        texts += bool(options.get("multiline"))
        fields += not options.get("multiline")
        if options.get("control_after_generate"):
            widgets.append("fixed")
            fields += 1
        if options.get("image_upload"):
            widgets.append("image")
            fields += 1
    outputs = [
        {"name": label, "type": kind, "links": []}
        for label, kind in zip(info["output_name"], info["output"], strict=True)
    ]
    return {
        "inputs": slots,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.type},
        "widgets_values": widgets,
        "fields": fields,
        "texts": texts,
    }


def _note(node: Node) -> dict[str, Any]:
    return {
        "inputs": [],
        "outputs": [],
        "title": "About this workflow",
        "properties": {},
        "widgets_values": [node.inputs["text"]],
        "fields": 0,
        "texts": 0,
        "color": "#432",
        "bgcolor": "#653",
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
