from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.adapters import RankSpaceAdapter, RankSpaceLinear
from duolora.baselines.k_lora import KLora, attach
from duolora.baselines.noised_cases import NoisedCases
from duolora.config import GenerateConfig
from duolora.generate import sample_tenants
from duolora.lora.weights import LoraWeights
from tests.duolora.dense import dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def densely_chosen(case: MergeCase, step: int, total: int, *, balance: bool) -> dict[str, str]:
    """The side of every layer, by the formula on dense changes in float64."""
    deltas = {
        side: {name: dense(layer).abs() for name, layer in lora.layers.items()} for side, lora in case.loras.items()
    }
    sums = {side: sum(float(delta.sum()) for delta in of_side.values()) for side, of_side in deltas.items()}
    gamma = sums["content"] / sums["style"] if balance else 1.0
    chosen = {}
    for name in deltas["content"]:
        if name not in deltas["style"]:
            chosen[name] = "content"
            continue
        k = case.loras["content"].layers[name].rank * case.loras["style"].layers[name].rank
        content, style = (float(deltas[side][name].flatten().sort().values[-k:].sum()) for side in ("content", "style"))
        chosen[name] = "content" if content >= style * gamma * (1.5 * step / total + 0.5) else "style"
    return chosen


def pieced(case: MergeCase, chosen: dict[str, str]) -> LoraWeights:
    """One LoRA with the chosen side's part of every layer."""
    return LoraWeights({name: case.loras[side].layers[name] for name, side in chosen.items()})


@pytest.mark.parametrize("balance", [True, False])
def test_chooses_by_the_papers_formula_at_every_step(
    base: DiffusionBase, make_case: Callable[..., MergeCase], *, balance: bool
) -> None:
    cases = [make_case(seed=0), make_case(seed=1, content_ranks=(2, 5), style_ranks=(4,))]
    seen = set()
    with attach(base, cases, balance=balance) as adapter:
        names = sorted(cases[0].loras["content"].layers)
        for step in (0, 3, 5, 9):
            found_LJ = adapter.chooses_content(step, 10)
            for j, case in enumerate(cases):
                expected = densely_chosen(case, step, 10, balance=balance)
                assert ["content" if chosen else "style" for chosen in found_LJ[:, j]] == [expected[n] for n in names]
                seen |= {(step, side) for side in expected.values()}
    assert {side for _, side in seen} == {"content", "style"}


def test_style_is_chosen_more_often_in_later_steps(base: DiffusionBase, case: MergeCase) -> None:
    with attach(base, [case]) as adapter:
        shares = [float(adapter.chooses_content(step, 10).double().mean()) for step in range(10)]

    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9
    assert shares[-1] < 0.2


def test_pass_equals_one_with_the_chosen_parts_alone(base: DiffusionBase, make_case: Callable[..., MergeCase]) -> None:
    """Two tenants, two samples each; every step's choice takes effect."""
    cases = [make_case(seed=0), make_case(seed=1, content_ranks=(2, 5), style_ranks=(4,))]
    noised = NoisedCases.draw(base, cases, 1)
    before = []
    with torch.no_grad():
        with attach(base, cases) as adapter:
            for step in (0, 5):
                adapter.before_step(step, 10)
                before.append(noised.predict(base.predict_noise))
        for step, found in zip((0, 5), before, strict=True):
            for j, case in enumerate(cases):
                lora = pieced(case, densely_chosen(case, step, 10, balance=True))
                with RankSpaceAdapter({"only": lora}).inject(base.unet) as one:
                    one.assign_all(0, 2)
                    expected = NoisedCases.draw(base, [case], 1).predict(base.predict_noise)
                torch.testing.assert_close(found[j : j + 1], expected, rtol=0, atol=1e-4)
    assert (before[0] - before[1]).abs().max() > 1e-2


def test_content_that_wins_everywhere_samples_as_the_content_lora(base: DiffusionBase, case: MergeCase) -> None:
    config = GenerateConfig(steps=3, images=2, resolution_px=64, guidance_scale=3.0)
    prompts = [["a sbu disc", "a disc"]]

    chosen = sample_tenants(base, attach(base, [case], alpha=0.0, beta=1e-9), prompts, config, [5])
    content = sample_tenants(base, [case.loras["content"]], prompts, config, [5])
    style = sample_tenants(base, attach(base, [case], alpha=0.0, beta=1e9), prompts, config, [5])

    torch.testing.assert_close(chosen, content, rtol=0, atol=1e-3)
    assert (style - content).abs().max() > 0.05


def test_leaving_restores_the_base_even_after_an_error(base: DiffusionBase, case: MergeCase) -> None:
    with pytest.raises(ZeroDivisionError), attach(base, [case]) as adapter:
        adapter.before_step(0, 0)

    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())
    assert not base.unet._forward_pre_hooks


def test_entering_that_fails_leaves_the_base_as_it_was(
    base: DiffusionBase, case: MergeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_arguments: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(KLora, "_style_claims", exhausted)
    before = {name: id(module) for name, module in base.unet.named_modules()}
    with pytest.raises(torch.cuda.OutOfMemoryError), attach(base, [case]):
        pass

    assert {name: id(module) for name, module in base.unet.named_modules()} == before
    assert not base.unet._forward_pre_hooks
