"""Jobs trained in the same passes: each one's checkpoint is what it would keep alone, and serves it either way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.checkpoints import read_saved
from duolora.errors import Cancelled, CheckpointUnusable
from duolora.keeping import Part, Saved, of_tenant, of_tenants, part_name
from duolora.personalize import TrainingJob, train_jobs, without_company
from tests.duolora.dense import assert_same_change
from tests.duolora.test_checkpoints import always, assert_same_bits, job
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from duolora.config import PersonalizeConfig
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

KINDS = ["content", "style", "pair", "loras"]

IN_COMPANY = 1e-2
"""Adam makes whole steps of rounding where a gradient is nearly nothing, and products of a batch round otherwise."""


@pytest.fixture(params=KINDS)
def jobs(request: pytest.FixtureRequest, content_pictures: list[Path], style_pictures: list[Path]) -> list[TrainingJob]:
    """Two jobs that differ in all that they may: pictures and how many, seed, words."""
    kind = request.param
    settings = job(company=0.5 if kind == "loras" else 0.0, weight=0.0 if kind == "style" else 1.0)
    sides = [kind] if kind in {"content", "style"} else ["content", "style"]
    pictures = [
        {"content": content_pictures, "style": style_pictures},
        {"content": style_pictures[:1], "style": content_pictures},
    ]
    return [
        TrainingJob({side: of_job[side] for side in sides}, config)
        for of_job, config in zip(pictures, (settings, _of_somebody_else(settings)), strict=True)
    ]


def _of_somebody_else(settings: PersonalizeConfig) -> PersonalizeConfig:
    prompts = settings.prompts.model_copy(update={"subject_class": "fox", "content_captions": ()})
    sides = {side: getattr(settings, side).model_copy(update={"seed": 8}) for side in ("content", "style")}
    return settings.model_copy(update={"prompts": prompts, **sides})


def assert_same_changes(
    found: Mapping[str, LoraWeights], expected: Mapping[str, LoraWeights], tolerance: float
) -> None:
    assert found.keys() == expected.keys()
    for side, lora in expected.items():
        assert_same_change(found[side], lora, tolerance)


def stopped(base: DiffusionBase, jobs: list[TrainingJob], step: int, folder: Path) -> Saved:
    """The checkpoint that a training leaves when it is stopped after a step."""
    with pytest.raises(Cancelled):
        train_jobs(base, jobs, Watcher(stop_after=step), keeper=always(folder))
    return read_saved(folder / str(step), digest="this work")


def test_jobs_get_what_each_gets_alone(base: DiffusionBase, jobs: list[TrainingJob]) -> None:
    watcher = Watcher()
    together = train_jobs(base, jobs, watcher)
    reports = [report for report in watcher.reports if report.loss is not None]
    for place, (one, found) in enumerate(zip(jobs, together, strict=True)):
        own = Watcher()
        assert_same_changes(found, train_jobs(base, [one], own)[0], IN_COMPANY)
        torch.testing.assert_close([report.losses[place] for report in reports], own.losses, rtol=1e-3, atol=1e-4)


def test_jobs_stopped_after_any_step_go_on_together_to_the_same_bits(
    base: DiffusionBase, jobs: list[TrainingJob], tmp_path: Path
) -> None:
    expected = train_jobs(base, jobs)
    for stop in range(1, 4):
        folder = tmp_path / str(stop)
        with pytest.raises(Cancelled):
            train_jobs(base, jobs, Watcher(stop_after=stop), keeper=always(folder))
        found = train_jobs(base, jobs, keeper=always(folder))
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)


def test_a_jobs_share_of_a_checkpoint_has_the_form_of_one_that_it_made_alone(
    base: DiffusionBase, jobs: list[TrainingJob], tmp_path: Path
) -> None:
    together = stopped(base, jobs, 2, tmp_path / "together")
    for place, one in enumerate(jobs):
        alone = stopped(base, [one], 2, tmp_path / f"{place}")
        share = of_tenant(together, place)

        assert share.parts.keys() == alone.parts.keys()
        for side, part in alone.parts.items():
            forms = [
                {name: (tensor.shape, tensor.dtype) for name, tensor in each.tensors.items()}
                for each in (share.parts[side], part)
            ]
            assert forms[0] == forms[1]
            for name, tensor in part.tensors.items():
                if name.startswith(("random/", "step/", "class/")):
                    assert torch.equal(share.parts[side].tensors[name], tensor), name


def test_a_job_goes_on_alone_from_what_it_did_in_company(
    base: DiffusionBase, jobs: list[TrainingJob], tmp_path: Path
) -> None:
    together = stopped(base, jobs, 2, tmp_path)
    for place, one in enumerate(jobs):
        watcher = Watcher()
        [found] = train_jobs(base, [one], watcher, keeper=_Given(of_tenant(together, place)))

        assert_same_changes(found, train_jobs(base, [one])[0], IN_COMPANY)
        assert min(report.step for report in watcher.reports) == 2


def test_jobs_go_on_in_company_from_what_each_did_alone(
    base: DiffusionBase, jobs: list[TrainingJob], tmp_path: Path
) -> None:
    alone = [(place, stopped(base, [one], 2, tmp_path / f"{place}")) for place, one in enumerate(jobs)]

    watcher = Watcher()
    found = train_jobs(base, jobs, watcher, keeper=_Given(of_tenants(alone)))

    assert min(report.step for report in watcher.reports) == 2
    for one, loras in zip(jobs, found, strict=True):
        assert_same_changes(loras, train_jobs(base, [one])[0], IN_COMPANY)


def test_states_that_do_not_fit_each_other_are_refused(
    base: DiffusionBase, content_pictures: list[Path], tmp_path: Path
) -> None:
    one = TrainingJob({"content": content_pictures}, without_company(job(weight=0.0)))
    wider = one.config.model_copy(update={"content": one.config.content.model_copy(update={"rank": 3})})
    states = [
        stopped(base, [TrainingJob(one.pictures, config)], 1, tmp_path / f"{place}")
        for place, config in enumerate((one.config, wider))
    ]

    with pytest.raises(CheckpointUnusable, match="same shape"):
        train_jobs(base, [one, one], keeper=_Given(of_tenants(list(enumerate(states)))))
    with pytest.raises(CheckpointUnusable, match=r"no part 'content\.1'"):
        train_jobs(base, [one, one], keeper=_Given(states[0]))


def test_a_state_is_taken_apart_by_tenants_and_put_together_again() -> None:
    parts = {"content": Part(values={"of": 0}), part_name("content", 1): Part(values={"of": 1})}
    saved = Saved(3, 9, parts)

    shares = [of_tenant(saved, tenant) for tenant in (0, 1, 2)]

    assert [list(share.parts) for share in shares] == [["content"], ["content"], []]
    assert [share.parts["content"].value("of") for share in shares[:2]] == [0, 1]
    joined = of_tenants([(0, shares[0]), (1, shares[1])])
    assert (joined.step, joined.total, dict(joined.parts)) == (3, 9, parts)


class _Given:
    """Goes on from a state and keeps nothing."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved

    def resume(self) -> Saved:
        return self._saved

    def is_due(self) -> bool:
        return False

    def keep(self, _saved: Saved) -> None:
        """Nothing."""

    def should_finish(self) -> bool:
        return False
