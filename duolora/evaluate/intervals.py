"""Bootstrap intervals of a mean over pairs and seeds.

Pairs and seeds are drawn with replacement, jointly: a resample draws as many pairs as there are and, for each drawn
pair, as many of its seeds as it has. Pairs differ more than seeds, so drawing cells one by one would give intervals
that are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_260_101
LEVEL = 0.95
CHUNK = 500

# Legend: P pairs, S seeds of each pair, R resamples.


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


def bootstrap(values_PS: NDArray[np.float64], resamples: int = RESAMPLES) -> Interval:
    """Return the mean of all values and its percentile interval; the same numbers give the same interval.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    if values_PS.ndim != 2 or values_PS.size == 0 or not np.isfinite(values_PS).all():
        raise ValueError(f"a bootstrap needs a table of finite values, pairs by seeds; got {values_PS.shape}")
    pairs, seeds = values_PS.shape
    random = np.random.default_rng(BOOTSTRAP_SEED)
    means = []
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        pair_RP1 = random.integers(pairs, size=(count, pairs, 1))
        seed_RPS = random.integers(seeds, size=(count, pairs, seeds))
        means.append(values_PS[pair_RP1, seed_RPS].mean(axis=(1, 2)))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(values_PS.mean())
    return Interval(mean, min(mean, float(low)), max(mean, float(high)))


def paired_difference(
    values_PS: NDArray[np.float64], rival_PS: NDArray[np.float64], resamples: int = RESAMPLES
) -> Interval:
    """Return the mean of `values - rival` over the same pairs and seeds, with its interval."""
    if values_PS.shape != rival_PS.shape:
        raise ValueError(f"paired tables must have one shape; got {values_PS.shape} and {rival_PS.shape}")
    return bootstrap(values_PS - rival_PS, resamples)
