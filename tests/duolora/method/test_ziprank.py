from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.errors import InvalidLora
from duolora.lora.canonical import canonical_layer, canonicalise
from duolora.lora.parts import concatenate
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.method.ziprank import masked_layer, merge_by_masks
from tests.duolora.pico import random_layer

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 10)
masks = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6)


def assert_same_change(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-5 of the size of what is expected."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * (1 + expected.norm().item()))


def delta_or_zero(weights: LoraWeights, name: str, like: LoraLayer) -> torch.Tensor:
    return weights.layers[name].delta_OI() if name in weights.layers else torch.zeros_like(like.delta_OI())


def masked_svd(layer: LoraLayer, mask_R: torch.Tensor) -> torch.Tensor:
    """U diag(m) S V^T from a dense SVD of the delta: the formula of the paper with nothing of ours in it."""
    u_OK, s_K, v_KI = torch.linalg.svd(layer.delta_OI().double(), full_matrices=False)
    rank = len(mask_R)
    return (u_OK[:, :rank] @ torch.diag(mask_R.double() * s_K[:rank]) @ v_KI[:rank]).float()


@given(content=masks, style=masks, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_merge_is_the_papers_formula(content: list[float], style: list[float], seed: int) -> None:
    raw = {
        "content": random_layer(12, 10, len(content), seed=seed, alpha=2.0),
        "style": random_layer(12, 10, len(style), seed=seed + 1),
    }
    given_masks = {"content": torch.tensor(content), "style": torch.tensor(style)}
    sides = {side: canonicalise(LoraWeights({"unet.a": layer})) for side, layer in raw.items()}
    expected = sum(masked_svd(raw[side], given_masks[side]) for side in raw)
    if not any(mask.any() for mask in given_masks.values()):
        with pytest.raises(InvalidLora):
            merge_by_masks(sides, {side: {"unet.a": mask} for side, mask in given_masks.items()})
        return

    merged = merge_by_masks(sides, {side: {"unet.a": mask} for side, mask in given_masks.items()})

    assert_same_change(merged.layers["unet.a"].delta_OI(), expected)
    assert merged.layers["unet.a"].rank == sum(int(mask.count_nonzero()) for mask in given_masks.values())
    assert merged.layers["unet.a"].scale == 1


@given(outputs=sizes, inputs=sizes, ranks=st.tuples(sizes, sizes), seed=seeds)
@settings(deadline=None, max_examples=40)
def test_all_ones_give_the_plain_sum(outputs: int, inputs: int, ranks: tuple[int, int], seed: int) -> None:
    raw = {
        side: random_layer(outputs, inputs, rank, seed=seed + index, alpha=3.0)
        for index, (side, rank) in enumerate(zip(("content", "style"), ranks, strict=True))
    }
    sides = {side: canonicalise(LoraWeights({"unet.a": layer})) for side, layer in raw.items()}
    ones = {side: {"unet.a": torch.ones(weights.layers["unet.a"].rank)} for side, weights in sides.items()}

    merged = merge_by_masks(sides, ones)

    assert_same_change(merged.layers["unet.a"].delta_OI(), raw["content"].delta_OI() + raw["style"].delta_OI())


def test_layer_whose_masks_are_zero_is_absent() -> None:
    both = LoraWeights({"unet.a": random_layer(6, 5, 2), "unet.b": random_layer(6, 5, 2, seed=1)})
    zero_a = {"unet.a": torch.zeros(2), "unet.b": torch.ones(2)}

    merged = merge_by_masks({"content": both, "style": both}, {"content": zero_a, "style": zero_a})

    assert set(merged.layers) == {"unet.b"}


def test_merge_of_nothing_at_all_is_refused() -> None:
    one = LoraWeights({"unet.a": random_layer(6, 5, 2)})
    zeros = {"unet.a": torch.zeros(2)}

    with pytest.raises(InvalidLora, match="without layers"):
        merge_by_masks({"content": one, "style": one}, {"content": zeros, "style": zeros})


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), prune=st.floats(0, 0.9), seed=seeds)
@settings(deadline=None, max_examples=60)
def test_pruning_ranks_equals_masking_them(values: list[float], prune: float, seed: int) -> None:
    mask_R = torch.tensor(values)
    layer = random_layer(9, 7, len(values), seed=seed, alpha=2.0)
    kept_R = mask_R.abs() > prune

    pruned = masked_layer(layer, mask_R, prune)

    if not kept_R.any():
        assert pruned is None
        return
    masked = masked_layer(layer, mask_R * kept_R)
    assert pruned is not None
    assert masked is not None
    assert pruned.rank == int(kept_R.sum())
    assert torch.equal(pruned.delta_OI(), masked.delta_OI())
    assert_same_change(pruned.delta_OI(), (layer.up_OR * layer.scale * (mask_R * kept_R)) @ layer.down_RI)


