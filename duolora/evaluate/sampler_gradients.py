"""Gradients through the sampler: how what sampled pictures are worth depends on what the U-Net computes with.

Euler's method goes from noise to picture by x_{k+1} = x_k + (s_{k+1} - s_k) e(x_k / sqrt(s_k^2 + 1), t_k). The graph of
all its passes at once would take the memory of all of them. So the latents are sampled without a graph and kept; then,
from the last step to the first, one step is done again with a graph, is handed the gradient of its result, and gives
that of its latents and its part of the parameters' (the discrete adjoint; as the checkpointed DRaFT of Clark et al.
2023, arXiv 2309.17400, section 4). One pass has a graph at any time, so a recorded one serves for all.

B pictures, C latent channels, H W latent size, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from duolora.models.base import PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.config import GenerateConfig
    from duolora.models.base import DiffusionBase

Predict = Callable[[Tensor, Tensor, PromptEmbeddings], Tensor]
"""(noised latents (B, C, H, W), timesteps (B,), prompts) -> noise (B, C, H, W), as `DiffusionBase.predict_noise`."""


class EulerSampler:
    """Euler's method with classifier-free guidance: what `duolora.generate` samples by, as a formula of each step."""

    def __init__(self, base: DiffusionBase, prompts: Sequence[str], config: GenerateConfig, predict: Predict) -> None:
        """Take one prompt for each picture; of `config` the steps and the guidance.

        A pass of the U-Net has two samples of each picture, the free one and behind it the guided one, or the guided
        one alone where the guidance is 1 or less.
        """
        scheduler = EulerDiscreteScheduler.from_config(base.pipeline.scheduler.config)
        scheduler.set_timesteps(config.steps, device=base.runtime.device)
        self._sigmas: list[float] = scheduler.sigmas.tolist()
        self._timesteps_K: Tensor = scheduler.timesteps
        self._first_scale = float(scheduler.init_noise_sigma)
        self._guidance = config.guidance_scale
        self.copies = 2 if self._guidance > 1 else 1
        self._prompts = base.encode_prompts(prompts)
        if self.copies > 1:
            rows = [row for guided in range(len(prompts)) for row in (len(prompts), guided)]
            both = PromptEmbeddings.join([self._prompts, base.encode_unconditional()])
            self._prompts = both[torch.tensor(rows, device=base.runtime.device)]
        self._predict = predict

    @property
    def steps(self) -> int:
        """Number of steps K."""
        return len(self._timesteps_K)

    def first(self, noise_BCHW: Tensor) -> Tensor:
        """Return the latents before step 0 for standard normal noise."""
        return noise_BCHW * self._first_scale

    def step(self, latents_BCHW: Tensor, step: int) -> Tensor:
        """Return the latents after step `step`, which are clean after the last; gradients flow through it."""
        now, after = self._sigmas[step], self._sigmas[step + 1]
        scaled = (latents_BCHW / math.sqrt(now**2 + 1)).repeat_interleave(self.copies, dim=0)
        noise_BCHW = self._predict(scaled, self._timesteps_K[step].expand(len(scaled)), self._prompts)
        if self.copies > 1:
            free_BCHW, guided_BCHW = noise_BCHW.unflatten(0, (-1, 2)).unbind(1)
            noise_BCHW = free_BCHW + self._guidance * (guided_BCHW - free_BCHW)
        return latents_BCHW + (after - now) * noise_BCHW


def value_and_gradients(
    sampler: EulerSampler, noise_BCHW: Tensor, value: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
) -> tuple[float, list[Tensor]]:
    """Sample, and return what the result is worth and its gradient with respect to what the passes compute with.

    Args:
        sampler: how to sample.
        noise_BCHW: standard normal noise to begin from.
        value: clean latents (B, C, H, W) -> scalar.
        parameters: leaves that every pass uses and that require gradients; their `grad` is left alone.

    Returns:
        The value, and a gradient for each parameter, in new memory.
    """
    with torch.no_grad():
        before = [sampler.first(noise_BCHW)]
        for step in range(sampler.steps):
            before.append(sampler.step(before[-1], step))
    with torch.enable_grad():
        clean_BCHW = before.pop().requires_grad_()
        worth = value(clean_BCHW)
        (back_BCHW,) = torch.autograd.grad(worth, clean_BCHW)
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for step in reversed(range(sampler.steps)):
            latents_BCHW = before.pop().requires_grad_()
            after_BCHW = sampler.step(latents_BCHW, step)
            back_BCHW, *parts = torch.autograd.grad(after_BCHW, [latents_BCHW, *parameters], back_BCHW)
            # Not left to `grad`: a recorded pass gives every step's gradients in the same memory.
            for total, part in zip(totals, parts, strict=True):
                total.add_(part)
    return float(worth.detach()), totals
