"""The loop and the sampler, with real networks."""

from dataclasses import replace

import pytest
import torch

from svimo_core.feedback import FeedbackOptions, InteractionFeedback
from svimo_core.pipeline import empty_latents, encode_image, fit_image, generate
from svimo_core.sampler import Denoiser, Guidance, JointLatents, noise_like, noised, sample
from svimo_core.schedule import SOLVERS, NoiseSchedule

STEPS = 4
ALWAYS = FeedbackOptions(start=0)
OFF = FeedbackOptions(enabled=False)
PROMPT = "use spoon to stir cup"


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


@pytest.fixture
def feedback(model, config):
    schedule = NoiseSchedule(config.motion_schedule)
    return InteractionFeedback(
        model.interaction, model.vae, model.normalizer, schedule, config.width, config.height
    )


@pytest.fixture
def start(config):
    empty = empty_latents(config, config.frames, config.height, config.width)
    return noise_like(JointLatents(empty, empty), torch.Generator().manual_seed(0))


def run(denoiser, start, **options):
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        return sample(denoiser, start, denoiser.schedule.timesteps(STEPS), generator, **options)


def same(a: JointLatents, b: JointLatents, **tolerance) -> bool:
    return all(torch.allclose(x, y, **tolerance) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_seed_gives_the_same_bytes(denoiser, start, feedback, solver):
    runs = [run(denoiser, start, feedback=feedback, options=ALWAYS, solver=solver)[0] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(torch.isfinite(x).all() for x in runs[0])


def weighted_mean(readings, schedule):
    """By the share of noise in the latents of each step."""
    noise = 1 - schedule.abar[schedule.timesteps(STEPS)[: len(readings)]].float()
    weights = noise / noise.sum()
    assert len(readings) < STEPS or weights[0] > 1.5 * weights[-1]
    return [torch.einsum("s,s...->...", weights, torch.stack(x)) for x in zip(*readings, strict=True)]


def recorded(feedback, monkeypatch):
    """What VID reads in a run, in order."""
    readings, read = [], feedback.read
    monkeypatch.setattr(feedback, "read", lambda *latents: readings.append(read(*latents)) or readings[-1])
    return readings


@pytest.mark.parametrize("options", [OFF, ALWAYS], ids=["open", "closed"])
def test_3d_motion_is_the_weighted_mean_of_what_is_read_off_clean_latents(
    denoiser, start, feedback, monkeypatch, options
):
    readings = recorded(feedback, monkeypatch)
    latents, _ = run(denoiser, start, feedback=feedback, options=options)
    clean = readings[-STEPS:]  # a closed loop reads noise before its first step
    assert len(readings) == STEPS + options.enabled
    assert not torch.allclose(clean[0][0], clean[-1][0], atol=1e-4)
    expected = weighted_mean(clean, denoiser.schedule)
    if options.enabled:  # the loop holds it against the image
        with torch.inference_mode():
            aligned = feedback.align(denoiser.image, *expected)
        assert not torch.allclose(aligned[0], expected[0], atol=1e-2)
        expected = aligned
    for made, mean in zip((latents.hands, latents.points), expected, strict=True):
        torch.testing.assert_close(made, mean, atol=1e-5, rtol=1e-5)


def test_noise_is_added_to_all_there_is(denoiser, start):
    noise = noise_like(start, torch.Generator().manual_seed(3))
    made = noised(start, noise, 300, denoiser.schedule)
    assert torch.equal(made.motion, denoiser.schedule.add_noise(start.motion, noise.motion, 300))
    assert noised(JointLatents(start.video), noise, 300, denoiser.schedule).motion is None


def test_motion_of_an_earlier_run_is_read_anew(denoiser, start, feedback):
    made, _ = run(denoiser, start, feedback=feedback, options=OFF)
    again, _ = run(
        denoiser, made._replace(video=start.video, motion=start.motion), feedback=feedback, options=OFF
    )
    assert same(made, again, atol=0)


def test_motion_is_read_off_finished_latents_alone(start, feedback, config):
    with torch.inference_mode():
        hands, points = feedback.read(start.video, start.motion)
        assert hands.shape == (1, config.frames, 42, 3)
        assert points.shape == (1, config.frames, config.interaction.num_points, 3)
        assert torch.equal(feedback.read(start.video, start.motion)[0], hands)
        assert not torch.allclose(feedback.read(start.video, -start.motion)[0], hands)
        pair = feedback.read(*(torch.cat([x, -x]) for x in (start.video, start.motion)))
        torch.testing.assert_close(pair[0][:1], hands, atol=1e-5, rtol=0)


# Drawing rounds to a sixteenth of a pixel, so with the loop closed the last bits of a float can move an edge.
LOOP_AND_TOLERANCE = [(OFF, 1e-4), (ALWAYS, 3e-2)]


@pytest.mark.parametrize(("options", "tolerance"), LOOP_AND_TOLERANCE, ids=["open", "closed"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_batched_and_sequential_guidance_agree(denoiser, start, feedback, dynamic, options, tolerance):
    both = [
        run(replace(denoiser, batched=batched, dynamic=dynamic), start, feedback=feedback, options=options)[0]
        for batched in (True, False)
    ]
    assert same(*both, atol=tolerance)


@pytest.mark.parametrize(("options", "tolerance"), LOOP_AND_TOLERANCE, ids=["open", "closed"])
def test_a_clip_does_not_depend_on_its_batch(denoiser, start, feedback, options, tolerance):
    other = noise_like(start, torch.Generator().manual_seed(7))
    pair = JointLatents(*(torch.cat([a, b]) for a, b in zip(start[:2], other[:2], strict=True)))
    doubled = replace(
        denoiser,
        image=denoiser.image.repeat(2, 1, 1, 1),
        text=denoiser.text.repeat(2, 1, 1),
        negative_text=denoiser.negative_text.repeat(2, 1, 1),
    )
    together = run(doubled, pair, feedback=feedback, options=options)[0]
    alone = run(denoiser, start, feedback=feedback, options=options)[0]
    assert same(JointLatents(*(x[:1] for x in together)), alone, atol=tolerance)


def test_text_and_guidance_scale_matter(denoiser, start):
    results = [
        run(changed, start)[0].video
        for changed in (
            denoiser,
            replace(denoiser, text=denoiser.negative_text),
            replace(denoiser, guidance_scale=2.0),
            replace(denoiser, dynamic=False),
            replace(denoiser, image=-denoiser.image),
        )
    ]
    for other in results[1:]:
        assert not torch.allclose(results[0], other, atol=1e-4)


def test_dynamic_scale_by_hand(denoiser):
    assert denoiser.scale(0, 10) == 1
    assert denoiser.scale(10, 10) == 7
    assert denoiser.scale(5, 10) == pytest.approx(1 + 6 * (1 - 0.995184727) / 2)
    assert replace(denoiser, dynamic=False).scale(3, 10) == 6


# The closed loop


class Spy:
    """Records what reaches the MM-DiT as guidance, on its way through the real one."""

    def __init__(self, network):
        self.network, self.guidance = network, []

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, video, image, text, time, motion=None, guidance=None, **options):
        self.guidance.append(guidance)
        return self.network(video, image, text, time, motion, guidance, **options)


def guidance_seen(denoiser, start, **options):
    spy = Spy(denoiser.model)
    latents, report = run(replace(denoiser, model=spy, guidance_scale=1.0, dynamic=False), start, **options)
    return spy.guidance, latents, report


def test_guidance_is_the_drawn_and_aligned_weighted_mean_of_the_readings_before(
    denoiser, start, feedback, monkeypatch
):
    readings = recorded(feedback, monkeypatch)
    seen, _, report = guidance_seen(denoiser, start, feedback=feedback, options=ALWAYS)
    noise, *clean = readings  # at first there are no clean latents
    means = [weighted_mean(clean[:i], denoiser.schedule) for i in range(1, STEPS)]
    with torch.inference_mode():
        assert torch.equal(noise[0], InteractionFeedback.read(feedback, start.video, start.motion)[0])
        for guidance, mean in zip(seen, [noise, *means], strict=True):
            aligned = feedback.align(denoiser.image, *mean)
            torch.testing.assert_close(guidance, feedback.guidance(*aligned), atol=3e-2, rtol=0)
    assert report.feedback_passes == STEPS
    assert len({float(g.sum()) for g in seen}) == STEPS  # every step has its own


def test_another_vid_changes_the_next_denoising_input(denoiser, start, feedback, config, model):
    shifted = replace(model.normalizer, hands_mean=model.normalizer.hands_mean + 0.05)
    other = InteractionFeedback(
        model.interaction, model.vae, shifted, feedback.schedule, config.width, config.height
    )
    a, latents_a, _ = guidance_seen(denoiser, start, feedback=feedback, options=ALWAYS)
    b, latents_b, _ = guidance_seen(denoiser, start, feedback=other, options=ALWAYS)
    assert not torch.allclose(a[0], b[0], atol=1e-3)
    assert not torch.allclose(latents_a.video, latents_b.video, atol=1e-5)


def test_strength_zero_equals_off_and_both_differ_from_on(denoiser, start, feedback):
    zero = run(denoiser, start, feedback=feedback, options=FeedbackOptions(start=0, strength=0))
    off = run(denoiser, start, feedback=feedback, options=OFF)
    on = run(denoiser, start, feedback=feedback, options=ALWAYS)
    assert all(torch.equal(a, b) for a, b in zip(zero[0], off[0], strict=True))
    assert not same(on[0], off[0], atol=1e-5)
    assert (zero[1].feedback_passes, off[1].feedback_passes, on[1].feedback_passes) == (0, 0, STEPS)


def test_the_loop_holds_what_was_read_against_the_image(denoiser, start, feedback, normalizer):
    """By the metres that VID's alignment says, one image for all or one for each; without that part nothing moves."""
    hands, points = feedback.read(start.video, start.motion)
    with torch.inference_mode():
        aligned = feedback.align(denoiser.image, hands, points)
        found = feedback.interaction.alignment.find(denoiser.image)
        projected = normalizer.project(hands[:, 0], points[:, 0])
        by = feedback.interaction.alignment(found, hands, points, projected)
        moved = [
            a - b
            for a, b in zip(
                normalizer.denormalize(*aligned), normalizer.denormalize(hands, points), strict=True
            )
        ]
        for one, other in zip(moved, by, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
            assert one.abs().max() > 1e-3
        assert not torch.allclose(feedback.align(-denoiser.image, hands, points)[0], aligned[0], atol=1e-3)
        pair = [torch.cat([x, x]) for x in (hands, points)]
        for images in (denoiser.image, denoiser.image.repeat(2, 1, 1, 1)):
            torch.testing.assert_close(feedback.align(images, *pair)[0][1:], aligned[0], atol=1e-5, rtol=1e-5)
        alignment, feedback.interaction.alignment = feedback.interaction.alignment, None
        try:
            assert feedback.align(denoiser.image, hands, points) == (hands, points)
        finally:
            feedback.interaction.alignment = alignment


def test_strength_scales_the_guidance(denoiser, start, feedback):
    full, _, _ = guidance_seen(denoiser, start, feedback=feedback, options=ALWAYS)
    half, _, _ = guidance_seen(
        denoiser, start, feedback=feedback, options=FeedbackOptions(start=0, strength=0.5)
    )
    torch.testing.assert_close(half[0], 0.5 * full[0])


@pytest.mark.parametrize(
    ("options", "refreshed"),
    [
        (FeedbackOptions(start=0.5), [2, 3]),
        (FeedbackOptions(start=0, end=0.5), [0, 1]),
        (FeedbackOptions(start=0, every=2), [0, 2]),
        (FeedbackOptions(start=0.25, every=2), [1, 3]),
        (OFF, []),
    ],
)
def test_the_loop_closes_when_told(denoiser, start, feedback, options, refreshed):
    seen, _, report = guidance_seen(denoiser, start, feedback=feedback, options=options)
    assert [i for i in range(STEPS) if options.refreshes(i, STEPS)] == refreshed
    assert report.feedback_passes == len(refreshed)
    for step, guidance in enumerate(seen):
        held = step not in refreshed and step > 0 and options.active(step, STEPS)
        if held:
            assert torch.equal(guidance, seen[step - 1])
        else:
            assert bool(guidance.any()) == (step in refreshed)


def test_iterations_close_the_loop_again_at_the_same_step(denoiser, start, feedback):
    seen, _, report = guidance_seen(
        denoiser, start, feedback=feedback, options=FeedbackOptions(start=0.75, iterations=3)
    )
    assert report.feedback_passes == 3
    assert len(seen) == STEPS + 2
    assert not torch.allclose(seen[-1], seen[-2], atol=1e-6)


def test_given_guidance_takes_the_loops_place_while_it_holds(denoiser, start, feedback):
    given = Guidance(torch.full_like(start.motion, 0.3), start=0.25, end=0.75)
    seen, _, report = guidance_seen(denoiser, start, feedback=feedback, options=ALWAYS, given=given)
    assert torch.equal(seen[1], given.latent)
    assert torch.equal(seen[2], given.latent)
    assert not torch.equal(seen[0], given.latent)
    assert not torch.equal(seen[3], given.latent)
    assert report.feedback_passes == 2


def test_the_loop_takes_over_at_once_where_given_guidance_ends(denoiser, start, feedback):
    given = Guidance(torch.full_like(start.motion, 0.3), end=0.5)
    sparse = FeedbackOptions(start=0, every=3)  # on its own it would refresh at steps 0 and 3
    seen, _, report = guidance_seen(denoiser, start, feedback=feedback, options=sparse, given=given)
    assert torch.equal(seen[1], given.latent)
    assert seen[2].any()
    assert not torch.equal(seen[2], given.latent)
    assert report.feedback_passes == 2


def test_without_vid_there_is_no_3d_motion_but_a_motion_video(denoiser, start):
    latents, report = run(denoiser, JointLatents(start.video, start.motion))
    assert latents.hands is None
    assert latents.points is None
    assert latents.motion.shape == start.motion.shape
    assert "interaction" not in report.seconds


def test_video_only_mode(denoiser, start):
    latents, _ = run(denoiser, JointLatents(start.video))
    assert latents[1:] == (None, None, None)
    assert torch.isfinite(latents.video).all()


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


# The pipeline


def test_generate_makes_a_clip_and_its_motion(model, config, image):
    seen = []
    made = generate(
        model, image, PROMPT, seed=3, steps=2, on_step=lambda i, clean: seen.append((i, clean.shape))
    )
    assert made.video.shape == made.motion_video.shape == (config.frames, config.height, config.width, 3)
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
