"""Noised samples of several cases at once, and what an attached adapter predicts on them.

J cases (tenants of a pass), S sides, N samples of each side, B = J * S * n samples of a pass, case after case and
inside a case side after side; C latent channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from duolora.method.merge_case import SIDES
from duolora.models.base import PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from duolora.adapters import RankSpaceAdapter
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

PASS_LATENT_PIXELS = 2**18
"""Latent pixels of one pass without gradient: 16 samples of SDXL at 1024 px, 1024 samples of the tiny base."""


@dataclass(frozen=True, slots=True, eq=False)
class NoisedCases:
    """Samples of all cases, drawn at once: what a case gets does not depend on the cases beside it."""

    noisy_JSNCHW: Tensor
    noise_JSNCHW: Tensor
    timesteps_JSN: Tensor
    prompts: PromptEmbeddings
    captions_JSN: Tensor
    """Rows of `prompts`."""

    @classmethod
    def draw(cls, base: DiffusionBase, cases: Sequence[MergeCase], count: int) -> NoisedCases:
        """Draw `count` samples of each side of each case: picture, latent, noise and timestep, from the case's seed."""
        device = base.runtime.device
        latents, noises, timesteps, captions = [], [], [], []
        first_caption = 0
        for case in cases:
            generator = base.runtime.generator(case.seed)
            for side in SIDES:
                moments = case.encoded[side].moments
                rows_N = torch.randint(len(moments.mean_BCHW), (count,), generator=generator)
                latents.append(moments.sample(rows_N.to(moments.mean_BCHW.device), generator).to(device))
                noises.append(torch.randn(latents[-1].shape, generator=generator))
                timesteps.append(torch.randint(base.schedule.timesteps, (count,), generator=generator))
                captions.append(first_caption + rows_N)
                first_caption += len(moments.mean_BCHW)
        noise_BCHW, timesteps_B = torch.cat(noises).to(device), torch.cat(timesteps).to(device)
        noisy_BCHW = base.schedule.add_noise(torch.cat(latents), noise_BCHW, timesteps_B)
        shape = (len(cases), len(SIDES), count)
        return cls(
            noisy_BCHW.view(*shape, *noisy_BCHW.shape[1:]),
            noise_BCHW.view(*shape, *noise_BCHW.shape[1:]),
            timesteps_B.view(shape),
            PromptEmbeddings.join([case.encoded[side].prompts for case in cases for side in SIDES]),
            torch.cat(captions).view(shape).to(device),
        )

    @property
    def count(self) -> int:
        """Number of samples N of each side."""
        return self.timesteps_JSN.shape[2]

    def span(self, samples: slice) -> NoisedCases:
        """Return some of the samples of every side."""
        return replace(
            self,
            noisy_JSNCHW=self.noisy_JSNCHW[:, :, samples],
            noise_JSNCHW=self.noise_JSNCHW[:, :, samples],
            timesteps_JSN=self.timesteps_JSN[:, :, samples],
            captions_JSN=self.captions_JSN[:, :, samples],
        )

    def spans(self) -> Iterator[NoisedCases]:
        """Split the samples into passes that a device bears without gradient."""
        pixels = self.noisy_JSNCHW[:, :, :1, 0].numel()
        size = max(1, PASS_LATENT_PIXELS // pixels)
        for start in range(0, self.count, size):
            yield self.span(slice(start, start + size))

    def under(self, joint: PromptEmbeddings) -> NoisedCases:
        """Return the same samples with the joint caption of their case; `joint` holds a row per case."""
        cases = self.captions_JSN.shape[0]
        rows_J = torch.arange(cases, device=self.captions_JSN.device)
        return replace(self, prompts=joint, captions_JSN=rows_J[:, None, None].expand_as(self.captions_JSN))

    def predict(self, predict_noise: Callable[[Tensor, Tensor, PromptEmbeddings], Tensor]) -> Tensor:
        """Run a base, with whatever is attached to it, on all samples in one pass; (J, S, N, C, H, W)."""
        prediction_BCHW = predict_noise(
            self.noisy_JSNCHW.flatten(0, 2), self.timesteps_JSN.flatten(), self.prompts[self.captions_JSN.flatten()]
        )
        return prediction_BCHW.view_as(self.noisy_JSNCHW)


def assign_sides(adapter: RankSpaceAdapter, samples: NoisedCases, roles_S: Sequence[int]) -> None:
    """Give all samples of a side one role, in every case."""
    roles = torch.tensor(list(roles_S), device=samples.timesteps_JSN.device)
    adapter.assign(roles[None, :, None].expand_as(samples.timesteps_JSN).reshape(-1))


@torch.no_grad()
def predict_as(base: DiffusionBase, adapter: RankSpaceAdapter, samples: NoisedCases, roles_S: Sequence[int]) -> Tensor:
    """Predict with a role per side, in as many passes as it takes; (J, S, N, C, H, W)."""
    predictions = []
    for span in samples.spans():
        assign_sides(adapter, span, roles_S)
        predictions.append(span.predict(base.predict_noise))
    return torch.cat(predictions, dim=2)
