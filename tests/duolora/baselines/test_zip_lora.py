from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines.column_masks import ColumnMaskedLinear, swapped
from duolora.baselines.noised_cases import NoisedCases, predict_as
from duolora.baselines.zip_lora import distillation, merge, similarity
from duolora.capture import CapturedPredictor
from duolora.errors import TrainingDiverged
from duolora.method.merge_case import SIDES
from tests.duolora.dense import assert_same_change, dense, side_dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def masks_of(case: MergeCase, merged: LoraWeights, name: str) -> dict[str, torch.Tensor]:
    """The merger vectors of a layer, from the dense change: one least squares problem of two unknowns per row."""
    found = dense(merged.layers[name])
    sides = torch.stack([side_dense(case, side, name, found) for side in SIDES], dim=-1)
    solved = torch.linalg.lstsq(sides, found[..., None]).solution[..., 0]
    residual = (sides @ solved[..., None])[..., 0] - found
    assert residual.norm() < 1e-5 * found.norm(), f"{name} is no mask over outputs of the two changes"
    return {side: solved[:, index] for index, side in enumerate(SIDES)}


def student(base: DiffusionBase, outputs: int = 32) -> tuple[ColumnMaskedLinear, dict[str, tuple[torch.Tensor, ...]]]:
    generator = torch.Generator().manual_seed(4)
    factors = {
        side: (torch.randn(2, rank, 16, generator=generator), torch.randn(2, outputs, rank, generator=generator))
        for side, rank in (("content", 3), ("style", 2))
    }
    layer = ColumnMaskedLinear(torch.nn.Linear(16, outputs), factors, {"content": 1.0, "style": 1.0})
    with torch.no_grad():
        for mask in layer.masks.values():
            mask.copy_(torch.rand(mask.shape, generator=generator))
    return layer, factors


def test_masked_layer_equals_the_dense_formula_for_every_tenant(base: DiffusionBase) -> None:
    layer, factors = student(base)
    x = torch.randn(4, 5, 16)

    found = layer(x)

    for sample in range(4):
        tenant = sample // 2
        weight = layer.base.weight.double()
        for side, (down, up) in factors.items():
            weight = weight + layer.masks[side][tenant].double()[:, None] * (up[tenant] @ down[tenant]).double()
        expected = x[sample].double() @ weight.mT + layer.base.bias.double()
        torch.testing.assert_close(found[sample].double(), expected, rtol=1e-4, atol=1e-4)


def test_only_the_masks_learn(base: DiffusionBase) -> None:
    layer, _ = student(base)
    layer.base.requires_grad_(False)

    layer(torch.randn(4, 5, 16)).square().sum().backward()

    assert {name for name, parameter in layer.named_parameters() if parameter.requires_grad} == {
        "masks.content",
        "masks.style",
    }
    assert all(mask.grad.abs().min() > 0 for mask in layer.masks.values())


def test_result_masks_the_outputs_of_both_changes_exactly(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], steps=3, learning_rate=0.05)[0]

    moved = 0
    for name in case.loras["style"].layers:
        masks = masks_of(case, merged, name)
        for mask_O in masks.values():
            # Adam's first steps move every number by about the learning rate.
            assert (mask_O - 1).abs().max() < 3.5 * 0.05
            moved += int(((mask_O - 1).abs() > 0.01).sum())
        assert merged.layers[name].rank == 7
    assert moved > 1000


def test_no_steps_give_the_plain_sum(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], steps=0, start=0.5)[0]

    for name, layer in merged.layers.items():
        found = dense(layer)
        expected = 0.5 * sum(side_dense(case, side, name, found) for side in SIDES)
        assert (found - expected).norm() < 1e-6 * expected.norm()


