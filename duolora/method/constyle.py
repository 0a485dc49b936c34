"""Constyle: content and style as two domains held together by cycle consistency (paper, section 4.3).

A content picture goes to the joint domain (the merged adapter adds the style) and back (the content adapter alone
takes it off again); it must return to what the content adapter makes of it directly. Likewise for style pictures.
The gradient reaches the masks through the add-leg, whose output the remove-leg receives; a cycle whose legs are both
fixed would train nothing.

B batch; latents (B, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from duolora.losses import squared_error

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.noise_schedule import NoiseSchedule


class PredictNoise(Protocol):
    """A noise predictor with its adapter role and prompt already chosen."""

    def __call__(self, noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Predict the noise in noised latents, same shape."""


@dataclass(frozen=True, slots=True, eq=False)
class CycleNoise:
    """The random numbers of one evaluation: a timestep for both legs and a noise for each."""

    timesteps_B: Tensor
    add_BCHW: Tensor
    remove_BCHW: Tensor


def cycle_loss(
    latents_BCHW: Tensor, noise: CycleNoise, *, add: PredictNoise, remove: PredictNoise, schedule: NoiseSchedule
) -> Tensor:
    """Distance between a picture sent through add and remove legs and the same picture seen by the remove leg alone.

    Args:
        latents_BCHW: clean latents of one side's pictures.
        noise: the random numbers; sharing the second noise between both paths makes the loss zero when add is the
            identity up to what the noise hides.
        add: the merged adapter under the joint prompt; gradients flow through it.
        remove: the side's own adapter under its own prompt.
        schedule: the model's noise schedule.

    Returns:
        Mean squared error between clean predictions of each sample, (B,), weighted by the signal rate so that high
        noise levels, where clean predictions are divided by almost nothing, do not drown the rest.
    """
    joint = _clean(add, latents_BCHW, noise.add_BCHW, noise.timesteps_B, schedule)
    with torch.no_grad():
        direct = _clean(remove, latents_BCHW, noise.remove_BCHW, noise.timesteps_B, schedule)
    return return_loss(joint, direct, noise, remove=remove, schedule=schedule)


def return_loss(
    joint_BCHW: Tensor, direct_BCHW: Tensor, noise: CycleNoise, *, remove: PredictNoise, schedule: NoiseSchedule
) -> Tensor:
    """Send what came out of the add-leg through the remove-leg and compare it with the direct path; as `cycle_loss`.

    Args:
        joint_BCHW: clean latents that the add-leg saw; gradients flow through them.
        direct_BCHW: clean latents that the remove-leg sees in the pictures themselves, under the second noise.
        noise: as in `cycle_loss`.
        remove: as in `cycle_loss`.
        schedule: as in `cycle_loss`.
    """
    t_B = noise.timesteps_B
    cycled = _clean(remove, joint_BCHW, noise.remove_BCHW, t_B, schedule)
    return schedule.alphas_T[t_B] * squared_error(cycled, direct_BCHW)


def _clean(
    predict: PredictNoise, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Noise latents and return the clean latents that the predictor sees in them."""
    noisy_BCHW = schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
    return schedule.predict_clean(noisy_BCHW, predict(noisy_BCHW, timesteps_B), timesteps_B)
