"""The closed loop as a patch of MODEL, and the one-node way to sample with it."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..svimo_core.sampling.guidance import FeedbackOptions
from ..svimo_core.sampling.latents import JointLatents
from ..svimo_core.sampling.reader import Reading
from ..svimo_core.schedule import NoiseSchedule
from .backbone import SViMoModel, backbone_of
from .compat import aliases
from .latents import PROMPT, READING, StoredReading, packed, streams_of
from .loop import (
    FeedbackPatch,
    InteractionHandle,
    Listener,
    grow_cfg,
    one_prompt_at_a_time,
    report_of,
)
from .types import CATEGORY, Feedback, Interaction, check_choice
from .vae import svimo_vae

CFG_SCHEDULES = ["dynamic", "constant", "dynamic_diffusers"]
SOLVERS = {"ddim": "euler", "dpmpp_2m_sde": "dpmpp_2m_sde"}
"""Our names to core's samplers; on CogVideoX's schedule euler is DDIM."""


def loop_inputs() -> list[io.Input]:
    """When and how strongly the loop acts."""
    return [
        io.Boolean.Input(
            "enabled",
            default=True,
            tooltip="Off: the 3D motion is still read and held against the image, but does not guide the video.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Part of the noise schedule before the loop closes: of the steps, in a run from pure noise. Early on there is only noise to read.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Part of the noise schedule after which the loop opens again.",
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
        io.Boolean.Input(
            "exact_drawing",
            default=False,
            optional=True,
            tooltip="On: encode the drawn motion with the VAE, as without a drawing encoder. Many times slower; for comparison.",
        ),
    ]


class SViMoFeedbackLoop(io.ComfyNode):
    """A MODEL with the loop closed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoFeedbackLoop",
            display_name="SViMo Feedback",
            category=f"{CATEGORY}/sampling",
            description="The closed loop, under any sampler: the 3D interaction model reads the video while it forms, its motion is held against the reference image and drawn, and the drawing guides the next step.",
            **aliases("closed loop", "feedback loop", "motion feedback", "vid", "interaction guidance"),
            inputs=[
                io.Model.Input("model", tooltip="SViMo's video and motion transformer."),
                Interaction.Input("interaction", tooltip="3D interaction model (VID)."),
                io.Vae.Input(
                    "vae",
                    tooltip="SViMo's video VAE: it encodes the drawn motion, unless the checkpoint has a drawing encoder.",
                ),
                *loop_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the loop: for SViMo Sampler, KSampler or any guider.")
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, interaction: InteractionHandle, vae: Any, **options: Any
    ) -> io.NodeOutput:
        return io.NodeOutput(feedback_patch(interaction, vae, **options).apply(model))


