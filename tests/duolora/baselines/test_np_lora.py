from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from duolora.baselines.np_lora import merge
from duolora.errors import InvalidConfig
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.method.merge_case import MergeCase
from tests.duolora.dense import dense, side_dense

if TYPE_CHECKING:
    from duolora.models.base import DiffusionBase


def reference(content: torch.Tensor, style: torch.Tensor, rank: int, strength: float) -> torch.Tensor:
    """dW_s + dW_c (I - strength V V^T) with V from the dense SVD."""
    v_IK = torch.linalg.svd(style, full_matrices=False).Vh[:rank].mT
    return style + content - strength * content @ v_IK @ v_IK.mT


@pytest.mark.parametrize(("mu", "strength"), [(0.0, 0.0), (0.5, 1 / 3), (3.0, 0.75), (math.inf, 1.0)])
@pytest.mark.parametrize("directions", [None, 2])
def test_equals_the_dense_formula(
    base: DiffusionBase, case: MergeCase, mu: float, strength: float, directions: int | None
) -> None:
    merged = merge(base, [case], mu=mu, directions=directions)[0]

    for name, layer in merged.layers.items():
        found = dense(layer)
        content, style = (side_dense(case, side, name, found) for side in ("content", "style"))
        expected = reference(content, style, directions or 3, strength) if style.norm() > 0 else content
        assert (found - expected).norm() < 1e-5 * expected.norm(), name


def test_full_projection_leaves_the_content_nothing_that_the_style_reads(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], mu=math.inf)[0]

    for name, style in case.loras["style"].layers.items():
        content = dense(merged.layers[name]) - dense(style)
        reads = style.down_RI.double()
        assert (content @ reads.mT).norm() < 1e-5 * content.norm() * reads.norm()
        assert (dense(case.loras["content"].layers[name]) @ reads.mT).norm() > 1e-2 * content.norm() * reads.norm()


def test_directions_that_the_style_does_not_use_are_left_to_the_content(base: DiffusionBase, case: MergeCase) -> None:
    """A style down factor whose last row the up factor ignores must not cost the content that row."""
    name, layer = next(iter(case.loras["style"].layers.items()))
    up_OR = layer.up_OR.clone()
    up_OR[:, -1] = 0
    idle = LoraWeights({name: LoraLayer(layer.down_RI, up_OR, layer.alpha)})
    content = LoraWeights({name: case.loras["content"].layers[name]})

    merged = merge(base, [MergeCase({"content": content, "style": idle}, case.encoded, case.joint, 0)], mu=math.inf)[0]

    expected = reference(dense(content.layers[name]), dense(idle.layers[name]), 2, 1.0)
    assert (dense(merged.layers[name]) - expected).norm() < 1e-5 * expected.norm()


def test_result_is_an_ordinary_lora_of_the_summed_rank(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case])[0]

    for name, layer in merged.layers.items():
        assert layer.rank == layer.alpha == (7 if name in case.loras["style"].layers else 4)
        assert layer.down_RI.dtype == layer.up_OR.dtype == torch.float32


def test_negative_mu_is_refused(base: DiffusionBase, case: MergeCase) -> None:
    with pytest.raises(InvalidConfig, match="mu"):
        merge(base, [case], mu=-0.1)
