"""What a merge minimises: distillation from both LoRAs, the layer prior, and the Constyle cycles.

J tenants merged in the same passes, N noised samples of a tenant's teacher bank (those of the first side first), n
samples of a tenant in one step, B = J * n, C latent channels, H W latent size. Every loss is one number per tenant;
their sum is what is minimised, so that under Adam no tenant feels the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.adapters import role_rows
from duolora.losses import squared_error
from duolora.method.constyle import CycleNoise, cycle_loss
from duolora.method.priors import Role, prior_loss
from duolora.models.base import PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from duolora.adapters import RankSpaceAdapter
    from duolora.config import MergeConfig
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

BANK_CHUNK = 8
"""Samples of a tenant per pass when the teachers are computed."""


def _draw_rows(limit: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` rows below `limit`, on the CPU."""
    return torch.randint(limit, (count,), generator=generator)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherBank:
    """Noised samples of all sides with the prediction of the side's own LoRA; independent of the masks."""

    noisy_JNCHW: Tensor
    timesteps_JN: Tensor
    teacher_JNCHW: Tensor
    prompts: PromptEmbeddings
    per_side: int

    @property
    def sides(self) -> int:
        """Number of sides."""
        return self.timesteps_JN.shape[1] // self.per_side

    def draw(self, per_side: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Choose every tenant's rows for one step, the same number of each side, (J, n)."""
        rows = [
            torch.cat([_draw_rows(self.per_side, per_side, own) + index * self.per_side for index in range(self.sides)])
            for own in generators
        ]
        return torch.stack(rows).to(self.noisy_JNCHW.device)

    def samples(self, rows_Jn: Tensor) -> tuple[Tensor, Tensor, PromptEmbeddings]:
        """Return noised latents (B, C, H, W), timesteps (B,) and prompts of chosen rows."""
        tenant_J1 = torch.arange(len(rows_Jn), device=rows_Jn.device)[:, None]
        places_B = (tenant_J1 * self.noisy_JNCHW.shape[1] + rows_Jn).flatten()
        return self.noisy_JNCHW.flatten(0, 1)[places_B], self.timesteps_JN.flatten()[places_B], self.prompts[places_B]

    def teachers(self, rows_Jn: Tensor) -> Tensor:
        """Return what the sides' own LoRAs predict on chosen rows, (B, C, H, W)."""
        tenant_J1 = torch.arange(len(rows_Jn), device=rows_Jn.device)[:, None]
        return self.teacher_JNCHW[tenant_J1, rows_Jn].flatten(0, 1)


@torch.no_grad()
def teacher_bank(
    base: DiffusionBase,
    adapter: RankSpaceAdapter,
    cases: Sequence[MergeCase],
    count: int,
    generators: Sequence[torch.Generator],
    *,
    tell: Callable[[str], None] = lambda _note: None,
    chunk: int = BANK_CHUNK,
) -> TeacherBank:
    """Noise every side's pictures `count` times and record what the side's own LoRA predicts there.

    Before every pass of `chunk` samples of a tenant, `tell` is told how far it is; it may raise to stop the work.
    """
    device = base.runtime.device
    noised = [_noised(base, case, count, own) for case, own in zip(cases, generators, strict=True)]
    noisy_JNCHW = torch.stack([noisy_NCHW for noisy_NCHW, _, _ in noised])
    timesteps_JN = torch.stack([timesteps_N for _, timesteps_N, _ in noised])
    prompts = PromptEmbeddings.join([joined for _, _, joined in noised])
    bank = TeacherBank(noisy_JNCHW, timesteps_JN, noisy_JNCHW, prompts, count)
    sides = len(cases[0].sides)
    teachers = []
    for role in range(sides):
        for rows_n in torch.arange(role * count, (role + 1) * count, device=device).split(chunk):
            tell(f"recording what each LoRA does alone, sample {int(rows_n[0]) + 1} of {sides * count}")
            adapter.assign_all(role, len(cases) * len(rows_n))
            predicted_BCHW = base.predict_noise(*bank.samples(rows_n.expand(len(cases), -1)))
            teachers.append(predicted_BCHW.unflatten(0, (len(cases), -1)))
    return TeacherBank(noisy_JNCHW, timesteps_JN, torch.cat(teachers, dim=1), prompts, count)


def _noised(
    base: DiffusionBase, case: MergeCase, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, PromptEmbeddings]:
    """Noise one tenant's pictures: latents (N, C, H, W), timesteps (N,) and prompts."""
    device = base.runtime.device
    noisy, prompts = [], []
    sides = case.sides
    timesteps_N = torch.randint(base.schedule.timesteps, (len(sides) * count,), generator=generator).to(device)
    for side, timesteps_n in zip(sides, timesteps_N.split(count), strict=True):
        moments = case.encoded[side].moments
        rows_n = torch.arange(count, device=device) % len(moments.mean_BCHW)
        latents_nCHW = moments.sample(rows_n, generator)
        noise_nCHW = torch.randn(latents_nCHW.shape, generator=generator).to(device)
        noisy.append(base.schedule.add_noise(latents_nCHW, noise_nCHW, timesteps_n))
        prompts.append(case.encoded[side].prompts[rows_n])
    return torch.cat(noisy), timesteps_N, PromptEmbeddings.join(prompts)


@dataclass(frozen=True, slots=True, eq=False)
class CycleDraw:
    """What the cycles of one step are evaluated on: a picture of each side and tenant with its noise and own prompt."""

    latents_BCHW: Tensor
    noise: CycleNoise
    own: PromptEmbeddings

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, as `of` takes them."""
        noise = self.noise
        return (
            self.latents_BCHW,
            noise.timesteps_B,
            noise.add_BCHW,
            noise.remove_BCHW,
            self.own.hidden_BTD,
            self.own.pooled_BP,
        )

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> CycleDraw:
        """Put tensors in their places."""
        latents, timesteps, add, remove, hidden, pooled = tensors
        return cls(latents, CycleNoise(timesteps, add, remove), PromptEmbeddings(hidden, pooled))


class Cycles:
    """The Constyle cycles of all sides and tenants in one pass: content and style pictures side by side."""

    def __init__(self, base: DiffusionBase, adapter: RankSpaceAdapter, cases: Sequence[MergeCase]) -> None:
        self._base = base
        self._adapter = adapter
        self._cases = cases
        self._sides = cases[0].sides
        self._joint = PromptEmbeddings.join([case.joint for case in cases for _ in self._sides])

    def draw(self, generators: Sequence[torch.Generator]) -> CycleDraw:
        """Draw one picture of each side of every tenant, a timestep and the noise of both legs."""
        device = self._base.runtime.device
        latents, own, timesteps, noises = [], [], [], []
        for case, generator in zip(self._cases, generators, strict=True):
            rows = {
                side: _draw_rows(len(encoded.moments.mean_BCHW), 1, generator).to(device)
                for side, encoded in ((side, case.encoded[side]) for side in self._sides)
            }
            latents += [case.encoded[side].moments.sample(rows[side], generator) for side in self._sides]
            own += [case.encoded[side].prompts[rows[side]] for side in self._sides]
            timesteps.append(_draw_rows(self._base.schedule.timesteps, len(self._sides), generator))
            shape = (2, len(self._sides), *latents[-1].shape[1:])
            noises.append(torch.cat([torch.randn(shape[1:], generator=generator)[None] for _ in range(shape[0])]))
        add_BCHW, remove_BCHW = torch.cat(noises, dim=1).to(device)
        noise = CycleNoise(torch.cat(timesteps).to(device), add_BCHW, remove_BCHW)
        return CycleDraw(torch.cat(latents), noise, PromptEmbeddings.join(own))

    def loss(self, drawn: CycleDraw) -> Tensor:
        """Evaluate L_constyle on what was drawn; (J,)."""
        tenants, cpu = len(self._cases), torch.device("cpu")
        merged_rows = role_rows([(self._adapter.merged, len(self._sides) * tenants)], cpu)
        own_rows = role_rows([(role, 1) for role in range(len(self._sides))], cpu).repeat(tenants)

        def add(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
            self._adapter.assign(merged_rows)
            return self._base.predict_noise(noisy_BCHW, timesteps_B, self._joint)

        def remove(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
            self._adapter.assign(own_rows)
            return self._base.predict_noise(noisy_BCHW, timesteps_B, drawn.own)

        loss_B = cycle_loss(drawn.latents_BCHW, drawn.noise, add=add, remove=remove, schedule=self._base.schedule)
        return loss_B.view(tenants, -1).mean(dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class StepDraw:
    """What one step is evaluated on: noised samples with their teachers, per tenant equally many, and the cycles'."""

    noisy_BCHW: Tensor
    timesteps_B: Tensor
    prompts: PromptEmbeddings
    teachers_BCHW: Tensor
    cycle: CycleDraw | None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, as `of` takes them."""
        own = (
            self.noisy_BCHW,
            self.timesteps_B,
            self.prompts.hidden_BTD,
            self.prompts.pooled_BP,
            self.teachers_BCHW,
        )
        return own if self.cycle is None else (*own, *self.cycle.tensors())

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> StepDraw:
        """Put tensors in their places."""
        noisy, timesteps, hidden, pooled, teachers, *of_cycle = tensors
        cycle = CycleDraw.of(of_cycle) if of_cycle else None
        return cls(noisy, timesteps, PromptEmbeddings(hidden, pooled), teachers, cycle)


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
    ) -> None:
        """`layer_roles` may be empty: then no prior is evaluated."""
        self._base = base
        self._adapter = adapter
        self._config = config
        self._bank = bank
        self._cycles = cycles
        self._layer_roles = layer_roles
        self._side_roles = side_roles

    def draw(self, step: int, generators: Sequence[torch.Generator]) -> StepDraw:
        """Draw what a step is evaluated on."""
        config = self._config
        rows_Jn = self._bank.draw(config.batch_size, generators)
        cycles = config.constyle_weight > 0 and step % config.constyle_every == 0
        return StepDraw(
            *self._bank.samples(rows_Jn),
            self._bank.teachers(rows_Jn),
            self._cycles.draw(generators) if cycles else None,
        )

    def evaluate(self, drawn: StepDraw) -> dict[str, Tensor]:
        """Return the terms of one step by name and their weighted sum `total`, (J,) each; reads nothing but tensors."""
        config = self._config
        terms = {"distillation": self._distillation(drawn)}
        total_J = terms["distillation"]
        if self._layer_roles and config.prior_weight > 0:
            terms["prior"] = self._prior()
            total_J = total_J + config.prior_weight * terms["prior"]
        if drawn.cycle is not None:
            terms["constyle"] = self._cycles.loss(drawn.cycle)
            total_J = total_J + config.constyle_weight * terms["constyle"]
        return terms | {"total": total_J}

    def _distillation(self, drawn: StepDraw) -> Tensor:
        """Distance of the merged model from each side's own LoRA on that side's pictures (ZipLoRA, equation 3)."""
        self._adapter.assign_all(self._adapter.merged, len(drawn.noisy_BCHW))
        student_BCHW = self._base.predict_noise(drawn.noisy_BCHW, drawn.timesteps_B, drawn.prompts)
        return squared_error(student_BCHW, drawn.teachers_BCHW).view(self._adapter.tenants, -1).mean(dim=1)

    def _prior(self) -> Tensor:
        """Mean of L_prior over the layers that both roles change; 0 when they share none."""
        masks = self._adapter.learned_masks()
        losses = []
        for name, role in self._layer_roles.items():
            dominant = [of[name] for side, of in masks.items() if name in of and self._side_roles[side] is role]
            minor = [of[name] for side, of in masks.items() if name in of and self._side_roles[side] is not role]
            if dominant and minor:
                losses.append(prior_loss(torch.cat(dominant, 1), torch.cat(minor, 1), self._config.prior_hinge))
        none_J = torch.zeros(self._adapter.tenants, device=self._base.runtime.device)
        return torch.stack(losses).mean(dim=0) if losses else none_J
