"""What a merge minimises: distillation from both LoRAs, the layer prior, and the Constyle cycles.

N noised samples of the teacher bank, B samples of a step, C latent channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.adapters import role_rows
from duolora.constyle import CycleNoise, cycle_loss
from duolora.losses import distillation_loss
from duolora.models.sdxl import PromptEmbeddings
from duolora.priors import Role, prior_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from duolora.adapters import RankSpaceAdapter
    from duolora.config import MergeConfig
    from duolora.merge_case import EncodedSide
    from duolora.models.sdxl import SdxlBase

CONTENT, STYLE = Role.CONTENT.value, Role.STYLE.value
SIDES = (CONTENT, STYLE)
"""Order of the roles in the adapter."""

BANK_CHUNK = 8
"""Samples per pass when the teachers are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherBank:
    """Noised samples of both sides with the prediction of the side's own LoRA; independent of the masks."""

    noisy_NCHW: Tensor
    timesteps_N: Tensor
    teacher_NCHW: Tensor
    prompts: PromptEmbeddings
    rows_of_side: Mapping[str, Tensor]

    def draw(self, per_side: int, generator: torch.Generator) -> Tensor:
        """Choose rows for one step, the same number of each side."""
        picks = [
            rows[torch.randint(len(rows), (per_side,), generator=generator)] for rows in self.rows_of_side.values()
        ]
        return torch.cat(picks).to(self.noisy_NCHW.device)


@torch.no_grad()
def teacher_bank(
    base: SdxlBase,
    adapter: RankSpaceAdapter,
    encoded: Mapping[str, EncodedSide],
    count: int,
    generator: torch.Generator,
) -> TeacherBank:
    """Noise every side's pictures `count` times and record what the side's own LoRA predicts there."""
    device = base.runtime.device
    noisy, prompts = [], []
    timesteps_N = torch.randint(base.schedule.timesteps, (len(SIDES) * count,), generator=generator).to(device)
    for index, side in enumerate(SIDES):
        moments = encoded[side].moments
        rows_B = torch.arange(count, device=device) % len(moments.mean_BCHW)
        latents_BCHW = moments.sample(rows_B, generator)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator).to(device)
        span = slice(index * count, (index + 1) * count)
        noisy.append(base.schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_N[span]))
        prompts.append(encoded[side].prompts[rows_B])
    noisy_NCHW, joined = torch.cat(noisy), PromptEmbeddings.join(prompts)
    roles_N = role_rows([(role, count) for role in range(len(SIDES))], device)
    teachers = []
    for rows in torch.arange(len(SIDES) * count, device=device).split(BANK_CHUNK):
        adapter.assign(roles_N[rows])
        teachers.append(base.predict_noise(noisy_NCHW[rows], timesteps_N[rows], joined[rows]))
    rows_of_side = {side: torch.arange(count) + index * count for index, side in enumerate(SIDES)}
    return TeacherBank(noisy_NCHW, timesteps_N, torch.cat(teachers), joined, rows_of_side)


class Cycles:
    """Both Constyle cycles in one pass: content and style pictures side by side."""

    def __init__(
        self, base: SdxlBase, adapter: RankSpaceAdapter, encoded: Mapping[str, EncodedSide], joint: PromptEmbeddings
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._encoded = encoded
        self._joint = joint

    def loss(self, generator: torch.Generator) -> Tensor:
        """Evaluate L_constyle on one picture of each side; scalar."""
        device = self._base.runtime.device
        rows = {
            side: torch.randint(len(encoded.moments.mean_BCHW), (1,), generator=generator).to(device)
            for side, encoded in self._encoded.items()
        }
        latents_BCHW = torch.cat([self._encoded[side].moments.sample(rows[side], generator) for side in SIDES])
        own = PromptEmbeddings.join([self._encoded[side].prompts[rows[side]] for side in SIDES])
        joint = self._joint[torch.zeros(len(SIDES), dtype=torch.int64, device=device)]
        noise = CycleNoise(
            torch.randint(self._base.schedule.timesteps, (len(SIDES),), generator=generator).to(device),
            torch.randn(latents_BCHW.shape, generator=generator).to(device),
            torch.randn(latents_BCHW.shape, generator=generator).to(device),
        )
        merged_rows = role_rows([(self._adapter.merged, len(SIDES))], device)
        own_rows = role_rows([(role, 1) for role in range(len(SIDES))], device)

        def add(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
            self._adapter.assign(merged_rows)
            return self._base.predict_noise(noisy_BCHW, timesteps_B, joint)

        def remove(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
            self._adapter.assign(own_rows)
            return self._base.predict_noise(noisy_BCHW, timesteps_B, own)

        return cycle_loss(latents_BCHW, noise, add=add, remove=remove, schedule=self._base.schedule)


class MergeObjective:
    """The loss of one merge, evaluated step by step."""

    def __init__(
        self,
        base: SdxlBase,
        adapter: RankSpaceAdapter,
        config: MergeConfig,
        *,
        bank: TeacherBank,
        cycles: Cycles,
        roles: Mapping[str, Role],
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._config = config
        self._bank = bank
        self._cycles = cycles
        self._roles = roles

    def evaluate(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of one step (scalar) and its terms by name."""
        config = self._config
        total = self._distillation(generator)
        terms = {"distillation": total.item()}
        if self._roles and config.prior_weight > 0:
            prior = self._prior()
            total = total + config.prior_weight * prior
            terms["prior"] = prior.item()
        if config.constyle_weight > 0 and step % config.constyle_every == 0:
            constyle = self._cycles.loss(generator)
            total = total + config.constyle_weight * constyle
            terms["constyle"] = constyle.item()
        return total, terms | {"total": total.item()}

    def _distillation(self, generator: torch.Generator) -> Tensor:
        """Distance of the merged model from each side's own LoRA on that side's pictures."""
        bank, rows_B = self._bank, self._bank.draw(self._config.batch_size, generator)
        self._adapter.assign_all(self._adapter.merged, len(rows_B), self._base.runtime.device)
        student_BCHW = self._base.predict_noise(bank.noisy_NCHW[rows_B], bank.timesteps_N[rows_B], bank.prompts[rows_B])
        return distillation_loss(student_BCHW, bank.teacher_NCHW[rows_B])

    def _prior(self) -> Tensor:
        """Mean of L_prior over the layers that both sides change; 0 when they share none."""
        masks = self._adapter.learned_masks()
        other = {CONTENT: STYLE, STYLE: CONTENT}
        losses = [
            prior_loss(masks[role.value][name], masks[other[role.value]][name], self._config.prior_hinge)
            for name, role in self._roles.items()
            if name in masks[CONTENT] and name in masks[STYLE]
        ]
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self._base.runtime.device)
