"""Workflows by `svimo_core` alone: what the nodes of `definitions.py` do, without ComfyUI.

A graph that :func:`svimo_queue.definitions.make_task` passed runs here with the results that a server gives: the same
noise of a seed, the same conditions, the same names of files.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from svimo_core.config import ClipSize
from svimo_core.export.glb import write_glb
from svimo_core.export.json_ import write_json
from svimo_core.model.text import hand_object_prompt
from svimo_core.motion import HandObjectMotion
from svimo_core.rigged import RiggedMotion, rig_motion
from svimo_core.sampling.guidance import FeedbackOptions
from svimo_core.sampling.latents import JointLatents
from svimo_core.sampling.pipeline import SViMo, encode_image
from svimo_core.sampling.reader import Reading

from .definitions import execution_order
from .jobs import SAME_AGAIN, JobFailed
from .workflow import is_link

Progress = Callable[[str, float, float], None]
"""Called with a node's id, steps done, and steps to do (0 where it does not say)."""


class Text(NamedTuple):
    """A CONDITIONING: features (1 L text_dim) of a prompt, and the prompt."""

    features: Tensor
    prompt: str


class Start(NamedTuple):
    """An empty LATENT: the clip's size, and the reference image's latent (1 C h w)."""

    size: ClipSize
    image: Tensor


class Sampled(NamedTuple):
    """A sampled LATENT, scaled as the networks have it, and what was read off it on the way."""

    latents: JointLatents
    reading: Reading | None
    size: ClipSize
    prompt: str


class Clip(NamedTuple):
    """A VIDEO: N H W 3 in [0, 1]."""

    frames: Tensor
    fps: float


class Engine:
    """One model, and the graphs that run on it.

    Args:
        checkpoint: a file that holds all parts.
        device: to run on. On a GPU that has it the model computes in bfloat16, elsewhere in float32, as under ComfyUI;
            float16 overflows (`nodes/backbone.py`).

    Raises:
        FileNotFoundError, ValueError: see :meth:`svimo_core.sampling.pipeline.SViMo.load`.
    """

    def __init__(self, checkpoint: str, device: str):
        half = device != "cpu" and torch.cuda.is_bf16_supported()
        self.model = SViMo.load(checkpoint, device, torch.bfloat16 if half else torch.float32)

    @torch.inference_mode()
    def run(
        self, graph: dict[str, dict[str, Any]], images: dict[str, bytes], on_progress: Progress
    ) -> list[tuple[str, bytes]]:
        """Run a graph; name and content of the files that it saves, in the order of the graph.

        Args:
            graph: API format, as `make_task` gives it.
            images: the file of each LoadImage, by its id.
            on_progress: called as each node begins and at each step of a sampler.

        Raises:
            JobFailed: a node failed; names it.
        """
        made: dict[str, tuple] = {}
        with tempfile.TemporaryDirectory() as folder:
            for key in execution_order(graph):
                kind = graph[key]["class_type"]
                on_progress(key, 0, 0)
                values = {n: made[v[0]][v[1]] if is_link(v) else v for n, v in graph[key]["inputs"].items()}
                run = _Node(self.model, key, graph, images, Path(folder) / f"{len(made)}", on_progress)
                try:
                    made[key] = NODES[kind](run, **values)
                except Exception as error:  # whatever went wrong in a node is the job's
                    again = not isinstance(error, SAME_AGAIN)
                    raise JobFailed(f"{kind} (node {key}): {error}", again=again) from error
            saved = [file for key in graph for file in made[key] if isinstance(file, Saved)]
            return [(file.name, file.path.read_bytes()) for file in saved]


class Saved(NamedTuple):
    """A file that a node saved."""

    name: str
    path: Path


@dataclasses.dataclass(frozen=True)
class _Node:
    """What a node has beside its inputs."""

    model: SViMo
    key: str
    graph: dict[str, dict[str, Any]]
    images: dict[str, bytes]
    path: Path
    on_progress: Progress

    def with_graph(self, motion: HandObjectMotion | RiggedMotion) -> HandObjectMotion | RiggedMotion:
        """A motion with the graph that made it, as ComfyUI's savers keep it."""
        return dataclasses.replace(motion, metadata=motion.metadata | {"prompt": json.dumps(self.graph)})


def _checkpoint(run: _Node, ckpt_name: str) -> tuple:
    return (
        None,
        run.model.interaction,
        run.model.vae,
        run.model.text_encoder,
    )  # a MODEL is its loop, here none


def _image(run: _Node, image: str) -> tuple[Tensor]:
    picture = Image.open(io.BytesIO(run.images[run.key]))
    if getattr(picture, "n_frames", 1) > 1:
        raise ValueError(f"expected one picture, got a file of {picture.n_frames}")
    pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    return (torch.from_numpy(pixels.astype(np.float32) / 255),)


def _prompt(run: _Node, tool: str, action: str, target: str) -> tuple[str]:
    return (hand_object_prompt(tool, action, target),)


def _encode_text(run: _Node, clip: Any, text: str) -> tuple[Text]:
    return (Text(clip.encode([text]).float(), text),)


