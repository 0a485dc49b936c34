from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines.duolora_release import SharedMasks, distillation_target, merge, release_prior
from duolora.baselines.noised_cases import NoisedCases
from duolora.errors import InvalidLora, TrainingDiverged
from duolora.method.merge_case import SIDES
from tests.duolora.dense import assert_same_change, dense, side_dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase, PromptEmbeddings


def masks_of(case: MergeCase, merged: LoraWeights, name: str) -> dict[str, torch.Tensor]:
    """The rank masks of a layer on its raw factors: one least squares problem over the outer products of the ranks."""
    found = dense(merged.layers[name])
    ranks = [
        (side, layer.scale * layer.up_OR[:, r : r + 1].double() @ layer.down_RI[r : r + 1].double())
        for side in SIDES
        if (layer := case.loras[side].layers.get(name)) is not None
        for r in range(layer.rank)
    ]
    basis = torch.stack([outer.flatten() for _, outer in ranks], dim=1)
    solved = torch.linalg.lstsq(basis, found.flatten()[:, None]).solution[:, 0]
    assert (basis @ solved - found.flatten()).norm() < 1e-5 * found.norm(), f"{name} is no mask over raw ranks"
    owners = [side for side, _ in ranks]
    return {side: solved[[index for index, owner in enumerate(owners) if owner == side]] for side in set(owners)}


def module_layers(case: MergeCase) -> dict[str, list[str]]:
    """Attention module -> the layers of it that both sides change."""
    modules: dict[str, list[str]] = {}
    for name in case.loras["style"].layers:
        modules.setdefault(name.rsplit(".to_", 1)[0], []).append(name)
    return modules


def test_projections_of_one_module_share_their_masks_and_modules_do_not(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], steps=3)[0]

    firsts = []
    for names in module_layers(case).values():
        masks = [masks_of(case, merged, name) for name in names]
        for other in masks[1:]:
            for side in SIDES:
                torch.testing.assert_close(other[side], masks[0][side], rtol=0, atol=1e-4)
        firsts.append(masks[0]["content"])
    assert len(firsts) == 22
    assert torch.stack(firsts).std(dim=0).min() > 1e-3


def test_every_loss_is_stepped_four_times(base: DiffusionBase, case: MergeCase) -> None:
    """Adam's first steps with one gradient move a number by the learning rate each."""
    merged = merge(base, [case], steps=1, learning_rate=0.01)[0]

    moves = torch.cat([(masks_of(case, merged, name)["content"] - 1).abs() for name in case.loras["style"].layers])
    assert moves.median() == pytest.approx(0.04, rel=0.05)


def test_no_steps_give_the_plain_sum_as_no_prior_thins_the_start(base: DiffusionBase, case: MergeCase) -> None:
    merged = merge(base, [case], steps=0)[0]

    for name, layer in merged.layers.items():
        found = dense(layer)
        expected = sum(side_dense(case, side, name, found) for side in SIDES)
        assert (found - expected).norm() < 1e-6 * expected.norm()


def test_prior_knows_only_the_listed_blocks(base: DiffusionBase, case: MergeCase) -> None:
    """Under a huge weight only their dominant masks feel it: pico has down_blocks.1 and up_blocks.1 of the list."""
    light, heavy = (merge(base, [case], steps=2, prior_weight=weight, constyle_weight=0)[0] for weight in (0.0, 1e4))

    for names in module_layers(case).values():
        found, without = masks_of(case, heavy, names[0]), masks_of(case, light, names[0])
        if any(block in names[0] for block in (".down_blocks.1.", ".up_blocks.1.")):
            assert found["style"].max() < 0.94, names[0]
            # Without a hinge the minor side is pressed down as well.
            assert found["content"].max() < 0.94
        else:
            torch.testing.assert_close(found["style"], without["style"], rtol=0, atol=0.02)


def test_lists_that_match_nothing_are_passed_over(base: DiffusionBase, case: MergeCase) -> None:
    nothing = {"content": ("middle_block",), "style": ("up_blocks.2",)}

    unlisted = merge(base, [case], steps=2, prior_weight=1e4, prior_blocks=nothing)[0]

    assert_same_change(unlisted, merge(base, [case], steps=2, prior_weight=0)[0], tolerance=1e-6)


