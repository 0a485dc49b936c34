from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora.adapters import RankSpaceAdapter, RankSpaceLinear
from duolora.config import LayerPrior, MergeConfig
from duolora.errors import Cancelled, InvalidLora, TrainingDiverged
from duolora.lora.weights import LoraWeights
from duolora.losses import squared_error
from duolora.merge import MergeResult, MergeSide, encode_side, merge_cases, merge_loras
from duolora.method.constyle import CycleNoise, PredictNoise, cycle_loss
from duolora.method.merge_case import SIDES, MergeCase
from duolora.method.merge_objective import Cycles, MergeObjective
from duolora.method.priors import Role
from duolora.method.teacher_bank import teacher_bank
from tests.duolora.dense import assert_same_change
from tests.duolora.pico import random_lora, random_lora_on
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.models.base import DiffusionBase

JOINT = "a sbu disc in szn style"


def config(**changes: Any) -> MergeConfig:
    return MergeConfig(**({"steps": 2, "bank_size": 4} | changes))


@pytest.fixture
def sides(base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]) -> dict[str, MergeSide]:
    """Strong LoRAs of unequal rank; the style one misses the last layer."""
    paths = base.target_layers("attention")
    return {
        "content": MergeSide(
            random_lora(base, seed=1, ranks=(4,), scale=0.15), content_pictures, ["a sbu disc"] * len(content_pictures)
        ),
        "style": MergeSide(
            random_lora(base, seed=2, ranks=(2, 3), scale=0.15, paths=paths[:-1]),
            style_pictures,
            ["a disc in szn style"] * len(style_pictures),
        ),
    }


def merge(
    base: DiffusionBase, sides: dict[str, MergeSide], observer: Watcher | None = None, **changes: Any
) -> MergeResult:
    return merge_loras(base, sides, JOINT, config(**changes), resolution_px=64, observer=observer)


def mask_numbers(sides: dict[str, MergeSide]) -> int:
    return sum(layer.rank for side in sides.values() for layer in side.weights.layers.values())


def objective(
    base: DiffusionBase,
    sides: dict[str, MergeSide],
    adapter: RankSpaceAdapter,
    settings: MergeConfig,
    *,
    tenants: int = 1,
    apart: bool = False,
) -> MergeObjective:
    """The objective of a merge whose adapter is attached and learning; tenants differ in their seeds."""
    cases = [merge_case(base, sides, seed) for seed in range(tenants)]
    generators = [torch.Generator().manual_seed(case.seed) for case in cases]
    bank = teacher_bank(base, adapter, cases, settings.bank_size, generators)
    cycles = Cycles(base, adapter, cases)
    return MergeObjective(base, adapter, settings, bank=bank, cycles=cycles, layer_roles={}, side_roles={}, apart=apart)


