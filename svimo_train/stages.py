"""What each stage learns, as a module whose forward pass is the loss of one batch.

Trained networks are submodules; frozen ones are held out of `parameters()` in a plain namespace. All randomness of a
batch comes from its generator, so a step can be repeated exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from svimo_core.config import PRESETS, InteractionConfig, SViMoConfig
from svimo_core.model.interaction import InteractionModel
from svimo_core.model.vae import VideoVAE, fit_preview
from svimo_core.normalization import MotionNormalizer
from svimo_core.render import render_motion
from svimo_core.sampling.latents import JointLatents, Known
from svimo_core.sampling.painter import MotionPainter, QuickPainter
from svimo_core.sampling.reader import MotionReader, Reading
from svimo_core.schedule import NoiseSchedule

from .clips import ClipFolder, part_for_vae
from .drawing import DrawingStage
from .encoded import EncodedClips
from .objectives import (
    denoising_loss,
    distances,
    finding_loss,
    interaction_loss,
    kl_loss,
    reconstruction_loss,
)
from .settings import Batch, InteractionObjective, TrainConfig
from .text import prompt_encoder, with_unknown_words


class Noisy(NamedTuple):
    """What the MM-DiT is given of a batch."""

    latents: JointLatents
    """Noisy, but for what is known."""
    time: Tensor
    """Timesteps of video and motion, B 2, on the CPU."""
    known: Known | None
    """None: nothing, and both timesteps are one."""


Denoise = Callable[[Noisy, Tensor], JointLatents]
"""Noisy latents and guidance (B C T h w) to clean latents."""


class VAEStage(nn.Module):
    """Reconstruct random crops of videos and of rendered motion."""

    def __init__(self, config: TrainConfig, model: SimpleNamespace, clips: list[ClipFolder]):
        super().__init__()
        self.objective = config.vae
        self.vae = model.parts["vae"]
        if config.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        frames = batch["frames"]
        distribution = self.vae.encode(frames).latent_dist
        noise = torch.randn(distribution.mean.shape, generator=generator).to(frames.device)
        decoded = self.vae.decode(distribution.mean + distribution.std * noise).sample.float()
        l1, mse, gradient = reconstruction_loss(decoded, frames)
        kl = kl_loss(distribution.mean.float(), distribution.logvar.float())
        loss = l1 + self.objective.mse * mse + gradient + KL_WEIGHT * kl
        return loss, {"l1": l1, "mse": mse, "gradient": gradient, "kl": kl}

    @staticmethod
    @torch.inference_mode()
    def finish(model: SimpleNamespace, folders: list[ClipFolder]) -> None:
        """Set the latents' scale to unit spread over videos and drawings, and fit the preview matrix."""
        clips = folders[0]
        vae = VideoVAE(model.parts["vae"], replace(model.config.vae, scaling_factor=1.0))
        samples = [clips.clip(i) for i in range(min(MEASURED_CLIPS, len(clips)))]
        drawings = [render_motion(c.motion, *reversed(c.video.shape[1:3])) for c in samples]
        videos, drawings = (
            torch.from_numpy(np.stack(part_for_vae(frames, vae.config))).float() / 255
            for frames in ([clip.video for clip in samples], drawings)
        )
        latents = vae.encode(torch.cat([videos, drawings]))
        scaled = replace(model.config.vae, scaling_factor=round(1 / latents.std().item(), 4))
        model.config = replace(model.config, vae=scaled)
        model.preview = fit_preview(VideoVAE(model.parts["vae"], scaled), videos)


KL_WEIGHT = 3e-4
MEASURED_CLIPS = 4
"""Clips behind the latents' scale and the preview matrix: many thousands of latent vectors."""


class InteractionStage(nn.Module):
    """VID's warm-up: clean motion from noisy motion and the true latents, as noisy (paper section 4.1)."""

    def __init__(self, config: TrainConfig, model: SimpleNamespace, clips: EncodedClips):
        super().__init__()
        self.interaction = model.parts["interaction"]
        self.objective = config.interaction
        self.reading_loss = ReadingLoss(config.interaction, model.normalizer)
        self.high_noise = config.high_noise
        self.schedules = noise_schedules(model.config)
        self.frozen = SimpleNamespace(teacher=model.teacher)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, hands, points = warm_up_loss(
            self.interaction,
            batch,
            self.schedules,
            self.reading_loss,
            self.high_noise,
            generator,
            self.frozen.teacher,
        )
        return loss, {"hands": hands, "points": points}


