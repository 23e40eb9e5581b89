"""Decoders: the sampler's joint latent to frames and to 3D motion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..svimo_core.sampling.latents import JointLatents
from ..svimo_core.sampling.reader import Reading
from .compat import aliases
from .latents import PROMPT, READING, WINDOW, JointLatent, StoredReading, packed, streams_of
from .loop import InteractionHandle
from .types import CATEGORY, Interaction, Motion, frames_to_image_batch
from .vae import svimo_vae


class SViMoDecodeVideo(io.ComfyNode):
    """Latents to video frames and rendered motion frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoDecodeVideo",
            display_name="SViMo Decode Video",
            category=f"{CATEGORY}/decode",
            description="Decode the video and the rendered motion. Send the frames to core's Create Video and Save Video.",
            **aliases("vae decode", "latent to video", "cogvideo"),
            inputs=[
                io.Vae.Input("vae", tooltip="SViMo's video VAE."),
                io.Latent.Input("latent", tooltip="From SViMo Sampler or any other sampler."),
                io.Boolean.Input(
                    "tiled",
                    default=False,
                    tooltip="Decode in tiles: less memory, slower. Happens by itself when memory runs out.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="video", tooltip="Frames of the video."),
                io.Image.Output(
                    display_name="rendered_motion",
                    tooltip="Frames of the drawn motion, as the model generated them beside the video.",
                ),
            ],
        )

    @classmethod
    def execute(cls, vae: Any, latent: dict, tiled: bool) -> io.NodeOutput:
        vae, latents = svimo_vae(vae), streams_of(latent)
        video = frames_to_image_batch(vae.decode(latents.video, tiled))
        if latents.drawing is None:
            return io.NodeOutput(
                video, ExecutionBlocker("this latent is video only: it has no rendered motion")
            )
        return io.NodeOutput(video, frames_to_image_batch(vae.decode(latents.drawing, tiled)))


class SViMoDecodeMotion(io.ComfyNode):
    """Latents to 3D motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoDecodeMotion",
            display_name="SViMo Decode Motion",
            category=f"{CATEGORY}/decode",
            description="Read the 3D motion of both hands and all objects off a sampled latent. After SViMo Sampler with feedback it is the mean of what was read at every step, otherwise what the finished latents show; either is held against the reference image.",
            **aliases("3d hands", "hand pose", "point cloud", "video to motion", "hoi"),
            inputs=[
                Interaction.Input("interaction", tooltip="3D interaction model (VID)."),
                io.Latent.Input(
                    "latent", tooltip="Video and drawing, from SViMo Sampler or any other sampler."
                ),
                io.Boolean.Input(
                    "refine",
                    default=False,
                    tooltip="Read the finished latents alone even where the sampler has the mean of what it read at every step, which is more exact.",
                ),
            ],
            outputs=[
                Motion.Output(
                    display_name="motion",
                    tooltip="Joints of both hands and points of all objects, in metres.",
                )
            ],
        )

    @classmethod
    def execute(cls, interaction: InteractionHandle, latent: dict, refine: bool) -> io.NodeOutput:
        latents, size = streams_of(latent), interaction.vae_config.clip_size(latent["samples"].shape)
        if latents.drawing is None:
            raise ValueError(
                "this latent is video only: 3D motion is read off video and drawing together. Take the joint latent "
                "of a SViMo model with motion, or put split latents together with SViMo Join Latents"
            )
        if len(latents.video) != 1:
            raise ValueError(
                f"the latent is a batch of {len(latents.video)} clips: take one of them with core's LatentFromBatch"
            )
        reading = None if refine else stored_reading(latent, latents, interaction)
        if reading is None:
            reading = read_finished(latents, interaction)
        (motion,) = interaction.reader().to_motions(
            reading, size.width, size.height, interaction.fps, latent.get(PROMPT, "")
        )
        if WINDOW in latent:
            motion = replace(motion, metadata=latent[WINDOW].metadata())
        return io.NodeOutput(motion)


def stored_reading(
    latent: dict[str, Any], latents: JointLatents, interaction: InteractionHandle
) -> Reading | None:
    """The sampler's reading, if these are the very latents that it belongs to.

    Raises:
        ValueError: another interaction model made it.
    """
    stored: StoredReading | None = latent.get(READING)
    if stored is None or not stored.belongs_to(latents):
        return None
    found, expected = stored.reading.points.shape[2], interaction.config.num_points
    if found != expected:
        raise ValueError(
            f"the latent has {found} object points, this interaction model {expected}: use the interaction model that "
            "the latent was sampled with, or turn refine on"
        )
    return stored.reading


def read_finished(latents: JointLatents, interaction: InteractionHandle) -> Reading:
    """What finished latents (in VAE space) show, held against the first frame, which is the reference image's."""
    comfy.model_management.load_models_gpu([interaction.patcher])
    device, scale = interaction.patcher.load_device, interaction.vae_config.scaling_factor
    video, drawing = (x.to(device) * scale for x in latents)
    reader = interaction.reader()
    return Reading(*(x.cpu() for x in reader.align(reader.look(video[:, :, 0]), reader.read(video, drawing))))