def test_layers_of_one_side_only_are_kept_as_that_side_has_them() -> None:
    content = LoraWeights({"unet.a": random_layer(6, 5, 2), "unet.both": random_layer(6, 5, 2, seed=1)})
    style = LoraWeights({"unet.b": random_layer(4, 3, 3, seed=2), "unet.both": random_layer(6, 5, 1, seed=3)})
    sides = {"content": content, "style": style}
    ones = {
        side: {name: torch.ones(layer.rank) for name, layer in weights.layers.items()}
        for side, weights in sides.items()
    }

    merged = merge_by_masks(sides, ones)

    assert {name: layer.rank for name, layer in merged.layers.items()} == {"unet.a": 2, "unet.b": 3, "unet.both": 3}
    assert torch.equal(merged.layers["unet.a"].delta_OI(), content.layers["unet.a"].delta_OI())
    assert torch.equal(merged.layers["unet.b"].delta_OI(), style.layers["unet.b"].delta_OI())


@given(alphas=st.lists(st.sampled_from([0.5, 2.0, 9.0]), min_size=1, max_size=4), seed=seeds)
@settings(deadline=None, max_examples=30)
def test_concatenation_is_the_exact_sum_with_alpha_the_rank(alphas: list[float], seed: int) -> None:
    parts = [random_layer(6, 5, index + 1, seed=seed + index, alpha=alpha) for index, alpha in enumerate(alphas)]

    joined = concatenate(parts)

    assert joined.alpha == joined.rank == sum(part.rank for part in parts)
    assert_same_change(joined.delta_OI(), sum(part.delta_OI() for part in parts))


@given(seed=seeds, rank=st.integers(2, 10), data=st.data())
@settings(deadline=None, max_examples=60)
def test_leading_ranks_are_the_best_choice_of_their_number(seed: int, rank: int, data: st.DataObject) -> None:
    """Eckart-Young: no other mask of k ranks, of any values, comes closer to the delta."""
    layer = canonical_layer(random_layer(12, 11, rank, seed=seed))
    kept = data.draw(st.integers(1, rank - 1))
    chosen = data.draw(st.permutations(range(rank)))[:kept]
    values = data.draw(st.lists(st.floats(-1.5, 1.5), min_size=kept, max_size=kept))
    leading_R, other_R = torch.zeros(rank), torch.zeros(rank)
    leading_R[:kept] = 1.0
    other_R[chosen] = torch.tensor(values)

    error = {
        name: ((layer.up_OR * (1 - mask_R)) @ layer.down_RI).norm().item()
        for name, mask_R in (("leading", leading_R), ("other", other_R))
    }

    true_R = torch.linalg.svdvals(layer.delta_OI().double())
    assert error["leading"] <= error["other"] * (1 + 1e-5)
    assert error["leading"] == pytest.approx(true_R[kept:].square().sum().sqrt().item(), rel=1e-3)


@given(seed=seeds, rank=st.integers(2, 10), data=st.data())
@settings(deadline=None, max_examples=60)
def test_masking_ranks_loses_no_more_than_masking_outputs(seed: int, rank: int, data: st.DataObject) -> None:
    """E_rank <= E_out at equal budget: k kept ranks against any k kept outputs, which have rank k as well."""
    layer = canonical_layer(random_layer(12, 11, rank, seed=seed))
    kept = data.draw(st.integers(1, rank - 1))
    outputs_O = torch.zeros(12)
    outputs_O[data.draw(st.permutations(range(12)))[:kept]] = 1.0
    best_O = torch.zeros(12)
    best_O[layer.delta_OI().norm(dim=1).topk(kept).indices] = 1.0
    rank_R = (torch.arange(rank) < kept).float()

    delta_OI = layer.delta_OI()
    e_rank = (delta_OI - (layer.up_OR * rank_R) @ layer.down_RI).norm()

    assert e_rank <= (delta_OI - outputs_O[:, None] * delta_OI).norm() * (1 + 1e-5)
    assert e_rank <= (delta_OI - best_O[:, None] * delta_OI).norm() * (1 + 1e-5)


