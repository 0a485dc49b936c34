"""The short way of training passes against the masked one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duolora.adapters import RankSpaceAdapter, RankSpaceLinear, project, role_rows
from duolora.grouped import are_side_by_side, side_span
from duolora.lora.weights import LoraWeights
from duolora.models.base import DiffusionBase
from duolora.runtime import Runtime
from duolora.thrift import recomputed_activations
from tests.duolora.pico import pico_pipeline, random_layer, random_lora

if TYPE_CHECKING:
    from torch import Tensor

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
    timesteps = torch.randint(1000, (batch,), generator=generator)
    return noisy.to(base.runtime.device), timesteps.to(base.runtime.device), prompts


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
    return {name: tensor.cpu() for name, tensor in found.items()}


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


def test_so_are_those_of_layers_whose_neighbours_in_memory_read_another_input(sd15_base: DiffusionBase):
    """Query, key and value of one width; to the prompt only the last two are taken together."""
    crosses = [module for name, module in sd15_base.unet.named_modules() if name.endswith("attn2")]
    assert any(cross.to_q.in_features == cross.to_k.in_features for cross in crosses)
    short = gradients(sd15_base, 2, [(0, 1), (1, 1)], grouped=True)
    masked = gradients(sd15_base, 2, [(0, 1), (1, 1)], grouped=False)
    for name, expected in masked.items():
        assert (short[name] - expected).norm() <= 1e-4 * expected.norm(), name


@pytest.mark.gpu
def test_a_gpu_with_its_kernels_gives_what_the_cpu_gives(base: DiffusionBase):
    on_gpu = DiffusionBase(pico_pipeline(), "pico", Runtime(torch.device("cuda"), torch.float32))
    expected = gradients(base, 1, [(0, 2), (1, 2)], grouped=True)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = gradients(on_gpu, 1, [(0, 2), (1, 2)], grouped=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


class Projections(torch.nn.Module):
    """Three layers of one input, the last with one output more, in float64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.to_q, self.to_k = (torch.nn.Linear(inputs, outputs, dtype=torch.float64) for _ in range(2))
        self.to_v = torch.nn.Linear(inputs, outputs + 1, dtype=torch.float64)
        self.requires_grad_(False)

    def adapter(self, names: str, rank: int, tenants: int) -> RankSpaceAdapter:
        """Attach random LoRAs of both sides to the layers with these last letters."""
        linears = {name: self.get_submodule(f"to_{name}") for name in names}
        loras = [
            {
                side: LoraWeights(
                    {
                        f"unet.to_{name}": random_layer(
                            linear.out_features, linear.in_features, rank, seed=100 * tenant + 10 * index + ord(name)
                        )
                        for name, linear in linears.items()
                    }
                )
                for index, side in enumerate(SIDES)
            }
            for tenant in range(tenants)
        ]
        return RankSpaceAdapter(*loras).inject(self)

    def projected(self, x_BTI: Tensor, *, together: bool) -> list[Tensor]:
        layers = (self.to_q, self.to_k, self.to_v)
        return list(project(layers, x_BTI)) if together else [layer(x_BTI) for layer in layers]


@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    rank=st.integers(1, 4),
    each=st.integers(1, 2),
    tokens=st.integers(1, 5),
    tenants=st.integers(1, 2),
    roles=st.sampled_from([(0, 1), (1,)]),
)
def test_layers_taken_together_give_what_each_gives_alone(
    *, inputs: int, outputs: int, rank: int, each: int, tokens: int, tenants: int, roles: tuple[int, ...]
):
    torch.manual_seed(0)
    model = Projections(inputs, outputs)
    rows = role_rows([(role, each) for role in (roles if tenants == 1 else (0, 1))], CPU).repeat(tenants)
    x = torch.randn(len(rows), tokens, inputs, dtype=torch.float64, requires_grad=True)
    with model.adapter("qkv", rank, tenants) as adapter:
        learning = [parameter for side in SIDES for parameter in adapter.train_factors(side)]
        copies = adapter.group_factors(torch.float64)
        assert copies is not None
        adapter.assign(rows)
        found = []
        for together in (True, False):
            outputs_BTO = model.projected(x, together=together)
            (x_grad,) = torch.autograd.grad(sum(output.pow(3).sum() for output in outputs_BTO), x)
            copies.hand_over([SIDES[role] for role in sorted(set(rows.tolist()))])
            found.append([*outputs_BTO, x_grad, *(p.grad.clone() for p in learning if p.grad is not None)])
    assert len(found[0]) == 4 + 6 * len(set(rows.tolist()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if one.dtype == torch.float32 else 1e-11, atol=1e-11)


def test_layers_of_one_module_lie_side_by_side_and_are_taken_together():
    model = Projections(8, 6)
    with model.adapter("qkv", 2, 1) as adapter:
        for side in SIDES:
            adapter.train_factors(side)
        adapter.group_factors(torch.float64)
        layers = [layer for layer in model.children() if isinstance(layer, RankSpaceLinear)]
        query, key, value = [layer.grouped for layer in layers]
        assert query is not None
        assert key is not None
        assert value is not None
        assert are_side_by_side([query, key, value])
        assert are_side_by_side([key, value])
        assert not are_side_by_side([key, query])
        assert not are_side_by_side([query, value])
        adapter.assign(torch.tensor([0, 1]))
        x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
        together = {output.grad_fn for output in model.projected(x, together=True)}
        assert len(together) == 1
        with torch.no_grad():
            assert len(model.projected(x, together=True)) == 3


def test_a_layer_without_an_adapter_among_them_lets_each_go_alone():
    model = Projections(8, 6)
    with model.adapter("qv", 2, 1) as adapter:
        for side in SIDES:
            adapter.train_factors(side)
        adapter.group_factors(torch.float64)
        adapter.assign(torch.tensor([0, 1]))
        x = torch.randn(2, 3, 8, dtype=torch.float64)
        for one, other in zip(model.projected(x, together=True), model.projected(x, together=False), strict=True):
            assert torch.equal(one, other)


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
