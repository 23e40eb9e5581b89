"""The loop and the sampler, with real networks."""

import copy
import itertools
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from svimo_core.config import ClipSize
from svimo_core.sampling.guidance import FeedbackLoop, FeedbackOptions, GivenGuidance, Unguided
from svimo_core.sampling.latents import JointLatents, Known, known_frames, noise_like
from svimo_core.sampling.painter import MotionPainter, draw_motions
from svimo_core.sampling.pipeline import empty_latents, encode_image, fit_image, generate
from svimo_core.sampling.reader import MotionReader, Reading
from svimo_core.sampling.sampler import Denoiser, SamplerReport, guidance_scales, sample
from svimo_core.schedule import SOLVERS, NoiseSchedule

STEPS = 4
ALWAYS = FeedbackOptions(start=0)
OFF = FeedbackOptions(enabled=False)
PROMPT = "use spoon to stir cup"


class Run(NamedTuple):
    """What a run makes: latents, and the reading where something read."""

    video: torch.Tensor
    drawing: torch.Tensor | None
    hands: torch.Tensor | None
    points: torch.Tensor | None
    report: SamplerReport

    @property
    def tensors(self) -> tuple:
        return self[:4]


@pytest.fixture
def image():
    return torch.rand(20, 50, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def denoiser(model, config, image):
    with torch.no_grad():
        text, negative = model.text_encoder.encode([PROMPT, ""]).chunk(2)
        latent = encode_image(model.vae.encode, image, config.width, config.height, noise=0)
    return Denoiser(
        model=model.backbone,
        schedule=NoiseSchedule(config.schedule),
        image=latent,
        text=text,
        negative_text=negative,
    )


class RecordingReader(MotionReader):
    """Remembers what it reads, in order."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.readings: list[Reading] = []

    def read(self, video, drawing):
        self.readings.append(super().read(video, drawing))
        return self.readings[-1]


@pytest.fixture
def reader(model):
    return RecordingReader(model.interaction, model.normalizer)


@pytest.fixture
def painter(model, config):
    return model.painter(ClipSize(config.frames, config.height, config.width), exact=True)


@pytest.fixture
def loop(reader, painter, denoiser):
    """Makes the loop of one run."""

    def make(options=ALWAYS, **changed):
        parts = dict(reader=reader, paint=painter, image=denoiser.image) | changed
        return FeedbackLoop(**parts, options=options)

    return make


@pytest.fixture
def start(config):
    empty = empty_latents(config, config.frames, config.height, config.width)
    return noise_like(JointLatents(empty, empty), torch.Generator().manual_seed(0))


def run(denoiser, start, guidance=None, solver="ddim", scale=6.0, schedule="dynamic", timesteps=None) -> Run:
    timesteps = timesteps or denoiser.schedule.timesteps(STEPS)
    scales, generator = guidance_scales(scale, timesteps, schedule), torch.Generator().manual_seed(1)
    with torch.inference_mode():
        latents, report = sample(denoiser, start, timesteps, generator, solver, guidance, scales)
        return Run(*latents, *((guidance and guidance.reading()) or (None, None)), report)


def same(a, b, **tolerance) -> bool:
    return all(torch.allclose(x, y, **tolerance) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_seed_gives_the_same_bytes(denoiser, start, loop, solver):
    runs = [run(denoiser, start, loop(), solver=solver).tensors for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(torch.isfinite(x).all() for x in runs[0])


def test_noise_is_the_same_for_a_seed_and_only_for_what_there_is(start):
    one, other = (noise_like(start, torch.Generator().manual_seed(3)) for _ in range(2))
    assert same(one, other, atol=0, rtol=0)
    assert not torch.allclose(one.video, one.drawing, atol=0.1)
    half = JointLatents(start.video.half())
    made = noise_like(half, torch.Generator().manual_seed(3))
    assert torch.equal(made.video, one.video)  # float32 whatever the latents are in
    assert made.drawing is None
    assert JointLatents(half.video).to(torch.float64).video.dtype == torch.float64


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("steps", "denoise"), [(8, 0.004), (50, 0.02), (3, 0.001), (5, 0.3)])
def test_little_noise_is_taken_off_in_as_many_steps_as_there_are(
    denoiser, start, loop, solver, steps, denoise
):
    """A timestep that came twice would be a step of no length, which multistep solvers divide by."""
    timesteps = denoiser.schedule.timesteps(steps, denoise)
    assert all(a > b for a, b in itertools.pairwise(timesteps))
    assert timesteps[0] == round(1000 * denoise) - 1
    timesteps = timesteps[:6]
    noised = JointLatents(*(denoiser.schedule.add_noise(0.5 * x, x, timesteps[0]) for x in start))
    made = run(denoiser, noised, loop(OFF), solver=solver, timesteps=timesteps)
    assert all(torch.isfinite(x).all() for x in made.tensors)
    assert made.report.steps == len(timesteps)


# Reading


def weighted_mean(readings, schedule):
    """By the share of noise in the latents of each step."""
    noise = 1 - schedule.abar[schedule.timesteps(STEPS)[: len(readings)]].float()
    weights = noise / noise.sum()
    assert len(readings) < STEPS or weights[0] > 1.5 * weights[-1]
    return Reading(
        *(torch.einsum("s,s...->...", weights, torch.stack(x)) for x in zip(*readings, strict=True))
    )


@pytest.mark.parametrize("options", [OFF, ALWAYS], ids=["open", "closed"])
def test_3d_motion_is_the_aligned_weighted_mean_of_what_is_read_off_clean_latents(
    denoiser, start, loop, reader, options
):
    made = run(denoiser, start, loop(options))
    clean = reader.readings[-STEPS:]  # a closed loop reads noise before its first step
    assert len(reader.readings) == STEPS + options.enabled
    assert not torch.allclose(clean[0].hands, clean[-1].hands, atol=1e-4)
    mean = weighted_mean(clean, denoiser.schedule)
    with torch.inference_mode():
        aligned = reader.align(reader.look(denoiser.image), mean)
    for found, before, after in zip((made.hands, made.points), mean, aligned, strict=True):
        assert not torch.allclose(after, before, atol=1e-2)
        torch.testing.assert_close(found, after, atol=1e-5, rtol=1e-5)


def test_clean_latents_are_read_and_their_own_alone(denoiser, start, loop, reader):
    """Of the last pass at every step; the reading of an earlier run with the same reader counts nothing."""
    seen = []
    other = noise_like(start, torch.Generator().manual_seed(7))
    run(denoiser, other, loop(OFF))
    reader.readings.clear()
    made = run(denoiser, start, loop(OFF))
    schedule, timesteps = denoiser.schedule, denoiser.schedule.timesteps(STEPS)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        scales = guidance_scales(6.0, timesteps)
        sample(denoiser, start, timesteps, generator, scales=scales, on_step=lambda i, x: seen.append((i, x)))
        first = denoiser(start, None, timesteps[0], scales[0])
        assert all(torch.equal(a, b) for a, b in zip(seen[0][1], first, strict=True))
        assert torch.equal(MotionReader.read(reader, *first).hands, reader.readings[0].hands)
        last = reader.align(reader.look(denoiser.image), weighted_mean(reader.readings[:STEPS], schedule))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    torch.testing.assert_close(made.hands, last.hands, atol=1e-5, rtol=1e-5)


def test_motion_is_read_off_latents_alone(start, reader, config):
    with torch.inference_mode():
        hands, points = reader.read(*start)
        assert hands.shape == (1, config.frames, 42, 3)
        assert points.shape == (1, config.frames, config.interaction.num_points, 3)
        assert torch.equal(reader.read(*start).hands, hands)
        assert not torch.allclose(reader.read(start.video, -start.drawing).hands, hands)
        pair = reader.read(*(torch.cat([x, -x]) for x in start))
        torch.testing.assert_close(pair.hands[:1], hands, atol=1e-5, rtol=0)


def test_vid_hears_pure_noise_of_the_last_timestep_once(start, reader, monkeypatch):
    heard, hear = [], reader.interaction.hear
    monkeypatch.setattr(reader.interaction, "hear", lambda *inputs: heard.append(inputs) or hear(*inputs))
    with torch.inference_mode():
        for last_timestep in (999, 7):
            anew = MotionReader(reader.interaction, reader.normalizer, last_timestep)
            read = anew.read(*start)
            assert torch.equal(anew.read(*start).hands, read.hands)
    (hands, points, time), (again, _, other) = heard
    noise = torch.cat([hands, points], dim=2)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(hands, again)
    assert (time.tolist(), other.tolist()) == ([999], [7])


def test_a_reading_is_held_against_the_image(denoiser, start, reader, normalizer):
    """By the metres that VID's alignment says, one image for all or one for each; without that part nothing moves."""
    with torch.inference_mode():
        reading = reader.read(*start)
        aligned = reader.align(reader.look(denoiser.image), reading)
        alignment = reader.interaction.alignment
        found = alignment.find(denoiser.image)
        projected = normalizer.project(reading.hands[:, 0], reading.points[:, 0])
        by = alignment(found, *reading, projected)
        metres = (normalizer.denormalize(*x) for x in (aligned, reading))
        for after, before, moved in zip(*metres, by, strict=True):
            torch.testing.assert_close(after - before, moved, atol=1e-5, rtol=0)
            assert moved.abs().max() > 1e-3
        assert not torch.allclose(
            reader.align(reader.look(-denoiser.image), reading).hands, aligned.hands, atol=1e-3
        )
        pair = Reading(*(torch.cat([x, x]) for x in reading))
        for images in (denoiser.image, denoiser.image.repeat(2, 1, 1, 1)):
            one = reader.align(reader.look(images), pair).hands[1:]
            torch.testing.assert_close(one, aligned.hands, atol=1e-5, rtol=1e-5)
        both = reader.align(
            reader.look(torch.cat([-denoiser.image, denoiser.image])), pair
        ).hands  # each its own image
        torch.testing.assert_close(both[1:], aligned.hands, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(both[0], both[1], atol=1e-3)
        bare = copy.deepcopy(reader.interaction)
        bare.alignment = None
        without = MotionReader(bare, normalizer)
        assert without.align(without.look(denoiser.image), reading) is reading


def test_the_image_is_searched_once_a_run(denoiser, start, loop, reader, monkeypatch):
    """However often the guidance is made anew."""
    searched, held = [], []
    alignment = reader.interaction.alignment
    find, align = alignment.find, reader.align
    monkeypatch.setattr(alignment, "find", lambda image: searched.append(image) or find(image))
    monkeypatch.setattr(reader, "align", lambda *what: held.append(what) or align(*what))
    for options in (ALWAYS, FeedbackOptions(start=0, iterations=3), OFF):
        searched.clear(), held.clear()
        made = run(denoiser, start, loop(options))
        assert len(held) == made.report.feedback_passes + 1
        assert len(searched) == 1
        assert searched[0] is denoiser.image


def test_reading_can_be_stopped(start, denoiser, model):
    """Before the network runs, and before the alignment does."""

    def stop():
        raise InterruptedError

    stopped = MotionReader(model.interaction, model.normalizer, on_work=stop)
    with pytest.raises(InterruptedError):
        stopped.read(*start)
    reading = Reading(torch.zeros(1, 9, 42, 3), torch.zeros(1, 9, 12, 3))
    with pytest.raises(InterruptedError):
        stopped.look(denoiser.image)
    with pytest.raises(InterruptedError):
        stopped.align(torch.zeros(1), reading)


# Painting


def test_readings_are_drawn_in_metres_through_the_models_camera(model, config):
    """Each clip as its motion would be drawn that comes out of the pipeline."""
    generator = torch.Generator().manual_seed(0)
    reading = Reading(
        torch.randn(2, config.frames, 42, 3, generator=generator),
        torch.randn(2, config.frames, config.interaction.num_points, 3, generator=generator),
    )
    size = config.width, config.height
    normalizer = replace(model.normalizer, camera=(0.9, 1.6, 0.4, 0.55))  # nothing about it is square
    painter = MotionPainter(model.vae.encode, normalizer, *size)
    frames = painter.draw(*reading)
    expected = draw_motions(
        MotionReader(model.interaction, normalizer).to_motions(reading, *size, fps=8.0), *size
    )
    assert frames.dtype == torch.uint8
    assert frames.shape == (2, config.frames, config.height, config.width, 3)
    assert torch.equal(frames, expected)
    assert not torch.equal(frames[0], frames[1])
    with torch.inference_mode():
        latent = painter(reading)
        assert torch.equal(latent, model.vae.encode(expected).float())
        assert torch.equal(latent, model.vae.encode(expected.float() / 255).float())


def test_what_is_not_finite_cannot_be_drawn(painter, config):
    hands = torch.zeros(1, config.frames, 42, 3)
    points = torch.zeros(1, config.frames, config.interaction.num_points, 3)
    points[0, 3, -1] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        painter.draw(hands, points)
    hands[0, 2] = torch.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        painter.draw(hands, points)


# Drawing rounds to a sixteenth of a pixel, so with the loop closed the last bits of a float can move an edge.
LOOP_AND_TOLERANCE = [(OFF, 1e-4), (ALWAYS, 3e-2)]


@pytest.mark.parametrize(("options", "tolerance"), LOOP_AND_TOLERANCE, ids=["open", "closed"])
@pytest.mark.parametrize("schedule", ["dynamic", "constant"])
def test_batched_and_sequential_guidance_agree(denoiser, start, loop, schedule, options, tolerance):
    both = [
        run(replace(denoiser, batched=batched), start, loop(options), schedule=schedule).tensors
        for batched in (True, False)
    ]
    assert same(*both, atol=tolerance)


@pytest.mark.parametrize(("options", "tolerance"), LOOP_AND_TOLERANCE, ids=["open", "closed"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_clip_does_not_depend_on_its_batch(denoiser, start, loop, solver, options, tolerance):
    other = noise_like(start, torch.Generator().manual_seed(7))
    pair = JointLatents(*(torch.cat([a, b]) for a, b in zip(start, other, strict=True)))
    doubled = replace(
        denoiser,
        image=denoiser.image.repeat(2, 1, 1, 1),
        text=denoiser.text.repeat(2, 1, 1),
        negative_text=denoiser.negative_text.repeat(2, 1, 1),
    )
    timesteps = denoiser.schedule.timesteps(STEPS)
    if solver != "ddim":  # whose noise is drawn for the whole batch: one step draws none
        timesteps = timesteps[:1]
    settings = dict(solver=solver, timesteps=timesteps)
    together = run(doubled, pair, loop(options), **settings).tensors
    alone = run(denoiser, start, loop(options), **settings).tensors
    assert same([x[:1] for x in together], alone, atol=tolerance)


def test_text_image_and_guidance_scale_matter(denoiser, start):
    results = [
        run(changed, start, **options).video
        for changed, options in (
            (denoiser, {}),
            (replace(denoiser, text=denoiser.negative_text), {}),
            (denoiser, {"scale": 2.0}),
            (denoiser, {"schedule": "constant"}),
            (denoiser, {"schedule": "dynamic_diffusers"}),
            (replace(denoiser, image=-denoiser.image), {}),
        )
    ]
    for other in results[1:]:
        assert not torch.allclose(results[0], other, atol=1e-4)


def test_guidance_scales_by_hand(denoiser):
    timesteps = denoiser.schedule.timesteps(10)
    middle = 1 + 6 * (1 - 0.995184727) / 2
    dynamic = guidance_scales(6.0, timesteps)
    assert len(dynamic) == 10
    assert dynamic[0] == 1
    assert dynamic[5] == pytest.approx(middle)
    assert 1 < dynamic[5] < dynamic[9] < 7
    assert guidance_scales(6.0, timesteps, "constant") == [6.0] * 10
    by_timestep = guidance_scales(6.0, [10, 5, 0], "dynamic_diffusers")
    assert by_timestep[2] == pytest.approx(7)  # (3 - 0) / 3 of the way
    assert by_timestep[1] == pytest.approx(4 - 3 * 0.9156366)  # cosine of pi (-2/3)^5
    with pytest.raises(ValueError, match=r"\"dynamic\", \"constant\".*got 'cosine'"):
        guidance_scales(6.0, timesteps, "cosine")


def test_a_scale_of_one_is_the_text_alone(denoiser, start):
    expected = run(denoiser, start, scale=1.0, schedule="constant").video
    other = replace(denoiser, negative_text=1 + denoiser.negative_text)
    assert torch.equal(run(other, start, scale=1.0, schedule="constant").video, expected)
    timesteps, generator = denoiser.schedule.timesteps(STEPS), torch.Generator()
    with torch.inference_mode():
        assert torch.equal(sample(denoiser, start, timesteps, generator)[0].video, expected)


@torch.no_grad()
def test_branches_are_weighed_in_full_precision(denoiser, start):
    """Whatever the network computes in: a guidance scale of six would blow up what half precision rounds off."""
    network, schedule = copy.deepcopy(denoiser.model).bfloat16(), denoiser.schedule
    half = replace(denoiser, model=network, dtype=torch.bfloat16, batched=False)
    image = network.image_condition(denoiser.image, start.video.shape[2])
    video, drawing, guidance = (x.bfloat16() for x in (*start, torch.zeros_like(start.drawing)))
    positive, negative = (
        network(video, image.bfloat16(), text.bfloat16(), torch.tensor([500]), drawing, guidance)
        for text in (denoiser.text, denoiser.negative_text)
    )
    for noisy, found, p, n in zip(start, half(start, None, 500, 6.0), positive, negative, strict=True):
        assert p.dtype == torch.bfloat16
        v = n.float() + 6.0 * (p.float() - n.float())
        assert torch.equal(found, schedule.clean_from_velocity(noisy, v, 500))


# The closed loop


class Spy:
    """Records what reaches the MM-DiT as guidance, on its way through the real one."""

    def __init__(self, network):
        self.network, self.guidance = network, []

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, video, image, text, time, drawing=None, guidance=None, **options):
        self.guidance.append(guidance)
        return self.network(video, image, text, time, drawing, guidance, **options)


def guidance_seen(denoiser, start, guidance=None):
    spy = Spy(denoiser.model)
    made = run(replace(denoiser, model=spy), start, guidance, scale=1.0, schedule="constant")
    return spy.guidance, made


def test_guidance_is_the_painted_aligned_weighted_mean_of_the_readings_before(
    denoiser, start, loop, reader, painter
):
    seen, made = guidance_seen(denoiser, start, loop())
    noise, *clean = reader.readings  # at first there are no clean latents
    assert len(clean) == STEPS
    means = [weighted_mean(clean[:i], denoiser.schedule) for i in range(1, STEPS)]
    with torch.inference_mode():
        assert torch.equal(noise.hands, MotionReader.read(reader, *start).hands)
        for guidance, mean in zip(seen, [noise, *means], strict=True):
            painted = painter(reader.align(reader.look(denoiser.image), mean))
            torch.testing.assert_close(guidance, painted, atol=3e-2, rtol=0)
            assert not torch.allclose(guidance, painter(mean), atol=3e-2)
    assert made.report.feedback_passes == STEPS
    assert set(made.report.seconds) == {"denoise", "interaction", "guidance", "total"}
    assert len({float(g.sum()) for g in seen}) == STEPS  # every step has its own


def test_another_vid_changes_the_next_denoising_input(denoiser, start, loop, model, painter):
    shifted = replace(model.normalizer, hands_mean=model.normalizer.hands_mean + 0.05)
    other = MotionPainter(painter.encode, shifted, painter.width, painter.height)
    a, made_a = guidance_seen(denoiser, start, loop())
    b, made_b = guidance_seen(denoiser, start, loop(paint=other))
    c, _ = guidance_seen(denoiser, start, loop(reader=MotionReader(model.interaction, shifted)))
    assert not torch.allclose(a[0], b[0], atol=1e-3)
    assert not torch.allclose(a[0], c[0], atol=1e-3)  # what projects elsewhere is moved elsewhere
    assert not torch.allclose(made_a.video, made_b.video, atol=1e-5)


def test_strength_zero_equals_off_and_both_differ_from_on(denoiser, start, loop):
    zero, off, on = (
        run(denoiser, start, loop(options)) for options in (FeedbackOptions(start=0, strength=0), OFF, ALWAYS)
    )
    assert all(torch.equal(a, b) for a, b in zip(zero.tensors, off.tensors, strict=True))
    assert not same(on.tensors, off.tensors, atol=1e-5)
    assert [made.report.feedback_passes for made in (zero, off, on)] == [0, 0, STEPS]


def test_strength_scales_the_guidance(denoiser, start, loop):
    full, _ = guidance_seen(denoiser, start, loop())
    half, _ = guidance_seen(denoiser, start, loop(FeedbackOptions(start=0, strength=0.5)))
    torch.testing.assert_close(half[0], 0.5 * full[0])


@pytest.mark.parametrize(
    ("options", "refreshed", "closed"),
    [
        (FeedbackOptions(start=0.5), [2, 3], [2, 3]),
        (FeedbackOptions(start=0, end=0.5), [0, 1], [0, 1]),
        (FeedbackOptions(start=0, every=2), [0, 2], [0, 1, 2, 3]),
        (FeedbackOptions(start=0.25, every=2), [1, 3], [1, 2, 3]),
        (FeedbackOptions(start=0, end=0.5, every=2), [0], [0, 1]),
        (OFF, [], []),
    ],
)
def test_the_loop_closes_when_told(denoiser, start, loop, options, refreshed, closed):
    seen, made = guidance_seen(denoiser, start, loop(options))
    assert made.report.feedback_passes == len(refreshed)
    for step, guidance in enumerate(seen):
        if step in closed and step not in refreshed:
            assert torch.equal(guidance, seen[step - 1])
        elif step in refreshed:
            assert guidance.any()
            assert not any(torch.equal(guidance, before) for before in seen[:step])
        else:
            assert not guidance.any()


def test_start_and_end_are_parts_of_the_schedule(denoiser, start, loop):
    """A run that begins further down begins with the loop closed."""
    half = denoiser.schedule.timesteps(STEPS, denoise=0.5)  # 0.5, 0.625, 0.75 and 0.875 of the way
    for options, expected in (
        (FeedbackOptions(start=0.5), [0, 1, 2, 3]),
        (FeedbackOptions(start=0.7), [2, 3]),
        (FeedbackOptions(start=0, end=0.5), []),
        (FeedbackOptions(start=0, end=0.7), [0, 1]),
    ):
        spy = Spy(denoiser.model)
        run(
            replace(denoiser, model=spy), start, loop(options), scale=1.0, schedule="constant", timesteps=half
        )
        assert [i for i, guidance in enumerate(spy.guidance) if guidance.any()] == expected


def test_a_boundary_between_timesteps_counts_as_on_it(denoiser):
    """1 - 0.8 is not 0.2 in floating point."""
    for steps in (5, 10, 20, 25, 50):
        schedule = denoiser.schedule
        progress = [schedule.step(i, t) for i, t in enumerate(schedule.timesteps(steps))]
        options = FeedbackOptions(start=0.2, end=0.6)
        closed = [step.index for step in progress if options.active(step)]
        assert closed == list(range(steps // 5, 3 * steps // 5))


def test_iterations_close_the_loop_again_at_the_same_step(denoiser, start, loop, reader):
    seen, made = guidance_seen(denoiser, start, loop(FeedbackOptions(start=0.75, iterations=3)))
    assert made.report.feedback_passes == 3
    assert len(seen) == STEPS + 2
    assert len(reader.readings) == STEPS + 2  # the last pass is read as well
    assert not any(guidance.any() for guidance in seen[: STEPS - 1])
    assert not torch.allclose(seen[-1], seen[-2], atol=1e-6)
    assert not torch.allclose(seen[-2], seen[-3], atol=1e-6)
    sparse, made = guidance_seen(denoiser, start, loop(FeedbackOptions(start=0, every=2, iterations=2)))
    assert made.report.feedback_passes == 4
    assert len(sparse) == STEPS + 2  # steps that hold the guidance denoise once
    assert torch.equal(sparse[2], sparse[1])
    assert not torch.equal(sparse[1], sparse[0])


def test_a_sampler_may_ask_several_times_a_step(denoiser, start, loop):
    """As ComfyUI's second-order ones do: the guidance of a step is made once."""
    policy, schedule = loop(), denoiser.schedule
    with torch.inference_mode():
        for i, timestep in enumerate(schedule.timesteps(2)):
            step = schedule.step(i, timestep)
            first = policy.guide(step, start)
            policy.came_out(step, denoiser(start, first, timestep, 1.0))
            assert policy.guide(step, start) is first
    assert policy.report()[0] == 2


def test_given_guidance_takes_the_loops_place_while_it_holds(denoiser, start, loop, reader):
    latent = torch.full_like(start.drawing, 0.3)
    options = FeedbackOptions(start=0, iterations=2)
    seen, made = guidance_seen(denoiser, start, GivenGuidance(latent, 0.25, 0.75, loop(options)))
    assert len(seen) == STEPS + 2  # the loop's further passes are its own
    held = [i for i, guidance in enumerate(seen) if torch.equal(guidance, latent)]
    assert held == [2, 3]
    assert all(guidance.any() for guidance in seen)
    assert made.report.feedback_passes == 4
    assert made.report.seconds["guidance"] > 0
    assert len(reader.readings) == 1 + len(seen)  # what was given is read like everything else
    assert made.hands is not None


def test_the_loop_takes_over_at_once_where_given_guidance_ends(denoiser, start, loop):
    latent = torch.full_like(start.drawing, 0.3)
    sparse = FeedbackOptions(start=0, every=3)  # on its own it would refresh at steps 0 and 3
    seen, made = guidance_seen(denoiser, start, GivenGuidance(latent, end=0.5, otherwise=loop(sparse)))
    assert torch.equal(seen[1], latent)
    assert seen[2].any()
    assert not torch.equal(seen[2], latent)
    assert torch.equal(seen[3], seen[2])
    assert made.report.feedback_passes == 1


def test_given_guidance_without_a_loop(denoiser, start):
    latent = torch.full_like(start.drawing, 0.3)
    seen, made = guidance_seen(denoiser, start, GivenGuidance(latent, start=0.5))
    assert [bool(guidance.any()) for guidance in seen] == [False, False, True, True]
    assert made.hands is None
    assert made.report.feedback_passes == 0


def test_without_vid_there_is_no_3d_motion_but_a_drawing(denoiser, start):
    made = run(denoiser, start, Unguided())
    assert made.hands is None
    assert made.points is None
    assert made.drawing.shape == start.drawing.shape
    assert "interaction" not in made.report.seconds
    assert same(run(denoiser, start).tensors[:2], made.tensors[:2], atol=0, rtol=0)


def test_video_only_mode(denoiser, start, loop, reader):
    made = run(denoiser, JointLatents(start.video))
    assert made.tensors[1:] == (None, None, None)
    assert torch.isfinite(made.video).all()
    for guidance in (
        loop(FeedbackOptions(start=0, iterations=2)),
        GivenGuidance(torch.ones_like(start.drawing)),
    ):
        seen, guided = guidance_seen(denoiser, JointLatents(start.video), guidance)
        assert seen == [None] * STEPS
        assert guided.tensors[1:] == (None, None, None)
        assert guided.report.feedback_passes == 0
    assert reader.readings == []


def test_options_out_of_range_are_refused(denoiser, start):
    for options in (
        {"start": 0.6, "end": 0.5},
        {"start": -0.1},
        {"end": 1.1},
        {"every": 0},
        {"iterations": 0},
    ):
        with pytest.raises(ValueError, match="feedback needs"):
            FeedbackOptions(**options)
    with pytest.raises(ValueError, match="unknown solver 'euler'"):
        run(denoiser, start, solver="euler")


# What is known


VIDEO, DRAWING, START, ENDS = (True, False), (False, True), (False, False, 1), (False, False, 1, 1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("which", [VIDEO, DRAWING, START, ENDS], ids=["video", "drawing", "start", "ends"])
def test_what_is_known_comes_back_and_changes_the_rest(denoiser, start, reader, painter, solver, which):
    frames = known_frames(start.video.shape[2], *which)
    clean = noise_like(start, torch.Generator().manual_seed(5))
    given = replace(denoiser, known=Known(clean, frames))

    def made(denoiser):
        loop = FeedbackLoop(reader, painter, denoiser.image, ALWAYS)
        return run(denoiser, start, solver=solver, guidance=loop, scale=3.0, schedule="constant")

    free, bound = made(denoiser), made(given)
    other = JointLatents(*(x + 0.5 for x in clean))
    elsewhere = made(replace(denoiser, known=Known(other, frames)))
    for stream in (0, 1):
        known = frames[0, stream]
        assert torch.equal(bound[stream][:, :, known], clean[stream][:, :, known])
        for change in (free, elsewhere):
            assert ((bound[stream] - change[stream]).flatten(3).abs().amin(dim=(0, 1, 3)) > 0)[~known].all()
    nothing = made(replace(denoiser, known=Known(other, frames & False)))
    torch.testing.assert_close(nothing.video, free.video, rtol=1e-4, atol=1e-4)
    assert not torch.equal(bound.hands, free.hands)


def test_known_frames_are_at_timestep_0(denoiser, start):
    """The network hears which frames are known, and their clean latents, in both branches of the guidance scale."""
    heard = []
    denoiser.model.register_forward_pre_hook(lambda _, inputs: heard.append(inputs))
    clean = noise_like(start, torch.Generator().manual_seed(5))
    known = Known(clean, known_frames(start.video.shape[2], video=True, motion=False, first=1))
    run(replace(denoiser, known=known), start, scale=2.0, schedule="constant")
    for inputs, timestep in zip(heard, denoiser.schedule.timesteps(STEPS), strict=True):
        assert inputs[3][:, 0].eq(0).all()
        assert inputs[3][:, 1].tolist() == [[0, *[timestep] * (start.video.shape[2] - 1)]] * 2
        assert torch.equal(inputs[0], clean.video.repeat(2, 1, 1, 1, 1))
        assert torch.equal(inputs[4][:, :, :1], clean.drawing.repeat(2, 1, 1, 1, 1)[:, :, :1])


def test_equal_timesteps_for_each_frame_are_one_timestep(model, start):
    generator = torch.Generator().manual_seed(0)
    image, guidance = (torch.randn(start.video.shape, generator=generator) for _ in range(2))
    text = torch.randn(1, 8, 16, generator=generator)
    inputs, others = (start.video, image, text), (start.drawing, guidance)
    with torch.no_grad():
        one = model.backbone(*inputs, torch.tensor([700]), *others)
        each = model.backbone(*inputs, torch.full((1, 2, start.video.shape[2]), 700), *others)
        apart = model.backbone(*inputs, torch.tensor([[[700] * 3, [0, 700, 700]]]), *others)
    torch.testing.assert_close(each, one, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(apart[1], one[1], atol=1e-4)


# The pipeline


def test_generate_makes_a_clip_and_its_motion(model, config, image):
    seen = []
    made = generate(
        model, image, PROMPT, seed=3, steps=2, on_step=lambda i, clean: seen.append((i, clean.video.shape))
    )
    assert made.video.shape == made.drawing.shape == (config.frames, config.height, config.width, 3)
    assert len(made.motion) == config.frames
    assert made.motion.prompt == PROMPT
    assert [i for i, _ in seen] == [0, 1]
    again = generate(model, image, PROMPT, seed=3, steps=2)
    assert torch.equal(again.video, made.video)
    assert (again.motion.hands == made.motion.hands).all()
    assert not torch.equal(generate(model, image, PROMPT, seed=4, steps=2).video, made.video)
    assert not torch.equal(generate(model, 1 - image, PROMPT, seed=3, steps=2).video, made.video)
    assert not torch.equal(generate(model, image, "use brush to hit pan", seed=3, steps=2).video, made.video)


def test_images_are_covered_and_cropped_in_the_middle():
    wide = torch.zeros(10, 40, 3)
    wide[:, 10:30] = 1  # the middle is white
    assert fit_image(wide, 20, 10).min() == 1
    tall = torch.zeros(40, 10, 3)
    assert fit_image(tall, 30, 20).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, 4), "height x width x 3"),
        (torch.zeros(4, 4, 4), "height x width x 3"),
        (torch.zeros(0, 4, 3), "height x width x 3"),
        (torch.full((4, 4, 3), float("nan")), "not finite"),
    ],
)
def test_bad_images_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        fit_image(bad, 32, 32)
