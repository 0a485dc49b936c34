"""An evolution strategy for scores that are noisy and come for many tenants at once.

Antithetic sampling (Salimans et al. 2017, arXiv 1703.03864, section 2.1), with one change: every tenant moves the point
in a direction of its own. What its score gains that way against the opposite way weighs its own direction, so one pass
over J tenants asks J questions where a shared direction would ask one, and how hard a tenant is by itself cancels out.

J tenants, D coordinates.
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
class Strategy:
    """How to climb.

    `draws` directions of each tenant make a step; they have the standard deviation `spread` in every coordinate. A step
    is at most `rate` long, less where steps disagree, and the longest step falls to `last_rate` of `rate` at the end.
    `momentum` is the share of the earlier steps in the direction of the next.
    """

    steps: int
    draws: int = 4
    spread: float = 0.25
    rate: float = 0.3
    last_rate: float = 0.2
    momentum: float = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Climbed:
    """Where a climb ended, (D,), and after every step the mean score of the points that were tried for it."""

    point_D: Tensor
    tried: list[float]


def climb(
    score: Callable[[Tensor, int], Tensor],
    start_D: Tensor,
    strategy: Strategy,
    *,
    counted_J: Tensor,
    bounds: tuple[Tensor, Tensor],
    generator: torch.Generator,
    go_on: Callable[[], bool] = lambda: True,
) -> Climbed:
    """Move a point to where the tenants' mean score is highest.

    Args:
        score: (points (J, D), number of the draw) -> scores (J,), higher is better. The two opposite points of a draw
            get the same number, so that they can be scored under the same noise.
        start_D: first point.
        strategy: how.
        counted_J: which tenants have a say, bool; the others are scored beside them and looked past.
        bounds: least and greatest value of every coordinate, (D,) each.
        generator: of the directions, on the CPU.
        go_on: asked before every step; False ends the climb.
    """
    low_D, high_D = bounds
    point_D, mean_D = start_D.clone(), torch.zeros_like(start_D)
    tried: list[float] = []
    for step in range(strategy.steps):
        if not go_on():
            break
        gradients, means = [], []
        for draw in range(strategy.draws):
            shape = (len(counted_J), len(start_D))
            away_JD = (torch.randn(shape, generator=generator) * strategy.spread).to(start_D)
            number = step * strategy.draws + draw
            ahead_J = score((point_D + away_JD).clamp(low_D, high_D), number)
            behind_J = score((point_D - away_JD).clamp(low_D, high_D), number)
            gain_J = ((ahead_J - behind_J) / 2)[counted_J]
            gradients.append((gain_J[:, None] * away_JD[counted_J]).mean(dim=0) / strategy.spread**2)
            means.append(float((ahead_J + behind_J)[counted_J].mean() / 2))
        gradient_D = torch.stack(gradients).mean(dim=0)
        mean_D = strategy.momentum * mean_D + (1 - strategy.momentum) * gradient_D
        # By the newest gradient's length: where it disagrees with those before it, the mean is shorter and so the step.
        length = strategy.rate * (1 - (1 - strategy.last_rate) * step / strategy.steps)
        moved_D = point_D + length * mean_D / gradient_D.norm().clamp(min=1e-9)
        point_D = moved_D.clamp(low_D, high_D)
        tried.append(sum(means) / len(means))
        log.info("step %d of %d: %.4f around the point", step + 1, strategy.steps, tried[-1])
    return Climbed(point_D, tried)
