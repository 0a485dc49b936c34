"""What each side's own LoRA predicts on its own noised pictures, recorded once: none of it depends on the masks.

A merge learns from it twice: the merged model is to predict the same there (distillation), and what the own LoRA makes
of a picture directly is where the cycles must return to.

J tenants merged in the same passes, N noised samples of a tenant (those of the first side first), n samples of a tenant
in one step, B = J * n, C latent channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from duolora.models.base import PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from duolora.adapters import RankSpaceAdapter
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase
    from duolora.noise_schedule import NoiseSchedule

LATENTS_A_PASS = 16 * 128 * 128
"""Places of latents in a pass when the teachers are computed: 16 samples of 1024 px, not bound by their launches."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnSamples:
    """Samples of all sides (tenant after tenant, B of them) and what their own side's LoRA predicts on them."""

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    prompts: PromptEmbeddings
    teachers_BCHW: Tensor
    TENSORS: ClassVar[int] = 6
    """How many tensors `tensors` returns."""

    def noisy(self, schedule: NoiseSchedule) -> Tensor:
        """Return the latents with their noise, (B, C, H, W)."""
        return schedule.add_noise(self.latents_BCHW, self.noise_BCHW, self.timesteps_B)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, as `of` takes them."""
        words = (self.prompts.hidden_BTD, self.prompts.pooled_BP)
        return self.latents_BCHW, self.noise_BCHW, self.timesteps_B, *words, self.teachers_BCHW

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> OwnSamples:
        """Put tensors in their places."""
        latents, noise, timesteps, hidden, pooled, teachers = tensors
        return cls(latents, noise, timesteps, PromptEmbeddings(hidden, pooled), teachers)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherBank:
    """Noised samples of all sides with the prediction of the side's own LoRA."""

    latents_JNCHW: Tensor
    noise_JNCHW: Tensor
    timesteps_JN: Tensor
    prompts: PromptEmbeddings
    teacher_JNCHW: Tensor
    per_side: int

    def draw(self, per_side: int, generators: Sequence[torch.Generator]) -> OwnSamples:
        """Choose samples of every tenant for one step, the same number of each side."""
        sides = self.timesteps_JN.shape[1] // self.per_side
        rows = [
            torch.cat(
                [torch.randint(self.per_side, (per_side,), generator=own) + self.per_side * i for i in range(sides)]
            )
            for own in generators
        ]
        return self.samples(torch.stack(rows).to(self.timesteps_JN.device))

    def samples(self, rows_Jn: Tensor) -> OwnSamples:
        """Return chosen rows of every tenant."""
        tenant_J1 = torch.arange(len(rows_Jn), device=rows_Jn.device)[:, None]
        places_B = (tenant_J1 * self.timesteps_JN.shape[1] + rows_Jn).flatten()

        def at(values_JN: Tensor) -> Tensor:
            return values_JN.flatten(0, 1)[places_B]

        latents_BCHW, noise_BCHW = at(self.latents_JNCHW), at(self.noise_JNCHW)
        teachers_BCHW = at(self.teacher_JNCHW)
        return OwnSamples(latents_BCHW, noise_BCHW, at(self.timesteps_JN), self.prompts[places_B], teachers_BCHW)


@torch.no_grad()
def teacher_bank(
    base: DiffusionBase,
    adapter: RankSpaceAdapter,
    cases: Sequence[MergeCase],
    count: int,
    generators: Sequence[torch.Generator],
    *,
    tell: Callable[[str], None] = lambda _note: None,
    chunk: int | None = None,
) -> TeacherBank:
    """Noise every side's pictures `count` times and record what the side's own LoRA predicts there.

    Before every pass of `chunk` samples of a tenant (as `LATENTS_A_PASS` says if none is given) `tell` is told how far
    it is; it may raise to stop the work.
    """
    blank = _drawn(base, cases, count, generators)
    samples = blank.timesteps_JN.shape[1]
    height, width = blank.noise_JNCHW.shape[-2:]
    chunk = chunk or max(1, LATENTS_A_PASS // (height * width * len(cases)))
    teachers: list[Tensor] = []
    for role in range(len(cases[0].sides)):
        for rows_n in torch.arange(role * count, (role + 1) * count, device=base.runtime.device).split(chunk):
            tell(f"recording what each LoRA does alone, sample {int(rows_n[0]) + 1} of {samples}")
            own = blank.samples(rows_n.expand(len(cases), -1))
            adapter.assign_all(role, len(own.timesteps_B))
            predicted_BCHW = base.predict_noise(own.noisy(base.schedule), own.timesteps_B, own.prompts)
            teachers.append(predicted_BCHW.unflatten(0, (len(cases), -1)))
    return replace(blank, teacher_JNCHW=torch.cat(teachers, dim=1))


def _drawn(
    base: DiffusionBase, cases: Sequence[MergeCase], count: int, generators: Sequence[torch.Generator]
) -> TeacherBank:
    """Draw timesteps, latents and noise of every tenant; the teachers are yet to come."""
    device = base.runtime.device
    latents, noise, timesteps, prompts = [], [], [], []
    for case, generator in zip(cases, generators, strict=True):
        timesteps.append(torch.randint(base.schedule.timesteps, (len(case.sides) * count,), generator=generator))
        for side in case.sides:
            moments = case.encoded[side].moments
            rows_n = torch.arange(count, device=device) % len(moments.mean_BCHW)
            latents.append(moments.sample(rows_n, generator))
            noise.append(torch.randn(latents[-1].shape, generator=generator).to(device))
            prompts.append(case.encoded[side].prompts[rows_n])
    latents_JNCHW = torch.cat(latents).unflatten(0, (len(cases), -1))
    noise_JNCHW = torch.cat(noise).unflatten(0, (len(cases), -1))
    return TeacherBank(
        latents_JNCHW,
        noise_JNCHW,
        torch.stack(timesteps).to(device),
        PromptEmbeddings.join(prompts),
        torch.zeros_like(noise_JNCHW),
        count,
    )
