"""SDXL's noise schedule: what pretraining noises with, the weight of each step, and a plain sampler for previews."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

TRAIN_STEPS = 1000
BETA_RANGE = (0.00085, 0.012)
SNR_CAP = 5.0

# Legend: B batch, CHW one latent, T training timesteps.


def signal_share(device: torch.device) -> Tensor:
    """Return the share of signal power left at each timestep (T,), float32 (`alphas_cumprod` in diffusers)."""
    root_T = torch.linspace(BETA_RANGE[0] ** 0.5, BETA_RANGE[1] ** 0.5, TRAIN_STEPS, dtype=torch.float64)
    return (1 - root_T**2).cumprod(0).float().to(device)


def add_noise(clean_BCHW: Tensor, noise_BCHW: Tensor, share_B: Tensor) -> Tensor:
    """Return latents with `share_B` of signal power and the rest noise."""
    share_B111 = share_B.view(-1, 1, 1, 1)
    return share_B111.sqrt() * clean_BCHW + (1 - share_B111).sqrt() * noise_BCHW


def min_snr_weight(share_B: Tensor) -> Tensor:
    """Return min(SNR, cap) / SNR, the weight of a noise-prediction error (min-SNR, arXiv 2303.09556)."""
    ratio_B = share_B / (1 - share_B)
    return ratio_B.clamp_max(SNR_CAP) / ratio_B


@torch.no_grad()
def sample_latents(predict_noise: Callable[[Tensor, Tensor], Tensor], start_BCHW: Tensor, steps: int) -> Tensor:
    """Return latents denoised from noise by `steps` deterministic DDIM steps; `predict_noise(latent, timestep)`."""
    device = start_BCHW.device
    share_T = signal_share(device)
    timesteps = torch.linspace(TRAIN_STEPS - 1, 0, steps + 1, device=device).long()
    latent = start_BCHW
    for now, after in itertools.pairwise(timesteps):
        share, next_share = share_T[now], share_T[after]
        noise = predict_noise(latent, now)
        clean = (latent - (1 - share).sqrt() * noise) / share.sqrt()
        latent = next_share.sqrt() * clean + (1 - next_share).sqrt() * noise
    return latent
