"""The short way of training passes against the masked one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duolora.adapters import RankSpaceAdapter, role_rows
from duolora.grouped import side_span
from duolora.thrift import recomputed_activations
from tests.duolora.pico import random_lora

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.models.base import DiffusionBase
    from duolora.models.base import PromptEmbeddings as Prompts

SIDES = ("content", "style")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "tenants", "span"),
    [
        ([0, 0, 1, 1], 1, slice(0, 2)),
        ([1, 1], 1, slice(1, 2)),
        ([0], 1, slice(0, 1)),
        ([0, 1, 0, 1], 2, slice(0, 2)),
        ([0, 1, 0, 1], 1, None),  # mixed
        ([0, 0, 1], 1, None),  # one side has more
        ([1, 0], 1, None),  # out of order
        ([0, 2], 1, None),  # a role that is no side
        ([0, 2], 2, None),
        ([1, 1], 2, None),  # one side of several tenants
        ([], 1, None),
    ],
)
def test_the_short_way_is_taken_where_the_sides_stand_in_order(rows: list[int], tenants: int, span: slice | None):
    assert side_span(rows, tenants, len(SIDES)) == span


@given(sides=st.integers(1, 4), each=st.integers(1, 4), tenants=st.integers(1, 3))
def test_sides_in_order_are_always_recognised(sides: int, each: int, tenants: int):
    own = [side for side in range(sides) for _ in range(each)]
    assert side_span(own * tenants, tenants, sides) == slice(0, sides)


def inputs(base: DiffusionBase, batch: int) -> tuple[Tensor, Tensor, Prompts]:
    generator = torch.Generator().manual_seed(5)
    side = base.latent_size(64)
    noisy = torch.randn(batch, base.latent_channels, side, side, generator=generator)
    prompts = base.encode_prompts(["a fox", "a chair", "a sun"] * batch)[torch.arange(batch)]
    return noisy, torch.randint(1000, (batch,), generator=generator), prompts


def gradients(
    base: DiffusionBase, tenants: int, shares: list[tuple[int, int]], *, grouped: bool, recomputes: bool = False
) -> dict[str, Tensor]:
    """The prediction and every factor's gradient of one pass of samples of these roles, the same for every tenant."""
    loras = [
        {side: random_lora(base, seed=10 * tenant + index, ranks=(4,)) for index, side in enumerate(SIDES)}
        for tenant in range(tenants)
    ]
    rows = role_rows(shares, CPU).repeat(tenants)
    noisy, timesteps, prompts = inputs(base, len(rows))
    noisy.requires_grad_()
    with RankSpaceAdapter(*loras).inject(base.unet) as adapter:
        learning = {side: adapter.train_factors(side) for side in SIDES}
        copies = adapter.group_factors(torch.float32) if grouped else None
        adapter.assign(rows)
        with recomputed_activations(base, adapter) if recomputes else nullcontext():
            predicted = base.predict_noise(noisy, timesteps, prompts)
            predicted.square().sum().backward()
        if copies is not None:
            assert adapter.takes_groups()
            copies.hand_over([SIDES[role] for role, _ in shares])
        assert noisy.grad is not None
        found = {"predicted": predicted.detach(), "input": noisy.grad}
        for side in {SIDES[role] for role, _ in shares}:
            for name, parameter in adapter.factors(side).items():
                assert parameter.grad is not None
                found[f"{side} {name}"] = parameter.grad.clone()
        assert all(parameter.requires_grad for factors in learning.values() for parameter in factors)
    return found


@pytest.mark.parametrize(
    ("tenants", "shares"),
    [(1, [(0, 2), (1, 2)]), (1, [(1, 3)]), (2, [(0, 1), (1, 1)])],
    ids=["both sides", "one side", "two tenants"],
)
def test_predictions_and_gradients_are_those_of_the_masked_way(
    base: DiffusionBase, tenants: int, shares: list[tuple[int, int]]
):
    short = gradients(base, tenants, shares, grouped=True)
    masked = gradients(base, tenants, shares, grouped=False)
    assert short.keys() == masked.keys()
    for name, expected in masked.items():
        assert (short[name] - expected).norm() <= 1e-4 * expected.norm(), name
    assert all(tensor.norm() > 0 for tensor in short.values())


def test_a_side_that_is_not_in_the_pass_gets_no_gradient(base: DiffusionBase):
    loras = {side: random_lora(base, seed=index, ranks=(4,)) for index, side in enumerate(SIDES)}
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        factors = {side: adapter.train_factors(side) for side in SIDES}
        copies = adapter.group_factors(torch.float32)
        assert copies is not None
        copies.hand_over(["style"])
    assert all(parameter.grad is None for parameter in factors["content"])
    assert all(parameter.grad is not None for parameter in factors["style"])


def test_copies_follow_the_factors(base: DiffusionBase):
    loras = {side: random_lora(base, seed=index, ranks=(4,)) for index, side in enumerate(SIDES)}
    noisy, timesteps, prompts = inputs(base, 2)
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        factors = [parameter for side in SIDES for parameter in adapter.train_factors(side)]
        copies = adapter.group_factors(torch.float32)
        assert copies is not None
        adapter.assign(torch.tensor([0, 1]))
        before = base.predict_noise(noisy, timesteps, prompts)
        with torch.no_grad():
            for parameter in factors:
                parameter.zero_()
        assert torch.equal(base.predict_noise(noisy, timesteps, prompts), before)
        copies.refresh()
        after = base.predict_noise(noisy, timesteps, prompts)
    torch.testing.assert_close(after, base.predict_noise(noisy, timesteps, prompts))


def test_layers_whose_sides_differ_in_rank_keep_to_the_masked_way(base: DiffusionBase):
    loras = {"content": random_lora(base, seed=0, ranks=(4,)), "style": random_lora(base, seed=1, ranks=(3,))}
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        assert adapter.group_factors(torch.float32) is None
        adapter.assign(torch.tensor([0, 1]))
        assert not adapter.takes_groups()
