"""SDXL's noise schedule, which the tiny base is pretrained with, and a plain sampler for previews."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duolora.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Callable

TRAIN_STEPS = 1000
BETA_RANGE = (0.00085, 0.012)

# Legend: B batch, CHW one latent, T training timesteps.


def sdxl_schedule(device: torch.device) -> NoiseSchedule:
    """Return the schedule that diffusers calls "scaled_linear", as SDXL has it; its table is on the device."""
    root_T = torch.linspace(BETA_RANGE[0] ** 0.5, BETA_RANGE[1] ** 0.5, TRAIN_STEPS, dtype=torch.float64)
    return NoiseSchedule((1 - root_T**2).cumprod(0).float().to(device))


@torch.no_grad()
def sample_latents(predict_noise: Callable[[Tensor, Tensor], Tensor], start_BCHW: Tensor, steps: int) -> Tensor:
    """Return latents denoised from noise by `steps` deterministic DDIM steps; `predict_noise(latents, timesteps_B)`."""
    schedule = sdxl_schedule(start_BCHW.device)
    timesteps_SB = torch.linspace(TRAIN_STEPS - 1, 0, steps + 1, device=start_BCHW.device).long()[:, None]
    latents_BCHW = start_BCHW
    for now_B, after_B in itertools.pairwise(timesteps_SB.expand(-1, len(start_BCHW))):
        noise_BCHW = predict_noise(latents_BCHW, now_B)
        clean_BCHW = schedule.predict_clean(latents_BCHW, noise_BCHW, now_B)
        latents_BCHW = schedule.add_noise(clean_BCHW, noise_BCHW, after_B)
    return latents_BCHW