@given(seed=seeds, rank=st.integers(2, 8), data=st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_masking_ranks_loses_no_more_than_any_numbers_on_outputs_or_inputs(
    seed: int, rank: int, data: st.DataObject
) -> None:
    """Equal budget means k numbers that are not zero: k of R ranks against k of O outputs, or k of I inputs.

    It holds for whatever values stand on the outputs or inputs, for k rows or columns are of rank k at most and the
    leading k ranks are the best of rank k (Eckart-Young); in float64 it needs no margin but rounding.
    """
    layer = canonical_layer(random_layer(9, 11, rank, seed=seed))
    delta_OI = layer.up_OR.double() @ layer.down_RI.double()
    kept = data.draw(st.integers(1, rank - 1))
    values = torch.tensor(data.draw(st.lists(st.floats(-2, 2), min_size=kept, max_size=kept)), dtype=torch.float64)
    outputs_O, inputs_I = torch.zeros(9, dtype=torch.float64), torch.zeros(11, dtype=torch.float64)
    outputs_O[data.draw(st.permutations(range(9)))[:kept]] = values
    inputs_I[data.draw(st.permutations(range(11)))[:kept]] = values

    left_OI = layer.up_OR[:, :kept].double() @ layer.down_RI[:kept].double()
    e_rank = (delta_OI - left_OI).norm() * (1 - 1e-5)

    assert e_rank <= (delta_OI - outputs_O[:, None] * delta_OI).norm()
    assert e_rank <= (delta_OI - delta_OI * inputs_I).norm()


def test_raw_factors_are_not_in_the_theorem() -> None:
    """The same change in two gauges: masking one rank of raw factors loses more than masking all outputs but one.

    In its singular basis the delta is diag(1, 0.1). Turned by [[1, 2], [0, 1]], both ranks carry the large direction
    and cancel; no single one of them, whatever its mask, is as near as one output row.
    """
    turn_RR = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    delta_OI = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64))
    raw = LoraLayer(torch.linalg.inv(turn_RR), delta_OI @ turn_RR, 2.0)

    def error_of_one_rank(layer: LoraLayer) -> float:
        """The least error that is left by one rank under the best of all masks."""
        errors = []
        for rank in range(2):
            part_OI = torch.outer(layer.up_OR[:, rank], layer.down_RI[rank]).double()
            best = (part_OI * delta_OI).sum() / part_OI.square().sum()
            errors.append((delta_OI - best * part_OI).norm().item())
        return min(errors)

    e_out = min((delta_OI - torch.diag(mask_O) @ delta_OI).norm().item() for mask_O in torch.eye(2).double())
    assert torch.allclose(raw.delta_OI(), delta_OI)
    assert e_out == pytest.approx(0.1)
    assert error_of_one_rank(raw) > 2 * e_out
    assert error_of_one_rank(canonical_layer(raw)) == pytest.approx(0.1, abs=1e-6)


def test_equal_shares_of_ranks_and_outputs_are_no_equal_budget() -> None:
    """Half of the ranks against half of the outputs: the theorem does not say it, and it is false.

    Two ranks that change one output each of eight: half of the outputs hold all of it, one rank of two only half.
    """
    up_OR = torch.zeros(8, 2)
    up_OR[0, 0] = up_OR[1, 1] = 1.0
    layer = canonical_layer(LoraLayer(torch.eye(2, 6), up_OR, 2.0))
    delta_OI = layer.delta_OI()

    e_rank_of_half = (delta_OI - layer.up_OR[:, :1] @ layer.down_RI[:1]).norm().item()
    e_out_of_half = (delta_OI - (torch.arange(8) < 4).float()[:, None] * delta_OI).norm().item()
    e_out_of_one = (delta_OI - (torch.arange(8) < 1).float()[:, None] * delta_OI).norm().item()

    assert e_rank_of_half == pytest.approx(1.0)
    assert e_out_of_half == 0.0
    assert e_rank_of_half <= e_out_of_one + 1e-6


@given(seed=seeds, rank=st.integers(1, 6), alpha=st.sampled_from([0.5, 4.0]))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_merge_of_one_lora_is_that_lora(seed: int, rank: int, alpha: float) -> None:
    lora = LoraWeights({"unet.a": random_layer(8, 7, rank, seed=seed, alpha=alpha)})

    merged = merge_by_masks({"content": lora}, {"content": {"unet.a": torch.ones(rank)}})

    assert merged.layers["unet.a"].rank == rank
    assert_same_change(merged.layers["unet.a"].delta_OI(), lora.layers["unet.a"].delta_OI())
