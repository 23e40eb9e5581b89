"""Pictures of how far a stage has come: rows of frames, the truth above what the model makes of it."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from svimo_core.files import whole_file
from svimo_core.model.vae import VideoVAE
from svimo_core.render import render_motion
from svimo_core.sampling.pipeline import SViMo, encode_image, to_uint8

from .clips import ClipFolder, part_for_vae
from .drawing import DrawingPool
from .encode import held_out_clips
from .encoded import EncodedClips
from .loader import EncodedBatches, TrainingData
from .on_the_fly import HeldOutClips, SyntheticClips, held_out
from .settings import Shape, TrainConfig
from .stages import AlignmentStage, JointStage
from .text import prompt_encoder

Shown = ClipFolder | SyntheticClips | EncodedClips | HeldOutClips | DrawingPool

COLUMNS = 6
SHEET_CLIPS = 2
SHEET_DRAWINGS = 4
SAMPLING_STEPS = 20


def shown(
    config: TrainConfig, data: TrainingData, model: SimpleNamespace, accelerator: Accelerator
) -> Shown | None:
    """What the sheets of a run show: held-out clips, or else training clips; None where there are no sheets. Has to be
    called by all processes."""
    if not config.sheet_every:
        return None
    if config.stage == "drawing":
        return data.clips
    if config.stage == "vae":
        if config.held_out is not None:
            return ClipFolder(config.held_out)
        return held_out(model.config) if config.on_the_fly else data.clips[0]
    return (
        held_out_clips(config, SHEET_CLIPS, model, accelerator) if config.held_out is not None else data.clips
    )


@torch.inference_mode()
def write_sheet(
    path: Path, config: TrainConfig, clips: Shown, model: SimpleNamespace, stage: nn.Module
) -> None:
    """Draw the first clips that have video and the stage's work on them as a PNG."""
    shape = config.phases[-1].shapes[0]
    if config.stage == "drawing":
        indices = range(SHEET_DRAWINGS)
    else:
        has_video = clips.has_video if config.stage == "vae" else partial(clips.has_latents, size=shape.size)
        indices = itertools.islice(filter(has_video, range(len(clips))), SHEET_CLIPS)
    rows = [row for index in indices for row in SHEETS[config.stage](clips, index, shape, model, stage)]
    if not rows:
        return
    strips = [np.concatenate(list(row[_columns(len(row))]), axis=1) for row in rows]
    widest = max(strip.shape[1] for strip in strips)
    sheet = np.concatenate([np.pad(x, ((0, 0), (0, widest - x.shape[1]), (0, 0))) for x in strips])
    done, data = cv2.imencode(".png", sheet[..., ::-1])
    assert done
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data.tobytes())


def reconstructions(
    clips: ClipFolder, index: int, shape: Shape, model: SimpleNamespace, stage: nn.Module
) -> list[np.ndarray]:
    """A clip's video and drawing, as far as the VAE takes them, each above its reconstruction."""
    vae = VideoVAE(model.parts["vae"], model.config.vae)
    clip = clips.clip(index)
    drawing = render_motion(clip.motion, clip.video.shape[2], clip.video.shape[1])
    rows = []
    for frames in part_for_vae([clip.video, drawing], vae.config):
        batch = torch.from_numpy(frames)[None].float() / 255
        rows += [frames, to_uint8(vae.decode(vae.encode(batch))[0])]
    return rows


def predictions(
    clips: EncodedClips, index: int, shape: Shape, model: SimpleNamespace, stage: nn.Module
) -> list[np.ndarray]:
    """A drawing above VID's prediction of the motion from clean latents and pure noise, and from half-noisy ones."""
    generator = torch.Generator().manual_seed(index)
    load = EncodedBatches(clips=clips, model=model.config, normalizer=model.normalizer)
    batch = load([index], shape, generator)
    device = stage.interaction.proj_out.weight.device
    rows = [render_motion(clips.clip(index, shape.size).motion, shape.width, shape.height)]
    last = len(stage.schedules["video"].abar) - 1
    for noisy_latents, timestep in ((False, last), (True, last // 2), (True, last)):
        inputs = {name: batch[name] for name in ("hands", "points", "video", "motion")}
        for name, x in inputs.items():
            if noisy_latents or name in ("hands", "points"):
                noise = torch.randn(x.shape, generator=generator)
                inputs[name] = stage.schedules[name].add_noise(x, noise, timestep)
        hands, points = stage.interaction(
            *(x.to(device) for x in inputs.values()), torch.tensor([timestep], device=device)
        )
        motion = model.normalizer.to_motion(hands[0], points[0], shape.width, shape.height, model.config.fps)
        rows.append(render_motion(motion, shape.width, shape.height))
    return rows


def generations(
    clips: EncodedClips, index: int, shape: Shape, model: SimpleNamespace, stage: nn.Module
) -> list[np.ndarray]:
    """Video, as the VAE has it, and drawing of a clip, then video, motion video and drawn 3D motion (if there is a VID)
    generated from its first frame."""
    clip = clips.clip(index, shape.size)
    config, size = model.config, shape.size
    generator = torch.Generator().manual_seed(index)
    reads = isinstance(stage, JointStage | AlignmentStage)
    svimo = SViMo(
        config=config,
        backbone=stage.backbone,
        vae=VideoVAE(model.parts["vae"], config.vae),
        interaction=model.parts["interaction"] if reads else None,
        normalizer=model.normalizer,
    )
    image = clip.image.float() / 255
    image = encode_image(svimo.vae.encode, image, shape.width, shape.height, generator=generator)
    prompts = prompt_encoder(model, clips)([clip.motion.prompt, ""]).chunk(2)
    latents, reading, _ = svimo.denoise(image, *prompts, size, generator, SAMPLING_STEPS)
    truth = clip.latents[:1].to(image) * config.vae.scaling_factor
    rows = [
        to_uint8(svimo.vae.decode(truth)[0]),
        render_motion(clip.motion, shape.width, shape.height),
        *(to_uint8(svimo.vae.decode(latent)[0]) for latent in latents),
    ]
    if reading is not None:
        (motion,) = svimo.reader().to_motions(reading, shape.width, shape.height, config.fps)
        rows.append(render_motion(motion, shape.width, shape.height))
    return rows


def drawings(
    clips: DrawingPool, index: int, shape: Shape, model: SimpleNamespace, stage: nn.Module
) -> list[np.ndarray]:
    """A held-out motion as OpenCV and as the painter draws it, and what the VAE decodes of both its own latent and the
    drawing encoder's."""
    vae = VideoVAE(model.parts["vae"], model.config.vae)
    metres, latent = (x[None].to(vae.device) for x in clips.latent(index, shape, "test"))
    drawn = stage.draw(clips.filled(metres), (shape.height, shape.width))
    large = F.interpolate(drawn[0].cpu(), size=(shape.height, shape.width), mode="nearest")
    decoded = (vae.decode(x)[0] for x in (latent, stage.drawing_encoder(drawn).float()))
    return [
        render_motion(clips.motion(index, shape, "test"), shape.width, shape.height),
        to_uint8(large.permute(0, 2, 3, 1)),
        *(to_uint8(frames) for frames in decoded),
    ]


SHEETS = {
    "drawing": drawings,
    "vae": reconstructions,
    "interaction": predictions,
    "backbone": generations,
    "joint": generations,
    "alignment": generations,
}


def _columns(frames: int) -> np.ndarray:
    return np.linspace(0, frames - 1, COLUMNS).astype(int)
