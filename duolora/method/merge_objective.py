"""What a merge minimises: distillation from both LoRAs, the layer prior, and the Constyle cycles.

J tenants merged in the same passes, n samples of a tenant in one step, B = J * n, C latent channels, H W latent size.
Every loss is one number per tenant; their sum is what is minimised, so that under Adam no tenant feels the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.adapters import role_rows
from duolora.losses import squared_error
from duolora.method.constyle import CycleNoise, return_loss
from duolora.method.priors import Role, prior_loss
from duolora.method.teacher_bank import OwnSamples
from duolora.models.base import PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.adapters import RankSpaceAdapter
    from duolora.config import MergeConfig
    from duolora.method.merge_case import MergeCase
    from duolora.method.teacher_bank import TeacherBank
    from duolora.models.base import DiffusionBase


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Noised samples that a model is asked about, the same number of every tenant, tenant after tenant."""

    noisy_BCHW: Tensor
    timesteps_B: Tensor
    prompts: PromptEmbeddings


@dataclass(frozen=True, slots=True, eq=False)
class CycleDraw:
    """What the cycles of one step are evaluated on: a sample of each side and tenant, and the noise of the add-leg.

    The remove-leg shares its noise with the recorded teachers, which are the direct path.
    """

    own: OwnSamples
    add_noise_BCHW: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, as `of` takes them."""
        return *self.own.tensors(), self.add_noise_BCHW

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> CycleDraw:
        """Put tensors in their places."""
        *own, add_noise = tensors
        return cls(OwnSamples.of(own), add_noise)


class Cycles:
    """The Constyle cycles of all sides and tenants in one pass: content and style pictures side by side."""

    def __init__(self, base: DiffusionBase, adapter: RankSpaceAdapter, cases: Sequence[MergeCase]) -> None:
        self._base = base
        self._adapter = adapter
        self._tenants, self._sides = len(cases), len(cases[0].sides)
        self._joint = PromptEmbeddings.join([case.joint for case in cases for _ in case.sides])

    def draw(self, bank: TeacherBank, generators: Sequence[torch.Generator]) -> CycleDraw:
        """Draw one sample of each side of every tenant, and the noise of the add-leg."""
        own = bank.draw(1, generators)
        shape = (self._sides, *own.latents_BCHW.shape[1:])
        noise_BCHW = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        return CycleDraw(own, noise_BCHW.to(own.latents_BCHW.device))

    def add_leg(self, drawn: CycleDraw) -> Asked:
        """Return what the merged model is asked: the pictures noised, under the joint caption."""
        own = drawn.own
        noisy_BCHW = self._base.schedule.add_noise(own.latents_BCHW, drawn.add_noise_BCHW, own.timesteps_B)
        return Asked(noisy_BCHW, own.timesteps_B, self._joint)

    def loss(self, drawn: CycleDraw, added: Asked, predicted_BCHW: Tensor) -> Tensor:
        """Evaluate L_constyle from what the merged model answered in the add-leg; (J,)."""
        own, schedule = drawn.own, self._base.schedule
        cpu = torch.device("cpu")
        own_rows = role_rows([(role, 1) for role in range(self._sides)], cpu).repeat(self._tenants)

        def remove(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
            self._adapter.assign(own_rows)
            return self._base.predict_noise(noisy_BCHW, timesteps_B, own.prompts)

        loss_B = return_loss(
            schedule.predict_clean(added.noisy_BCHW, predicted_BCHW, own.timesteps_B),
            schedule.predict_clean(own.noisy(schedule), own.teachers_BCHW, own.timesteps_B),
            CycleNoise(own.timesteps_B, drawn.add_noise_BCHW, own.noise_BCHW),
            remove=remove,
            schedule=schedule,
        )
        return loss_B.view(self._tenants, -1).mean(dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class StepDraw:
    """What one step is evaluated on: samples of the bank, per tenant equally many, and the cycles'."""

    own: OwnSamples
    cycle: CycleDraw | None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, as `of` takes them."""
        return self.own.tensors() if self.cycle is None else (*self.own.tensors(), *self.cycle.tensors())

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> StepDraw:
        """Put tensors in their places."""
        own, of_cycle = tensors[: OwnSamples.TENSORS], tensors[OwnSamples.TENSORS :]
        return cls(OwnSamples.of(own), CycleDraw.of(of_cycle) if of_cycle else None)


class MergeObjective:
    """The loss of all tenants' merges, evaluated step by step."""

    def __init__(
        self,
        base: DiffusionBase,
        adapter: RankSpaceAdapter,
        config: MergeConfig,
        *,
        bank: TeacherBank,
        cycles: Cycles,
        layer_roles: Mapping[str, Role],
        side_roles: Mapping[str, Role],
        apart: bool = False,
    ) -> None:
        """`layer_roles` may be empty: then no prior is evaluated. `apart` spares memory: more passes, smaller ones."""
        self._base = base
        self._adapter = adapter
        self._config = config
        self._bank = bank
        self._cycles = cycles
        self._layer_roles = layer_roles
        self._side_roles = side_roles
        self._apart = apart

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> StepDraw:
        """Draw what a step is evaluated on."""
        config = self._config
        own = self._bank.draw(config.batch_size, generators)
        cycles = config.constyle_weight > 0 and step % config.constyle_every == 0
        return StepDraw(own, self._cycles.draw(self._bank, generators) if cycles else None)

    def evaluate(self, drawn: StepDraw) -> dict[str, Tensor]:
        """Return the terms of one step by name and their weighted sum `total`, (J,) each; reads nothing but tensors."""
        config, own, cycle = self._config, drawn.own, drawn.cycle
        asked = [Asked(own.noisy(self._base.schedule), own.timesteps_B, own.prompts)]
        if cycle is not None:
            asked.append(self._cycles.add_leg(cycle))
        student_BCHW, *added = self._merged(asked)
        terms = {"distillation": self._per_tenant(squared_error(student_BCHW, own.teachers_BCHW))}
        total_J = terms["distillation"]
        if self._layer_roles and config.prior_weight > 0:
            terms["prior"] = self._prior()
            total_J = total_J + config.prior_weight * terms["prior"]
        if cycle is not None:
            terms["constyle"] = self._cycles.loss(cycle, asked[1], added[0])
            total_J = total_J + config.constyle_weight * terms["constyle"]
        return terms | {"total": total_J}

    def _merged(self, asked: Sequence[Asked]) -> Sequence[Tensor]:
        """Ask the merged model, in one pass where memory is not to be spared: student and add-leg are the same model.

        Distillation is the distance of the merged model from each side's own LoRA on that side's pictures (ZipLoRA,
        equation 3).
        """
        tenants = self._adapter.tenants
        if self._apart:
            return [self._ask(one) for one in asked]
        together = Asked(
            _beside([one.noisy_BCHW for one in asked], tenants),
            _beside([one.timesteps_B for one in asked], tenants),
            PromptEmbeddings(
                _beside([one.prompts.hidden_BTD for one in asked], tenants),
                _beside([one.prompts.pooled_BP for one in asked], tenants),
            ),
        )
        counts = [len(one.timesteps_B) // tenants for one in asked]
        parts = self._ask(together).unflatten(0, (tenants, -1)).split(counts, dim=1)
        return [part_JnCHW.flatten(0, 1) for part_JnCHW in parts]

    def _ask(self, asked: Asked) -> Tensor:
        self._adapter.assign_all(self._adapter.merged, len(asked.timesteps_B))
        return self._base.predict_noise(asked.noisy_BCHW, asked.timesteps_B, asked.prompts)

    def _per_tenant(self, loss_B: Tensor) -> Tensor:
        return loss_B.view(self._adapter.tenants, -1).mean(dim=1)

    def _prior(self) -> Tensor:
        """Mean of L_prior over the layers that both roles change; 0 when they share none."""
        losses = []
        for (role, ranks), names in self._alike_layers().items():
            learned_LJR = self._adapter.stacked_masks(names)
            parts = dict(zip(dict(ranks), learned_LJR.split(list(dict(ranks).values()), dim=2), strict=True))
            dominant = [part for side, part in parts.items() if self._side_roles[side] is role]
            minor = [part for side, part in parts.items() if self._side_roles[side] is not role]
            if dominant and minor:
                losses.append(prior_loss(torch.cat(dominant, 2), torch.cat(minor, 2), self._config.prior_hinge))
        none_J = torch.zeros(self._adapter.tenants, device=self._base.runtime.device)
        return torch.cat(losses).mean(dim=0) if losses else none_J

    def _alike_layers(self) -> dict[tuple[Role, tuple[tuple[str, int], ...]], list[str]]:
        """Return the layers by role and by their sides' ranks: alike ones are evaluated in one stack."""
        alike: dict[tuple[Role, tuple[tuple[str, int], ...]], list[str]] = {}
        layers = self._adapter.layers
        for name, role in self._layer_roles.items():
            alike.setdefault((role, tuple(layers[name].ranks.items())), []).append(name)
        return alike


def _beside(parts: Sequence[Tensor], tenants: int) -> Tensor:
    """Join batches so that every tenant's samples still stand together, (B, ...)."""
    return torch.cat([part.unflatten(0, (tenants, -1)) for part in parts], dim=1).flatten(0, 1)
