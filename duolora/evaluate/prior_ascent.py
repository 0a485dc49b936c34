"""Climbing in the space of layer priors by gradients: Adam (Kingma and Ba 2015, arXiv 1412.6980), with falling rates.

D coordinates of a point of `duolora.evaluate.prior_space`: logarithms of strengths, then as many tails.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ascent:
    """How to climb: at most `steps` steps.

    `rate` is Adam's for the logarithms of strengths, tails have `tail_share` of it, and both fall evenly to `last_rate`
    of what they began with. `betas` are Adam's.
    """

    steps: int
    rate: float = 0.04
    tail_share: float = 0.5
    last_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass(frozen=True, slots=True, eq=False)
class Climbed:
    """Where a climb ended, (D,), and the value found before every step."""

    point_D: Tensor
    values: list[float]


def climb(
    slope: Callable[[Tensor, int], tuple[float, Tensor]],
    start_D: Tensor,
    ascent: Ascent,
    *,
    bounds: tuple[Tensor, Tensor],
    over: Callable[[], float] = lambda: 0.0,
) -> Climbed:
    """Move a point to where a value is high.

    Args:
        slope: (point (D,), number of the step) -> value and gradient (D,), higher is better.
        start_D: first point.
        ascent: how.
        bounds: least and greatest value of every coordinate, (D,) each.
        over: asked before every step what share of the time there is has passed; the climb ends at 1.
    """
    logs, tails = (half.detach().clone() for half in start_D.chunk(2))
    rates = (ascent.rate, ascent.rate * ascent.tail_share)
    halves = [{"params": [half], "lr": rate} for half, rate in zip((logs, tails), rates, strict=True)]
    optimizer = torch.optim.Adam(halves, betas=ascent.betas, maximize=True)
    values: list[float] = []
    for step in range(ascent.steps):
        passed = max(step / ascent.steps, over())
        if passed >= 1:
            break
        value, gradient_D = slope(torch.cat([logs, tails]), step)
        logs.grad, tails.grad = gradient_D.chunk(2)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - (1 - ascent.last_rate) * passed)
        optimizer.step()
        (low_logs, low_tails), (high_logs, high_tails) = (bound_D.chunk(2) for bound_D in bounds)
        logs.clamp_(low_logs, high_logs)
        tails.clamp_(low_tails, high_tails)
        values.append(value)
        log.info("step %d of %d: %.4f", step + 1, ascent.steps, value)
    return Climbed(torch.cat([logs, tails]), values)
