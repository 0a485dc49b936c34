"""The schedule that the tiny base is pretrained with, and the sampler of its previews."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDPMScheduler

from duolora.tiny.architecture import write_scheduler
from duolora.tiny.base import base_path
from duolora.tiny.noise_schedule import sample_latents, sdxl_schedule

CPU = torch.device("cpu")


def test_schedule_is_the_one_that_the_shipped_base_says_it_has():
    scheduler = DDPMScheduler.from_config(json.loads((base_path() / "scheduler/scheduler_config.json").read_text()))

    torch.testing.assert_close(sdxl_schedule(CPU).alphas_T, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_scheduler_that_is_written_for_a_new_base_has_the_numbers_of_the_shipped_one(tmp_path):
    write_scheduler(tmp_path)

    written, shipped = (
        json.loads((folder / "scheduler_config.json").read_text()) for folder in (tmp_path, base_path() / "scheduler")
    )
    numbers = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"}
    assert {key: written[key] for key in numbers} == {key: shipped[key] for key in numbers}


@pytest.mark.parametrize("steps", [1, 7])
def test_sampler_arrives_at_the_picture_that_every_prediction_means(steps):
    """A predictor that knows the picture; what is left is the noise of timestep 0."""
    schedule = sdxl_schedule(CPU)
    picture, start = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    asked = []

    def knows_the_picture(latents_BCHW, timesteps_B):
        asked.append(timesteps_B.tolist())
        rate = schedule.alphas_T[timesteps_B][:, None, None, None]
        return (latents_BCHW - rate.sqrt() * picture) / (1 - rate).sqrt()

    found = sample_latents(knows_the_picture, start, steps)

    end = schedule.alphas_T[0]
    started = schedule.alphas_T[999]
    noise = (start - started.sqrt() * picture) / (1 - started).sqrt()
    torch.testing.assert_close(found, end.sqrt() * picture + (1 - end).sqrt() * noise, rtol=1e-4, atol=1e-4)
    assert len(asked) == steps
    assert asked[0] == [999] * 3
    assert [row[0] for row in asked] == sorted((row[0] for row in asked), reverse=True)