def test_training_brings_the_merge_nearer_to_both_teachers(base: DiffusionBase, case: MergeCase) -> None:
    """Judged on samples that the training did not see."""
    unseen = NoisedCases.draw(base, [type(case)(case.loras, case.encoded, case.joint, 99)], 6)
    with RankSpaceAdapter({side: case.loras[side] for side in SIDES}).inject(base.unet) as adapter:
        teacher = predict_as(base, adapter, unseen, range(2))

    def distance(lora: LoraWeights) -> float:
        with RankSpaceAdapter({"merged": lora}).inject(base.unet) as adapter, torch.no_grad():
            adapter.assign_all(0, 12)
            return float(distillation(CapturedPredictor(base), unseen, teacher))

    before, after = (distance(merge(base, [case], steps=s, learning_rate=0.05)[0]) for s in (0, 15))

    assert after < 0.8 * before, f"{before:.4f} -> {after:.4f}"


def test_teachers_own_lora_has_no_distance_from_its_teacher(base: DiffusionBase, case: MergeCase) -> None:
    samples = NoisedCases.draw(base, [case], 2)
    with RankSpaceAdapter({side: case.loras[side] for side in SIDES}).inject(base.unet) as adapter, torch.no_grad():
        teacher = predict_as(base, adapter, samples, range(2))
        for role, (own, other) in enumerate(((0, 1), (1, 0))):
            adapter.assign_all(role, 4)
            errors = (samples.predict(base.predict_noise) - teacher).abs().amax(dim=(0, 2, 3, 4, 5))
            assert errors[own] < 1e-4
            assert errors[other] > 1e-2


def test_similarity_is_the_mean_product_of_a_layer_summed_over_layers_and_cases(base: DiffusionBase) -> None:
    layer, _ = student(base)

    found = similarity({"one": layer, "two": layer})

    products = (layer.masks["content"] * layer.masks["style"]).abs()
    assert float(found.detach()) == pytest.approx(2 * float(products.detach().sum()) / products.shape[1], rel=1e-5)


def test_heavy_similarity_drives_the_vectors_apart(base: DiffusionBase, case: MergeCase) -> None:
    light, heavy = (merge(base, [case], steps=10, learning_rate=0.1, similarity_weight=w)[0] for w in (0.0, 100.0))

    name = next(iter(case.loras["style"].layers))
    products = [masks_of(case, merged, name) for merged in (light, heavy)]
    light_product, heavy_product = (float((m["content"] * m["style"]).abs().mean()) for m in products)
    assert heavy_product < 0.2 * light_product


def test_cases_together_learn_what_each_learns_alone(base: DiffusionBase, make_case: Callable[..., MergeCase]) -> None:
    cases = [make_case(seed=0), make_case(seed=1, content_ranks=(2,), style_ranks=(5,))]

    together = merge(base, cases, steps=4)

    for case, merged in zip(cases, together, strict=True):
        alone = merge(base, [case], steps=4)[0]
        assert_same_change(merged, alone, tolerance=1e-5)
    assert (
        dense(together[0].layers[min(together[0].layers)]).shape
        == dense(together[1].layers[min(together[1].layers)]).shape
    )


def test_seed_decides_the_samples(base: DiffusionBase, case: MergeCase) -> None:
    other = type(case)(case.loras, case.encoded, case.joint, case.seed + 1)

    first, again, different = (merge(base, [c], steps=2)[0] for c in (case, case, other))

    assert_same_change(first, again, tolerance=0)
    with pytest.raises(AssertionError):
        assert_same_change(first, different, tolerance=1e-5)


def test_swapping_puts_the_very_same_layers_back_after_an_error(base: DiffusionBase) -> None:
    path = base.target_layers("attention")[3]
    original = base.unet.get_submodule(path)

    stranger = torch.nn.Identity()

    def fail() -> None:
        assert base.unet.get_submodule(path) is stranger
        raise RuntimeError

    with pytest.raises(RuntimeError), swapped(base.unet, {path: stranger}):
        fail()

    assert base.unet.get_submodule(path) is original


def test_vectors_that_are_not_finite_are_reported(broken_base: DiffusionBase, case: MergeCase) -> None:
    with pytest.raises(TrainingDiverged, match="merger"):
        merge(broken_base, [case], steps=1)
