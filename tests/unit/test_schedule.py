import itertools
import math

import pytest
import torch

from svimo_core.config import ScheduleConfig
from svimo_core.schedule import SOLVERS, NoiseSchedule, StepLevels


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule(ScheduleConfig())


def test_ends_are_clean_and_pure_noise(schedule):
    assert schedule.level(999) == 0
    assert schedule.level(0) == pytest.approx(1 - 0.00085, abs=1e-6)
    assert (schedule.abar.diff() < 0).all()


def test_timesteps_are_trailing(schedule):
    assert schedule.timesteps(4) == [999, 749, 499, 249]
    assert schedule.timesteps(4, denoise=0.5) == [499, 374, 249, 124]
    assert schedule.timesteps(1000)[-1] == 0
    for steps, denoise in ((0, 1.0), (1001, 1.0), (10, 0.0), (10, 1.5)):
        with pytest.raises(ValueError, match=r"steps|denoise"):
            schedule.timesteps(steps, denoise)


def test_each_timestep_comes_once(schedule):
    """Where a low `denoise` leaves fewer timesteps than steps, there are fewer steps."""
    assert schedule.timesteps(8, denoise=0.004) == [3, 2, 1, 0]
    for steps in (1, 3, 50, 1000):
        for denoise in (0.001, 0.0151, 0.02, 0.3, 0.999, 1.0):
            timesteps = schedule.timesteps(steps, denoise)
            assert all(a > b for a, b in itertools.pairwise(timesteps))
            assert timesteps[0] == round(1000 * denoise) - 1
            assert timesteps[-1] >= 0
            assert len(timesteps) == min(steps, round(1000 * denoise))


def test_where_a_run_is(schedule):
    assert schedule.step(0, 999) == (0, 0.0, 1.0)
    step = schedule.step(3, 249)
    assert (step.index, step.progress) == (3, 0.75)
    assert step.noise == pytest.approx(1 - schedule.abar[249].item())


def test_one_timestep_is_as_good_as_one_for_each(schedule):
    x0, noise = torch.randn(2, 3, 4)
    for call in (
        schedule.add_noise,
        schedule.velocity,
        schedule.clean_from_velocity,
        schedule.noise_from_clean,
    ):
        for timestep in (0, 500, 999):
            each = call(x0, noise, torch.full((3,), timestep))
            torch.testing.assert_close(call(x0, noise, timestep), each, atol=1e-6, rtol=1e-6)
            assert call(x0.bfloat16(), noise.bfloat16(), timestep).dtype == torch.bfloat16


def test_velocity_and_x0_are_inverse(schedule):
    x0, noise = torch.randn(3, 4), torch.randn(3, 4)
    timesteps = torch.tensor([999, 500, 3])
    x_t = schedule.add_noise(x0, noise, timesteps)
    v = schedule.velocity(x0, noise, timesteps)
    torch.testing.assert_close(schedule.clean_from_velocity(x_t, v, timesteps), x0)
    torch.testing.assert_close(x_t[0], noise[0])  # pure noise at the last timestep


@pytest.mark.parametrize("name", SOLVERS)
def test_a_perfect_prediction_arrives(schedule, name):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(8, generator=generator)
    x, timesteps = torch.randn(8, generator=generator), schedule.timesteps(5)
    for i, t in enumerate(timesteps):
        levels = StepLevels(
            before=schedule.level(timesteps[i - 1]) if i else None,
            now=schedule.level(t),
            after=schedule.level(timesteps[i + 1] if i < 4 else None),
        )
        x = SOLVERS[name](x, x0, x0 if i else None, levels, torch.randn(8, generator=generator))
    torch.testing.assert_close(x, x0)


def test_ddim_by_hand():
    levels = StepLevels(before=None, now=0.36, after=0.64)
    x = SOLVERS["ddim"](torch.tensor([1.0]), torch.tensor([0.5]), None, levels, None)
    noise = (1 - 0.6 * 0.5) / 0.8
    assert x.item() == pytest.approx(0.8 * 0.5 + 0.6 * noise)


def test_second_order_is_more_accurate_than_first():
    # Without its noise the solver follows a known curve x0(lambda); history must reduce the error.
    def lam(abar):
        return 0.5 * math.log(abar / (1 - abar))

    levels = StepLevels(before=0.2, now=0.35, after=0.5)
    curve = [torch.tensor([math.sin(lam(a))], dtype=torch.float64) for a in (0.2, 0.35)]
    x = torch.tensor([0.7], dtype=torch.float64)
    step, zero = SOLVERS["dpmpp_2m_sde"], torch.zeros(1, dtype=torch.float64)
    # Reference: many exact small steps of the same SDE's mean.
    fine, a0 = x.clone(), 0.35
    for i in range(2000):
        a1 = 0.35 + 0.15 * (i + 1) / 2000
        at = torch.tensor([math.sin(lam(a0))], dtype=torch.float64)
        fine = step(fine, at, None, StepLevels(before=None, now=a0, after=a1), zero)
        a0 = a1
    first = step(x, curve[1], None, levels, zero)
    second = step(x, curve[1], curve[0], levels, zero)
    assert (second - fine).abs() < 0.5 * (first - fine).abs()
