from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora.baselines.peft_merges import merge
from duolora.errors import InvalidConfig, InvalidLora
from tests.duolora.dense import assert_same_change, dense, side_dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

WEIGHTS = {"content_weight": 0.8, "style_weight": 1.1}


def weighted(case: MergeCase, name: str, like: torch.Tensor) -> list[torch.Tensor]:
    """The two weighted changes of a layer; one alone where the other side has none."""
    return [
        weight * side_dense(case, side, name, like)
        for side, weight in (("content", 0.8), ("style", 1.1))
        if name in case.loras[side].layers
    ]


def cut(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def test_svd_cuts_the_weighted_sum_to_the_larger_rank(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], combination="svd", **WEIGHTS)[0]

    for name, layer in merged.layers.items():
        found = dense(layer)
        expected = cut(sum(weighted(case, name, found)), 4)
        assert layer.rank == 4
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("knobs", [{"combination": "cat"}, {"combination": "svd", "rank": 7}])
def test_whole_combinations_give_the_weighted_sum(base: DiffusionBase, case: MergeCase, knobs: dict[str, Any]) -> None:
    merged = merge(base, [case], **knobs, **WEIGHTS)[0]

    assert set(merged.layers) == set(case.loras["content"].layers)
    for name, layer in merged.layers.items():
        found = dense(layer)
        expected = sum(weighted(case, name, found))
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_magnitude_prune_keeps_the_largest_entries_of_each_side(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], combination="magnitude_prune_svd", density=0.25, rank=64, **WEIGHTS)[0]

    for name, layer in list(merged.layers.items())[:8]:
        found = dense(layer)
        expected = torch.zeros_like(found)
        for delta in weighted(case, name, found):
            kept = int(0.25 * delta.numel())
            threshold = delta.abs().flatten().sort().values[-kept]
            expected += torch.where(delta.abs() >= threshold, delta, 0)
        assert (found - expected).norm() < 1e-3 * expected.norm(), name


def test_ties_drops_entries_whose_sign_lost_the_vote(base: DiffusionBase, case: MergeCase) -> None:
    """At density 1 only the election is left: entries with the sign of the sum are averaged over those who have it."""
    merged = merge(base, [case], combination="ties_svd", density=1.0, rank=64)[0]

    for name in list(case.loras["style"].layers)[:8]:
        found = dense(merged.layers[name])
        both = torch.stack([side_dense(case, side, name, found) for side in ("content", "style")])
        agrees = both.sign() == both.sum(0).sign()
        expected = (both * agrees).sum(0) / agrees.sum(0).clamp(min=1)
        assert (found - expected).norm() < 1e-3 * expected.norm(), name


def test_dare_draws_from_the_cases_seed_and_leaves_the_processs_numbers_alone(
    base: DiffusionBase, case: MergeCase
) -> None:
    other = type(case)(case.loras, case.encoded, case.joint, case.seed + 1)
    torch.manual_seed(3)
    first = merge(base, [case, other], combination="dare_ties_svd")
    after = torch.rand(1)
    torch.manual_seed(3)
    expected_after = torch.rand(1)

    again = merge(base, [other, case], combination="dare_ties_svd")

    assert torch.equal(after, expected_after)
    assert_same_change(first[0], again[1], tolerance=1e-6)
    name = next(iter(first[0].layers))
    assert (dense(first[0].layers[name]) - dense(first[1].layers[name])).norm() > 0.1


@pytest.mark.parametrize("combination", ["ties_svd", "magnitude_prune_svd", "dare_linear_svd"])
def test_density_matters(base: DiffusionBase, case: MergeCase, combination: Any) -> None:
    sparse, full = (merge(base, [case], combination=combination, density=d)[0] for d in (0.1, 1.0))

    name = next(iter(sparse.layers))
    assert (dense(sparse.layers[name]) - dense(full.layers[name])).norm() > 0.1 * dense(full.layers[name]).norm()


def test_raw_factors_of_one_rank_are_mixed_and_of_unequal_ranks_refused(
    base: DiffusionBase, case: MergeCase, make_case: Callable[..., MergeCase]
) -> None:
    equal = make_case(content_ranks=(4,), style_ranks=(4,))
    mixed: LoraWeights = merge(base, [equal], combination="linear")[0]

    for name, layer in equal.loras["style"].layers.items():
        content, style = equal.loras["content"].layers[name], layer
        # Each side's weight and scale enter both factors by their square roots; the cross terms are peft's.
        root = content.scale**0.5
        down = root * content.down_RI + style.down_RI
        up = root * content.up_OR + style.up_OR
        expected = up.double() @ down.double()
        assert (dense(mixed.layers[name]) - expected).norm() < 1e-4 * expected.norm()
    with pytest.raises(InvalidLora, match="one rank"):
        merge(base, [case], combination="linear")


@pytest.mark.parametrize("density", [0.0, 1.1])
def test_density_out_of_bounds_is_refused(base: DiffusionBase, case: MergeCase, density: float) -> None:
    with pytest.raises(InvalidConfig, match="density"):
        merge(base, [case], combination="ties_svd", density=density)
