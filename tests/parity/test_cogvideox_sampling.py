"""Video-only generation equals diffusers' CogVideoX-I2V: blocks, positions, schedulers, VAE, and the complete run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import diffusers.schedulers.scheduling_dpm_cogvideox as dpm_module
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline
from einops import rearrange
from helpers.tiny_cogvideox import SCHEDULER, save_pipeline, tiny_transformer, tiny_vae
from torch import Tensor

from svimo_core.checkpoint import convert, load_part, read_header, with_diffusers_positions
from svimo_core.config import ScheduleConfig
from svimo_core.model.layers import rotary_3d
from svimo_core.model.mmdit import MMDiT, Times
from svimo_core.model.vae import VideoVAE
from svimo_core.sampling.latents import JointLatents
from svimo_core.sampling.sampler import Denoiser, guidance_scales, sample
from svimo_core.schedule import SOLVERS, NoiseSchedule, StepLevels

FRAMES, HEIGHT, WIDTH = 9, 64, 96
"""The native clip of the tiny transformer; its token grid is 3 x 4 x 6."""
GRID = 4, 6
OTHER_SIZE = 17, 80, 64
"""Frames, height and width of another clip: a 5 x 5 x 4 grid, of another shape."""


TABLE, NO_TABLE = "position table", "no position table"


@pytest.fixture(scope="module", params=[TABLE, NO_TABLE])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The same weights in diffusers' pipeline and, through its files, in ours."""
    transformer = tiny_transformer(use_learned_positional_embeddings=request.param == TABLE)
    vae = tiny_vae()
    folder = save_pipeline(
        tmp_path_factory.mktemp("pipeline") / "CogVideoX-5b-I2V", transformer, vae, "200KB"
    )
    scheduler = CogVideoXDDIMScheduler(**SCHEDULER)
    pipe = CogVideoXImageToVideoPipeline(None, None, vae, transformer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe, read_header(folder)


def inputs(frames: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy video latent, image condition, text and timesteps."""
    generator = torch.Generator().manual_seed(1)
    shape = 2, 16, (frames - 1) // 4 + 1, height // 8, width // 8
    video, image = (torch.randn(shape, generator=generator) for _ in range(2))
    return video, image, torch.randn(2, 6, 24, generator=generator), torch.tensor([981, 17])


def diffusers_forward(
    pipe: CogVideoXImageToVideoPipeline, video: Tensor, image: Tensor, text: Tensor, timestep: Tensor
) -> Tensor:
    rotary = pipe._prepare_rotary_positional_embeddings(
        video.shape[3] * 8, video.shape[4] * 8, video.shape[2], video.device
    )
    hidden = rearrange(torch.cat([video, image], dim=1), "b c t h w -> b t c h w")
    out = pipe.transformer(hidden, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]
    return rearrange(out, "b t c h w -> b c t h w")


@torch.no_grad()
@pytest.mark.parametrize("index", [0, 1])
def test_each_block(models, index: int):
    pipe, header = models
    generator = torch.Generator().manual_seed(2)
    text, video = (torch.randn(2, n, 64, generator=generator) for n in (6, 72))
    time = torch.randn(2, 16, generator=generator)
    rotary = rotary_3d(3, *GRID, 32, torch.device("cpu"))
    expected_video, expected_text = pipe.transformer.transformer_blocks[index](video, text, time, rotary)
    block = load_part(header, "backbone").transformer_blocks[index]
    found_text, found_video = block([text, video], Times(time[:, None], [slice(0, 1)] * 2), rotary)
    torch.testing.assert_close(found_video, expected_video, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_text, expected_text, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", [lambda header: header, with_diffusers_positions])
def test_whole_transformer_at_its_native_size(models, positions: Callable):
    pipe, header = models
    given = inputs(FRAMES, HEIGHT, WIDTH)
    found, _ = load_part(positions(header), "backbone")(*given)
    torch.testing.assert_close(found, diffusers_forward(pipe, *given), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("models", [NO_TABLE], indirect=True)
@pytest.mark.parametrize("size", [OTHER_SIZE, (5, 32, 48), (1, 64, 160)])
def test_whole_transformer_at_other_sizes(models, size: tuple[int, int, int]):
    pipe, header = models
    given = inputs(*size)
    expected = diffusers_forward(pipe, *given)
    found, _ = load_part(with_diffusers_positions(header), "backbone")(*given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    absolute, _ = load_part(header, "backbone")(*given)
    assert (absolute - expected).abs().max() > 1e-3  # the default is another rule, on purpose


def test_a_converted_model_keeps_the_grid_it_comes_from(models, tmp_path: Path):
    """Its own clips have another size than CogVideoX's; without a table to tell, it came from the 5b."""
    _, header = models
    converted = read_header(convert(header.path, tmp_path / "svimo.safetensors"))
    backbone = with_diffusers_positions(converted).config.backbone
    assert backbone.rotary_grid == (GRID if backbone.position_table else (30, 45))
    assert converted.config.backbone.rotary_grid is None


@torch.no_grad()
@pytest.mark.parametrize("models", [TABLE], indirect=True)
@pytest.mark.parametrize("size", [OTHER_SIZE, (5, HEIGHT, WIDTH)])
def test_position_table_is_left_out_off_its_size(models, size: tuple[int, int, int]):
    _, header = models
    given = inputs(*size)
    without = replace(header.config.backbone, position_table=None)
    expected = MMDiT(without)
    backbone = load_part(header, "backbone")
    expected.load_state_dict(
        {name: value for name, value in backbone.state_dict().items() if "position_table" not in name}
    )
    assert torch.equal(backbone(*given)[0], expected(*given)[0])
    assert not torch.equal(
        backbone(*inputs(FRAMES, HEIGHT, WIDTH))[0], expected(*inputs(FRAMES, HEIGHT, WIDTH))[0]
    )


# ---- schedulers


@pytest.mark.parametrize("steps", [1, 4, 7, 30, 50, 1000])
def test_timesteps(steps: int):
    scheduler = CogVideoXDDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    assert NoiseSchedule(ScheduleConfig()).timesteps(steps) == scheduler.timesteps.tolist()


def test_noise_levels():
    expected = CogVideoXDDIMScheduler(**SCHEDULER).alphas_cumprod
    torch.testing.assert_close(NoiseSchedule(ScheduleConfig()).abar, expected.double(), rtol=1e-6, atol=1e-9)
    shifted = CogVideoXDDIMScheduler(**SCHEDULER | {"snr_shift_scale": 3.0}).alphas_cumprod
    ours = NoiseSchedule(ScheduleConfig(snr_shift_scale=3.0)).abar
    torch.testing.assert_close(ours, shifted.double(), rtol=1e-6, atol=1e-9)


def run_solver(
    name: str, timesteps: list[int], x: Tensor, velocities: Tensor, noises: Tensor
) -> list[Tensor]:
    """Every state of our solver, at the levels that our sampler gives it."""
    schedule, states, before = NoiseSchedule(ScheduleConfig()), [], None
    for i, t in enumerate(timesteps):
        x0 = schedule.clean_from_velocity(x, velocities[i], t)
        levels = StepLevels(
            before=schedule.level(timesteps[i - 1]) if i else None,
            now=schedule.level(t),
            after=schedule.level(timesteps[i + 1] if i + 1 < len(timesteps) else None),
        )
        x = SOLVERS[name](x, x0, before, levels, noises[i])
        before = x0
        states.append(x)
    return states


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m_sde"])
def test_schedulers_step_for_step(name: str, steps: int, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(3)
    x, *rest = torch.randn(1 + 2 * steps, 2, 3, 4, generator=generator)
    velocities, noises = torch.stack(rest[:steps]), torch.stack(rest[steps:])
    scheduler = {"ddim": CogVideoXDDIMScheduler, "dpmpp_2m_sde": CogVideoXDPMScheduler}[name](**SCHEDULER)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    found = run_solver(name, timesteps.tolist(), x, velocities, noises)
    before = None
    for i, t in enumerate(timesteps):
        if name == "ddim":
            x = scheduler.step(velocities[i], t, x, return_dict=False)[0]
        else:
            monkeypatch.setattr(dpm_module, "randn_tensor", lambda *_, i=i, **__: noises[i])
            x, before = scheduler.step(velocities[i], before, t, timesteps[i - 1] if i else None, x)
        torch.testing.assert_close(found[i], x, rtol=1e-5, atol=1e-5)


def test_steps_that_do_not_divide_the_schedule_land_on_the_next_timestep():
    """Diffusers subtracts 1000 // steps and so misses the next timestep by one or more; ours arrives there."""
    scheduler = CogVideoXDDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(30)
    missed = [int(t) - 1000 // 30 - int(after) for t, after in pairwise(scheduler.timesteps)]
    assert set(missed) == {0, 1}
    generator = torch.Generator().manual_seed(4)
    x0, noise = torch.randn(2, 64, generator=generator)
    schedule = NoiseSchedule(ScheduleConfig())
    velocities = torch.stack([schedule.velocity(x0, noise, int(t)) for t in scheduler.timesteps])
    states = run_solver("ddim", scheduler.timesteps.tolist(), noise, velocities, velocities)
    for t, x in zip(scheduler.timesteps[1:], states[:-1], strict=True):
        torch.testing.assert_close(x, schedule.add_noise(x0, noise, int(t)), rtol=1e-5, atol=1e-5)


# ---- VAE


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory):
    reference = tiny_vae()
    reference.save_pretrained(tmp_path_factory.mktemp("vae"))
    header = read_header(tmp_path_factory.getbasetemp() / "vae0")
    return reference, VideoVAE(load_part(header, "vae"), header.config.vae)


@torch.no_grad()
@pytest.mark.parametrize("tiled", [False, True])
def test_vae(vaes, tiled: bool):
    reference, ours = vaes
    reference.use_tiling = tiled
    size = (9, 256, 64) if tiled else (9, 64, 96)  # tiles are 240 pixels high
    frames = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(5))
    pixels = rearrange(frames, "b n h w c -> b c n h w") * 2 - 1
    posterior = reference.encode(pixels).latent_dist
    latents = ours.encode(frames, tiled=tiled)
    torch.testing.assert_close(latents, posterior.mode() * 0.7, rtol=1e-5, atol=1e-5)
    sampled = ours.encode(frames, torch.Generator().manual_seed(6), tiled=tiled)
    expected = posterior.sample(torch.Generator().manual_seed(6)) * 0.7
    torch.testing.assert_close(sampled, expected, rtol=1e-5, atol=1e-5)
    decoded = rearrange(reference.decode(latents / 0.7).sample, "b c n h w -> b n h w c") / 2 + 0.5
    torch.testing.assert_close(ours.decode(latents, tiled=tiled), decoded.clamp(0, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tiles_are_close_to_the_whole(vaes):
    """Not equal: group norm sees a tile in place of the frame."""
    _, ours = vaes
    frames = torch.rand(1, 9, 256, 64, 3, generator=torch.Generator().manual_seed(5))
    latents, tiled = ours.encode(frames), ours.encode(frames, tiled=True)
    decoded, tiles_decoded = ours.decode(latents), ours.decode(latents, tiled=True)
    for whole, tiles in ((latents, tiled), (decoded, tiles_decoded)):
        assert tiles.shape == whole.shape
        assert 0 < (tiles - whole).abs().mean() < 0.1 * whole.std()
    assert not ours.model.use_tiling


# ---- the complete run


class SameNoise(CogVideoXDPMScheduler):
    """Diffusers' scheduler with the noise that our sampler draws: once a step, none in the last, C before T."""

    generator: torch.Generator
    patch: pytest.MonkeyPatch

    def step(self, *args, **kwargs):
        sample, t = args[4], args[2]
        shape = rearrange(sample, "b t c h w -> b c t h w").shape
        last = t == self.timesteps[-1]
        noise = torch.zeros(shape) if last else torch.randn(shape, generator=self.generator)
        noise = rearrange(noise, "b c t h w -> b t c h w")
        self.patch.setattr(dpm_module, "randn_tensor", lambda *_, **__: noise)
        return super().step(*args, **kwargs)


class Guided(NamedTuple):
    """Classifier-free guidance in diffusers' words and in ours."""

    theirs: dict
    scale: float = 6.0
    schedule: str = "constant"
    batched: bool = True


CONSTANT = Guided({"guidance_scale": 6.0})
DYNAMIC = Guided({"guidance_scale": 6.0, "use_dynamic_cfg": True}, schedule="dynamic_diffusers")
NONE = Guided({"guidance_scale": 1.0}, scale=1.0)
SEQUENTIAL = Guided({"guidance_scale": 6.0}, batched=False)


@torch.no_grad()
@pytest.mark.parametrize(
    ("models", "size", "guidance", "solver"),
    [
        (TABLE, (FRAMES, HEIGHT, WIDTH), CONSTANT, "ddim"),
        (TABLE, (FRAMES, HEIGHT, WIDTH), DYNAMIC, "ddim"),
        (TABLE, (FRAMES, HEIGHT, WIDTH), SEQUENTIAL, "ddim"),
        (TABLE, (FRAMES, HEIGHT, WIDTH), NONE, "ddim"),
        (TABLE, (FRAMES, HEIGHT, WIDTH), CONSTANT, "dpmpp_2m_sde"),
        (NO_TABLE, (FRAMES, HEIGHT, WIDTH), CONSTANT, "ddim"),
        (NO_TABLE, OTHER_SIZE, DYNAMIC, "ddim"),
        (NO_TABLE, OTHER_SIZE, DYNAMIC, "dpmpp_2m_sde"),
    ],
    indirect=["models"],
)
def test_the_complete_run(
    models,
    size: tuple[int, int, int],
    guidance: Guided,
    solver: str,
    monkeypatch: pytest.MonkeyPatch,
):
    """Off the native size with diffusers' rotary rule."""
    pipe, header = models
    frames, height, width = size
    latent = 1, 16, (frames - 1) // 4 + 1, height // 8, width // 8
    generator = torch.Generator().manual_seed(7)
    image = torch.rand(height, width, 3, generator=generator)
    text, negative_text = torch.randn(2, 1, 6, 24, generator=generator)
    noise = torch.randn(latent, generator=generator)

    # 1. diffusers
    scheduler = SameNoise if solver == "dpmpp_2m_sde" else CogVideoXDDIMScheduler
    pipe.scheduler = scheduler(**SCHEDULER)
    pipe.scheduler.patch, pipe.scheduler.generator = monkeypatch, torch.Generator().manual_seed(8)
    torch.randn(
        *latent[:2], 1, *latent[3:], generator=pipe.scheduler.generator
    )  # what encoding the image draws
    expected = pipe(
        image=rearrange(image, "h w c -> 1 c h w"),
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=5,
        prompt_embeds=text,
        negative_prompt_embeds=negative_text,
        latents=rearrange(noise, "b c t h w -> b t c h w"),
        generator=torch.Generator().manual_seed(8),
        output_type="pt",
        **guidance.theirs,
    ).frames
    assert expected.std() > 0.05

    # 2. ours
    header = with_diffusers_positions(header)
    vae, generator = VideoVAE(load_part(header, "vae"), header.config.vae), torch.Generator().manual_seed(8)
    schedule = NoiseSchedule(header.config.schedule)
    denoise = Denoiser(
        model=load_part(header, "backbone"),
        schedule=schedule,
        image=vae.encode(image[None, None], generator)[:, :, 0],
        text=text,
        negative_text=negative_text,
        batched=guidance.batched,
    )
    timesteps = schedule.timesteps(5)
    scales = guidance_scales(guidance.scale, timesteps, guidance.schedule)
    latents, _ = sample(denoise, JointLatents(noise), timesteps, generator, solver, scales=scales)
    found = rearrange(vae.decode(latents.video), "b n h w c -> b n c h w")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
