"""Losses on noise predictions. B batch; predictions are (B, C, H, W)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def squared_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,) float32."""
    return (prediction_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))


def min_snr_weight(snr_B: Tensor, gamma: float | None) -> Tensor:
    """Weight of each sample in epsilon prediction: min(SNR, gamma) / SNR; 1 without gamma.

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4.
    """
    if gamma is None:
        return snr_B.new_ones(snr_B.shape)
    return snr_B.clamp(max=gamma) / snr_B


def denoising_loss(prediction_BCHW: Tensor, noise_BCHW: Tensor, snr_B: Tensor, gamma: float | None) -> Tensor:
    """Weighted denoising loss of each sample, (B,)."""
    return min_snr_weight(snr_B, gamma) * squared_error(prediction_BCHW, noise_BCHW)
