"""The closed loop's options and the synchronized sampler."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..svimo_core.feedback import FeedbackOptions, InteractionFeedback
from ..svimo_core.sampler import Denoiser, Guidance, JointLatents, noise_like, noised, sample
from ..svimo_core.schedule import SOLVERS, NoiseSchedule
from .types import (
    CATEGORY,
    GUIDANCE,
    IMAGE_LATENT,
    PROMPT,
    BackboneModel,
    Feedback,
    FeedbackHandle,
    Interaction,
    InteractionHandle,
    backbone_of,
    check_choice,
    pack_latents,
    throw_if_interrupted,
    unpack_latents,
)
from .vae import SViMoVAE, svimo_vae

CFG_SCHEDULES = ["dynamic", "constant", "dynamic_diffusers"]


class SViMoFeedback(io.ComfyNode):
    """VID and VAE as a closed loop, and when it acts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoFeedback",
            display_name="SViMo Feedback",
            category=f"{CATEGORY}/sampling",
            description="The closed loop: the 3D interaction model reads the video while it forms, its motion is held against the reference image and drawn, and the drawing guides the next step.",
            inputs=[
                Interaction.Input("interaction", tooltip="3D interaction model (VID)."),
                io.Vae.Input("vae", tooltip="SViMo's video VAE: it encodes the drawn motion."),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    tooltip="Off: the 3D motion is still read, but neither held against the image nor guiding the video.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the steps before the loop closes. Early on there is only noise to read.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the steps after which the loop opens again.",
                ),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="Refresh the guidance at every k-th step and hold it in between. Higher is faster.",
                ),
                io.Int.Input(
                    "iterations",
                    default=1,
                    min=1,
                    max=8,
                    tooltip="Denoising passes at each step that refreshes. Higher is slower and follows the 3D motion more closely.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How strongly the drawn motion guides. 0 equals off.",
                ),
            ],
            outputs=[Feedback.Output(display_name="feedback", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        interaction: InteractionHandle,
        vae: SViMoVAE,
        start_percent: float,
        end_percent: float,
        **options: Any,
    ) -> io.NodeOutput:
        options = FeedbackOptions(start=start_percent, end=end_percent, **options)
        return io.NodeOutput(FeedbackHandle(interaction=interaction, vae=svimo_vae(vae), options=options))


class SViMoSampler(io.ComfyNode):
    """Video and motion denoised in one synchronized process, with hands and objects read off both at every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSampler",
            display_name="SViMo Sampler",
            category=f"{CATEGORY}/sampling",
            description="Denoise the video and the rendered motion together, and read both hands and all objects off them at every step.",
            inputs=[
                io.Model.Input("model", tooltip="SViMo's video and motion transformer."),
                io.Conditioning.Input(
                    "positive", tooltip="Prompt with reference image, from SViMo Image Encode."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="Negative prompt with reference image, from SViMo Image Encode."
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Empty latent of SViMo Image Encode, or a sampled latent to refine.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Same seed, same graph, same machine: same result.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Denoising steps. The paper uses 50."
                ),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance: how strongly the prompt is followed. Above 1 each step costs twice as much.",
                ),
                io.Combo.Input(
                    "cfg_schedule",
                    options=CFG_SCHEDULES,
                    default="dynamic",
                    tooltip="dynamic: CogVideoX's scale that rises over the steps. constant: the same at every step. dynamic_diffusers: over the timestep, as diffusers feeds it.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="ddim",
                    tooltip="ddim is deterministic; dpmpp_2m_sde is second order, adds fresh noise, and is CogVideoX's choice for its 5b models.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1: from pure noise. Below 1: keep part of a latent that was sampled before.",
                ),
                io.Boolean.Input(
                    "sequential_cfg",
                    default=False,
                    tooltip="Run the two branches of classifier-free guidance one after the other: half the memory, a little slower.",
                ),
                Feedback.Input(
                    "feedback",
                    optional=True,
                    tooltip="The closed loop. Without it there is no 3D motion, only the video and its rendered motion.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Video, rendered motion, hands and objects together: for SViMo Decode Video and SViMo Decode Motion.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent_image: dict,
        seed: int,
        steps: int,
        cfg: float,
        cfg_schedule: str,
        solver: str,
        denoise: float,
        sequential_cfg: bool,
        feedback: FeedbackHandle | None = None,
    ) -> io.NodeOutput:
        backbone = backbone_of(model)
        config, scale, device = backbone.config, backbone.config.vae.scaling_factor, model.load_device

        # 1. read and check what came in
        check_choice("cfg_schedule", cfg_schedule, CFG_SCHEDULES)
        start = joint_start(unpack_latents(latent_image, scale), backbone, feedback)
        text, extras = read_conditioning("positive", positive, start, backbone)
        negative_text, _ = read_conditioning("negative", negative, start, backbone)
        given = extras.get(GUIDANCE)
        if given is not None:
            given = Guidance((given.latent * scale).to(device), given.start, given.end)

        # 2. bring the models in
        frames, height, width = clip_size(start, backbone)
        tokens = config.num_tokens(frames, height, width)
        needed = backbone.memory_required(tokens, batch=1 if sequential_cfg or cfg == 1 else 2)
        others = [feedback.interaction.patcher, feedback.vae.patcher] if feedback is not None else []
        needed += sum(patcher.model_size() for patcher in others)
        comfy.model_management.load_models_gpu([model], memory_required=needed)
        # Last and whole: the VAE's layers cannot be cast where they are used; the transformer gives way if it must.
        comfy.model_management.load_models_gpu(others, force_full_load=True)

        # 3. sample
        schedule = NoiseSchedule(config.schedule)
        timesteps = schedule.timesteps(steps, denoise)
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = noise_like(start, generator)
        loop = working_feedback(feedback, width, height)
        noisy = noised(start, noise, timesteps[0], schedule)
        latents, report = sample(
            Denoiser(
                model=backbone.diffusion_model,
                schedule=schedule,
                image=(extras[IMAGE_LATENT] * scale).to(device),
                text=text.to(device),
                negative_text=negative_text.to(device),
                guidance_scale=cfg,
                dynamic=cfg_schedule != "constant" and cfg > 1,
                dynamic_over="timestep" if cfg_schedule == "dynamic_diffusers" else "step",
                batched=not sequential_cfg,
                dtype=backbone.compute_dtype,
                on_block=lambda _: throw_if_interrupted(),
            ),
            noisy.to(device),
            timesteps,
            generator,
            solver,
            loop,
            feedback.options if feedback is not None else None,
            given,
            step_callback(backbone, steps, device),
        )
        ui = {"svimo": [asdict(report)]}
        return io.NodeOutput(pack_latents(latents, scale, extras.get(PROMPT, "")), ui=ui)


def joint_start(
    latents: JointLatents, backbone: BackboneModel, feedback: FeedbackHandle | None
) -> JointLatents:
    """Of a LATENT what this model denoises together: video and motion. Hands and objects are read anew.

    Raises:
        ValueError: not one clip of video latents that this model can patch.
    """
    video, config = latents.video, backbone.config
    if video.ndim != 5 or video.shape[:2] != (1, config.vae.latent_channels):
        raise ValueError(
            f"latent_image must be one clip, 1 x {config.vae.latent_channels} x frames x height x width, got "
            f"{' x '.join(map(str, video.shape))}: connect the latent of SViMo Image Encode"
        )
    clip_size(latents, backbone)
    if not config.backbone.motion:
        if feedback is not None:
            raise ValueError(
                "this model makes video only, without motion: disconnect feedback, or load a SViMo model"
            )
        return JointLatents(video)
    return JointLatents(video, latents.motion if latents.motion is not None else torch.zeros_like(video))


def clip_size(latents: JointLatents, backbone: BackboneModel) -> tuple[int, int, int]:
    """Frames, height and width in pixels of video latents, checked against the model."""
    vae = backbone.config.vae
    _, _, t, h, w = latents.video.shape
    size = (t - 1) * vae.temporal_compression + 1, h * vae.spatial_compression, w * vae.spatial_compression
    backbone.config.check_clip(*size)
    return size


def read_conditioning(
    name: str, conditioning: list, start: JointLatents, backbone: BackboneModel
) -> tuple[torch.Tensor, dict]:
    """Text features and extras of a CONDITIONING, checked against the clip and the model.

    Raises:
        ValueError: several prompts, foreign text features, or no or an unfitting reference image or motion.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} combines {len(conditioning)} prompts: SViMo follows one. Put everything into one text"
        )
    text, extras = conditioning[0]
    expected = backbone.config.backbone.text_length, backbone.config.backbone.text_dim
    if tuple(text.shape[1:]) != expected:
        raise ValueError(
            f"{name} has text features of {text.shape[1]} tokens x {text.shape[2]}; this model needs {expected[0]} x "
            f"{expected[1]}: encode the prompt with SViMo Text Encode and the text encoder that belongs to the model"
        )
    if IMAGE_LATENT not in extras:
        raise ValueError(f"{name} has no reference image: connect it through SViMo Image Encode")
    _, _, t, h, w = start.video.shape
    image = extras[IMAGE_LATENT]
    if tuple(image.shape[-2:]) != (h, w):
        raise ValueError(
            f"latent_image is {w} x {h}, but the reference image in {name} was encoded at {image.shape[-1]} x "
            f"{image.shape[-2]} latent cells: take both from the same SViMo Image Encode"
        )
    given = extras.get(GUIDANCE)
    if given is not None and tuple(given.latent.shape[-3:]) != (t, h, w):
        raise ValueError(
            f"latent_image is {t} x {h} x {w}, but the motion in {name} was encoded at "
            f"{' x '.join(map(str, given.latent.shape[-3:]))}: give SViMo Motion Encode the same latent"
        )
    return text.float(), extras


def working_feedback(feedback: FeedbackHandle | None, width: int, height: int) -> InteractionFeedback | None:
    """The loop's callable, for models that are loaded."""
    if feedback is None:
        return None
    return InteractionFeedback(
        feedback.interaction.patcher.model,
        feedback.vae.video_vae,
        feedback.interaction.normalizer,
        NoiseSchedule(feedback.interaction.schedule),
        width,
        height,
        feedback.interaction.compute_dtype,
        throw_if_interrupted,
    )


def step_callback(backbone: BackboneModel, steps: int, device: torch.device):
    """Progress bar and live preview after each step."""
    bar = comfy.utils.ProgressBar(steps)
    previewer = (
        latent_preview.get_previewer(device, backbone.latent_format) if backbone.latent_format else None
    )

    def on_step(step: int, clean_video: torch.Tensor) -> None:
        preview = (
            previewer.decode_latent_to_preview_image("JPEG", clean_video) if previewer is not None else None
        )
        bar.update_absolute(step + 1, steps, preview)

    return on_step


NODES = [SViMoFeedback, SViMoSampler]
