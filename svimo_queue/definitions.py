"""The nodes that run without ComfyUI, as a server would define them, and what else is refused there.

:func:`make_task` is for `engine.py` what :func:`svimo_queue.workflow.make_prompt` is for a server. What the engine
cannot do as ComfyUI does it, it does not do: one sentence says which node asks for it. Nothing in here needs torch.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import Any

from .jobs import Job
from .workflow import WIDGETS, Definitions, Place, Prompt, is_link, kind_of, make_prompt, title_of

SEEDS = ("INT", {"min": 0, "max": 2**64 - 1})
PART = ("FLOAT", {"min": 0.0, "max": 1.0})
PREFIX = "STRING"


def _node(
    *outputs: str, saves: bool = False, optional: dict[str, Any] | None = None, **required: Any
) -> dict:
    """A class of nodes as in `/object_info`: inputs as (type, options), a type alone, or a list of choices."""

    def inputs(given: dict[str, Any]) -> dict[str, list]:
        return {name: list(d) if isinstance(d, tuple) else [d, {}] for name, d in given.items()}

    return {
        "input": {"required": inputs(required), "optional": inputs(optional or {})},
        "output": list(outputs),
        "output_name": [name.lower() for name in outputs],
        "output_node": saves,
    }


def definitions(checkpoint: str) -> Definitions:
    """Of all nodes that run without ComfyUI, where a checkpoint of this file name is all there is to load.

    `tests/server/test_queue_ray.py` holds them against a real server's.
    """
    return {
        "SViMoCheckpointLoader": _node("MODEL", "SVIMO_INTERACTION", "VAE", "CLIP", ckpt_name=[checkpoint]),
        "LoadImage": _node("IMAGE", image=("STRING", {"image_upload": True})),
        "SViMoPrompt": _node("STRING", tool="STRING", action="STRING", target="STRING"),
        "SViMoTextEncode": _node("CONDITIONING", clip="CLIP", text="STRING"),
        "SViMoImageEncode": _node(
            *("CONDITIONING", "CONDITIONING", "LATENT"),
            positive="CONDITIONING",
            negative="CONDITIONING",
            vae="VAE",
            image="IMAGE",
            width=("INT", {"min": 0, "max": 4096}),
            height=("INT", {"min": 0, "max": 4096}),
            frames=("INT", {"min": 0, "max": 1025}),
            noise_augmentation=PART,
            optional={"model": "MODEL"},
        ),
        "SViMoFeedbackLoop": _node(
            "MODEL",
            model="MODEL",
            interaction="SVIMO_INTERACTION",
            vae="VAE",
            enabled="BOOLEAN",
            start_percent=PART,
            end_percent=PART,
            every=("INT", {"min": 1, "max": 100}),
            iterations=("INT", {"min": 1, "max": 8}),
            strength=("FLOAT", {"min": 0.0, "max": 2.0}),
            optional={"exact_drawing": "BOOLEAN"},
        ),
        "SViMoSampler": _node(
            "LATENT",
            model="MODEL",
            positive="CONDITIONING",
            negative="CONDITIONING",
            latent_image="LATENT",
            seed=SEEDS,
            steps=("INT", {"min": 1, "max": 1000}),
            cfg=("FLOAT", {"min": 1.0, "max": 30.0}),
            cfg_schedule=["dynamic", "constant", "dynamic_diffusers"],
            solver=["ddim", "dpmpp_2m_sde"],
            denoise=("FLOAT", {"min": 0.01, "max": 1.0}),
            sequential_cfg="BOOLEAN",
        ),
        "SViMoDecodeVideo": _node("IMAGE", "IMAGE", vae="VAE", latent="LATENT", tiled="BOOLEAN"),
        "SViMoDecodeMotion": _node(
            "SVIMO_MOTION", interaction="SVIMO_INTERACTION", latent="LATENT", refine="BOOLEAN"
        ),
        "SViMoSaveMotion": _node(
            "SVIMO_MOTION", saves=True, motion="SVIMO_MOTION", filename_prefix=PREFIX, format=["npz", "json"]
        ),
        "SViMoRigMotion": _node(
            "SVIMO_RIGGED_MOTION",
            motion="SVIMO_MOTION",
            hands=["capsule", "mano"],
            smoothness=("FLOAT", {"min": 0.0, "max": 100.0}),
            optional={"mano_left": ["as in the file", "mended"], "rigid_parts": "STRING"},
        ),
        "SViMoSaveGLB": _node(
            saves=True,
            rigged_motion="SVIMO_RIGGED_MOTION",
            filename_prefix=PREFIX,
            optional={"bone_names": ["svimo", "mixamo", "unreal", "vrm", "rigify"]},
        ),
        "SViMoMotionViewer": _node(
            saves=True, motion="SVIMO_MOTION", optional={"video": "IMAGE", "rendered_motion": "IMAGE"}
        ),
        "CreateVideo": _node("VIDEO", images="IMAGE", fps=("FLOAT", {"min": 1.0, "max": 120.0})),
        "SaveVideo": _node(
            saves=True,
            video="VIDEO",
            filename_prefix=PREFIX,
            format=["auto", "mp4"],
            optional={"codec": ["auto", "h264"], "format.codec": ["auto", "h264"]},
        ),
    }


ONLY = {
    ("SViMoSampler", "solver"): ("ddim", "the noise of others is ComfyUI's own"),
    ("SViMoSampler", "denoise"): (1, "it begins with pure noise"),
    ("SViMoSampler", "sequential_cfg"): (False, "both branches run in one batch"),
    ("SViMoRigMotion", "hands"): ("capsule", "MANO's files are a server's"),
    ("SViMoRigMotion", "rigid_parts"): ("", "objects are one part each"),
}
"""The one value that an input may have without ComfyUI, and why."""
SAMPLED = {
    "SViMoSampler": {"positive": 0, "negative": 1, "latent_image": 2},
    "SViMoDecodeVideo": {"latent": 0},
    "SViMoDecodeMotion": {"latent": 0},
}
"""Inputs that only one kind of node may fill: the sampler's from one SViMoImageEncode, a decoder's from a sampler."""


def make_task(job: Job, checkpoint: str) -> Prompt:
    """The workflow of a job with its values, checked against what runs without ComfyUI.

    Args:
        checkpoint: file name of the one that the workers load.
    """
    known = definitions(checkpoint)
    unknown = [key for key, node in job.graph.items() if node["class_type"] not in known]
    if unknown:
        problems = [
            f"node {key} ({job.graph[key]['class_type']}) does not run without ComfyUI: take --server, or a workflow "
            "without it"
            for key in unknown
        ]
        return Prompt(graph={}, problems=problems)
    prompt = make_prompt(job, known)
    for key in prompt.graph:
        prompt.problems += _links(prompt.graph, key, known) + _limits(prompt, key)
    if not prompt.problems:
        try:
            execution_order(prompt.graph)
        except CycleError as error:
            prompt.problems.append(f"nodes {', '.join(error.args[1])} wait for each other")
    return prompt


def execution_order(graph: dict[str, dict[str, Any]]) -> list[str]:
    """The nodes of a graph, each after those that it takes something from.

    Raises:
        graphlib.CycleError: there is no such order.
    """
    links = {key: [v[0] for v in node["inputs"].values() if is_link(v)] for key, node in graph.items()}
    return list(TopologicalSorter(links).static_order())


def _links(graph: dict, key: str, known: Definitions) -> list[str]:
    """Connections that do not fit, which a server refuses by itself, too."""
    definition, problems = known[graph[key]["class_type"]]["input"], []
    inputs = {**definition["required"], **definition["optional"]}
    for name, value in graph[key]["inputs"].items():
        where = title_of(graph, Place(key, name))
        if name not in inputs:
            problems.append(
                f"{where}: there is no such input without ComfyUI; take --server, or leave it out"
            )
            continue
        expected = kind_of(inputs[name])
        if is_link(value) and value[0] in graph:
            source = graph[value[0]]["class_type"]
            outputs = known[source]["output"]
            found = outputs[value[1]] if 0 <= value[1] < len(outputs) else None
            if found is None:
                problems.append(f"{where}: {source} has no output {value[1]} without ComfyUI")
            elif found != expected:
                problems.append(f"{where} expects {expected}, got {found} of node {value[0]} ({source})")
        elif not is_link(value) and expected not in WIDGETS:
            problems.append(f"{where} expects a connection ({expected}), got {value}")
    return problems


def _limits(prompt: Prompt, key: str) -> list[str]:
    """Where the engine stops short of ComfyUI's nodes."""
    graph, problems = prompt.graph, []
    kind, inputs = graph[key]["class_type"], graph[key]["inputs"]
    for name, value in inputs.items():
        where = title_of(graph, Place(key, name))
        only, why = ONLY.get((kind, name), (value, ""))
        if value != only:
            problems.append(f"{where} expects {only!r} without ComfyUI ({why}), got {value!r}")
        if name == "filename_prefix" and "%" in str(value):
            problems.append(f"{where} expects a plain name without ComfyUI, got {value!r}")
    if kind == "LoadImage" and Place(key, "image") not in {*prompt.uploads, *prompt.unread}:
        where = title_of(graph, Place(key, "image"))
        problems.append(
            f"{where} expects a file beside the job file, as there is no server that has {inputs.get('image')!r}: "
            "give a column image"
        )
    slots = SAMPLED.get(kind, {})
    sources = {name: inputs[name] for name in slots if is_link(inputs.get(name))}
    maker = "SViMoImageEncode" if kind == "SViMoSampler" else "SViMoSampler"
    if any(
        graph.get(s[0], {}).get("class_type") != maker or s[1] != slots[n] for n, s in sources.items()
    ) or (len({source[0] for source in sources.values()}) > 1):
        wanted = ", ".join(slots)
        problems.append(f"node {key} ({kind}) expects {wanted} of one {maker} without ComfyUI")
    return problems
