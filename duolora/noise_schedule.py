"""The forward process of a diffusion model: noising, and the clean picture that a noise prediction implies.

B batch; latents are (B, C, H, W). DDPM (Ho et al. 2020), epsilon prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    """Cumulative signal rates of the model's training schedule: alphas_T float32, falling from about 1 to about 0."""

    alphas_T: Tensor

    @property
    def timesteps(self) -> int:
        """Number of timesteps T; valid timesteps are 0 to T - 1."""
        return self.alphas_T.shape[0]

    def to(self, device: torch.device) -> NoiseSchedule:
        """Move the table to a device."""
        return NoiseSchedule(self.alphas_T.to(device))

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noise clean latents to the given timesteps: sqrt(a) x + sqrt(1 - a) e."""
        signal, spread = self._rates(timesteps_B)
        return signal * latents_BCHW + spread * noise_BCHW

    def predict_clean(self, noisy_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Clean latents that a noise prediction implies: (x_t - sqrt(1 - a) e) / sqrt(a)."""
        signal, spread = self._rates(timesteps_B)
        return (noisy_BCHW - spread * noise_BCHW) / signal

    def snr(self, timesteps_B: Tensor) -> Tensor:
        """Signal-to-noise ratio a / (1 - a) at each timestep, (B,)."""
        alphas_B = self.alphas_T[timesteps_B]
        return alphas_B / (1 - alphas_B)

    def _rates(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rates of signal and noise, (B, 1, 1, 1) each."""
        alphas_B111 = self.alphas_T[timesteps_B][:, None, None, None]
        return alphas_B111.sqrt(), (1 - alphas_B111).sqrt()
