from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.adapters import RankSpaceAdapter, RankSpaceLinear
from duolora.baselines.noised_cases import NoisedCases
from duolora.baselines.ssr_merge import merge, router
from duolora.errors import InvalidConfig
from duolora.method.merge_case import SIDES
from tests.duolora.dense import assert_same_change, dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


@torch.no_grad()
def inputs_of(base: DiffusionBase, case: MergeCase, samples: int) -> dict[str, dict[str, torch.Tensor]]:
    """What every layer reads, side -> layer -> (X, I) float64, with the side's LoRA attached alone."""
    noised = NoisedCases.draw(base, [case], samples)
    read: dict[str, dict[str, torch.Tensor]] = {side: {} for side in SIDES}
    for index, side in enumerate(SIDES):
        with RankSpaceAdapter({side: case.loras[side]}).inject(base.unet) as adapter:
            adapter.assign_all(0, samples)
            hooks = [
                base.unet.get_submodule(name.removeprefix("unet.")).register_forward_pre_hook(
                    lambda _module, inputs, name=name, side=side: read[side].__setitem__(
                        name, inputs[0].double().flatten(0, -2)
                    )
                )
                for name in case.loras["content"].layers
            ]
            rows = noised.captions_JSN[0, index]
            base.predict_noise(noised.noisy_JSNCHW[0, index], noised.timesteps_JSN[0, index], noised.prompts[rows])
            for hook in hooks:
                hook.remove()
    return read


def test_equals_ridge_least_squares_solved_densely(base: DiffusionBase, case: MergeCase) -> None:
    """For every layer: M minimises sum_i |M A x_i - P_i A x_i|^2 + damping |M|^2, and dW = B M A."""
    ridge, samples = 0.05, 3

    merged = merge(base, [case], ridge=ridge, samples=samples)[0]

    read = inputs_of(base, case, samples)
    for name, layer in merged.layers.items():
        parts = {side: case.loras[side].layers[name].folded() for side in SIDES if name in case.loras[side].layers}
        down = torch.cat([part.down_RI for part in parts.values()]).double()
        up = torch.cat([part.up_OR for part in parts.values()], dim=1).double()
        owner = torch.cat([torch.full((part.rank,), SIDES.index(side)) for side, part in parts.items()])
        signals = [read[side][name] @ down.mT / len(read[side][name]) ** 0.5 for side in SIDES]
        wanted = [signal * (owner == index) for index, signal in enumerate(signals)]
        energy = sum(signal.square().sum() for signal in signals) / len(owner)
        rows = torch.cat([*signals, (ridge * energy).sqrt() * torch.eye(len(owner), dtype=torch.float64)])
        goals = torch.cat([*wanted, torch.zeros(len(owner), len(owner), dtype=torch.float64)])
        expected = up @ torch.linalg.lstsq(rows, goals).solution.mT @ down
        assert (dense(layer) - expected).norm() < 1e-3 * expected.norm(), name
        assert layer.rank == len(owner)


def test_each_side_keeps_its_signal_better_than_in_the_plain_sum(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], ridge=1e-4, samples=2)[0]

    read = inputs_of(base, case, 2)
    routed = summed = 0.0
    for name in case.loras["style"].layers:
        own = {side: dense(case.loras[side].layers[name]) for side in SIDES}
        for side in SIDES:
            x_XI = read[side][name]
            routed += float((x_XI @ (dense(merged.layers[name]) - own[side]).mT).square().mean())
            summed += float((x_XI @ (sum(own.values()) - own[side]).mT).square().mean())
    assert routed < 0.7 * summed


def test_router_of_signals_that_never_meet_passes_each_on() -> None:
    moments = torch.zeros(2, 1, 5, 5, dtype=torch.float64)
    moments[0, 0, :2, :2] = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    moments[1, 0, 2:, 2:] = 3 * torch.eye(3)

    passed = router(moments, {"content": 2, "style": 3}, ridge=1e-9)

    torch.testing.assert_close(passed[0], torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_large_ridge_switches_the_change_off(base: DiffusionBase, case: MergeCase) -> None:
    small, large = (merge(base, [case], ridge=ridge, samples=1)[0] for ridge in (1e-3, 1e6))

    for name, layer in large.layers.items():
        assert dense(layer).norm() < 1e-4 * dense(small.layers[name]).norm()


def test_cases_calibrated_together_get_what_each_gets_alone(
    base: DiffusionBase, make_case: Callable[..., MergeCase]
) -> None:
    cases = [make_case(seed=0), make_case(seed=1, content_ranks=(2,), style_ranks=(5,))]

    together = merge(base, cases, samples=2)

    for case, merged in zip(cases, together, strict=True):
        assert_same_change(merged, merge(base, [case], samples=2)[0], tolerance=1e-3)
        assert {layer.rank for layer in merged.layers.values()} == ({7, 4} if case.seed == 0 else {7, 2})


def test_base_is_left_without_hooks_or_adapters(base: DiffusionBase, case: MergeCase) -> None:
    merge(base, [case], samples=1)

    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())
    assert not any(module._forward_pre_hooks for module in base.unet.modules())


@pytest.mark.parametrize("knobs", [{"ridge": 0.0}, {"samples": 0}])
def test_knobs_out_of_bounds_are_refused(base: DiffusionBase, case: MergeCase, knobs: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig):
        merge(base, [case], **knobs)  # type: ignore[arg-type]
