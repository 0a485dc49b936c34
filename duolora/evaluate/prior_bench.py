"""The bench on which layer priors are measured: LoRAs of many pairs, attached once, whose masks change in place.

So a sampling costs nothing but its passes, and on a GPU those are replays of one recording. J tenants, D coordinates of
a point, n pictures of a tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.capture import CapturedPredictor
from duolora.evaluate.metrics import look, score
from duolora.evaluate.prior_space import PriorMasks
from duolora.generate import sample_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.config import GenerateConfig
    from duolora.evaluate.metrics import References, Score
    from duolora.evaluate.network import Evaluator
    from duolora.evaluate.prior_space import PriorSpace
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase


class MaskedLoras:
    """An attached adapter for sampling, which stays attached from one to the next."""

    def __init__(self, base: DiffusionBase, adapter: RankSpaceAdapter, samples: int) -> None:
        """`samples`: of a pass, all tenants together."""
        self.predict_noise = CapturedPredictor(base)
        self._adapter = adapter
        ones = {
            side: {name: torch.ones(layer.tenants, layer.ranks[side]) for name, layer in adapter.layers.items()}
            for side in adapter.sides
        }
        for mask_JR in adapter.learn_masks(ones):
            mask_JR.requires_grad_(False)
        adapter.assign_all(adapter.merged, samples, base.runtime.device)

    def set(self, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write masks, side -> layer -> (J, R), where the recorded pass reads them."""
        for name, layer in self._adapter.layers.items():
            if layer.learned_JR is not None:
                layer.learned_JR.copy_(torch.cat([masks[side][name] for side in layer.ranks], dim=1))

    def __enter__(self) -> Self:
        """Stay attached."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stay attached."""

    def before_step(self, step: int, total: int) -> None:
        """Change nothing."""


class PriorBench:
    """Pairs with their LoRAs, their prompts and what their pictures are compared with, on one base.

    Enter it to attach the LoRAs, leave it to restore the base.
    """

    def __init__(
        self,
        base: DiffusionBase,
        evaluator: Evaluator,
        space: PriorSpace,
        *,
        loras: Sequence[Mapping[str, LoraWeights]],
        prompts: Sequence[str],
        references: Sequence[References],
        sampling: GenerateConfig,
    ) -> None:
        """Everything comes once for each tenant; `loras` are canonical, "content" and "style", and alike in ranks."""
        self._base, self._evaluator, self._sampling = base, evaluator, sampling
        self._prompts = [[prompt] * sampling.images for prompt in prompts]
        self._references = references
        self._masks = PriorMasks(space, loras, base.runtime.device)
        self._adapter = RankSpaceAdapter(*loras)
        self._attached: MaskedLoras | None = None

    @property
    def tenants(self) -> int:
        """Number of tenants J."""
        return self._adapter.tenants

    def __enter__(self) -> Self:
        """Attach the LoRAs."""
        copies = 2 if self._sampling.guidance_scale > 1 else 1
        self._adapter.inject(self._base.unet)
        self._attached = MaskedLoras(self._base, self._adapter, self.tenants * self._sampling.images * copies)
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what was recorded, then restore the base."""
        self._attached = None
        self._adapter.eject()

    @torch.no_grad()
    def scores(self, points_JD: Tensor, seeds: Sequence[int]) -> list[Score]:
        """Sample every tenant's joint prompt with the masks of its point and score the pictures.

        Args:
            points_JD: a point for each tenant, or one row for all.
            seeds: of the noise, one for each tenant.

        Raises:
            RuntimeError: the bench has not been entered.
        """
        if self._attached is None:
            raise RuntimeError("enter the bench before sampling on it")
        self._attached.set(self._masks.at(points_JD.expand(self.tenants, -1).to(self._base.runtime.device)))
        rgb_Jn3HW = sample_tenants(self._base, self._attached, self._prompts, self._sampling, seeds)
        seen = look(self._evaluator, (rgb_Jn3HW.flatten(0, 1) / 2 + 0.5).clamp(0, 1))
        each = self._sampling.images
        return [score(seen[index * each : (index + 1) * each], to) for index, to in enumerate(self._references)]
