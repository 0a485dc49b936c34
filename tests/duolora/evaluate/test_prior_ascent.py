"""Climbing by gradients: a hill is climbed through noise, within bounds, at rates that fall, until the time is over."""

from __future__ import annotations

import pytest
import torch

from duolora.evaluate.prior_ascent import Ascent, climb

HALF = 6
WIDE = (torch.full((2 * HALF,), -9.0), torch.full((2 * HALF,), 9.0))
TOP = torch.cat([torch.linspace(-0.6, 0.8, HALF), torch.linspace(0.3, -0.4, HALF)])


def hill(noise: float = 0.0):
    """Value and gradient of a hill with its top at `TOP`; every step's gradient has its own noise."""

    def slope(point_D, step):
        away_D = point_D - TOP
        wrong_D = noise * torch.randn(2 * HALF, generator=torch.Generator().manual_seed(step))
        return -float(away_D.square().sum()), -2 * away_D + wrong_D

    return slope


def run(slope, *, start_D=None, steps=80, bounds=WIDE, over=lambda: 0.0, **changes):
    start_D = torch.zeros(2 * HALF) if start_D is None else start_D
    return climb(slope, start_D, Ascent(steps=steps, **changes), bounds=bounds, over=over)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_it_climbs_a_hill_through_noise(noise):
    climbed = run(hill(noise))
    assert (climbed.point_D - TOP).abs().max() < 0.15
    assert len(climbed.values) == 80
    assert climbed.values[0] == pytest.approx(-float(TOP.square().sum()))
    assert climbed.values[-1] > 0.1 * climbed.values[0]


def test_a_few_steps_raise_the_value_and_leave_the_start_as_it_was():
    start_D = torch.zeros(2 * HALF)
    climbed = run(hill(), start_D=start_D, steps=4)
    assert climbed.values == sorted(climbed.values)
    assert hill()(climbed.point_D, 0)[0] > climbed.values[-1]
    assert torch.equal(start_D, torch.zeros(2 * HALF))


def test_tails_move_at_half_the_rate_and_rates_fall():
    def steady(_point_D, _step):
        return 0.0, torch.ones(2 * HALF)

    first_D = run(steady, steps=1).point_D  # Adam's step under a steady gradient is its rate
    torch.testing.assert_close(first_D, torch.tensor([0.04, 0.02]).repeat_interleave(HALF))
    torch.testing.assert_close(run(steady, steps=2, last_rate=0.5).point_D, first_D * 1.75)


def test_the_point_stays_within_its_bounds():
    low_D, high_D = torch.full((2 * HALF,), -0.1), torch.full((2 * HALF,), 0.2)
    point_D = run(hill(), bounds=(low_D, high_D)).point_D
    torch.testing.assert_close(point_D, TOP.clamp(low_D, high_D), atol=0.02, rtol=0)
    assert ((point_D >= low_D) & (point_D <= high_D)).all()


def test_it_ends_when_the_time_is_over_and_slows_down_before():
    def steady(_point_D, _step):
        return 0.0, torch.ones(2 * HALF)

    shares = iter([0.0, 0.5, 1.0])
    climbed = run(steady, steps=1000, over=lambda: next(shares))
    assert len(climbed.values) == 2
    torch.testing.assert_close(climbed.point_D[:HALF], torch.full((HALF,), 0.04 * (1 + 0.55)), atol=1e-4, rtol=0)
