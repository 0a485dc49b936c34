"""Whole steps as recordings."""

from __future__ import annotations

import pytest
import torch

from duolora.recorded_step import WARM_UPS, RecordedSteps

STEPS = WARM_UPS + 4


def learned(device: torch.device, *, recorded: bool) -> tuple[list[float], torch.Tensor]:
    """Losses and the weight after some steps of AdamW whose rate changes from step to step."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator).to(device).requires_grad_()
    rate = torch.tensor(0.1, device=device)
    optimizer = torch.optim.AdamW([weight], lr=rate, capturable=device.type == "cuda")
    steps = RecordedSteps(device)

    def step(given: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (given @ weight).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses = []
    for number in range(STEPS):
        rate.fill_(0.1 / (number + 1))
        given = torch.randn(4, 8, generator=generator).to(device)
        losses.append((steps.run("same", step, [given]) if recorded else step(given)).item())
    return losses, weight.detach()


def test_on_a_cpu_every_step_is_an_ordinary_call():
    recorded, ordinary = (learned(torch.device("cpu"), recorded=way) for way in (True, False))
    assert recorded[0] == ordinary[0]
    assert torch.equal(recorded[1], ordinary[1])


@pytest.mark.gpu
def test_recorded_steps_see_fresh_inputs_and_rates_and_leave_what_ordinary_ones_leave():
    recorded, ordinary = (learned(torch.device("cuda"), recorded=way) for way in (True, False))
    assert recorded[0] == pytest.approx(ordinary[0], rel=1e-5)
    torch.testing.assert_close(recorded[1], ordinary[1], rtol=1e-5, atol=1e-6)
    assert len(set(recorded[0])) == STEPS