class SViMoSplitLatent(io.ComfyNode):
    """A joint latent to plain ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSplitLatent",
            display_name="SViMo Split Latent",
            category=f"{CATEGORY}/decode",
            description="Take the joint latent apart into plain video latents for core nodes such as Save Latent or VAE Decode.",
            **aliases("separate latents", "unpack latent", "video latent"),
            inputs=[io.Latent.Input("latent", tooltip="Video and drawing together, from a sampler.")],
            outputs=[
                io.Latent.Output(display_name="video", tooltip="The video's latent."),
                io.Latent.Output(display_name="rendered_motion", tooltip="The rendered motion's latent."),
            ],
        )

    @classmethod
    def execute(cls, latent: dict) -> io.NodeOutput:
        latents = streams_of(latent)
        others = {key: value for key, value in latent.items() if key in (PROMPT, WINDOW)}
        video, drawing = {"samples": latents.video} | others, {"samples": latents.drawing} | others
        mask = latent.get("noise_mask")
        if mask is not None and mask.is_nested:
            video["noise_mask"], drawing["noise_mask"] = mask.unbind()
        elif mask is not None:
            video["noise_mask"] = mask
        if latents.drawing is None:
            return io.NodeOutput(video, ExecutionBlocker("this latent is video only"))
        return io.NodeOutput(video, drawing)


class SViMoJoinLatents(io.ComfyNode):
    """Plain latents to a joint one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoJoinLatents",
            display_name="SViMo Join Latents",
            category=f"{CATEGORY}/decode",
            description="Put the latents of a video and of its drawing together again, after core nodes such as Load Latent or Flip Latent worked on each.",
            **aliases("combine latents", "concat latents", "pack latent"),
            inputs=[
                io.Latent.Input("video", tooltip="The video's latent."),
                io.Latent.Input("rendered_motion", tooltip="The rendered motion's latent, of the same size."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Video and drawing together.")],
        )

    @classmethod
    def execute(cls, video: dict, rendered_motion: dict) -> io.NodeOutput:
        streams = [streams_of(latent) for latent in (video, rendered_motion)]
        if any(latents.drawing is not None for latents in streams):
            raise ValueError("SViMo Join Latents takes plain latents: one of these already holds two streams")
        first, second = (latents.video for latents in streams)
        if first.shape != second.shape:
            found = " and ".join(
                f"{frames} latent frames of {width} x {height} ({channels} channels, a batch of {batch})"
                for batch, channels, frames, height, width in (first.shape, second.shape)
            )
            raise ValueError(
                f"video and rendered motion must be of one length and size, got {found}: encode both from clips of as many "
                "frames, at one size"
            )
        joined = video | {"samples": packed(JointLatents(first, second))}
        masks = [latent.get("noise_mask") for latent in (video, rendered_motion)]
        if masks[1] is not None:
            everywhere = torch.ones(1, 1, first.shape[2], 1, 1)
            joined["noise_mask"] = JointLatent([everywhere if mask is None else mask for mask in masks])
        return io.NodeOutput(joined)


NODES = [SViMoDecodeVideo, SViMoDecodeMotion, SViMoSplitLatent, SViMoJoinLatents]
