"""SSR-Merge: ranks of all LoRAs side by side, and a router between them (Wei et al. 2026, arXiv 2606.10617).

The downs are stacked to A (R, I) and the ups to B (O, R). On what LoRA i reads in its own calibration pass, `x_i`, the
router M (R, R) shall send the joined signal `A x_i` where LoRA i alone would have it, `P_i A x_i`, with P_i the
projection on the ranks of LoRA i. The paper's inverse correlation matrix and direction-guided matrix together are the
least squares solution of that (its theorem on OLS equivalence):

    M = (sum_i P_i C_i) (sum_i C_i + ridge * tr / R * I)^-1,        C_i = E[A x_i (A x_i)^T],        dW = B M A

C_i is all that is kept of the activations, and it adds up over samples (the paper's streaming form). M folds into the
ups, so the result is an ordinary LoRA of rank `r_c + r_s`. The ridge is relative to the mean energy of a rank.

J cases, S sides, R joined rank (of the largest case), I inputs, X positions of a side's samples.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines.noised_cases import NoisedCases, predict_as
from duolora.baselines.pairing import merge_layers
from duolora.errors import InvalidConfig
from duolora.lora.parts import concatenate
from duolora.method.merge_case import CONTENT, SIDES
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from duolora.adapters import RankSpaceLinear
    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def merge(
    base: DiffusionBase, cases: Sequence[MergeCase], *, ridge: float = 0.01, samples: int = 8
) -> list[LoraWeights]:
    """Merge every case by its router; all cases calibrate in the same passes.

    Args:
        base: the model both LoRAs were trained on.
        cases: the pairs to merge.
        ridge: weight of the identity, as a share of the mean energy of a rank; above 0.
        samples: noised samples of each side that the router is calibrated on (the paper: one step of one prompt).

    Raises:
        InvalidConfig: the ridge or the number of samples is not positive.
        InvalidLora: a LoRA does not fit the base.
    """
    if ridge <= 0 or samples < 1:
        raise InvalidConfig(f"SSR-Merge needs a positive ridge and number of samples; got {ridge} and {samples}")
    with memory_errors(), torch.no_grad():
        moments, ranks = calibrate(base, cases, samples)
        routers = {name: router(moments_SJRR, ranks[name], ridge).cpu() for name, moments_SJRR in moments.items()}
    return [
        _fold(case, {name: of_layer[j] for name, of_layer in routers.items()}, ranks) for j, case in enumerate(cases)
    ]


def calibrate(
    base: DiffusionBase, cases: Sequence[MergeCase], samples: int
) -> tuple[dict[str, Tensor], dict[str, Mapping[str, int]]]:
    """Run each side's LoRA alone on its own noised pictures and captions and gather its joined signals.

    Returns:
        Layer name -> C_i of every side, (S, J, R, R) float64, and layer name -> side -> rank in the joined order.
    """
    noised = NoisedCases.draw(base, cases, samples)
    with RankSpaceAdapter(*({side: case.loras[side] for side in SIDES} for case in cases)).inject(base.unet) as adapter:
        with _second_moments(adapter.layers) as moments:
            predict_as(base, adapter, noised, range(len(SIDES)))
        return moments, {name: dict(layer.ranks) for name, layer in adapter.layers.items()}


@contextmanager
def _second_moments(layers: Mapping[str, RankSpaceLinear]) -> Iterator[dict[str, Tensor]]:
    """Sum the outer products of every layer's joined signals, side by side, while the context is open."""
    moments: dict[str, Tensor] = {}

    def watch(name: str) -> Any:  # noqa: ANN401 - a hook, as torch defines it
        def gather(layer: Any, inputs: tuple[Tensor, ...]) -> None:  # noqa: ANN401
            downs = list(layer.downs.values())
            down_JRI = torch.cat(downs, dim=1).float()
            x_JSXI = inputs[0].float().reshape(len(down_JRI), len(SIDES), -1, down_JRI.shape[2])
            signal_JSXR = x_JSXI @ down_JRI[:, None].mT
            moment_SJRR = (signal_JSXR.mT @ signal_JSXR).transpose(0, 1).double() / signal_JSXR.shape[2]
            moments[name] = moments[name] + moment_SJRR if name in moments else moment_SJRR

        return gather

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def router(moments_SJRR: Tensor, ranks: Mapping[str, int], ridge: float) -> Tensor:
    """Solve for the router of one layer, (J, R, R) float64.

    Args:
        moments_SJRR: C_i of every side and case.
        ranks: side -> its rank in the joined order; sides that do not change the layer are absent.
        ridge: see `merge`.
    """
    total_JRR = moments_SJRR.sum(dim=0)
    width = total_JRR.shape[-1]
    guided_JRR = torch.zeros_like(total_JRR)
    first = 0
    for side, rank in ranks.items():
        rows = slice(first, first + rank)
        guided_JRR[:, rows] = moments_SJRR[SIDES.index(side), :, rows]
        first += rank
    energy_JR = total_JRR.diagonal(dim1=1, dim2=2)
    # Ranks that only another case has stay silent; they must not thin out the mean.
    heard_J = (energy_JR > 0).sum(dim=1).clamp(min=1)
    energy_J = (energy_JR.sum(dim=1) / heard_J).clamp(min=torch.finfo(torch.float64).tiny)
    damped_JRR = total_JRR + (ridge * energy_J)[:, None, None] * torch.eye(width, device=total_JRR.device)
    router_JRR: Tensor = torch.linalg.solve(damped_JRR, guided_JRR, left=False)
    return router_JRR


def _fold(case: MergeCase, routers: Mapping[str, Tensor], ranks: Mapping[str, Mapping[str, int]]) -> LoraWeights:
    """Fold a case's routers into its joined ups, leaving out the ranks that only other cases have."""

    def route(name: str, parts: Mapping[str, LoraLayer]) -> LoraLayer:
        joined = concatenate(list(parts.values()))
        second = ranks[name].get(CONTENT, 0)
        starts = {side: 0 if side == CONTENT else second for side in parts}
        rows_R = torch.cat([torch.arange(part.rank) + starts[side] for side, part in parts.items()])
        router_RR = routers[name][rows_R][:, rows_R]
        up_OR = (joined.up_OR.to(torch.float64) @ router_RR).to(torch.float32)
        return joined.with_factors(joined.down_RI, up_OR)

    return merge_layers(case, route)