def all_on(loras: dict[str, LoraWeights], tenants: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    """Masks that keep everything."""
    return {
        side: {name: torch.ones(tenants, layer.rank) for name, layer in weights.layers.items()}
        for side, weights in loras.items()
    }


def merge_case(base: DiffusionBase, sides: dict[str, MergeSide], seed: int = 0) -> MergeCase:
    encoded = {side: encode_side(base, sides[side].pictures, sides[side].captions, 64) for side in SIDES}
    return MergeCase({side: sides[side].weights for side in SIDES}, encoded, base.encode_prompts([JOINT]), seed)


def test_no_steps_and_no_prior_give_the_plain_sum(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    merged = merge(base, sides, steps=0, start="ones", prior="none", prune_below=0).weights

    content, style = sides["content"].weights, sides["style"].weights
    assert set(merged.layers) == set(content.layers)
    for name, layer in merged.layers.items():
        expected = content.layers[name].delta_OI()
        if name in style.layers:
            expected = expected + style.layers[name].delta_OI()
        torch.testing.assert_close(layer.delta_OI(), expected, rtol=0, atol=1e-5 * expected.norm().item())
        style_rank = style.layers[name].rank if name in style.layers else 0
        assert layer.rank == content.layers[name].rank + style_rank


def test_prior_start_keeps_the_dominant_side_whole_and_the_leading_share_of_the_other(
    base: DiffusionBase, sides: dict[str, MergeSide]
) -> None:
    result = merge(base, sides, steps=0, prior="resolution", prior_start=0.5)

    roles = {entry["role"] for entry in result.report["layers"].values()}
    assert roles == {"content", "style"}
    for name, entry in result.report["layers"].items():
        high = ".down_blocks.0." in name or ".up_blocks.1." in name
        assert entry["role"] == ("style" if high else "content")
        for side in SIDES:
            if side in entry:
                whole = entry[side]["rank"]
                assert entry[side]["kept"] == (whole if entry["role"] == side else round(whole / 2))


def test_distillation_loss_falls(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    """Evaluated on one fixed set of noised samples, at the start of the masks and after 15 steps."""
    settings = config(
        steps=15, learning_rate=0.05, batch_size=4, start="ones", prior="none", constyle_weight=0, bank_size=8
    )
    loras = {side: sides[side].weights.folded() for side in SIDES}
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        goal = objective(base, sides, adapter, settings)
        masks = adapter.learn_masks(all_on(loras))
        optimizer = torch.optim.Adam(masks, lr=settings.learning_rate)

        def fixed_loss() -> float:
            with torch.no_grad():
                return goal.evaluate(goal.draw(0, [torch.Generator().manual_seed(7)]))["distillation"].item()

        before = fixed_loss()
        generator = torch.Generator().manual_seed(1)
        for step in range(settings.steps):
            optimizer.zero_grad()
            goal.evaluate(goal.draw(step, [generator]))["total"].sum().backward()
            optimizer.step()
        after = fixed_loss()

    assert after < 0.8 * before, f"{before:.4f} -> {after:.4f}"


def test_reported_distillation_is_lower_at_the_end_than_at_the_start(
    base: DiffusionBase, sides: dict[str, MergeSide]
) -> None:
    report = merge(
        base, sides, steps=16, learning_rate=0.05, batch_size=4, start="ones", prior="none", constyle_weight=0
    ).report

    losses = [terms["distillation"] for terms in report["losses"]]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_teacher_of_a_side_is_that_sides_own_lora(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    """When only the content LoRA is kept, content samples are met exactly and style samples are not."""
    settings = config(start="ones", prior="none", constyle_weight=0)
    loras = {side: sides[side].weights.folded() for side in SIDES}
    for kept in SIDES:
        with RankSpaceAdapter(loras).inject(base.unet) as adapter, torch.no_grad():
            goal = objective(base, sides, adapter, settings)
            adapter.learn_masks(
                {
                    side: {
                        name: torch.full((layer.rank,), float(side == kept)) for name, layer in weights.layers.items()
                    }
                    for side, weights in loras.items()
                }
            )
            bank = goal._bank
            for index, side in enumerate(SIDES):
                rows = torch.arange(bank.per_side)[None] + index * bank.per_side
                adapter.assign_all(adapter.merged, bank.per_side)
                own = bank.samples(rows)
                merged = base.predict_noise(own.noisy(base.schedule), own.timesteps_B, own.prompts)
                error = (merged - own.teachers_BCHW).abs().max().item()
                assert (error < 1e-4) is (side == kept), f"{kept} kept, {side} samples: {error:.1e}"


def test_cycle_moves_the_masks(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    loras = {side: sides[side].weights.folded() for side in SIDES}
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        goal = objective(base, sides, adapter, config())
        masks = adapter.learn_masks(all_on(loras))
        goal.evaluate(goal.draw(0, [torch.Generator().manual_seed(0)]))["constyle"].sum().backward()

        assert all(mask.grad is not None and mask.grad.abs().max() > 0 for mask in masks)


@pytest.mark.parametrize("apart", [False, True])
def test_student_and_add_leg_have_the_merged_role_and_the_remove_leg_each_sides_own(
    base: DiffusionBase, sides: dict[str, MergeSide], monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    loras = {side: sides[side].weights.folded() for side in SIDES}
    passes: list[tuple[list[int], torch.Tensor]] = []
    with RankSpaceAdapter(loras).inject(base.unet) as adapter:
        goal = objective(base, sides, adapter, config(), apart=apart)
        adapter.learn_masks(all_on(loras))
        predict = base.predict_noise

        def watched(noisy: torch.Tensor, timesteps: torch.Tensor, prompts: Any) -> torch.Tensor:
            passes.append((adapter._roles.rows_B.tolist(), prompts.pooled_BP))
            return predict(noisy, timesteps, prompts)

        monkeypatch.setattr(base, "predict_noise", watched)
        goal.evaluate(goal.draw(0, [torch.Generator().manual_seed(0)]))

    joint = base.encode_prompts([JOINT, JOINT]).pooled_BP
    own = base.encode_prompts([sides[side].captions[0] for side in SIDES]).pooled_BP
    expected = [([2, 2], own), ([2, 2], joint), ([0, 1], own)]
    if not apart:
        expected = [([2, 2, 2, 2], torch.cat([own, joint])), ([0, 1], own)]
    assert [rows for rows, _ in passes] == [rows for rows, _ in expected]
    for (_, found), (_, pooled) in zip(passes, expected, strict=True):
        torch.testing.assert_close(found, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_terms_are_those_of_their_definitions_for_every_tenant(
    base: DiffusionBase, sides: dict[str, MergeSide], apart: bool
) -> None:
    """One sample after another, the direct path of the cycles asked anew instead of taken from the teachers."""
    loras = {side: sides[side].weights.folded() for side in SIDES}
    with RankSpaceAdapter(loras, loras).inject(base.unet) as adapter, torch.no_grad():
        goal = objective(base, sides, adapter, config(batch_size=2), tenants=2, apart=apart)
        adapter.learn_masks(all_on(loras, tenants=2))
        drawn = goal.draw(0, [torch.Generator().manual_seed(seed) for seed in (5, 6)])
        terms = goal.evaluate(drawn)

    asked, cycle = drawn.own, drawn.cycle
    assert cycle is not None
    one = RankSpaceAdapter(loras)
    with one.inject(base.unet) as adapter, torch.no_grad():
        adapter.learn_masks(all_on(loras))

        def predict(role: int, prompts: Any) -> PredictNoise:
            def ask(noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor) -> torch.Tensor:
                adapter.assign_all(role, 1)
                return base.predict_noise(noisy_BCHW, timesteps_B, prompts)

            return ask

        students = [
            squared_error(
                predict(2, asked.prompts[at])(asked.noisy(base.schedule)[at], asked.timesteps_B[at]),
                asked.teachers_BCHW[at],
            )
            for at in (torch.tensor([row]) for row in range(8))
        ]
        cycles = [
            cycle_loss(
                cycle.own.latents_BCHW[at],
                CycleNoise(cycle.own.timesteps_B[at], cycle.add_noise_BCHW[at], cycle.own.noise_BCHW[at]),
                add=predict(2, base.encode_prompts([JOINT])),
                remove=predict(int(at) % 2, cycle.own.prompts[at]),
                schedule=base.schedule,
            )
            for at in (torch.tensor([row]) for row in range(4))
        ]
    torch.testing.assert_close(terms["distillation"], torch.cat(students).view(2, 4).mean(1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(terms["constyle"], torch.cat(cycles).view(2, 2).mean(1), rtol=1e-3, atol=1e-6)


def test_terms_add_up_to_the_total_with_their_weights(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    report = merge(base, sides, steps=3, prior_weight=0.3, constyle_weight=0.2, constyle_every=2).report

    assert [sorted(terms) for terms in report["losses"]] == [
        ["constyle", "distillation", "prior", "total"],
        ["distillation", "prior", "total"],
        ["constyle", "distillation", "prior", "total"],
    ]
    for terms in report["losses"]:
        total = terms["distillation"] + 0.3 * terms["prior"] + 0.2 * terms.get("constyle", 0)
        assert terms["total"] == pytest.approx(total, abs=1e-5)


def test_prior_pulls_down_the_dominant_masks(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    """Under a huge weight every dominant mask falls by a full step of Adam, each step."""
    result = merge(base, sides, steps=3, prior_weight=1e4, prior_start=0.5, constyle_weight=0, prune_below=0)

    entries = [entry for entry in result.report["layers"].values() if all(side in entry for side in SIDES)]
    assert len(entries) == 87
    for entry in entries:
        assert entry[entry["role"]]["mean_mask"] == pytest.approx(0.97, abs=0.01)


def test_masks_learn_and_the_factors_are_left_alone(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    before = {
        (side, name): (layer.down_RI.clone(), layer.up_OR.clone())
        for side in SIDES
        for name, layer in sides[side].weights.layers.items()
    }

    result = merge(base, sides, steps=3)

    for (side, name), (down_RI, up_OR) in before.items():
        assert torch.equal(sides[side].weights.layers[name].down_RI, down_RI)
        assert torch.equal(sides[side].weights.layers[name].up_OR, up_OR)
    start = merge(base, sides, steps=0).weights
    for name, layer in start.layers.items():
        assert not torch.allclose(result.weights.layers[name].delta_OI(), layer.delta_OI(), rtol=1e-3), name


def test_report_counts_what_the_file_holds(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    result = merge(base, sides, steps=2, prune_below=0.5)

    report = result.report
    assert report["trainable"] == mask_numbers(sides)
    assert len(report["losses"]) == 2
    assert report["seconds"] > 0
    for name, entry in report["layers"].items():
        kept = sum(entry[side]["kept"] for side in SIDES if side in entry)
        assert kept == (result.weights.layers[name].rank if name in result.weights.layers else 0)
        assert all(entry[side]["rank"] == sides[side].weights.layers[name].rank for side in SIDES if side in entry)
    assert merge(base, sides, steps=0).report["trainable"] == 0  # nothing learnt
    last = f"unet.{base.target_layers('attention')[-1]}"
    assert set(report["layers"][last]) == {"role", "content"}  # the style LoRA does not change it


def test_merged_file_predicts_what_the_adapters_merged_role_predicts(
    base: DiffusionBase, sides: dict[str, MergeSide], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is exported is the model that was trained: same noise, same prompt, same prediction."""
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps, prompt = torch.tensor([500]), base.encode_prompts([JOINT])
    seen = []
    leave = RankSpaceAdapter.__exit__

    def predict_and_leave(adapter: RankSpaceAdapter, *error: Any) -> None:
        with torch.no_grad():
            adapter.assign_all(adapter.merged, 1)
            seen.append(base.predict_noise(noisy, timesteps, prompt))
        leave(adapter, *error)

    with monkeypatch.context() as patch:
        patch.setattr(RankSpaceAdapter, "__exit__", predict_and_leave)
        merged = merge(base, sides, steps=2, learning_rate=0.1, prune_below=0).weights

    with RankSpaceAdapter({"lora": merged}).inject(base.unet) as adapter, torch.no_grad():
        adapter.assign_all(0, 1)
        torch.testing.assert_close(base.predict_noise(noisy, timesteps, prompt), seen[0], rtol=1e-4, atol=1e-4)


def test_same_seed_gives_the_same_merge_and_another_a_different_one(
    base: DiffusionBase, sides: dict[str, MergeSide]
) -> None:
    one, same, other = (merge(base, sides, seed=seed) for seed in (1, 1, 2))

    assert one.report["losses"] == same.report["losses"]
    for name, layer in one.weights.layers.items():
        assert torch.equal(layer.up_OR, same.weights.layers[name].up_OR)
    assert one.report["losses"] != other.report["losses"]


def test_rotating_the_raw_factors_does_not_change_the_merge(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    """Masks stand in the SVD basis; on raw factors the result would depend on how the training turned them."""
    turn_RR = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(4)
    content = sides["content"]
    turned = LoraWeights(
        {
            name: type(layer)(torch.linalg.inv(turn_RR) @ layer.down_RI, layer.up_OR @ turn_RR, layer.alpha)
            for name, layer in content.weights.layers.items()
        }
    )
    rotated = {**sides, "content": MergeSide(turned, content.pictures, content.captions)}

    plain, again = (merge(base, each, steps=0, prior="resolution").weights for each in (sides, rotated))

    assert_same_change(again, plain, 1e-3)


def test_loras_that_share_no_layer_are_merged_side_by_side(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    paths = base.target_layers("attention")
    apart = {
        "content": MergeSide(
            random_lora(base, seed=1, paths=paths[::2]), sides["content"].pictures, sides["content"].captions
        ),
        "style": MergeSide(
            random_lora(base, seed=2, paths=paths[1::2]), sides["style"].pictures, sides["style"].captions
        ),
    }

    result = merge(base, apart, steps=1)

    assert set(result.weights.layers) == {f"unet.{path}" for path in paths}
    assert result.report["losses"][0]["prior"] == 0


def test_cases_merged_together_get_what_each_would_get_alone(
    base: DiffusionBase, sides: dict[str, MergeSide], style_pictures: list[Path]
) -> None:
    """Other LoRAs, pictures and seeds; all terms of the loss. Masks agree to 1e-3."""
    paths = base.target_layers("attention")
    other = {
        "content": MergeSide(random_lora(base, seed=8, ranks=(4,)), style_pictures[:1], ["a sbu disc"]),
        "style": MergeSide(
            random_lora(base, seed=9, ranks=(2, 3), paths=paths[:-1]), style_pictures, sides["style"].captions
        ),
    }
    cases = [merge_case(base, sides, seed=3), merge_case(base, other, seed=4)]
    settings = config(steps=4, batch_size=2, constyle_every=2, prune_below=0)

    together = merge_cases(base, cases, settings, resolution_px=64)

    for case, found in zip(cases, together, strict=True):
        alone = merge_cases(base, [case], settings, resolution_px=64)[0]
        for name, entry in alone.report["layers"].items():
            for side in set(entry) - {"role"}:
                assert found.report["layers"][name][side]["mean_mask"] == pytest.approx(
                    entry[side]["mean_mask"], abs=1e-3
                )
        assert_same_change(found.weights, alone.weights, 2e-3)


def test_convolutions_and_text_encoders_are_carried_through_as_they_are(
    base: DiffusionBase, sides: dict[str, MergeSide]
) -> None:
    carried = random_lora_on(base, [name for name in base.layers().shapes if name.endswith(("conv1", "q_proj"))])
    content = sides["content"]
    fuller = replace(content, weights=LoraWeights({**content.weights.layers, **carried.layers}))

    merged = merge(base, {**sides, "content": fuller}, steps=1).weights

    assert set(merged.layers) == set(fuller.weights.layers)
    for name, layer in carried.layers.items():
        torch.testing.assert_close(merged.layers[name].delta_weight(), layer.delta_weight())


def test_cases_of_other_ranks_are_refused(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    other = {**sides, "content": replace(sides["content"], weights=random_lora(base, ranks=(5,)))}

    with pytest.raises(InvalidLora, match="same ranks"):
        merge_cases(base, [merge_case(base, sides), merge_case(base, other)], config(), resolution_px=64)


def test_cancelling_leaves_the_model_clean(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    watcher = Watcher(stop_after=1)

    with pytest.raises(Cancelled):
        merge(base, sides, watcher, steps=20)

    assert watcher.reports[-1].step == 1
    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())


def test_loss_that_is_not_finite_stops_the_merge(broken_base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    with pytest.raises(TrainingDiverged, match="step 1"):
        merge(broken_base, sides)


def test_lora_of_another_base_is_refused_by_name(base: DiffusionBase, sides: dict[str, MergeSide]) -> None:
    name, layer = next(iter(sides["style"].weights.layers.items()))
    foreign = LoraWeights({name: type(layer)(torch.randn(2, 7), torch.randn(5, 2), 2.0)})

    with pytest.raises(InvalidLora, match=name):
        merge(base, {**sides, "style": MergeSide(foreign, sides["style"].pictures, sides["style"].captions)})


def test_roles_of_the_prior_are_the_names_of_the_sides() -> None:
    assert tuple(SIDES) == (Role.CONTENT, Role.STYLE)
    assert LayerPrior("resolution") is LayerPrior.RESOLUTION