class SViMoFeedback(io.ComfyNode):
    """The loop for the feedback input of SViMo Sampler, as workflows before version 0.2 have it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoFeedback",
            display_name="SViMo Feedback (before 0.2)",
            category=f"{CATEGORY}/sampling",
            description="For workflows made before version 0.2. New ones: SViMo Feedback takes the model and gives it back with the loop, under any sampler.",
            is_deprecated=True,
            inputs=[
                Interaction.Input("interaction", tooltip="3D interaction model (VID)."),
                io.Vae.Input(
                    "vae",
                    tooltip="SViMo's video VAE: it encodes the drawn motion, unless the checkpoint has a drawing encoder.",
                ),
                *loop_inputs(),
            ],
            outputs=[Feedback.Output(display_name="feedback", tooltip="For SViMo Sampler.")],
        )

    @classmethod
    def execute(cls, interaction: InteractionHandle, vae: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(feedback_patch(interaction, vae, **options))


def feedback_patch(
    interaction: InteractionHandle,
    vae: Any,
    start_percent: float,
    end_percent: float,
    exact_drawing: bool = False,
    **options: Any,
) -> FeedbackPatch:
    """The loop of these inputs."""
    options = FeedbackOptions(start=start_percent, end=end_percent, exact=exact_drawing, **options)
    return FeedbackPatch(interaction=interaction, vae=svimo_vae(vae), options=options)


class SViMoGrowingCFG(io.ComfyNode):
    """CogVideoX's classifier-free guidance for every sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoGrowingCFG",
            display_name="SViMo Growing CFG",
            category=f"{CATEGORY}/sampling",
            description="Let the sampler's cfg grow over the steps, from 1 to cfg + 1, as CogVideoX was made to be sampled. SViMo Sampler has it built in.",
            **aliases("dynamic cfg", "cfg schedule", "cogvideo", "cogvideox cfg"),
            inputs=[
                io.Model.Input("model", tooltip="SViMo or CogVideoX model."),
                io.Combo.Input(
                    "cfg_schedule",
                    options=[schedule for schedule in CFG_SCHEDULES if schedule != "constant"],
                    default="dynamic",
                    tooltip="dynamic: over the steps. dynamic_diffusers: over the timestep, as diffusers feeds it.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model whose cfg grows.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, cfg_schedule: str) -> io.NodeOutput:
        check_choice("cfg_schedule", cfg_schedule, CFG_SCHEDULES)
        return io.NodeOutput(grow_cfg(model, cfg_schedule))


class SViMoSampler(io.ComfyNode):
    """Video and motion denoised in one synchronized process, with hands and objects read off both at every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoSampler",
            display_name="SViMo Sampler",
            category=f"{CATEGORY}/sampling",
            description="Denoise the video and the rendered motion together, and read both hands and all objects off them at every step.",
            **aliases("ksampler", "denoise", "cogvideo", "ddim", "hoi", "hand object interaction"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SViMo's video and motion transformer, through SViMo Feedback for the closed loop.",
                ),
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
                    tooltip="For workflows made before version 0.2; now SViMo Feedback sits between the model and this node.",
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
        feedback: FeedbackPatch | None = None,
    ) -> io.NodeOutput:
        check_choice("cfg_schedule", cfg_schedule, CFG_SCHEDULES)
        check_choice("solver", solver, SOLVERS)
        backbone = backbone_of(model)

        # 1. the model as these inputs want it
        if feedback is not None:
            model = feedback.apply(model)
        if cfg_schedule != "constant" and cfg > 1:
            model = grow_cfg(model, cfg_schedule)
        if sequential_cfg:
            model = one_prompt_at_a_time(model)
        listener = Listener()
        model = listener.on(model)

        # 2. core's sampler with CogVideoX's timesteps
        start, sigmas = packed(start_of(latent_image, backbone)), sigmas_of(model, steps, denoise)
        steps = len(sigmas) - 1  # a low denoise has no room for all
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        samples = guider.sample(
            comfy.sample.prepare_noise(start, seed, latent_image.get("batch_index")),
            start,
            comfy.samplers.sampler_object(SOLVERS[solver]),
            sigmas,
            denoise_mask=latent_image.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )

        # 3. both streams, and what was read off them
        made = streams_of({"samples": samples.to("cpu")})
        prompt = positive[0][1].get(PROMPT, "")
        latent = latent_image | {"samples": packed(made), PROMPT: prompt}
        latent.pop(READING, None)
        outcome = listener.outcome
        if outcome is not None and outcome.reading is not None:
            reading = Reading(*(x.cpu() for x in outcome.reading))
            latent[READING] = StoredReading(reading=reading, latents=made)
        return io.NodeOutput(latent, ui={"svimo": [report_of(outcome, steps)]})


def start_of(latent: dict[str, Any], backbone: SViMoModel) -> JointLatents:
    """What a run starts from: the streams of a LATENT, with an empty drawing if the model makes one and there is none."""
    streams = streams_of(latent)
    if backbone.config.backbone.motion and streams.drawing is None:
        return JointLatents(streams.video, torch.zeros_like(streams.video))
    return streams


def sigmas_of(model: ModelPatcher, steps: int, denoise: float) -> torch.Tensor:
    """Core's noise levels at CogVideoX's timesteps, trailing spacing, and 0."""
    schedule = NoiseSchedule(backbone_of(model).config.schedule)
    timesteps = torch.tensor(schedule.timesteps(steps, denoise))
    sigmas = model.get_model_object("model_sampling").sigma(timesteps)
    return torch.cat([sigmas.float().cpu(), torch.zeros(1)])


NODES = [SViMoFeedbackLoop, SViMoGrowingCFG, SViMoSampler, SViMoFeedback]