def test_prior_formula_is_the_l1_norm_and_a_difference_of_l2_norms() -> None:
    dominant, minor = torch.ones(1, 64), torch.full((1, 64), 0.5)

    assert float(release_prior(dominant, minor)) == pytest.approx(64 + 4 - 8)
    assert 0.01 * float(release_prior(dominant, dominant)) == pytest.approx(0.64)
    assert float(release_prior(minor, torch.zeros(1, 64))) == pytest.approx(32 - 4)


def test_prior_starts_at_the_rank_whatever_the_number_of_layers(
    base: DiffusionBase, make_case: Callable[..., MergeCase]
) -> None:
    cases = [make_case(seed=s, content_ranks=(4,), style_ranks=(4,)) for s in (0, 1)]
    with RankSpaceAdapter(*(case.loras for case in cases)).inject(base.unet) as adapter:
        shared = SharedMasks.over(adapter, {"content": ("down_blocks.1",), "style": ("up_blocks.1",)})

        torch.testing.assert_close(shared.prior_J().detach(), torch.tensor([4.0, 4.0]))


def test_target_is_the_direct_teacher_shifted_by_a_cycle_through_the_other_lora(
    base: DiffusionBase, make_case: Callable[..., MergeCase]
) -> None:
    cases = [make_case(seed=0), make_case(seed=1)]
    noised = NoisedCases.draw(base, cases, 2)
    joint = type(cases[0].joint).join([case.joint for case in cases])
    with RankSpaceAdapter(*(case.loras for case in cases)).inject(base.unet) as adapter:
        found = distillation_target(base, adapter, noised, joint, 0.5)

    for j, case in enumerate(cases):
        for s, (side, other) in enumerate((SIDES, SIDES[::-1])):
            at = (noised.noisy_JSNCHW[j, s], noised.timesteps_JSN[j, s])
            own = case.encoded[side].prompts[torch.zeros(2, dtype=torch.int64)]
            both = case.joint[torch.zeros(2, dtype=torch.int64)]
            direct = alone(base, case.loras[side], *at, own)
            added = alone(base, case.loras[other], *at, both)
            clean = base.schedule.predict_clean(at[0], added, at[1])
            again = base.schedule.add_noise(clean, noised.noise_JSNCHW[j, s], at[1])
            cycled = alone(base, case.loras[other], again, at[1], own)
            torch.testing.assert_close(found[j, s], (direct + 0.5 * cycled) / 1.5, rtol=0, atol=1e-3)
            assert (cycled - direct).abs().max() > 0.05


@torch.no_grad()
def alone(
    base: DiffusionBase, lora: LoraWeights, noisy: torch.Tensor, timesteps: torch.Tensor, prompts: PromptEmbeddings
) -> torch.Tensor:
    """Prediction with one LoRA attached."""
    with RankSpaceAdapter({"only": lora}).inject(base.unet) as adapter:
        adapter.assign_all(0, len(noisy))
        return base.predict_noise(noisy, timesteps, prompts)


def test_cycle_weight_changes_the_result(base: DiffusionBase, case: MergeCase) -> None:
    without, with_cycle = (merge(base, [case], steps=3, constyle_weight=weight)[0] for weight in (0.0, 1.0))

    name = next(iter(without.layers))
    assert (dense(without.layers[name]) - dense(with_cycle.layers[name])).norm() > 1e-3


def test_cases_together_learn_what_each_learns_alone(base: DiffusionBase, make_case: Callable[..., MergeCase]) -> None:
    cases = [make_case(seed=0), make_case(seed=1, content_ranks=(2,), style_ranks=(5,))]

    together = merge(base, cases, steps=3)

    for case, merged in zip(cases, together, strict=True):
        assert_same_change(merged, merge(base, [case], steps=3)[0], tolerance=1e-5)


def test_only_the_masks_change(base: DiffusionBase, case: MergeCase) -> None:
    before = {(side, name): layer.down_RI.clone() for side in SIDES for name, layer in case.loras[side].layers.items()}

    merge(base, [case], steps=1)

    assert all(torch.equal(case.loras[side].layers[name].down_RI, down) for (side, name), down in before.items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.unet.parameters())


def test_unequal_ranks_inside_a_module_are_refused(base: DiffusionBase, make_case: Callable[..., MergeCase]) -> None:
    with pytest.raises(InvalidLora, match="ranks 2 and 4"):
        merge(base, [make_case(content_ranks=(4, 2))], steps=1)


def test_masks_that_are_not_finite_are_reported(broken_base: DiffusionBase, case: MergeCase) -> None:
    with pytest.raises(TrainingDiverged, match="masks"):
        merge(broken_base, [case], steps=1)
