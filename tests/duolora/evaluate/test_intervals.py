"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from duolora.evaluate.intervals import bootstrap, paired_difference

tables = arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.floats(0, 1, allow_subnormal=False)
)


@settings(max_examples=25, deadline=None)
@given(values_PS=tables)
def test_an_interval_contains_its_mean_and_stays_inside_the_values(values_PS):
    interval = bootstrap(values_PS, resamples=400)
    assert interval.low <= interval.mean <= interval.high
    assert values_PS.min() - 1e-12 <= interval.low
    assert interval.high <= values_PS.max() + 1e-12


@settings(max_examples=15, deadline=None)
@given(values_PS=tables, shift=st.floats(-2, 2))
def test_a_constant_difference_has_no_width(values_PS, shift):
    interval = paired_difference(values_PS + shift, values_PS, resamples=200)
    assert interval.mean == pytest.approx(shift, abs=1e-9)
    assert interval.high - interval.low < 1e-9


def test_more_pairs_narrow_the_interval():
    values = np.random.default_rng(0).uniform(size=(400, 3))
    few, many = bootstrap(values[:25], 2000), bootstrap(values, 2000)
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        of_pair = random.normal(0.5, 0.2, size=(40, 1))
        interval = bootstrap(of_pair + random.normal(0, 0.1, size=(40, 3)), resamples=400)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.88 <= covered / 200 <= 0.995


def test_seeds_of_one_pair_do_not_count_as_pairs():
    of_pair = np.random.default_rng(2).uniform(size=(20, 1))
    once, thrice = bootstrap(of_pair, 4000), bootstrap(of_pair.repeat(3, axis=1), 4000)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(3).uniform(size=(10, 3))
    assert bootstrap(values) == bootstrap(values.copy())


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.array([[np.nan]]), np.zeros(3)])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap(values)
