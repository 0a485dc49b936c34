from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines import duolora_release, noised_cases, zip_lora
from duolora.baselines.noised_cases import NoisedCases, predict_as
from duolora.method.merge_case import SIDES

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def test_samples_are_pictures_of_the_side_noised_as_the_schedule_says(base: DiffusionBase, case: MergeCase) -> None:
    samples = NoisedCases.draw(base, [case], 50)

    for index, side in enumerate(SIDES):
        moments = case.encoded[side].moments
        timesteps = samples.timesteps_JSN[0, index]
        clean = base.schedule.predict_clean(samples.noisy_JSNCHW[0, index], samples.noise_JSNCHW[0, index], timesteps)
        apart = (clean[:, None] - moments.mean_BCHW).abs().amax(dim=(2, 3, 4))
        nearest = apart.min(dim=1)
        assert float(nearest.values.max()) < 6 * float(moments.std_BCHW.max()) + 1e-2
        assert set(nearest.indices.tolist()) == set(range(len(moments.mean_BCHW)))
        assert timesteps.min() < 200 < 800 < timesteps.max()  # noqa: PLR0133 - reads as the range it is


def test_what_a_case_draws_does_not_depend_on_its_neighbours(
    base: DiffusionBase, make_case: Callable[..., MergeCase]
) -> None:
    cases = [make_case(seed=0), make_case(seed=1)]

    both = NoisedCases.draw(base, cases, 3)

    alone = NoisedCases.draw(base, cases[1:], 3)
    assert torch.equal(both.noisy_JSNCHW[1:], alone.noisy_JSNCHW)
    assert torch.equal(both.timesteps_JSN[1:], alone.timesteps_JSN)
    assert not torch.equal(both.noise_JSNCHW[0], both.noise_JSNCHW[1])


def test_many_small_passes_predict_what_one_does(
    base: DiffusionBase, make_case: Callable[..., MergeCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [make_case(seed=0), make_case(seed=1)]
    samples = NoisedCases.draw(base, cases, 5)
    with RankSpaceAdapter(*({side: case.loras[side] for side in SIDES} for case in cases)).inject(base.unet) as adapter:
        at_once = predict_as(base, adapter, samples, (0, 1))
        monkeypatch.setattr(noised_cases, "PASS_LATENT_PIXELS", 2 * 4 * 64)  # two samples a side and case
        assert [span.count for span in samples.spans()] == [2, 2, 1]
        in_parts = predict_as(base, adapter, samples, (0, 1))

    torch.testing.assert_close(in_parts, at_once, rtol=0, atol=1e-4)


@pytest.mark.parametrize("merge", [zip_lora.merge, duolora_release.merge])
def test_every_step_learns_from_new_samples_of_all_cases_in_one_pass(
    base: DiffusionBase, make_case: Callable[..., MergeCase], monkeypatch: pytest.MonkeyPatch, merge: Any
) -> None:
    passes: list[torch.Tensor] = []
    predict = base.predict_noise

    def watched(noisy: torch.Tensor, timesteps: torch.Tensor, prompts: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            passes.append(noisy)
        return predict(noisy, timesteps, prompts)

    monkeypatch.setattr(base, "predict_noise", watched)
    merge(base, [make_case(seed=0), make_case(seed=1)], steps=3, batch_size=2)

    assert [len(noisy) for noisy in passes] == [8, 8, 8]
    seen = torch.cat(passes).flatten(1)
    assert len(torch.unique(seen, dim=0)) == 24