TEACHER_SHARE = 0.6
"""Of VID's loss, where it has a teacher, whose readings are also wrong at times: the rest is the truth's."""


READ = "latent_channels", "num_joints", "object_names"
"""What all VIDs of one model have in common."""


def with_pupil(model: SViMoConfig, teacher: InteractionConfig, config: TrainConfig) -> SViMoConfig:
    """A model whose VID is as large as in the preset of the model's name (or the one asked for), reads what its teacher
    does and has room for its alignment.

    Raises:
        ValueError: it is of another kind than its teacher.
    """
    kept = *READ, "points_per_object", "snr_shift", "norm_groups", "align_channels", "align_points"
    preset = PRESETS.get(model.name, PRESETS[config.preset])
    try:
        pupil = replace(preset.interaction, **{name: getattr(teacher, name) for name in kept})
    except ValueError as error:
        raise ValueError(
            f"a VID of preset {preset.name} cannot learn from {config.interaction.teacher} ({error}): choose an init "
            "or a preset that goes with the teacher"
        ) from error
    return replace(model, interaction=pupil)


class FirstPass(NamedTuple):
    """The sampler's first step."""

    noise: JointLatents
    """It starts from this."""
    clean: JointLatents
    """And takes it for this."""


class BackboneStage(nn.Module):
    """The MM-DiT without VID, to begin with. At full size CogVideoX's weights take the place of this stage."""

    def __init__(self, config: TrainConfig, model: SimpleNamespace, clips: EncodedClips):
        super().__init__()
        self.objective = config.joint
        self.high_noise = config.high_noise
        self.backbone = model.parts["backbone"]
        self.schedules = noise_schedules(model.config)
        self.frozen = SimpleNamespace(
            vae=VideoVAE(model.parts["vae"], model.config.vae),
            normalizer=model.normalizer,
            drawing_encoder=None if config.joint.exact_drawing else model.parts.get("drawing_encoder"),
        )
        self.encode_prompts = prompt_encoder(model, clips)
        if config.train_text:
            self.text_encoder = model.parts["text_encoder"]
        if any(self.objective.shares):
            backbone = replace(model.config.backbone, any_to_any=True)
            model.config = replace(model.config, backbone=backbone)
        if config.gradient_checkpointing:
            checkpoint_blocks(self.backbone)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = self._noised(batch, generator)
        denoise, kept, _ = self._conditioned(batch, generator)
        clean = denoise(noisy, self._with_given(torch.zeros_like(noisy.latents.drawing), noisy, kept))
        video, motion = self._denoising_losses(batch, clean, noisy, batch["whole"])
        return video + motion, {"video": video, "motion": motion}

    def _noised(self, batch: Batch, generator: torch.Generator) -> Noisy:
        """The batch's latents, noised, but for what a sample's task lets it know."""
        schedule, share, count = self.schedules["video"], self.objective.start_share, len(batch["video"])
        time = draw_timesteps(count, schedule, self.high_noise, share, generator)[:, None].repeat(1, 2)
        known = None
        if any(self.objective.shares):
            other = draw_timesteps(count, schedule, self.high_noise, share, generator)
            known, independent = self._tasks(batch, generator)
            time[:, 1] = torch.where(independent, other, time[:, 1])
        streams = (batch[name] for name in ("video", "motion"))
        noisy = JointLatents(
            *(
                schedule.add_noise(x, torch.randn(x.shape, generator=generator).to(x), of_stream)
                for x, of_stream in zip(streams, time.unbind(1), strict=True)
            )
        )
        return Noisy(noisy if known is None else known.put_into(noisy), time, known)

    def _tasks(self, batch: Batch, generator: torch.Generator) -> tuple[Known, Tensor]:
        """What each sample knows, and whether its streams have timesteps of their own (B), by the shares."""
        count, frames = len(batch["video"]), batch["video"].shape[2]
        parts = torch.tensor(self.objective.shares).cumsum(0)
        task = torch.bucketize(torch.rand(count, generator=generator), parts, right=True)
        task = task.masked_fill(~batch["whole"].cpu(), len(parts))
        independent, video, motion, start, ends = (task == i for i in range(len(parts)))
        # known at the start: from one latent frame to all but one, or but two where the last is known as well
        most = frames - 1 - ends.long()
        first = 1 + (torch.rand(count, generator=generator) * most).long()
        place = torch.arange(frames)
        some = (start | ends)[:, None] & (place < first[:, None]) | ends[:, None] & (place == frames - 1)
        known = torch.stack([video[:, None] | some, motion[:, None] | some], dim=1)
        latents = JointLatents(batch["video"], batch["motion"])
        return Known(latents, known.to(batch["video"].device)), independent

    def _conditioned(self, batch: Batch, generator: torch.Generator) -> tuple[Denoise, Tensor, Tensor]:
        """The MM-DiT under conditions that are each left out at times, from noisy latents and guidance to clean latents
        of video and motion; which samples keep their guidance (B,); and the image latents, none left out (B C h w)."""
        settings, device = self.objective, batch["video"].device
        kept = {
            name: torch.rand(len(batch["video"]), generator=generator) >= share
            for name, share in (
                ("text", settings.text_dropout),
                ("image", settings.image_dropout),
                ("guidance", settings.guidance_dropout),
            )
        }
        prompts = [with_unknown_words(p, settings.word_dropout, generator) for p in batch["prompts"]]
        prompts = [p if keep else "" for p, keep in zip(prompts, kept["text"].tolist(), strict=True)]
        text = self.encode_prompts(prompts).to(device)
        image = self._image_latents(batch["images"], generator)
        shown = image * kept["image"].to(device)[:, None, None, None]
        condition = self.backbone.image_condition(shown, batch["video"].shape[2])

        def denoise(noisy: Noisy, guidance: Tensor) -> JointLatents:
            (video, motion), time, known = noisy
            of_frames = time[:, 0] if known is None else known.timesteps(time)
            velocities = self.backbone(video, condition, text, of_frames.to(device), motion, guidance)
            clean = JointLatents(
                *(
                    self.schedules["video"].clean_from_velocity(x, v.float(), of_stream)
                    for x, v, of_stream in zip((video, motion), velocities, time.unbind(1), strict=True)
                )
            )
            return clean if known is None else known.put_into(clean)

        return denoise, kept["guidance"].to(device), image

    @torch.no_grad()
    def _first_pass(
        self, batch: Batch, denoise: Denoise, known: Known | None, generator: torch.Generator
    ) -> FirstPass:
        """The sampler's first step: from pure noise and what is known, guided by a motion that is."""
        like, last = batch["motion"], len(self.schedules["video"].abar) - 1
        noise = JointLatents(*(torch.randn(like.shape, generator=generator).to(like) for _ in range(2)))
        start = noise if known is None else known.put_into(noise)
        noisy = Noisy(start, torch.full((len(like), 2), last), known)
        return FirstPass(noise, denoise(noisy, self._with_given(torch.zeros_like(like), noisy)))

    def _with_given(self, guidance: Tensor, noisy: Noisy, kept: Tensor | None = None) -> Tensor:
        """Guidance (B C T h w), in which a motion that is wholly known guides by itself where a sample keeps it (B)."""
        if noisy.known is None:
            return guidance
        given = noisy.known.frames[:, 1].all(dim=1)
        if kept is not None:
            given = given & kept
        return torch.where(given[:, None, None, None, None], noisy.known.latents.drawing, guidance)

    def reader(self, interaction: InteractionModel) -> MotionReader:
        """What reads and aligns."""
        return MotionReader(interaction, self.frozen.normalizer, len(self.schedules["video"].abar) - 1)

    def painter(self, images: Tensor) -> MotionPainter | QuickPainter:
        """What draws, for clips of the size of these reference images (B H W 3)."""
        height, width = images.shape[1:3]
        if self.frozen.drawing_encoder is None:
            return MotionPainter(self.frozen.vae.encode, self.frozen.normalizer, width, height)
        return QuickPainter(self.frozen.drawing_encoder, self.frozen.normalizer, width, height)

    def _denoising_losses(
        self, batch: Batch, clean: JointLatents, noisy: Noisy, true: Tensor
    ) -> list[Tensor]:
        """Of video and motion, over what is not known of the samples whose latents are the truth's (`true`, B)."""
        counted = true[:, None, None].expand(-1, 2, clean.video.shape[2])
        if noisy.known is not None:
            counted = counted & ~noisy.known.frames
        levels = self.schedules["video"].abar[noisy.time].to(clean.video.device, torch.float32)
        return [
            denoising_loss(x, batch[name], levels[:, i], self.objective.weighting, counted[:, i])
            for i, (name, x) in enumerate(zip(("video", "motion"), clean, strict=True))
        ]

    @torch.no_grad()
    def _image_latents(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Reference images (B H W 3 uint8) to latents (B C h w) with pixel noise drawn anew."""
        images = images.float() / 255
        mean, spread = self.objective.image_noise
        levels = torch.exp(mean + spread * torch.randn(len(images), generator=generator))
        noise = torch.randn(images.shape, generator=generator) * levels[:, None, None, None]
        noisy = images + noise.to(images) / 2  # levels are in [-1, 1] space, which is twice as wide
        return self.frozen.vae.encode(noisy[:, None])[:, :, 0].float()


class JointStage(BackboneStage):
    """MM-DiT and VID together, with guidance into and a gradient out of the loop (paper section 3.3)."""

    def __init__(self, config: TrainConfig, model: SimpleNamespace, clips: EncodedClips):
        super().__init__(config, model, clips)
        self.interaction = model.parts["interaction"]
        self.reading_loss = ReadingLoss(config.interaction, model.normalizer)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.objective

        # 1. guidance, and noisy latents: of the truth, or as the sampler would have them by then
        noisy = self._noised(batch, generator)
        motion = self._noised_motion(batch, noisy.time[:, 1], generator)
        denoise, kept, image = self._conditioned(batch, generator)
        first, true = None, batch["whole"]
        if settings.guidance_from == "first":
            first = self._first_pass(batch, denoise, noisy.known, generator)
            if settings.sampled_share:
                told = torch.rand(len(true), generator=generator) >= settings.sampled_share
                true = true & told.to(true.device)
        guidance = self._guidance(noisy, motion, first, kept, image, self.painter(batch["images"]), denoise)
        if first is not None and not true.all():
            sampled = self._sampled(first, noisy, guidance, denoise)
            chosen = true[:, None, None, None, None]
            both = zip(noisy.latents, sampled, strict=True)
            noisy = noisy._replace(latents=JointLatents(*(torch.where(chosen, x, y) for x, y in both)))

        # 2. clean latents from the MM-DiT, clean motion from VID on them
        clean = denoise(noisy, guidance)
        read = clean if settings.gradient_constraint else [x.detach() for x in clean]
        predicted = self.interaction(motion["hands"], motion["points"], *read, motion["time"])

        # 3. losses
        of_video, of_motion = self._denoising_losses(batch, clean, noisy, true)
        constraint, hands, points = self.reading_loss(predicted, batch)
        loss = of_video + of_motion + settings.interaction * constraint
        if settings.warm_up:
            warm_up, _, _ = warm_up_loss(
                self.interaction,
                batch,
                self.schedules,
                self.reading_loss,
                self.high_noise,
                generator,
            )
            loss = loss + settings.warm_up * warm_up
        return loss, {"video": of_video, "motion": of_motion, "hands": hands, "points": points}

    def _noised_motion(self, batch: Batch, time: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Noisy hands and points, at the motion latents' timesteps (B,) or the last one; `time` (B,) says which."""
        share, schedule = self.reading_loss.objective.reading_share, self.schedules["hands"]
        reading = torch.rand(len(time), generator=generator) < share
        time = time.masked_fill(reading, len(schedule.abar) - 1)
        noisy = noised(batch, ("hands", "points"), self.schedules, time, generator)
        return noisy | {"time": time.to(batch["hands"].device)}

    @torch.no_grad()
    def _sampled(self, first: FirstPass, noisy: Noisy, guidance: Tensor, denoise: Denoise) -> JointLatents:
        """Noisy latents at the timesteps of others, as DDIM takes them there from the first pass on in `sampled_steps`
        steps of equal length; all but the first with guidance."""
        schedule, steps, known = self.schedules["video"], self.objective.sampled_steps, noisy.known
        last = len(schedule.abar) - 1
        noise, clean = first
        for step in range(1, steps + 1):
            now = last + (noisy.time - last) * step // steps
            each = now.unbind(1)
            x = JointLatents(*map(schedule.add_noise, clean, noise, each))
            if known is not None:
                x = known.put_into(x)
            if step < steps:
                clean = denoise(Noisy(x, now, known), guidance)
                noise = JointLatents(*map(schedule.noise_from_clean, x, clean, each))
        return x

    @torch.no_grad()
    def _guidance(
        self,
        noisy: Noisy,
        motion: dict[str, Tensor],
        first: FirstPass | None,
        kept: Tensor,
        image: Tensor,
        paint: Callable[[Reading], Tensor],
        denoise: Denoise,
    ) -> Tensor:
        """Interaction guidance (B C T h w) of the samples that keep it, zero for the others; no gradient."""
        guidance = torch.zeros_like(noisy.latents.drawing)
        if not self.objective.guidance or not kept.any():
            return guidance
        if self.objective.guidance_from == "noisy":
            inputs = (motion["hands"], motion["points"], *noisy.latents, motion["time"])
            reading = Reading(*(x.float() for x in self.interaction(*(x[kept] for x in inputs))))
        else:
            clean = denoise(noisy, guidance) if first is None else first.clean
            reader = self.reader(self.interaction)
            reading = reader.align(reader.look(image[kept]), reader.read(*(x[kept] for x in clean)))
        # a prediction that is not finite cannot be drawn; the loss is not finite either, and says so
        if all(x.isfinite().all() for x in reading):
            guidance[kept] = paint(reading)
        return self._with_given(guidance, noisy, kept)


class AlignmentStage(BackboneStage):
    """Hold the sampler's first reading against the reference image: where the image shows joints and points, and how
    the motion is to be corrected. All else is as it is, so clips may have only their first frame."""

    def __init__(self, config: TrainConfig, model: SimpleNamespace, clips: EncodedClips):
        super().__init__(config, model, clips)
        self.alignment = model.parts["interaction"].alignment
        self.reading_loss = ReadingLoss(config.interaction, model.normalizer)
        self.frozen.interaction = model.parts["interaction"]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        normalizer = self.frozen.normalizer
        hands, points, image = batch.get("read") or self.first_reading(batch, generator)
        hands, points = self._nearer(hands, points, batch, generator)

        # 1. where the image shows everything
        found = self.alignment.find(image)
        true = normalizer.project(batch["hands"][:, 0], batch["points"][:, 0])
        places = finding_loss(found, self.alignment.chosen_places(true))

        # 2. the motion corrected by that
        projected = normalizer.project(hands[:, 0], points[:, 0])
        moves = self.alignment(found.detach(), hands, points, projected)
        predicted = normalizer.move(hands, points, *moves)
        reading, of_hands, of_points = self.reading_loss(predicted, batch)
        return places + reading, {"places": places, "hands": of_hands, "points": of_points}

    @torch.no_grad()
    def first_reading(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What the sampler reads after its first step: normalised hands and points; and the image latents."""
        denoise, _, image = self._conditioned(batch, generator)
        known = self._tasks(batch, generator)[0] if any(self.objective.shares) else None
        first = self._first_pass(batch, denoise, known, generator)
        return *self.reader(self.frozen.interaction).read(*first.clean), image

    def _nearer(
        self, hands: Tensor, points: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Some readings already a part of the way to the truth, as they will be when the loop has closed."""
        way = torch.rand(len(hands), generator=generator) * NEARER_BY
        way = way * (torch.rand(len(hands), generator=generator) < NEARER_SHARE)
        way = way.to(hands)[:, None, None, None]
        return tuple(x + way * (batch[name] - x) for x, name in ((hands, "hands"), (points, "points")))


NEARER_SHARE, NEARER_BY = 0.3, 0.8
"""Fraction of alignment's samples whose reading is nearer to the truth than the sampler's first, and at most by how
much."""


STAGE_MODULES = {
    "vae": VAEStage,
    "interaction": InteractionStage,
    "backbone": BackboneStage,
    "joint": JointStage,
    "alignment": AlignmentStage,
    "drawing": DrawingStage,
}


@dataclass(frozen=True, eq=False)
class ReadingLoss:
    """VID's loss on the hands and points that it predicted for a batch, and its two terms."""

    objective: InteractionObjective
    normalizer: MotionNormalizer

    def __call__(self, predicted: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        hands, points = (x.float() for x in predicted)
        inputs, objects = (hands, points, batch["hands"], batch["points"]), len(self.normalizer.object_names)
        squared = interaction_loss(*inputs, objects, self.objective.points)
        if self.objective.error == "squared":
            return squared
        points_std = self.normalizer.objects_std.repeat_interleave(points.shape[2] // objects, dim=0)
        of_hands, of_points = distances(*inputs, self.normalizer.hands_std.to(hands), points_std.to(points))
        total, hands_squared, _ = squared
        return of_hands + of_points / 2 + 2 * (total - hands_squared), of_hands, of_points


def warm_up_loss(
    interaction: InteractionModel,
    batch: Batch,
    schedules: dict[str, NoiseSchedule],
    reading_loss: ReadingLoss,
    high_noise: float,
    generator: torch.Generator,
    teacher: InteractionModel | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """VID's loss on the latents of a batch, noisy or clean, and its two terms (paper section 4.1). With a teacher it is
    mostly that of what the teacher makes of the same."""
    objective, count = reading_loss.objective, len(batch["video"])
    clean, blind = (
        torch.rand(count, generator=generator) < share
        for share in (objective.clean_share, objective.motion_dropout)
    )
    time = draw_timesteps(count, schedules["video"], high_noise, objective.reading_share, generator)
    noisy = noised(batch, ("hands", "points", "video", "motion"), schedules, time, generator)
    video, motion = (
        torch.where(clean.to(noisy[name].device)[:, None, None, None, None], batch[name], noisy[name])
        for name in ("video", "motion")
    )
    motion = motion * ~blind.to(motion.device)[:, None, None, None, None]
    inputs = noisy["hands"], noisy["points"], video, motion, time.to(video.device)
    predicted = interaction(*inputs)
    loss, of_hands, of_points = reading_loss(predicted, batch)
    if teacher is not None:
        with torch.no_grad():
            hands, points = (x.float() for x in teacher(*inputs))
        apart, _, _ = reading_loss(predicted, {"hands": hands, "points": points})
        loss = loss.lerp(apart, TEACHER_SHARE)
    return loss, of_hands, of_points


def noise_schedules(config: SViMoConfig) -> dict[str, NoiseSchedule]:
    """Of each member of a batch that diffuses."""
    latents, motion = NoiseSchedule(config.schedule), NoiseSchedule(config.motion_schedule)
    return {"video": latents, "motion": latents, "hands": motion, "points": motion}


def noised(
    batch: Batch,
    names: tuple[str, ...],
    schedules: dict[str, NoiseSchedule],
    time: Tensor,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """These members of a batch, noised to one timestep per sample (B,)."""
    noisy = {}
    for name in names:
        noise = torch.randn(batch[name].shape, generator=generator).to(batch[name])
        noisy[name] = schedules[name].add_noise(batch[name], noise, time)
    return noisy


def draw_timesteps(
    count: int, schedule: NoiseSchedule, high_noise: float, last_share: float, generator: torch.Generator
) -> Tensor:
    """Training timesteps (count,) on the CPU; see `TrainConfig.high_noise`. This share of them is the last one."""
    share = torch.rand(count, generator=generator, dtype=torch.float64) ** (1 / high_noise)
    last = torch.rand(count, generator=generator) < last_share
    return (share * len(schedule.abar)).long().masked_fill(last, len(schedule.abar) - 1)


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Recompute each block's activations in the backward pass instead of keeping them."""
    for block in backbone.transformer_blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
