from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.config import MaskStart, MergeConfig
from duolora.lora.canonical import canonicalise
from duolora.method.closed_form import rank_gram, solve_masks
from duolora.method.measured_priors import measured_priors
from duolora.method.merge_start import MomentRecorder, starting_masks
from duolora.method.priors import Role
from tests.duolora.pico import random_lora

if TYPE_CHECKING:
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

ROLES = {"content": Role.CONTENT, "style": Role.STYLE}


def sides(base: DiffusionBase, seed: int = 0) -> dict[str, LoraWeights]:
    return {side: canonicalise(random_lora(base, seed=seed + role, ranks=(3,))) for role, side in enumerate(ROLES)}


def start(base: DiffusionBase, *tenants: dict[str, LoraWeights], kind: MaskStart, **roles: Role) -> dict:
    given = tenants or (sides(base),)
    layer_roles = dict.fromkeys(given[0]["content"].layers, Role.STYLE)  # as if all ran at high resolution
    return starting_masks(
        list(given), MergeConfig(start=kind, prior_start=1 / 3), layer_roles=layer_roles, side_roles=roles or ROLES
    )


def test_ones_are_the_plain_sum(base: DiffusionBase) -> None:
    for of_side in start(base, kind=MaskStart.ONES).values():
        assert all(torch.equal(mask, torch.ones(1, 3)) for mask in of_side.values())


def test_leading_keeps_the_dominant_role_whole_and_a_share_of_the_other(base: DiffusionBase) -> None:
    masks = start(base, kind=MaskStart.LEADING)

    assert all(torch.equal(mask, torch.tensor([[1.0, 0, 0]])) for mask in masks["content"].values())
    assert all(torch.equal(mask, torch.ones(1, 3)) for mask in masks["style"].values())


def test_measured_masks_are_every_tenants_own(base: DiffusionBase) -> None:
    tenants = [sides(base), sides(base, seed=5)]

    masks = start(base, *tenants, kind=MaskStart.MEASURED)

    for side, role in ROLES.items():
        for name, mask_JR in masks[side].items():
            for tenant, mask_R in zip(tenants, mask_JR, strict=True):
                expected = measured_priors()[role].mask(name, tenant[side].layers[name], Role.STYLE)
                torch.testing.assert_close(mask_R, expected)


def test_sides_of_one_role_share_what_one_of_them_would_have(base: DiffusionBase) -> None:
    two = sides(base)
    three = {**two, "style-2": two["style"]}

    alone, shared = (
        start(base, given, kind=MaskStart.MEASURED, **roles)
        for given, roles in ((two, ROLES), (three, {**ROLES, "style-2": Role.STYLE}))
    )

    for name, mask_JR in alone["style"].items():
        torch.testing.assert_close(shared["style"][name] + shared["style-2"][name], mask_JR)
        torch.testing.assert_close(shared["content"][name], alone["content"][name])


def test_closed_form_comes_near_both_loras_on_their_own_inputs(base: DiffusionBase) -> None:
    """Per layer, measured on the very inputs: nearer to each side's own change than the plain sum, and than nothing."""
    given = sides(base)
    with RankSpaceAdapter(given).inject(base.unet) as adapter, torch.no_grad():
        inputs: dict[str, list[torch.Tensor]] = {name: [] for name in adapter.layers}
        hooks = [
            layer.register_forward_pre_hook(lambda _m, args, name=name: inputs[name].append(args[0]))
            for name, layer in adapter.layers.items()
        ]
        with MomentRecorder(adapter) as recorder:
            for role in range(2):
                adapter.assign_all(role, 2)
                generator = torch.Generator().manual_seed(role)
                noisy = torch.randn(2, 4, 8, 8, generator=generator)
                base.predict_noise(noisy, torch.tensor([300, 600]), base.encode_prompts(["a disc", "a ball"]))
        masks = recorder.solve(ridge=1e-6)
        for hook in hooks:
            hook.remove()

    def error(name: str, mask: dict[str, torch.Tensor]) -> float:
        total = 0.0
        for x_BTI, own in zip(inputs[name], given, strict=True):
            wanted = x_BTI @ given[own].layers[name].delta_OI().T
            got = sum(
                (x_BTI @ lora.layers[name].down_RI.T * mask[side]) @ lora.layers[name].up_OR.T
                for side, lora in given.items()
            )
            total += ((got - wanted).square().sum() / wanted.square().sum()).item()
        return total

    for name in masks["content"]:
        solved = error(name, {side: masks[side][name][0] for side in masks})
        assert solved < error(name, {side: torch.ones(3) for side in masks})
        assert solved < error(name, {side: torch.zeros(3) for side in masks}) == pytest.approx(2)


def test_recorder_leaves_no_hook_behind(base: DiffusionBase) -> None:
    with RankSpaceAdapter(sides(base)).inject(base.unet) as adapter:
        with MomentRecorder(adapter):
            assert all(layer._forward_pre_hooks for layer in adapter.layers.values())
        assert not any(layer._forward_pre_hooks for layer in adapter.layers.values())


def test_layers_of_any_ranks_are_solved_as_each_would_be_alone(base: DiffusionBase) -> None:
    """Layers of equal ranks share one call; ranks differ from layer to layer here, and the style misses one layer."""
    paths = base.target_layers("attention")
    given = {
        "content": random_lora(base, seed=1, ranks=(2, 4), scale=0.1, paths=paths),
        "style": random_lora(base, seed=2, ranks=(3, 2, 2), scale=0.1, paths=paths[:-1]),
    }
    source = torch.Generator().manual_seed(0)
    with RankSpaceAdapter(given).inject(base.unet) as adapter, torch.no_grad():
        recorder = MomentRecorder(adapter)
        factors: dict[str, torch.Tensor] = {}
        with recorder:
            for role in range(2):
                for name, layer in adapter.layers.items():
                    adapter.assign_all(role, 2)
                    layer(torch.randn(2, 5, layer.base.in_features, generator=source))
                    factors[name] = torch.cat(list(layer.ups.values()), dim=2)
        solved = recorder.solve(0.1)
        for name, layer in adapter.layers.items():
            grams = {side: rank_gram(factors[name], sums) for side, sums in recorder._sums[name].items()}
            content = layer.ranks["content"]
            spans = {"content": slice(0, content)}
            if "style" in layer.ranks:
                spans["style"] = slice(content, content + layer.ranks["style"])
            alone_JR = solve_masks(grams, spans, ridge=0.1, toward=1.0)
            for side, span in spans.items():
                torch.testing.assert_close(solved[side][name], alone_JR[:, span], rtol=1e-5, atol=1e-6)
    assert f"unet.{paths[-1]}" not in solved["style"]
