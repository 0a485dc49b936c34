"""K-LoRA: at every layer and sampling step one of the two LoRAs is chosen, whole.

Source: Ouyang et al. 2025, arXiv 2502.18461, section 3. Of each side's `|dW|` the K largest elements are summed,
K = r_c r_s. Content is chosen where

    S_c >= S_s * gamma * (alpha * t / T + beta),     gamma = sum |dW_c| / sum |dW_s| over all layers,

with alpha = 1.5, beta = 0.5, t the step of the denoising and T their number: the style's claim grows from half to
twice its size, so that early steps lay out the content and late ones the texture; gamma evens out LoRAs of unequal
strength. The choice depends on the step, so there is no file: the method is an adapter to sample with.

J tenants, L layers, O outputs, I inputs, R joined rank.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.method.merge_case import CONTENT, SIDES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from duolora.adapters import RankSpaceLinear
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def attach(
    base: DiffusionBase, cases: Sequence[MergeCase], *, alpha: float = 1.5, beta: float = 0.5, balance: bool = True
) -> KLora:
    """Return the adapter that samples all cases as tenants of one pass; `balance` applies gamma."""
    return KLora(base, cases, alpha=alpha, beta=beta, balance=balance)


class KLora:
    """An adapter that chooses anew before each step. Attached while it is entered; leaving restores the base."""

    def __init__(
        self, base: DiffusionBase, cases: Sequence[MergeCase], *, alpha: float, beta: float, balance: bool
    ) -> None:
        self._base = base
        self._cases = cases
        self._alpha = alpha
        self._beta = beta
        self._balance = balance
        self._adapter = RankSpaceAdapter(*({side: case.loras[side] for side in SIDES} for case in cases))
        self._batch = 0
        self._leaving = ExitStack()
        self._masks: list[Tensor] = []
        self._of_content: list[Tensor] = []
        self._claims_LJ: Tensor = torch.empty(0)

    def __enter__(self) -> Self:
        """Attach both LoRAs of every case; if that fails, the base is as it was.

        Raises:
            InvalidLora: a LoRA does not fit the base.
        """
        with ExitStack() as undoing:
            undoing.callback(self._adapter.eject)
            self._attach(self._adapter.inject(self._base.unet))
            undoing.callback(self._base.unet.register_forward_pre_hook(self._assign).remove)
            self._leaving = undoing.pop_all()
        return self

    def _attach(self, adapter: RankSpaceAdapter) -> None:
        """Prepare the choice for an attached adapter."""
        device = self._base.runtime.device
        ones = {
            side: {
                name: torch.ones(len(self._cases), layer.ranks.get(side, 0)) for name, layer in adapter.layers.items()
            }
            for side in SIDES
        }
        self._masks = [mask_JR.requires_grad_(False) for mask_JR in adapter.learn_masks(ones)]
        self._of_content = [
            torch.cat([torch.full((rank,), side == CONTENT) for side, rank in layer.ranks.items()]).to(device)
            for layer in adapter.layers.values()
        ]
        self._claims_LJ = self._style_claims()

    def __exit__(self, *exception: object) -> None:
        """Put the base's own layers back."""
        self._leaving.close()
        self._batch = 0

    @torch.no_grad()
    def before_step(self, step: int, total: int) -> None:
        """Choose for the coming step, the `step`-th of `total`, counted from 0."""
        content_LJ = self.chooses_content(step, total)
        chosen = [
            (content_J[:, None] == of_content_R).to(torch.float32)
            for content_J, of_content_R in zip(content_LJ, self._of_content, strict=True)
        ]
        torch._foreach_copy_(self._masks, chosen)

    def chooses_content(self, step: int, total: int) -> Tensor:
        """Say where content is chosen at a step, (L, J) bool; layers in the order of their names."""
        return self._claims_LJ * (self._alpha * step / total + self._beta) <= 1

    def _assign(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Give every sample of a pass the chosen masks, however many there are."""
        batch = inputs[0].shape[0]
        if batch != self._batch:
            self._adapter.assign_all(self._adapter.merged, batch)
            self._batch = batch

    @torch.no_grad()
    def _style_claims(self) -> Tensor:
        """Return gamma S_s / S_c of every layer, (L, J): infinite or 0 where only one side changes the layer."""
        energies, totals = [], []
        for name, layer in self._adapter.layers.items():
            deltas = {side: _magnitudes(layer, side) for side in layer.ranks}
            counts_J = torch.tensor([_top_k(case, name) for case in self._cases], device=self._base.runtime.device)
            zero_J = torch.zeros(len(self._cases), device=self._base.runtime.device)
            energies.append(
                torch.stack([_top_sum(deltas[side], counts_J) if side in deltas else zero_J for side in SIDES])
            )
            totals.append(torch.stack([deltas[side].sum(dim=1) if side in deltas else zero_J for side in SIDES]))
        energy_LSJ = torch.stack(energies).double()
        total_SJ = torch.stack(totals).double().sum(dim=0)
        gamma_J = total_SJ[0] / total_SJ[1] if self._balance else torch.ones_like(total_SJ[0])
        return gamma_J * energy_LSJ[:, 1] / energy_LSJ[:, 0]


def _magnitudes(layer: RankSpaceLinear, side: str) -> Tensor:
    """Return `|dW|` of one side for every tenant, flattened, (J, O * I)."""
    return torch.bmm(layer.ups[side], layer.downs[side]).abs().flatten(1)


def _top_k(case: MergeCase, name: str) -> int:
    """K of one layer: the product of both ranks; where one side is absent its rank stands for both."""
    ranks = [case.loras[side].layers[name].rank for side in SIDES if name in case.loras[side].layers]
    return ranks[0] * ranks[-1] if ranks else 1


def _top_sum(magnitudes_JX: Tensor, counts_J: Tensor) -> Tensor:
    """Sum the largest elements of each row, as many as its count says, (J,)."""
    most = min(int(counts_J.max()), magnitudes_JX.shape[1])
    top_JK = magnitudes_JX.topk(most, dim=1).values
    kept_JK = torch.arange(most, device=top_JK.device) < counts_J[:, None]
    return (top_JK * kept_JK).sum(dim=1)
