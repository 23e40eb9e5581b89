"""From what is given to what is not: video to motion, motion to video, clips that go on. Each makes conditions and a LATENT
whose noise mask keeps what is given, for any sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import node_helpers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor

from ..svimo_core.clean import resample, trim
from ..svimo_core.config import SViMoConfig
from ..svimo_core.motion import HandObjectMotion
from ..svimo_core.sampling.latents import JointLatents, known_frames
from ..svimo_core.sampling.pipeline import encode_fitted, fit_image
from ..svimo_core.windows import join_motions, join_videos, window_starts
from .backbone import IMAGE_LATENT, backbone_of, check_any_to_any
from .compat import aliases
from .condition import encoded_motion, guided, shown_notes
from .latents import PROMPT, WINDOW, JointLatent, Window, packed
from .loop import InteractionHandle
from .save import progress
from .types import CATEGORY, Interaction, Motion, throw_if_interrupted
from .vae import SViMoVAE, svimo_vae

DIRECTIONS = f"{CATEGORY}/directions"
ENCODED_AT_ONCE = 2**28
"""Bytes of activations: as many windows are encoded together as need no more, which is quicker for small ones."""
KEPT = 2
"""Latent frames of a clip that the one after it begins with, where there is room: enough to see how things move."""


def prompts() -> list[io.Input]:
    """What every direction is told."""
    return [
        io.Model.Input("model", tooltip="SViMo's video and motion transformer, which will sample."),
        io.Conditioning.Input("positive", tooltip="Prompt to follow, from SViMo Text Encode."),
        io.Conditioning.Input("negative", tooltip="Prompt to move away from; usually empty text."),
        io.Vae.Input("vae", tooltip="SViMo's video VAE."),
    ]


def drawing_encoder() -> io.Input:
    """What may encode the drawing of a motion."""
    return Interaction.Input(
        "interaction",
        optional=True,
        tooltip="Connect it to encode the drawn motion with its drawing encoder, which is faster and needs little memory. Otherwise the VAE encodes.",
    )


def conditions(of: str = "") -> list[io.Output]:
    """For the sampler; `of` says what there is one of for each."""
    return [
        io.Conditioning.Output(
            display_name="positive", tooltip=f"Prompt with the first frame{of}.", is_output_list=bool(of)
        ),
        io.Conditioning.Output(
            display_name="negative",
            tooltip=f"Negative prompt with the first frame{of}.",
            is_output_list=bool(of),
        ),
        io.Latent.Output(
            display_name="latent",
            tooltip=f"What is given, under a noise mask that keeps it, and room for the rest{of}. For SViMo Sampler or any other.",
            is_output_list=bool(of),
        ),
    ]


class SViMoVideoToMotion(io.ComfyNode):
    """The frames of a video, of which the motion is wanted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoVideoToMotion",
            display_name="SViMo Video to Motion",
            category=DIRECTIONS,
            description="Hands and objects in 3D out of a video: it is cut into windows of the model's length, each of which the sampler then gives its motion. SViMo Join Clips puts them together.",
            **aliases(
                "motion capture", "mocap", "hand tracking", "object tracking", "pose estimation", "markerless"
            ),
            inputs=[
                *prompts(),
                io.Image.Input(
                    "images", tooltip="Frames of the video, such as from core's Get Video Components."
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=0.1,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second of the images. The model sees them at its own rate (8), nearest in time.",
                ),
                io.Int.Input(
                    "overlap",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Frames that windows share, at the model's rate, where their motions are blended. 0: half a window.",
                ),
            ],
            outputs=[
                *conditions(of=", for each window"),
                io.Image.Output(
                    display_name="images", tooltip="What the model sees: the frames at its size and rate."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        vae: SViMoVAE,
        images: Tensor,
        fps: float,
        overlap: int,
    ) -> io.NodeOutput:
        config, vae = able(model), svimo_vae(vae)
        seen = in_time(images, fps, config.fps)
        if len(seen) < config.frames:
            raise ValueError(
                f"the video is too short: {len(images)} frames at {fps:g} a second are {len(seen)} at the model's {config.fps:g}, "
                f"and it sees {config.frames} at a time: give at least {frames_for_a_window(config, fps)} frames"
            )
        if overlap >= config.frames:
            raise ValueError(f"overlap must be below the model's {config.frames} frames, got {overlap}")
        starts = window_starts(len(seen), config.frames, overlap)

        # 1. the frames that the model sees
        report, work = progress(), len(seen) + len(starts) * config.frames
        fitted = fit_frames(images, seen, config, lambda done: report(done, work))

        # 2. each window's conditions and latent
        windows = [
            Given(video=fitted[start : start + config.frames], window=Window(start, follows=False))
            for start in starts
        ]
        known = known_frames(latent_frames(config), True, False)
        memory = vae.memory_for_encode(config.frames, config.height, config.width)
        at_once = max(1, ENCODED_AT_ONCE // memory)
        told = []
        for i in range(0, len(windows), at_once):
            told += told_all(config, vae, positive, negative, windows[i : i + at_once], known)
            report(len(seen) + len(told) * config.frames, work)
        return io.NodeOutput(*map(list, zip(*told, strict=True)), fitted)


class SViMoMotionToVideo(io.ComfyNode):
    """A motion, of which the video is wanted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoMotionToVideo",
            display_name="SViMo Motion to Video",
            category=DIRECTIONS,
            description="A video of a motion that you keyed, captured or imported, in the reference image: the motion is drawn and given to the sampler as it is. Of a longer one it shows the beginning, and SViMo Extend Clip goes on.",
            **aliases("animate", "motion control", "pose to video", "previz", "render motion"),
            inputs=[
                *prompts(),
                io.Image.Input(
                    "image",
                    tooltip="One reference image: the first frame of the video, with hands and objects where the motion has them.",
                ),
                Motion.Input(
                    "motion", tooltip="3D motion. The model sees it at its own rate (8 frames per second)."
                ),
                drawing_encoder(),
            ],
            outputs=[
                *conditions(),
                Motion.Output(display_name="motion", tooltip="The motion at the model's rate, whole."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        vae: SViMoVAE,
        image: Tensor,
        motion: HandObjectMotion,
        interaction: InteractionHandle | None = None,
    ) -> io.NodeOutput:
        config, vae = able(model), svimo_vae(vae)
        if len(image) != 1:
            raise ValueError(
                f"image is a batch of {len(image)}: give one reference image (core's ImageFromBatch picks one)"
            )
        seen = at_rate(motion, config)
        drawing, notes = drawn(trim(seen, 0, config.frames - 1), config, vae, interaction)
        given = Given(
            video=fit_frames(image, np.zeros(config.frames, int), config),
            drawing=drawing,
            window=Window(0, follows=False),
        )
        known = known_frames(latent_frames(config), False, True)
        (told,) = told_all(config, vae, positive, negative, [given], known)
        return io.NodeOutput(*told, seen, ui=shown_notes(cls, notes))


class SViMoExtendClip(io.ComfyNode):
    """A clip that goes on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoExtendClip",
            display_name="SViMo Extend Clip",
            category=DIRECTIONS,
            description="The next window of a clip: it begins with the last frames of the one before, and can end with the first frames of another or follow a motion that goes ahead. SViMo Join Clips puts it behind.",
            **aliases(
                "continue video", "longer video", "in between", "interpolate", "loop video", "outpaint time"
            ),
            inputs=[
                *prompts(),
                io.Image.Input(
                    "images",
                    tooltip="The clip so far, at the model's rate: from SViMo Decode Video or SViMo Join Clips.",
                ),
                Motion.Input(
                    "motion",
                    tooltip="Its motion, at the model's rate. If it is longer than the images, the video follows what is ahead.",
                ),
                drawing_encoder(),
                io.Image.Input(
                    "next_images",
                    optional=True,
                    tooltip="A clip to arrive at: its first frames end this window.",
                ),
                Motion.Input("next_motion", optional=True, tooltip="The motion of the clip to arrive at."),
            ],
            outputs=conditions(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        vae: SViMoVAE,
        images: Tensor,
        motion: HandObjectMotion,
        interaction: InteractionHandle | None = None,
        next_images: Tensor | None = None,
        next_motion: HandObjectMotion | None = None,
    ) -> io.NodeOutput:
        config, vae = able(model), svimo_vae(vae)
        group = config.vae.temporal_compression  # frames of a latent frame, but for the first
        last = 0 if next_images is None else 1
        kept = min(KEPT, latent_frames(config) - last - 1)  # a short window must have one left to make
        overlap = 1 + group * (kept - 1)
        for name, clip in (("motion", motion), ("next_motion", next_motion)):
            if clip is not None and abs(clip.fps - config.fps) > 1e-3:
                raise ValueError(
                    f"{name} has {clip.fps:g} frames a second, and the model's clips {config.fps:g}: SViMo Clean Motion resamples it"
                )
        if len(images) < overlap or len(motion) < len(images):
            raise ValueError(
                f"the clip so far has {len(images)} frames of images and {len(motion)} of motion: give at least {overlap} "
                "images, and the motion of all of them"
            )
        if (next_images is None) != (next_motion is None):
            raise ValueError(
                "a clip to arrive at needs both: connect next_images and next_motion, or neither"
            )
        if next_images is not None and len(motion) > len(images):
            raise ValueError(
                f"the motion goes on behind the images ({len(motion)} frames, and {len(images)}), and there is a clip to "
                "arrive at: give next_images and next_motion with a motion as long as the images, or leave them out"
            )
        start = len(images) - overlap
        frames = np.minimum(np.arange(start, start + config.frames), len(images) - 1)
        video = fit_frames(images, frames, config)
        ahead = len(motion) >= start + config.frames
        if not ahead and len(motion) > len(images):
            raise ValueError(
                f"the motion goes {len(motion) - len(images)} frames ahead of the images, and the next window needs "
                f"{config.frames - overlap} or none: SViMo Clean Motion cuts it, and Extend Clip goes on without"
            )
        moved = motion.take(np.minimum(np.arange(start, start + config.frames), len(motion) - 1))
        if next_images is not None:
            if min(len(next_images), len(next_motion)) < group:
                raise ValueError(
                    f"a clip to arrive at needs {group} frames of images and motion, got {len(next_images)} and {len(next_motion)}"
                )
            video = torch.cat([video[:-group], fit_frames(next_images, np.arange(group), config)])
            moved = join_motions(
                [trim(moved, 0, config.frames - group - 1), trim(next_motion, 0, group - 1)],
                [0, config.frames - group],
            )
        known = known_frames(latent_frames(config), False, ahead, first=kept, last=last)
        drawing, notes = drawn(moved, config, vae, interaction)
        given = Given(video=video, drawing=drawing, window=Window(start, follows=True))
        (told,) = told_all(config, vae, positive, negative, [given], known)
        return io.NodeOutput(*told, ui=shown_notes(cls, notes))


class SViMoJoinClips(io.ComfyNode):
    """Windows of a clip, put together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SViMoJoinClips",
            display_name="SViMo Join Clips",
            category=DIRECTIONS,
            description="Put the windows of SViMo Video to Motion or SViMo Extend Clip together: where they overlap, motions and images are blended.",
            **aliases("concatenate", "stitch", "append clip", "merge motion"),
            is_input_list=True,
            inputs=[
                Motion.Input(
                    "motion",
                    tooltip="Motion of each window, from SViMo Decode Motion: it knows where in the clip it belongs.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Images of each window, from SViMo Decode Video."
                ),
                Motion.Input("motion_before", optional=True, tooltip="The clip so far, to go on from."),
                io.Image.Input("images_before", optional=True, tooltip="Images of the clip so far."),
            ],
            outputs=[
                Motion.Output(display_name="motion", tooltip="Motion of the whole clip."),
                io.Image.Output(
                    display_name="images", tooltip="Images of the whole clip; nothing without images."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        motion: list[HandObjectMotion],
        images: list[Tensor] | None = None,
        motion_before: list[HandObjectMotion] | None = None,
        images_before: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        windows = [Window.of(part) for part in motion]
        starts = [window.first_frame for window in windows]
        before = motion_before or []
        if len(before) > 1:
            raise ValueError(f"motion_before must be one motion, got {len(before)}: join those first")
        if images is not None and len(images) != len(motion):
            raise ValueError(
                f"there are {len(motion)} motions and {len(images)} videos: give one of each for every window"
            )
        if bool(images_before) != bool(before and images is not None):
            raise ValueError(
                "images go with motions: connect images and images_before beside motion and motion_before, or neither"
            )
        for name, shown, moved in (("images", images, motion), ("images_before", images_before, before)):
            for video, part in zip(shown or (), moved if shown else (), strict=True):
                if len(video) != len(part) and not (name == "images_before" and len(part) > len(video)):
                    raise ValueError(
                        f"{name} has {len(video)} frames and its motion {len(part)}: give those of one clip"
                    )
        if len(set(starts)) < len(starts) or (before and min(starts) <= 0):
            raise ValueError(
                f"windows begin at frames {', '.join(map(str, starts))} of their clip{' behind another' * bool(before)}, and "
                "each must begin later than the one before: connect what SViMo Decode Motion read off the windows of SViMo "
                "Video to Motion or SViMo Extend Clip, not a motion from a file or of a clip by itself"
            )
        order = sorted(range(len(motion)), key=lambda i: starts[i])
        if before and images_before:  # the motion may go ahead
            before = [trim(before[0], 0, min(len(before[0]), len(images_before[0])) - 1)]
        parts, begins = [*before, *(motion[i] for i in order)], [0] * len(before) + [starts[i] for i in order]
        if begins[0] != 0:
            raise ValueError(
                f"the first window begins at frame {begins[0]} of its clip: connect the clip so far to motion_before"
            )
        joined = join_motions(parts, begins, follow=any(window.follows for window in windows))
        if images is None:
            return io.NodeOutput(joined, ExecutionBlocker("SViMo Join Clips was given no images to join"))
        shown = join_videos([*(images_before or []), *(images[i] for i in order)], begins, blend=True)
        return io.NodeOutput(joined, shown)


# --- what they share ---


class Given(NamedTuple):
    """What is given of one window, at the model's size and rate."""

    video: Tensor
    """N H W 3 in [0, 1]; frames that are not known do not matter."""
    window: Window
    drawing: Tensor | None = None
    """Latent of the motion's drawing, in VAE space, 1 C T h w; None where no frame of it is known."""


def able(model: ModelPatcher) -> SViMoConfig:
    """The configuration of a model that was trained for every direction.

    Raises:
        ValueError: it was not.
    """
    config = backbone_of(model).config
    check_any_to_any(config)
    return config


def latent_frames(config: SViMoConfig) -> int:
    """Of one window."""
    return config.latent_shape(config.frames, config.height, config.width)[1]


def drawn(
    motion: HandObjectMotion, config: SViMoConfig, vae: SViMoVAE, interaction: InteractionHandle | None
) -> tuple[Tensor, list[str]]:
    """The drawing of one window's motion, as `Given` has it, and notes on it."""
    drawing, notes = encoded_motion(motion, vae, interaction, config.interaction, config.width, config.height)
    return drawing / vae.scale, notes


def told_all(
    config: SViMoConfig,
    vae: SViMoVAE,
    positive: list,
    negative: list,
    windows: Sequence[Given],
    known: Tensor,
) -> list[tuple[list, list, dict[str, Any]]]:
    """Conditions and LATENT of each window, of which these latent frames are known (1 2 T)."""
    for name, prompt in (("positive", positive), ("negative", negative)):
        if not prompt:
            raise ValueError(f"{name} is empty: connect a prompt from SViMo Text Encode")
    videos = torch.stack([given.video for given in windows])
    shape = len(windows), *config.latent_shape(config.frames, config.height, config.width)
    encoded = vae.encode_scaled(videos).cpu() / vae.scale if known[0, 0].any() else torch.zeros(shape)
    noise = torch.Generator("cpu").manual_seed(0)
    firsts = encode_fitted(vae.encode_scaled, videos[:, 0], generator=noise).cpu()[:, :, None] / vae.scale
    told = []
    for given, video, first in zip(windows, encoded.split(1), firsts.split(1), strict=True):
        drawing = torch.zeros_like(video) if given.drawing is None else given.drawing
        conditions = [
            node_helpers.conditioning_set_values(x, {IMAGE_LATENT: first, WINDOW: given.window})
            for x in (positive, negative)
        ]
        if known[0, 1].all():
            conditions = [guided(x, drawing, 0.0, 1.0) for x in conditions]
        latent = {
            "samples": packed(JointLatents(video, drawing)),
            "noise_mask": JointLatent(
                [(~known)[:, stream, None, :, None, None].float() for stream in (0, 1)]
            ),
            PROMPT: positive[0][1].get(PROMPT, ""),
            WINDOW: given.window,
        }
        told.append((*conditions, latent))
    return told


def in_time(images: Tensor, fps: float, rate: float) -> np.ndarray:
    """Which image is nearest to each moment at a rate.

    Raises:
        ValueError: no rate of the images, as another node may give.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be the images' frames per second, above 0, got {fps:g}")
    moments = np.arange(int((len(images) - 1) / fps * rate + 1e-6) + 1) / rate
    return np.minimum(np.round(moments * fps).astype(int), len(images) - 1)


def frames_for_a_window(config: SViMoConfig, fps: float) -> int:
    """How many frames at a rate reach from the first to the last of a window."""
    return math.ceil((config.frames - 1) / config.fps * fps - 1e-6) + 1


def fit_frames(
    images: Tensor,
    index: Sequence[int],
    config: SViMoConfig,
    on_frame: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """These of a batch of images, at the model's size (scaled and cropped in the middle), N H W 3; `on_frame` hears how
    many are done."""
    fitted, last = torch.empty(len(index), config.height, config.width, 3), None
    for place, i in enumerate(map(int, index)):
        throw_if_interrupted()
        again = i == last  # a frame that is held
        fitted[place] = (
            fitted[place - 1] if again else fit_image(images[i, ..., :3], config.width, config.height)
        )
        last = i
        on_frame(place + 1)
    return fitted


def at_rate(motion: HandObjectMotion, config: SViMoConfig) -> HandObjectMotion:
    """A motion at the model's rate, as long as a window at least.

    Raises:
        ValueError: it is shorter.
    """
    seen = motion if abs(motion.fps - config.fps) < 1e-3 else resample(motion, config.fps)
    if len(seen) < config.frames:
        raise ValueError(
            f"the motion is too short: {len(motion)} frames at {motion.fps:g} a second are {len(seen)} at the model's "
            f"{config.fps:g}, and it makes {config.frames} at a time: give at least "
            f"{frames_for_a_window(config, motion.fps)} frames"
        )
    return seen


NODES = [SViMoVideoToMotion, SViMoMotionToVideo, SViMoExtendClip, SViMoJoinClips]
