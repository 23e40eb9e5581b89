"""Decoders: the sampler's joint latent to frames and to 3D motion."""

from __future__ import annotations

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..svimo_core.feedback import InteractionFeedback
from ..svimo_core.schedule import NoiseSchedule
from .types import (
    CATEGORY,
    PROMPT,
    Interaction,
    InteractionHandle,
    Motion,
    check_points,
    frames_to_image_batch,
    throw_if_interrupted,
    unpack_latents,
)
from .vae import SViMoVAE, svimo_vae


class SViMoDecodeVideo(io.ComfyNode):
    """Latents to video frames and rendered motion frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoDecodeVideo",
            display_name="SViMo Decode Video",
            category=f"{CATEGORY}/decode",
            description="Decode the video and the rendered motion. Send the frames to core's Create Video and Save Video.",
            inputs=[
                io.Vae.Input("vae", tooltip="SViMo's video VAE."),
                io.Latent.Input("latent", tooltip="From the SViMo Sampler."),
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
    def execute(cls, vae: SViMoVAE, latent: dict, tiled: bool) -> io.NodeOutput:
        vae = svimo_vae(vae)
        latents = unpack_latents(latent, scale=1.0)  # decoders take VAE space
        video = frames_to_image_batch(vae.decode(latents.video, tiled))
        if latents.motion is None:
            return io.NodeOutput(
                video, ExecutionBlocker("this latent is video only: it has no rendered motion")
            )
        return io.NodeOutput(video, frames_to_image_batch(vae.decode(latents.motion, tiled)))


class SViMoDecodeMotion(io.ComfyNode):
    """Latents to 3D motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoDecodeMotion",
            display_name="SViMo Decode Motion",
            category=f"{CATEGORY}/decode",
            description="Take the 3D motion of both hands and all objects out of the sampled latent.",
            inputs=[
                Interaction.Input("interaction", tooltip="3D interaction model (VID)."),
                io.Latent.Input("latent", tooltip="From a SViMo Sampler with feedback connected."),
                io.Boolean.Input(
                    "refine",
                    default=False,
                    tooltip="Let the interaction model read the motion anew, off the finished latents alone: for latents that were changed after sampling. Off: the sampler's motion, the mean of what was read at every step, which is more exact.",
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
        vae = interaction.vae_config
        latents = unpack_latents(latent, vae.scaling_factor)
        if latents.hands is None:
            raise ValueError(
                "this latent has no hands and objects: connect SViMo Feedback to the sampler (its loop may be off), "
                "and use a SViMo model with motion"
            )
        check_points(latents, interaction.config)
        hands, points = latents.hands, latents.points
        height, width = (size * vae.spatial_compression for size in latents.video.shape[-2:])
        if refine:
            comfy.model_management.load_models_gpu([interaction.patcher])
            device = interaction.patcher.load_device
            feedback = InteractionFeedback(
                interaction.patcher.model,
                None,
                interaction.normalizer,
                NoiseSchedule(interaction.schedule),
                width,
                height,
                interaction.compute_dtype,
                throw_if_interrupted,
            )
            video, motion = latents.video.to(device), latents.motion.to(device)
            hands, points = feedback.read(video, motion)
        return io.NodeOutput(
            interaction.normalizer.to_motion(
                hands[0], points[0], width, height, interaction.fps, latent.get(PROMPT, "")
            )
        )


class SViMoSplitLatent(io.ComfyNode):
    """A joint latent to plain ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSplitLatent",
            display_name="SViMo Split Latent",
            category=f"{CATEGORY}/decode",
            description="Take the joint latent apart into plain video latents for core nodes such as Save Latent or VAE Decode.",
            inputs=[io.Latent.Input("latent", tooltip="From the SViMo Sampler.")],
            outputs=[
                io.Latent.Output(display_name="video", tooltip="The video's latent."),
                io.Latent.Output(display_name="rendered_motion", tooltip="The rendered motion's latent."),
            ],
        )

    @classmethod
    def execute(cls, latent: dict) -> io.NodeOutput:
        latents = unpack_latents(latent, scale=1.0)
        if latents.motion is None:
            return io.NodeOutput({"samples": latents.video}, ExecutionBlocker("this latent is video only"))
        return io.NodeOutput({"samples": latents.video}, {"samples": latents.motion})


NODES = [SViMoDecodeVideo, SViMoDecodeMotion, SViMoSplitLatent]
