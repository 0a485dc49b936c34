"""The evolution strategy climbs what can be climbed, for tenants of any difficulty."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.evaluate.evolution import Climbed, Strategy, climb

TENANTS, WIDTH = 48, 12
WIDE = (torch.full((WIDTH,), -9.0), torch.full((WIDTH,), 9.0))


def hill(top_D, *, noise=0.0, offsets_J=None, seed=0):
    """Scores fall with the squared distance from the top; tenants differ in difficulty, and noise comes with draws."""
    offsets_J = torch.zeros(TENANTS) if offsets_J is None else offsets_J

    def score(points_JD, number):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        return offsets_J - (points_JD - top_D).square().sum(dim=1) + noise * torch.randn(TENANTS, generator=generator)

    return score


def run(score, *, counted_J=None, bounds=WIDE, go_on=lambda: True, **changes) -> Climbed:
    everybody = torch.ones(TENANTS, dtype=torch.bool)
    return climb(
        score,
        torch.zeros(WIDTH),
        Strategy(**({"steps": 40, "draws": 2} | changes)),
        counted_J=everybody if counted_J is None else counted_J,
        bounds=bounds,
        generator=torch.Generator().manual_seed(3),
        go_on=go_on,
    )


@given(
    direction=st.lists(st.floats(-1, 1), min_size=WIDTH, max_size=WIDTH).filter(
        lambda it: sum(x * x for x in it) > 0.1
    ),
    distance=st.floats(0.5, 3.0),
    noise=st.floats(0, 2.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_it_climbs_a_hill_through_noise_and_unequal_tenants(direction, distance, noise, seed):
    top_D = torch.nn.functional.normalize(torch.tensor(direction), dim=0) * distance
    offsets_J = 100 * torch.randn(TENANTS, generator=torch.Generator().manual_seed(seed))
    climbed = run(hill(top_D, noise=noise, offsets_J=offsets_J, seed=seed))
    assert (climbed.point_D - top_D).norm() < 0.35
    assert len(climbed.tried) == 40
    assert sum(climbed.tried[-10:]) > sum(climbed.tried[:10]) or distance < 1


def test_noise_that_both_points_of_a_draw_share_does_not_matter():
    top_D = torch.ones(WIDTH) / 4
    torch.testing.assert_close(
        run(hill(top_D)).point_D, run(hill(top_D, noise=50.0)).point_D, atol=1e-2, rtol=0
    )  # but for rounding


def test_tenants_that_are_not_counted_have_no_say():
    top_D = torch.ones(WIDTH) / 4
    counted_J = torch.arange(TENANTS) % 3 > 0
    liars = hill(top_D)

    def lied_to(points_JD, number):
        return liars(points_JD, number).where(counted_J, 1e6 * points_JD.sum(dim=1))

    one, other = run(liars, counted_J=counted_J), run(lied_to, counted_J=counted_J)
    assert torch.equal(one.point_D, other.point_D)
    assert one.tried == pytest.approx(other.tried)


def test_the_point_stays_within_its_bounds_and_so_do_all_that_are_tried():
    low_D, high_D = torch.full((WIDTH,), -0.1), torch.full((WIDTH,), 0.2)
    score = hill(torch.ones(WIDTH))

    def watched(points_JD, number):
        assert points_JD.min() >= -0.1
        assert points_JD.max() <= 0.2 + 1e-6
        return score(points_JD, number)

    climbed = run(watched, bounds=(low_D, high_D), steps=20)
    torch.testing.assert_close(climbed.point_D, high_D)


def test_it_ends_when_it_is_told_to():
    left = iter([True, True, False])
    assert len(run(hill(torch.ones(WIDTH)), go_on=lambda: next(left)).tried) == 2
