"""Where the masks of a merge begin: the plain sum, the paper's prior, a least squares, or measured strengths.

J tenants, R ranks of a side in one layer.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Self

import torch

from duolora.config import MaskStart
from duolora.method.closed_form import rank_gram, solve_masks
from duolora.method.measured_priors import measured_priors
from duolora.method.priors import initial_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from duolora.adapters import RankSpaceAdapter
    from duolora.config import MergeConfig
    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.method.priors import Role

SOLVED_AT_ONCE = 64
"""Layers whose least squares are one call; their matrices, in float64, lie beside each other meanwhile."""

Masks = dict[str, dict[str, "Tensor"]]
"""Side -> layer name -> masks (J, R)."""


def starting_masks(
    canonical: Sequence[Mapping[str, LoraWeights]],
    config: MergeConfig,
    *,
    layer_roles: Mapping[str, Role],
    side_roles: Mapping[str, Role],
) -> Masks:
    """Return the masks that depend on the LoRAs alone.

    Args:
        canonical: the sides of every tenant, in canonical form, alike in layers and ranks.
        config: which start; a closed form begins as ones and is solved for once inputs are known.
        layer_roles: layer name -> the role that dominates it; layers without one are taken for everybody's.
        side_roles: side -> its role.
    """
    priors = measured_priors()
    alike = {role: sum(other is role for other in side_roles.values()) for role in side_roles.values()}

    def mask(side: str, name: str, layer: LoraLayer) -> Tensor:
        role = side_roles[side]
        if config.start is MaskStart.MEASURED:
            # Several subjects, or several styles, share what one of them would have (paper, section 5.4: uniformly).
            return priors[role].mask(name, layer, layer_roles.get(name)) / alike[role]
        dominant = config.start is not MaskStart.LEADING or layer_roles.get(name, role) is role
        return initial_mask(layer.rank, dominant=dominant, minor_share=config.prior_start)

    return {
        side: {
            name: torch.stack([mask(side, name, tenant[side].layers[name]) for tenant in canonical])
            for name in canonical[0][side].layers
        }
        for side in canonical[0]
    }


class MomentRecorder:
    """Records, while an adapter's own sides run on their own inputs, what the closed form needs to know of them.

    Use as a context manager around passes whose samples all have the role of a single side.
    """

    def __init__(self, adapter: RankSpaceAdapter) -> None:
        self._adapter = adapter
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in adapter.layers}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        """Listen to every attached layer."""
        for name, layer in self._adapter.layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._listener(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()

    def _listener(self, name: str) -> Callable[[object, tuple[Tensor, ...]], None]:
        layer = self._adapter.layers[name]

        def listen(_module: object, inputs: tuple[Tensor, ...]) -> None:
            side = self._adapter.sides[self._adapter.present_role()]
            x_BTI = inputs[0].detach()
            down_JRI = layer.joined_factors(x_BTI.dtype).down_JRI
            rows_JXI = x_BTI.reshape(layer.tenants, -1, x_BTI.shape[-1])
            hidden_JXR = torch.bmm(rows_JXI, down_JRI.mT).to(torch.float32)
            # A sum, not a mean: the least squares divides every side by its own energy.
            moments_JRR = torch.bmm(hidden_JXR.mT, hidden_JXR)
            self._sums[name][side] = self._sums[name].get(side, torch.zeros_like(moments_JRR)) + moments_JRR

        return listen

    def solve(self, ridge: float, toward: float = 1.0) -> Masks:
        """Solve every layer in closed form; see `duolora.method.closed_form.solve_masks`.

        Layers of equal ranks are solved at once, as if each were a tenant more: one call for hundreds of small systems.
        """
        masks: Masks = {side: {} for side in self._adapter.sides}
        alike: dict[tuple[object, ...], list[str]] = {}
        for name, layer in self._adapter.layers.items():
            alike.setdefault((*layer.ranks.items(), *self._sums[name]), []).append(name)
        attached = self._adapter.layers
        for names in (lot for of_ranks in alike.values() for lot in _lots(of_ranks)):
            layers = [attached[name] for name in names]
            spans = _spans(layers[0].ranks)
            ups_JOR = [torch.cat(list(layer.ups.values()), dim=2) for layer in layers]
            grams = {
                side: torch.cat(
                    [rank_gram(up, self._sums[name][side]) for name, up in zip(names, ups_JOR, strict=True)]
                )
                for side in self._sums[names[0]]
            }
            solved_LJR = solve_masks(grams, spans, ridge=ridge, toward=toward).unflatten(0, (len(names), -1))
            for name, solved_JR in zip(names, solved_LJR, strict=True):
                for side, span in spans.items():
                    masks[side][name] = solved_JR[:, span].contiguous()
        return masks


def _lots(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Return layers by so many as are solved at once."""
    for first in range(0, len(names), SOLVED_AT_ONCE):
        yield names[first : first + SOLVED_AT_ONCE]


def _spans(ranks: Mapping[str, int]) -> dict[str, slice]:
    """Return where each side's ranks stand among the joined ones."""
    ends = list(accumulate(ranks.values()))
    return {side: slice(end - rank, end) for (side, rank), end in zip(ranks.items(), ends, strict=True)}
