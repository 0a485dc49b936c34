from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from duolora.adapters import RankSpaceAdapter, RankSpaceLinear, fresh_lora, role_rows
from duolora.errors import InvalidLora, LayerGroupEmpty
from duolora.lora.weights import LoraWeights
from duolora.method.ziprank import merge_by_masks
from tests.duolora.pico import random_layer, random_lora

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.models.base import DiffusionBase

CPU = torch.device("cpu")
CONTENT, STYLE = 0, 1
SIDES = ("content", "style")


def inputs(base: DiffusionBase, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, object]:
    """Noised latents, timesteps and prompts, all different."""
    generator = torch.Generator().manual_seed(seed)
    prompts = base.encode_prompts([f"picture number {index}" for index in range(batch)])
    return torch.randn(batch, 4, 8, 8, generator=generator), torch.arange(batch) * 150 + 50, prompts


def two_sides(base: DiffusionBase) -> dict[str, LoraWeights]:
    """Ranks differ between the sides; each side also changes a layer that the other does not."""
    paths = base.target_layers("attention")
    return {
        "content": random_lora(base, seed=1, ranks=(3,), paths=paths[:-1]),
        "style": random_lora(base, seed=2, ranks=(2, 4), paths=paths[1:]),
    }


def test_inject_attaches_every_layer_of_every_side_exactly_once(base: DiffusionBase) -> None:
    sides = two_sides(base)
    originals = {path: module for path, module in base.unet.named_modules() if isinstance(module, nn.Linear)}

    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        attached = {path: m for path, m in base.unet.named_modules() if isinstance(m, RankSpaceLinear)}
        assert {f"unet.{path}" for path in attached} == set(sides["content"].layers) | set(sides["style"].layers)
        assert set(adapter.layers) == {f"unet.{path}" for path in attached}
        assert all(module.base is originals[path] for path, module in attached.items())
        assert not any(isinstance(module.base, RankSpaceLinear) for module in attached.values())


def test_second_inject_is_refused_and_changes_nothing(base: DiffusionBase) -> None:
    sides = two_sides(base)

    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        attached = dict(adapter.layers)
        with pytest.raises(InvalidLora, match="attached already"):
            adapter.inject(base.unet)
        with pytest.raises(InvalidLora, match="only free linear layers"):
            RankSpaceAdapter(sides).inject(base.unet)
        assert adapter.layers == attached


def test_layer_of_another_shape_is_refused_by_name_and_side(base: DiffusionBase) -> None:
    path = base.target_layers("attention")[3]
    wrong = LoraWeights({f"unet.{path}": random_layer(5, 7, 2)})
    right = random_lora(base)

    with pytest.raises(InvalidLora, match=rf"unet\.{path} of the style LoRA .*\(5, 7\)"):
        RankSpaceAdapter({"content": right, "style": wrong}).inject(base.unet)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet.down_blocks.9.attentions.0.to_q", r"no layer down_blocks\.9\.attentions\.0\.to_q"),
        ("unet.conv_in", "conv_in is a Conv2d"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "is not a layer of 'unet'"),
    ],
)
def test_layer_that_the_base_does_not_have_is_refused_by_name(base: DiffusionBase, name: str, message: str) -> None:
    weights = LoraWeights({**random_lora(base).layers, name: random_layer(8, 8, 2)})

    with pytest.raises(InvalidLora, match=message):
        RankSpaceAdapter({"lora": weights}).inject(base.unet)


class StopHereError(Exception):
    pass


def stop_here() -> None:
    raise StopHereError


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_restores_the_very_same_modules_and_outputs(base: DiffusionBase, fails: bool) -> None:
    before = {path: id(module) for path, module in base.unet.named_modules()}
    noisy, timesteps, prompts = inputs(base, 2)
    with torch.no_grad():
        expected = base.predict_noise(noisy, timesteps, prompts)

    try:
        with RankSpaceAdapter({"lora": random_lora(base)}).inject(base.unet) as adapter, torch.no_grad():
            adapter.assign_all(0, 2)
            changed = base.predict_noise(noisy, timesteps, prompts)
            if fails:
                stop_here()
    except StopHereError:
        pass

    assert (changed - expected).abs().mean() > 0.05
    assert {path: id(module) for path, module in base.unet.named_modules()} == before
    with torch.no_grad():
        assert torch.equal(base.predict_noise(noisy, timesteps, prompts), expected)
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


def test_an_adapter_can_be_injected_again_after_it_was_ejected(base: DiffusionBase) -> None:
    adapter = RankSpaceAdapter({"lora": random_lora(base)})

    for _ in range(2):
        with adapter.inject(base.unet):
            assert len(adapter.layers) == 88
        assert not adapter.layers


def test_running_without_roles_is_an_error_not_a_guess(base: DiffusionBase) -> None:
    with RankSpaceAdapter(two_sides(base)).inject(base.unet), pytest.raises(RuntimeError, match="assign a role"):
        base.predict_noise(*inputs(base, 1))


