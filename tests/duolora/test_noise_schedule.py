from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.noise_schedule import NoiseSchedule

SDXL = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SCHEDULE = NoiseSchedule(SDXL.alphas_cumprod)


@given(timestep=st.integers(0, 999), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=60)
def test_predicting_clean_undoes_noising(timestep: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=generator)
    timesteps = torch.tensor([timestep, 999 - timestep])

    noisy = SCHEDULE.add_noise(clean, noise, timesteps)

    torch.testing.assert_close(SCHEDULE.predict_clean(noisy, noise, timesteps), clean, rtol=1e-3, atol=1e-4)


def test_noising_is_that_of_diffusers() -> None:
    clean, noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 400, 999])

    torch.testing.assert_close(
        SCHEDULE.add_noise(clean, noise, timesteps), SDXL.add_noise(clean, noise, timesteps), rtol=1e-5, atol=1e-6
    )


def test_each_sample_has_its_own_timestep() -> None:
    schedule = NoiseSchedule(torch.tensor([0.75, 0.25]))
    clean, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 2.0)

    noisy = schedule.add_noise(clean, noise, torch.tensor([0, 1])).flatten()

    assert noisy.tolist() == pytest.approx([math.sqrt(0.75) + 1.0, 0.5 + 2 * math.sqrt(0.75)])


def test_signal_to_noise_ratio() -> None:
    schedule = NoiseSchedule(torch.tensor([0.9, 0.5, 0.2]))

    assert schedule.timesteps == 3
    assert schedule.snr(torch.tensor([2, 0, 1])).tolist() == pytest.approx([0.25, 9.0, 1.0])
