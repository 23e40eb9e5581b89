"""Conditions: prompt, reference image and given motion into CONDITIONING and an empty LATENT."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..svimo_core.config import InteractionConfig
from ..svimo_core.model.text import hand_object_prompt
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.sampling.latents import JointLatents
from ..svimo_core.sampling.painter import as_known, draw_motions, quickly_encoded
from ..svimo_core.sampling.pipeline import empty_latents, encode_image
from .backbone import GUIDANCE, IMAGE_LATENT, backbone_of
from .clip import SViMoCLIP, tokenize_as_cogvideox
from .compat import aliases
from .latents import PROMPT, packed, streams_of
from .loop import InteractionHandle
from .save import say
from .types import CATEGORY, Interaction, Motion
from .vae import SViMoVAE, svimo_vae


class SViMoPrompt(io.ComfyNode):
    """Tool, action and target to the paper's prompt form."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoPrompt",
            display_name="SViMo Hand-Object Prompt",
            category=f"{CATEGORY}/conditioning",
            description='Write the prompt the way SViMo was trained: "use {tool} to {action} {target}".',
            **aliases("hoi", "hand object interaction", "tool action target", "taco"),
            inputs=[
                io.String.Input(
                    "tool", default="spoon", tooltip="What the right hand holds, such as spoon or brush."
                ),
                io.String.Input("action", default="stir", tooltip="What it does, such as stir, pour or hit."),
                io.String.Input(
                    "target", default="cup", tooltip="What it acts on, steadied by the left hand."
                ),
            ],
            outputs=[io.String.Output(display_name="prompt", tooltip="For the text of SViMo Text Encode.")],
        )

    @classmethod
    def execute(cls, tool: str, action: str, target: str) -> io.NodeOutput:
        return io.NodeOutput(hand_object_prompt(tool, action, target))