def test_roles_of_one_batch_equal_separate_passes(base: DiffusionBase) -> None:
    sides = two_sides(base)
    noisy, timesteps, prompts = inputs(base, 3)
    generator = torch.Generator().manual_seed(3)
    with RankSpaceAdapter(sides).inject(base.unet) as adapter, torch.no_grad():
        masks = {
            side: {name: torch.rand(layer.rank, generator=generator) for name, layer in weights.layers.items()}
            for side, weights in sides.items()
        }
        adapter.learn_masks(masks)
        adapter.assign(torch.tensor([STYLE, adapter.merged, CONTENT]))
        together = base.predict_noise(noisy, timesteps, prompts)

    alone = {"content": sides["content"], "style": sides["style"], "merged": merge_by_masks(sides, masks)}
    for index, name in enumerate(("style", "merged", "content")):
        row = torch.tensor([index])
        with RankSpaceAdapter({"lora": alone[name]}).inject(base.unet) as adapter, torch.no_grad():
            adapter.assign_all(0, 1)
            separate = base.predict_noise(noisy[row], timesteps[row], prompts[row])
        torch.testing.assert_close(together[row], separate, rtol=1e-4, atol=1e-4)


def test_one_side_alone_equals_adding_its_delta_to_the_weights(base: DiffusionBase) -> None:
    lora = random_lora(base, alpha=1.0)
    noisy, timesteps, prompts = inputs(base, 2)
    with RankSpaceAdapter({"lora": lora}).inject(base.unet) as adapter, torch.no_grad():
        adapter.assign_all(0, 2)
        adapted = base.predict_noise(noisy, timesteps, prompts)

    weights = {name: base.unet.get_submodule(name.removeprefix("unet.")).weight for name in lora.layers}
    saved = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.add_(lora.layers[name].delta_OI())
            fused = base.predict_noise(noisy, timesteps, prompts)
    finally:
        for name, weight in weights.items():
            weight.data.copy_(saved[name])

    torch.testing.assert_close(adapted, fused, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (3, 2, 5, 8)])
def test_roles_hold_for_inputs_of_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    """Layers of the time embedding see one vector a sample: (B, I)."""
    model = nn.ModuleDict({"layer": nn.Linear(8, 6)})
    sides = {
        "content": LoraWeights({"unet.layer": random_layer(6, 8, 3, seed=1)}),
        "style": LoraWeights({"unet.layer": random_layer(6, 8, 2, seed=2)}),
    }
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with RankSpaceAdapter(sides).inject(model) as adapter, torch.no_grad():
        adapter.assign(torch.tensor([CONTENT, STYLE, CONTENT]))
        found = model["layer"](x)

    expected = torch.stack(
        [
            nn.functional.linear(
                x[sample], model["layer"].weight + sides[side].layers["unet.layer"].delta_OI(), model["layer"].bias
            )
            for sample, side in enumerate(("content", "style", "content"))
        ]
    )
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_content_sample_reaches_content_factors_only(base: DiffusionBase) -> None:
    with RankSpaceAdapter(two_sides(base)).inject(base.unet) as adapter:
        content, style = adapter.train_factors("content"), adapter.train_factors("style")
        adapter.assign_all(CONTENT, 1)
        base.predict_noise(*inputs(base, 1)).square().sum().backward()

        assert all(factor.grad is not None and factor.grad.abs().max() > 0 for factor in content)
        assert all(factor.grad is None or factor.grad.abs().max() == 0 for factor in style)
    assert all(parameter.grad is None for parameter in base.unet.parameters())


def test_masks_learn_alone(base: DiffusionBase) -> None:
    sides = two_sides(base)
    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        ones = {
            side: {name: torch.ones(layer.rank) for name, layer in weights.layers.items()}
            for side, weights in sides.items()
        }
        masks = adapter.learn_masks(ones)
        adapter.assign_all(adapter.merged, 1)
        base.predict_noise(*inputs(base, 1)).square().sum().backward()

        learning = [parameter for parameter in base.unet.parameters() if parameter.requires_grad]
        assert {id(parameter) for parameter in learning} == {id(mask) for mask in masks}
        assert sum(mask.numel() for mask in masks) == sum(
            layer.rank for weights in sides.values() for layer in weights.layers.values()
        )
        assert all(mask.grad is not None and mask.grad.abs().max() > 0 for mask in masks)


def test_masks_do_not_learn_from_samples_of_the_sides(base: DiffusionBase) -> None:
    lora = random_lora(base)
    with RankSpaceAdapter({"content": lora, "style": lora}).inject(base.unet) as adapter:
        start = {name: torch.ones(layer.rank) for name, layer in lora.layers.items()}
        masks = adapter.learn_masks({"content": start, "style": start})
        adapter.assign(torch.tensor([CONTENT, STYLE]))
        predicted = base.predict_noise(*inputs(base, 2))

        assert masks
        assert not predicted.requires_grad