def _encode_image(
    run: _Node,
    positive: Text,
    negative: Text,
    vae: Any,
    image: Tensor,
    width: int,
    height: int,
    frames: int,
    noise_augmentation: float,
    model: Any = None,
) -> tuple[Text, Text, Start]:
    config = run.model.config
    size = ClipSize(frames or config.frames, height or config.height, width or config.width)
    config.check_clip(*size)
    generator = torch.Generator("cpu").manual_seed(0)  # as SViMo Image Encode has it
    latent = encode_image(vae.encode, image, size.width, size.height, noise_augmentation, generator)
    return positive, negative, Start(size, latent)


def _loop(
    run: _Node,
    model: Any,
    interaction: Any,
    vae: Any,
    start_percent: float,
    end_percent: float,
    exact_drawing: bool = False,
    **options: Any,
) -> tuple[FeedbackOptions]:
    return (FeedbackOptions(start=start_percent, end=end_percent, exact=exact_drawing, **options),)


def _sample(
    run: _Node,
    model: FeedbackOptions | None,
    positive: Text,
    negative: Text,
    latent_image: Start,
    seed: int,
    steps: int,
    cfg: float,
    cfg_schedule: str,
    solver: str,
    **_fixed: Any,
) -> tuple[Sampled]:
    network = run.model if model is not None else dataclasses.replace(run.model, interaction=None)
    latents, reading, _ = network.denoise(
        latent_image.image,
        positive.features,
        negative.features,
        latent_image.size,
        torch.Generator("cpu").manual_seed(seed),
        steps,
        cfg,
        cfg_schedule if cfg > 1 else "constant",  # at 1 it is off, and does not grow
        solver,
        model,
        lambda step, clean: run.on_progress(run.key, step + 1, steps),
    )
    if not all(torch.isfinite(x).all() for x in latents):
        raise ValueError("the sampled latents are not finite (NaN or infinity)")
    return (Sampled(latents, reading, latent_image.size, positive.prompt),)


def _decode_video(run: _Node, vae: Any, latent: Sampled, tiled: bool) -> tuple[Tensor, Tensor]:
    return tuple(vae.decode(x, tiled)[0] for x in latent.latents)


def _decode_motion(run: _Node, interaction: Any, latent: Sampled, refine: bool) -> tuple[HandObjectMotion]:
    reader, reading = run.model.reader(), latent.reading
    if reading is None or refine:
        video, drawing = latent.latents
        reading = reader.align(reader.look(video[:, :, 0]), reader.read(video, drawing))
    size, fps = latent.size, run.model.config.fps
    return tuple(reader.to_motions(reading, size.width, size.height, fps, latent.prompt))


def _save_motion(run: _Node, motion: HandObjectMotion, filename_prefix: str, format: str) -> tuple:
    write = HandObjectMotion.save if format == "npz" else lambda motion, path: write_json(path, motion)
    path = run.path.with_suffix(f".{format}")
    write(run.with_graph(motion), path)
    return motion, Saved(f"{filename_prefix}.{format}", path)


def _rig(run: _Node, motion: HandObjectMotion, smoothness: float, **_fixed: Any) -> tuple[RiggedMotion]:
    return (rig_motion(motion, smoothness=smoothness),)


def _save_glb(
    run: _Node, rigged_motion: RiggedMotion, filename_prefix: str, bone_names: str = "svimo"
) -> tuple[Saved]:
    path = run.path.with_suffix(".glb")
    write_glb(path, run.with_graph(rigged_motion), naming=bone_names)
    return (Saved(f"{filename_prefix}.glb", path),)


def _create_video(run: _Node, images: Tensor, fps: float) -> tuple[Clip]:
    return (Clip(images, fps),)


def _save_video(run: _Node, video: Clip, filename_prefix: str, **_fixed: Any) -> tuple[Saved]:
    path = run.path.with_suffix(".mp4")
    _, height, width, _ = video.frames.shape
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["prompt"] = json.dumps(run.graph)
        stream = container.add_stream("h264", rate=Fraction(round(video.fps * 1000), 1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in (video.frames * 255).clamp(0, 255).byte().cpu():  # cut off, not rounded, as core has it
            frame = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    return (Saved(f"{filename_prefix}.mp4", path),)


def _show(run: _Node, **_shown: Any) -> tuple:
    return ()


NODES: dict[str, Callable[..., tuple]] = {
    "SViMoCheckpointLoader": _checkpoint,
    "LoadImage": _image,
    "SViMoPrompt": _prompt,
    "SViMoTextEncode": _encode_text,
    "SViMoImageEncode": _encode_image,
    "SViMoFeedbackLoop": _loop,
    "SViMoSampler": _sample,
    "SViMoDecodeVideo": _decode_video,
    "SViMoDecodeMotion": _decode_motion,
    "SViMoSaveMotion": _save_motion,
    "SViMoRigMotion": _rig,
    "SViMoSaveGLB": _save_glb,
    "SViMoMotionViewer": _show,
    "CreateVideo": _create_video,
    "SaveVideo": _save_video,
}
"""Class of nodes -> what it does: takes the node's inputs by name, gives its outputs in order, then what it saved."""
