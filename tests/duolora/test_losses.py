from __future__ import annotations

import pytest
import torch

from duolora.losses import denoising_loss, min_snr_weight, squared_error


@pytest.mark.parametrize(
    ("snr", "gamma", "weight"),
    [
        (0.1, 5.0, 1.0),  # noisy: full weight
        (5.0, 5.0, 1.0),
        (10.0, 5.0, 0.5),
        (100.0, 5.0, 0.05),  # almost clean: little weight
        (2.0, 1.0, 0.5),
        (100.0, None, 1.0),
        (0.01, None, 1.0),
    ],
)
def test_min_snr_weight(snr: float, gamma: float | None, weight: float) -> None:
    assert min_snr_weight(torch.tensor([snr]), gamma).item() == pytest.approx(weight)


def test_squared_error_is_the_mean_of_each_sample() -> None:
    prediction = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3.0)])
    prediction[0, 0, 0, 0] = 2.0

    assert squared_error(prediction, torch.zeros(2, 1, 2, 2)).tolist() == [1.0, 9.0]


def test_squared_error_of_half_precision_is_computed_in_float32() -> None:
    large = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)  # its square overflows float16

    assert squared_error(large, torch.zeros_like(large)).item() == 90_000.0


def test_denoising_loss_weighs_each_sample_by_its_own_noise() -> None:
    prediction = torch.ones(2, 1, 1, 1)

    loss = denoising_loss(prediction, torch.zeros_like(prediction), torch.tensor([1.0, 20.0]), 5.0)

    assert loss.tolist() == pytest.approx([1.0, 0.25])
