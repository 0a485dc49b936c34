from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duolora.baselines.weighted_sum import merge
from duolora.errors import InvalidLora
from tests.duolora.dense import dense, side_dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def test_each_side_counts_with_its_weight_and_nothing_is_rounded_away(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], content_weight=0.7, style_weight=-1.3)[0]

    assert set(merged.layers) == set(case.loras["content"].layers)
    for name, layer in merged.layers.items():
        found = dense(layer)
        expected = 0.7 * side_dense(case, "content", name, found) - 1.3 * side_dense(case, "style", name, found)
        assert (found - expected).norm() < 1e-6 * expected.norm()
        assert layer.rank == sum(lora.layers[name].rank for lora in case.loras.values() if name in lora.layers)


def test_side_of_weight_zero_leaves_the_result(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], content_weight=0)[0]

    assert set(merged.layers) == set(case.loras["style"].layers)
    assert {layer.rank for layer in merged.layers.values()} == {3}


def test_nothing_at_all_is_refused(base: DiffusionBase, case: MergeCase) -> None:
    with pytest.raises(InvalidLora):
        merge(base, [case], content_weight=0, style_weight=0)


def test_cases_come_back_in_order(base: DiffusionBase, make_case: Callable[..., MergeCase]) -> None:
    cases = [make_case(seed=0), make_case(seed=1)]

    both = merge(base, cases)

    name = next(iter(cases[0].loras["content"].layers))
    for case, merged in zip(cases, both, strict=True):
        alone = dense(merge(base, [case])[0].layers[name])
        assert (dense(merged.layers[name]) - alone).norm() == 0
