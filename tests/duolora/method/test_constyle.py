from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from duolora.method.constyle import CycleNoise, PredictNoise, cycle_loss
from duolora.noise_schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(torch.linspace(0.99, 0.01, 100))


def random_numbers() -> tuple[Tensor, CycleNoise]:
    latents, add, remove = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return latents, CycleNoise(torch.tensor([20, 70]), add, remove)


class Predictor(nn.Module):
    """A noise predictor with one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return self.weight * noisy_BCHW + 0.01 * timesteps_B[:, None, None, None]


def test_loss_is_zero_when_the_add_leg_returns_the_true_noise() -> None:
    """The picture then comes back from the add-leg as it went in, and both paths of the remove-leg are the same."""
    latents, noise = random_numbers()

    loss_B = cycle_loss(latents, noise, add=lambda _noisy, _t: noise.add_BCHW, remove=Predictor(0.3), schedule=SCHEDULE)

    assert loss_B.abs().max().item() == pytest.approx(0, abs=1e-9)


def test_loss_is_not_zero_otherwise() -> None:
    latents, noise = random_numbers()

    loss_B = cycle_loss(latents, noise, add=Predictor(0.5), remove=Predictor(0.3), schedule=SCHEDULE)

    assert loss_B.min().item() > 1e-4


def test_gradient_reaches_the_add_leg() -> None:
    latents, noise = random_numbers()
    add = Predictor(0.5)

    cycle_loss(latents, noise, add=add, remove=Predictor(0.3), schedule=SCHEDULE).mean().backward()

    assert add.weight.grad is not None
    assert add.weight.grad.abs() > 1e-4


def test_direct_path_of_the_remove_leg_is_a_fixed_target() -> None:
    """The remove-leg is asked twice; only the pass that receives the add-leg's picture may carry a gradient."""
    latents, noise = random_numbers()
    tracked: list[bool] = []
    remove = Predictor(0.3)

    def watched(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        prediction = remove(noisy_BCHW, timesteps_B)
        tracked.append(prediction.requires_grad)
        return prediction

    cycle_loss(latents, noise, add=Predictor(0.5), remove=watched, schedule=SCHEDULE)

    assert sorted(tracked) == [False, True]


def test_gradient_agrees_with_a_finite_difference() -> None:
    latents, noise = random_numbers()

    def loss(weight: float) -> Tensor:
        predictor = Predictor(weight)
        value = cycle_loss(latents, noise, add=predictor, remove=Predictor(0.3), schedule=SCHEDULE).mean()
        value.backward()
        return torch.stack([value.detach(), predictor.weight.grad])

    (low, _), (_, gradient), (high, _) = loss(0.49), loss(0.5), loss(0.51)
    assert gradient.item() == pytest.approx(((high - low) / 0.02).item(), rel=0.02)


def test_loss_is_the_weighted_distance_of_the_two_clean_predictions() -> None:
    """The definition, written out for one sample at a time; the weight is the signal rate of its timestep."""
    latents, noise = random_numbers()
    add, remove = Predictor(0.5), Predictor(0.3)

    def seen(predictor: Predictor, picture: Tensor, fresh_noise: Tensor, sample: int) -> Tensor:
        rate = SCHEDULE.alphas_T[noise.timesteps_B[sample]]
        noisy = rate.sqrt() * picture + (1 - rate).sqrt() * fresh_noise
        predicted = predictor(noisy[None], noise.timesteps_B[sample : sample + 1])[0]
        return (noisy - (1 - rate).sqrt() * predicted) / rate.sqrt()

    terms = []
    for sample in range(2):
        joint = seen(add, latents[sample], noise.add_BCHW[sample], sample)
        cycled = seen(remove, joint, noise.remove_BCHW[sample], sample)
        direct = seen(remove, latents[sample], noise.remove_BCHW[sample], sample)
        terms.append(SCHEDULE.alphas_T[noise.timesteps_B[sample]] * (cycled - direct).square().mean())

    loss_B = cycle_loss(latents, noise, add=add, remove=remove, schedule=SCHEDULE)
    torch.testing.assert_close(loss_B, torch.stack(terms), rtol=1e-4, atol=1e-6)


def keeps_columns(count: int) -> PredictNoise:
    """A predictor that takes the leading columns for the picture and all the rest for noise."""

    def predict(noisy_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        kept_BCHW = noisy_BCHW.clone()
        kept_BCHW[..., count:] = 0
        return (noisy_BCHW - kept_BCHW) / (1 - SCHEDULE.alphas_T[timesteps_B][:, None, None, None]).sqrt()

    return predict


@pytest.mark.parametrize(("added", "is_zero"), [(2, True), (3, True), (4, True), (1, False)])
def test_loss_is_zero_when_the_add_leg_leaves_alone_what_the_remove_leg_looks_at(added: int, is_zero: bool) -> None:
    """The remove-leg sees two columns, which the noise spares. Predictors that agree (2) lose nothing between them,
    nor does an add-leg that keeps more; one that loses a column is found out."""
    latents, noise = random_numbers()
    for fresh_noise in (noise.add_BCHW, noise.remove_BCHW):
        fresh_noise[..., :2] = 0

    loss_B = cycle_loss(latents, noise, add=keeps_columns(added), remove=keeps_columns(2), schedule=SCHEDULE)

    assert bool((loss_B < 1e-9).all()) is is_zero
    assert bool((loss_B > 1e-3).all()) is not is_zero