def test_in_a_mixed_pass_masks_learn_from_the_merged_samples_as_they_would_alone(base: DiffusionBase) -> None:
    sides = two_sides(base)
    start = {
        side: {name: torch.full((layer.rank,), 0.7) for name, layer in lora.layers.items()}
        for side, lora in sides.items()
    }
    noisy, timesteps, prompts = inputs(base, 3)
    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        masks = adapter.learn_masks(start)
        adapter.assign(torch.tensor([CONTENT, adapter.merged, STYLE]))
        mixed = torch.autograd.grad(base.predict_noise(noisy, timesteps, prompts).square().sum(), masks)
        adapter.assign(torch.tensor([adapter.merged]))
        middle = torch.tensor([1])
        alone = base.predict_noise(noisy[middle], timesteps[middle], prompts[middle])
        expected = torch.autograd.grad(alone.square().sum(), masks)

    for found, known in zip(mixed, expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-5 * float(known.abs().max()))


def test_learned_masks_are_split_as_they_were_given(base: DiffusionBase) -> None:
    sides = two_sides(base)
    generator = torch.Generator().manual_seed(0)
    starts = {
        side: {name: torch.rand(layer.rank, generator=generator) for name, layer in weights.layers.items()}
        for side, weights in sides.items()
    }
    with RankSpaceAdapter(sides).inject(base.unet) as adapter:
        with pytest.raises(RuntimeError, match="no masks"):
            adapter.learned_masks()
        adapter.learn_masks(starts)
        learned = adapter.learned_masks()

    for side, of_side in starts.items():
        assert learned[side].keys() == of_side.keys()
        assert all(torch.equal(learned[side][name][0], mask) for name, mask in of_side.items())


def test_export_returns_the_factors_with_the_scale_folded_in(base: DiffusionBase) -> None:
    lora = random_lora(base, alpha=2.0)

    with RankSpaceAdapter({"content": lora, "style": random_lora(base, seed=5)}).inject(base.unet) as adapter:
        exported = adapter.export("content")

    assert set(exported.layers) == set(lora.layers)
    for name, layer in lora.layers.items():
        assert exported.layers[name].alpha == layer.rank
        torch.testing.assert_close(exported.layers[name].delta_OI(), layer.delta_OI())


def test_fresh_lora_changes_nothing_and_can_learn(base: DiffusionBase) -> None:
    generator = torch.Generator().manual_seed(0)

    lora = fresh_lora(base.unet, base.target_layers("attention"), 3, generator)

    for name, layer in lora.layers.items():
        bound = base.unet.get_submodule(name.removeprefix("unet.")).in_features ** -0.5
        assert layer.rank == 3
        assert layer.delta_OI().abs().max() == 0
        assert 0.5 * bound < layer.down_RI.abs().max() <= bound


def test_fresh_lora_on_no_layers_is_refused(base: DiffusionBase) -> None:
    with pytest.raises(LayerGroupEmpty):
        fresh_lora(base.unet, [], 3, torch.Generator())


def test_fresh_lora_on_a_convolution_is_refused(base: DiffusionBase) -> None:
    with pytest.raises(InvalidLora, match="conv_in is a Conv2d"):
        fresh_lora(base.unet, ["conv_in"], 3, torch.Generator())


def test_role_rows_follow_the_counts() -> None:
    assert role_rows([(0, 2), (2, 1), (1, 0), (1, 3)], CPU).tolist() == [0, 0, 2, 1, 1, 1]


def test_every_tenant_meets_its_own_loras_only(base: DiffusionBase) -> None:
    """Three tenants with other ranks and other masks, two samples each: the same as one pass for each."""
    tenants = [
        {side: random_lora(base, seed=10 * tenant + role, ranks=(2 + tenant,)) for role, side in enumerate(SIDES)}
        for tenant in range(3)
    ]
    noisy, timesteps, prompts = inputs(base, 6)
    rows = torch.tensor([2, CONTENT, 2, STYLE, STYLE, 2])
    generator = torch.Generator().manual_seed(0)
    masks = [
        {side: {name: torch.rand(layer.rank, generator=generator) for name, layer in lora.layers.items()}
         for side, lora in sides.items()}
        for sides in tenants
    ]  # fmt: skip
    padded = {
        side: {name: torch.stack([pad(of[side][name], (0, 4 - len(of[side][name]))) for of in masks]) for name in names}
        for side, names in masks[0].items()
    }

    with RankSpaceAdapter(*tenants).inject(base.unet) as adapter, torch.no_grad():
        adapter.learn_masks(padded)
        adapter.assign(rows)
        together = base.predict_noise(noisy, timesteps, prompts)

    for tenant, (sides, mask) in enumerate(zip(tenants, masks, strict=True)):
        span = torch.arange(2 * tenant, 2 * tenant + 2)
        with RankSpaceAdapter(sides).inject(base.unet) as adapter, torch.no_grad():
            adapter.learn_masks(mask)
            adapter.assign(rows[span])
            alone = base.predict_noise(noisy[span], timesteps[span], prompts[span])
        torch.testing.assert_close(together[span], alone, rtol=1e-4, atol=1e-5)


def test_tenants_with_other_sides_are_refused(base: DiffusionBase) -> None:
    lora = random_lora(base)
    with pytest.raises(InvalidLora, match="same sides"):
        RankSpaceAdapter({"content": lora}, {"style": lora})
