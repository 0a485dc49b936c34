"""The bench on which layer priors are measured: LoRAs of many pairs, attached once, whose masks change in place.

So a sampling costs nothing but its passes, and on a GPU those are replays of one recording. J tenants, D coordinates of
a point, n pictures of a tenant, E width of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.capture import CapturedPredictor
from duolora.evaluate.metrics import at_evaluators_size, look, score
from duolora.evaluate.prior_space import PriorMasks
from duolora.evaluate.sampler_gradients import EulerSampler, value_and_gradients
from duolora.generate import sample_tenants, starting_noise
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.config import GenerateConfig
    from duolora.evaluate.metrics import References, Score
    from duolora.evaluate.network import Evaluator
    from duolora.evaluate.prior_space import PriorSpace
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

LEAST_COSINE = 0.02
"""Cosines below it count as this much in the value that is climbed: a harmonic mean of less has no useful slope."""


class MaskedLoras:
    """An attached adapter for sampling, which stays attached from one to the next."""

    def __init__(self, base: DiffusionBase, adapter: RankSpaceAdapter) -> None:
        self.predict_noise = CapturedPredictor(base)
        self._adapter = adapter
        self._device = base.runtime.device
        ones = {
            side: {name: torch.ones(layer.tenants, layer.ranks[side]) for name, layer in adapter.layers.items()}
            for side in adapter.sides
        }
        self.leaves = adapter.learn_masks(ones)
        """The masks that the passes read, a (J, R of all sides) for each layer."""

    def joined(self, masks: Mapping[str, Mapping[str, Tensor]]) -> list[Tensor]:
        """Return masks, side -> layer -> (J, R), in the form and order of `leaves`."""
        return [
            torch.cat([masks[side][name] for side in layer.ranks], dim=1)
            for name, layer in self._adapter.layers.items()
        ]

    @torch.no_grad()
    def set(self, joined: Sequence[Tensor], samples: int) -> None:
        """Write masks where the recorded passes read them, for passes of so many samples, all tenants together."""
        for leaf_JR, mask_JR in zip(self.leaves, joined, strict=True):
            leaf_JR.copy_(mask_JR)
        self._adapter.assign_all(self._adapter.merged, samples)

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
        self._prompts = prompts
        self._references = references
        self._masks = PriorMasks(space, loras, base.runtime.device)
        self._adapter = RankSpaceAdapter(*loras)
        self._inside: tuple[MaskedLoras, EulerSampler] | None = None

    def __enter__(self) -> Self:
        """Attach the LoRAs."""
        self._adapter.inject(self._base.unet)
        attached = MaskedLoras(self._base, self._adapter)
        self._inside = attached, EulerSampler(self._base, self._prompts, self._sampling, attached.predict_noise)
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what was recorded, then restore the base."""
        self._inside = None
        self._adapter.eject()

    def scores(self, point_D: Tensor, seeds: Sequence[int]) -> list[Score]:
        """Sample every tenant's joint prompt with the masks of a point and score the pictures.

        Args:
            point_D: the point.
            seeds: of the noise, one for each tenant.

        Raises:
            RuntimeError: the bench has not been entered.
            OutOfMemory: the device is too small.
        """
        (attached, sampler), each = self._entered(), self._sampling.images
        masks = self._masks.at(point_D.detach().to(self._base.runtime.device))
        attached.set(attached.joined(masks), len(self._prompts) * each * sampler.copies)
        prompts = [[prompt] * each for prompt in self._prompts]
        rgb_Jn3HW = sample_tenants(self._base, attached, prompts, self._sampling, seeds)
        seen = look(self._evaluator, (rgb_Jn3HW.flatten(0, 1) / 2 + 0.5).clamp(0, 1))
        return [score(seen[index * each : (index + 1) * each], to) for index, to in enumerate(self._references)]

    def slope(self, point_D: Tensor, seeds: Sequence[int]) -> tuple[float, Tensor]:
        """Sample one picture of every tenant's joint prompt; return what they are worth and how that changes.

        Args:
            point_D: the point.
            seeds: of the noise, one for each tenant.

        Returns:
            The mean over the tenants of the harmonic mean of the evaluator's two cosines, each at least `LEAST_COSINE`,
            and its gradient with respect to the point, (D,) on the CPU.

        Raises:
            RuntimeError: the bench has not been entered.
            OutOfMemory: the device is too small.
        """
        attached, sampler = self._entered()
        place_D = point_D.detach().to(self._base.runtime.device).requires_grad_()
        single = self._sampling.model_copy(update={"images": 1})
        with memory_errors():
            joined = attached.joined(self._masks.at(place_D))
            attached.set(joined, len(self._prompts) * sampler.copies)
            noise_JCHW = torch.cat([starting_noise(self._base, single, seed) for seed in seeds])
            value, gradients = value_and_gradients(sampler, noise_JCHW, self._worth, attached.leaves)
            (gradient_D,) = torch.autograd.grad(joined, place_D, gradients)
        return value, gradient_D.cpu()

    def _worth(self, latents_JCHW: Tensor) -> Tensor:
        """Return what clean latents, one of each tenant, are worth; scalar."""
        rgb_J3HW = (self._base.decode_latents(latents_JCHW) / 2 + 0.5).clamp(0, 1)
        seen = self._evaluator.embed(self._evaluator.maps(at_evaluators_size(rgb_J3HW)))
        wanted = [[to.content_E for to in self._references], [to.style_E for to in self._references]]
        content_J, style_J = (
            (seen_JE * torch.stack(to).to(seen_JE)).sum(dim=1).clamp(min=LEAST_COSINE)
            for seen_JE, to in zip(seen, wanted, strict=True)
        )
        hmean_J: Tensor = 2 * content_J * style_J / (content_J + style_J)
        return hmean_J.mean()

    def _entered(self) -> tuple[MaskedLoras, EulerSampler]:
        """Return what is attached, and the sampler that runs it."""
        if self._inside is None:
            raise RuntimeError("enter the bench before sampling on it")
        return self._inside