class SViMoTextEncode(io.ComfyNode):
    """A prompt to text features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoTextEncode",
            display_name="SViMo Text Encode",
            category=f"{CATEGORY}/conditioning",
            description="Encode a prompt with the checkpoint's text encoder, or with T5-XXL from core's CLIP loader (padded to 226 tokens, as CogVideoX expects).",
            **aliases("clip text encode", "cogvideo prompt", "t5", "prompt"),
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="Text encoder of a SViMo checkpoint, or T5-XXL from core's CLIP loader."
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip='The prompt. SViMo is trained on "use {tool} to {action} {target}"; leave it empty for the negative.',
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="Text features.")],
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "clip is empty: this checkpoint has no text encoder. Load T5-XXL with core's CLIP loader instead"
            )
        tokens = clip.tokenize(text) if isinstance(clip, SViMoCLIP) else tokenize_as_cogvideox(clip, text)
        conditioning = clip.encode_from_tokens_scheduled(tokens)
        return io.NodeOutput(node_helpers.conditioning_set_values(conditioning, {PROMPT: text}))


class SViMoImageEncode(io.ComfyNode):
    """The reference image to conditions, and the clip's size to an empty latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoImageEncode",
            display_name="SViMo Image Encode",
            category=f"{CATEGORY}/conditioning",
            description="Fit the reference image to the clip (scale and centre crop), encode it, and make the empty latent of the clip.",
            **aliases("image to video", "i2v", "first frame", "start image", "empty latent video"),
            inputs=[
                io.Conditioning.Input("positive", tooltip="Prompt to follow."),
                io.Conditioning.Input("negative", tooltip="Prompt to move away from; usually empty text."),
                io.Vae.Input("vae", tooltip="SViMo's video VAE."),
                io.Image.Input("image", tooltip="One reference image: the first frame of the video."),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="Pixels, a multiple of 16. 0: the model's native width.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="Pixels, a multiple of 16. 0: the model's native height.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=1025,
                    tooltip="Number of frames, 8k + 1 (17, 49, ...). 0: the model's native length.",
                ),
                io.Float.Input(
                    "noise_augmentation",
                    default=0.02,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.001,
                    tooltip="Noise added to the reference image. SViMo is trained with about 0.05; 0 stays closest to the image.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will sample: the latent then holds what it makes, and 0 means its native size. Not needed with the VAE of the same SViMo checkpoint.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Prompt with the reference image."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="Negative prompt with the reference image."
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty latent of the clip's size for any sampler: of the video, and of its drawing if the model makes one.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: SViMoVAE,
        image: Tensor,
        width: int,
        height: int,
        frames: int,
        noise_augmentation: float,
        model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        vae = svimo_vae(vae)
        config = backbone_of(model).config if model is not None else vae.config
        if model is not None:
            width, height, frames = width or config.width, height or config.height, frames or config.frames
        frames, height, width = vae.clip_size(frames, height, width)
        if len(image) != 1:
            raise ValueError(
                f"image is a batch of {len(image)}: give one reference image (core's ImageFromBatch picks one)"
            )
        empty = empty_latents(config, frames, height, width)
        encoded = encode_image(
            vae.encode_scaled,
            image[0, ..., :3],
            width,
            height,
            noise_augmentation,
            torch.Generator("cpu").manual_seed(0),  # the noise only has to be there, not to vary
        )
        values = {IMAGE_LATENT: encoded.cpu()[:, :, None] / vae.scale}
        samples = packed(JointLatents(empty, empty.clone() if config.backbone.motion else None))
        return io.NodeOutput(
            node_helpers.conditioning_set_values(positive, values),
            node_helpers.conditioning_set_values(negative, values),
            {"samples": samples, PROMPT: positive[0][1].get(PROMPT, "")},
        )


class SViMoMotionEncode(io.ComfyNode):
    """A given 3D motion to guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoMotionEncode",
            display_name="SViMo Motion Encode",
            category=f"{CATEGORY}/conditioning",
            description="Let a 3D motion you already have guide the video: it is drawn, encoded, and takes the place of the loop's own guidance.",
            **aliases("motion control", "motion guidance", "control video", "pose to video", "hoi"),
            inputs=[
                io.Conditioning.Input("positive", tooltip="Prompt to follow."),
                io.Conditioning.Input("negative", tooltip="Prompt to move away from."),
                io.Vae.Input("vae", tooltip="SViMo's video VAE."),
                Motion.Input("motion", tooltip="3D motion with as many frames as the clip."),
                io.Latent.Input("latent", tooltip="The clip's latent from SViMo Image Encode, for its size."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How strongly the motion guides. 0: not at all.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the noise schedule after which it begins: of the steps, in a run from pure noise.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the noise schedule at which it ends; the feedback loop, if connected, takes over.",
                ),
                Interaction.Input(
                    "interaction",
                    optional=True,
                    tooltip="Connect it to encode with its drawing encoder, which is faster and needs little memory. Otherwise the VAE encodes, exactly.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Prompt with the motion."),
                io.Conditioning.Output(display_name="negative", tooltip="Negative prompt with the motion."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: SViMoVAE,
        motion: HandObjectMotion,
        latent: dict,
        strength: float,
        start_percent: float,
        end_percent: float,
        interaction: InteractionHandle | None = None,
    ) -> io.NodeOutput:
        vae = svimo_vae(vae)
        frames, height, width = vae.config.vae.clip_size(streams_of(latent).video.shape)
        if len(motion) != frames:
            raise ValueError(
                f"the motion has {len(motion)} frames, the clip {frames}: give both the same length"
            )
        if not 0 <= start_percent <= end_percent <= 1:
            raise ValueError(
                f"a given motion needs 0 <= start_percent <= end_percent <= 1, got {start_percent} and {end_percent}"
            )
        drawn, notes = encoded_motion(motion, vae, interaction, vae.config.interaction, width, height)
        guidance = strength * drawn / vae.scale
        return io.NodeOutput(
            *(guided(prompt, guidance, start_percent, end_percent) for prompt in (positive, negative)),
            ui=shown_notes(cls, notes),
        )


def encoded_motion(
    motion: HandObjectMotion,
    vae: SViMoVAE,
    interaction: InteractionHandle | None,
    known: InteractionConfig,
    width: int,
    height: int,
) -> tuple[Tensor, list[str]]:
    """The latent of a given motion's drawing, scaled, 1 C T h w on the CPU, and notes on what is unlike the motions that
    the model knows.

    Raises:
        ValueError: nothing of it is in view, or no drawing encoder in an interaction model that is given.
    """
    motion, notes = as_known(motion, known, width, height)
    if interaction is None:
        encoded = vae.encode_scaled(draw_motions([motion], width, height))
    else:
        interaction.check_drawing(vae.config.vae)
        encoded = encoded_without_vae(interaction, motion, width, height)
    return encoded.cpu(), notes


def shown_notes(node: type[io.ComfyNode], notes: list[str]) -> dict[str, list[str]] | None:
    """Notes on a node and in the log, and for what it reports to the API."""
    if not notes:
        return None
    for note in notes:
        logging.warning("%s: %s", node.__name__, note)
    say(node, "\n".join(notes))
    return {"text": ["\n".join(notes)]}


def encoded_without_vae(
    interaction: InteractionHandle, motion: HandObjectMotion, width: int, height: int
) -> Tensor:
    """A motion's drawing as the drawing encoder has it, scaled, B C T h w.

    Raises:
        ValueError: there is none.
    """
    drawing = interaction.drawing
    if drawing is None:
        raise ValueError(
            "the interaction model's file has no drawing encoder: leave interaction unconnected, and the VAE encodes"
        )
    memory = drawing.painter(interaction.normalizer, width, height).memory(len(motion))
    comfy.model_management.load_models_gpu([drawing.patcher], memory_required=memory)
    device, dtype = drawing.patcher.load_device, drawing.compute_dtype
    return quickly_encoded(drawing.patcher.model, motion, width, height, device, dtype)


def guided(prompt: list, guidance: Tensor, start: float, end: float) -> list:
    """CONDITIONING that a given motion's drawing guides for a part of the steps, and nothing or the loop for the rest:
    one entry for each part, of which core uses whichever holds. A prompt that holds for a part only keeps to that; one
    that a motion guides already is left as it is."""
    made = []
    for text, extras in prompt:
        if GUIDANCE in extras:
            made.append([text, extras])
            continue
        first, last = extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)
        for begin, until, values in ((start, end, {GUIDANCE: guidance}), (0.0, start, {}), (end, 1.0, {})):
            begin, until = max(begin, first), min(until, last)
            if begin < until:
                part = {} if (begin, until) == (0.0, 1.0) else {"start_percent": begin, "end_percent": until}
                made.append([text, extras | values | part])
    return made


NODES = [SViMoPrompt, SViMoTextEncode, SViMoImageEncode, SViMoMotionEncode]
