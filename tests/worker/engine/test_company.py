"""Trainings of several jobs in one run of the real engine process: files and checkpoints of each are its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from duolora.lora.read import read_lora
from tests.duolora.dense import assert_same_change
from tests.duolora.pico import draw_pictures
from tests.worker.engine.test_interruptions import (
    ALWAYS_S,
    NEVER_S,
    Engine,
    assert_complete,
    checkpoints,
    config,
    ready_engine,
)
from worker.wire import Done, Failed, Member, Pause, ProgressReport, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duolora.config import PersonalizeConfig

pytestmark = [pytest.mark.xdist_group("engine pipe"), pytest.mark.timeout(180)]

JOBS = ("first", "second")
ROUNDING = 1e-2
"""Adam makes whole steps of rounding where a gradient is nearly nothing, and products of a batch round otherwise."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with ready_engine(ends_with=0) as engine:
        yield engine


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pictures of every job; how many may differ."""
    folder = tmp_path_factory.mktemp("inputs")
    draw_pictures(folder / "first" / "content", ((230, 40, 40), (40, 200, 60)))
    draw_pictures(folder / "first" / "style", ((40, 40, 230),))
    draw_pictures(folder / "second" / "content", ((200, 200, 0),))
    draw_pictures(folder / "second" / "style", ((0, 200, 200), (90, 0, 90)))
    return {job: folder / job for job in JOBS}


def settings_of(location: str, job: str, *, company: float, steps: int) -> PersonalizeConfig:
    settings = config(location, company=company, steps=steps)
    seed = {"seed": JOBS.index(job)}
    sides = {side: getattr(settings, side).model_copy(update=seed) for side in ("content", "style")}
    return settings.model_copy(update=sides)


class Group:
    """Makes runs of the same stages of some jobs."""

    def __init__(self, folder: Path, inputs: dict[str, Path], location: str, stages: tuple[str, ...]) -> None:
        self._folder = folder
        self._inputs = inputs
        self._location = location
        self._stages = stages
        self._count = 0

    def run(self, *jobs: str, resume: dict[tuple[str, str], str] | None = None, every_s: float = NEVER_S) -> Run:
        self._count += 1
        company = 0.5 if self._stages == ("loras",) else 0.0
        members = []
        for job in jobs:
            settings = settings_of(self._location, job, company=company, steps=20)
            for stage in self._stages:
                own = self._folder / f"{self._count}" / job / stage
                for name in ("outputs", "checkpoints"):
                    (own / name).mkdir(parents=True)
                members.append(
                    Member(
                        job_id=job,
                        stage=stage,
                        attempt=1,
                        config=settings.model_dump(mode="json"),
                        inputs_dir=str(self._inputs[job]),
                        outputs_dir=str(own / "outputs"),
                        checkpoints_dir=str(own / "checkpoints"),
                        resume_dir=(resume or {}).get((job, stage)),
                    )
                )
        return Run(
            id=f"{self._folder.name}:{self._count}",
            members=tuple(members),
            base=self._location,
            checkpoint_every_s=every_s,
        )


@pytest.fixture(params=[("style_lora",), ("content_lora", "style_lora"), ("loras",)], ids="+".join)
def group(request: pytest.FixtureRequest, tmp_path: Path, inputs: dict[str, Path], location: str) -> Group:
    return Group(tmp_path, inputs, location, request.param)


def files(run: Run) -> dict[tuple[str, str], Path]:
    """Every LoRA that a run left, by job and name."""
    return {
        (member.job_id, path.name): path
        for member in run.members
        for path in Path(member.outputs_dir).glob("*_lora.safetensors")
    }


def finished(engine: Engine, run: Run) -> Run:
    engine.send(run)
    done = engine.end(run)[-1]
    assert isinstance(done, Done), done
    for place, member in enumerate(run.members):
        named = {output.filename for output in done.outputs if output.member == place}
        assert named == {path.name for path in Path(member.outputs_dir).iterdir()}
    return run


def paused(engine: Engine, run: Run) -> dict[tuple[str, str], str]:
    """Stop a run in the middle; where the checkpoint of each member lies."""
    engine.send(run)
    heard = engine.step(run, 3)
    engine.send(Pause(id=run.id))
    heard += engine.end(run)
    assert isinstance(heard[-1], Failed)
    kept = checkpoints(heard)
    assert [event.member for event in kept] == list(range(len(run.members)))
    assert len({event.step for event in kept}) == 1
    for event in kept:
        assert_complete(event, run)
        stages = [member.stage for member in run.members if member.job_id == run.members[event.member].job_id]
        assert event.paired == (len(stages) > 1)
    if len(run.jobs) > 1:
        reports = [event for event in heard if isinstance(event, ProgressReport) and event.loss is not None]
        assert all(len(report.losses) == len(run.jobs) for report in reports)
        assert all(report.loss == pytest.approx(sum(report.losses) / len(report.losses)) for report in reports)
    return {(run.members[event.member].job_id, run.members[event.member].stage): event.folder for event in kept}


def test_a_group_that_was_paused_goes_on_together_to_the_same_bits(engine: Engine, group: Group) -> None:
    again = finished(engine, group.run(*JOBS, resume=paused(engine, group.run(*JOBS))))
    expected = finished(engine, group.run(*JOBS))
    assert files(again).keys() == files(expected).keys()
    assert {job for job, _ in files(again)} == set(JOBS)
    for name, path in files(expected).items():
        ours, theirs = load_file(files(again)[name]), load_file(path)
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items()), name


def test_what_was_done_in_company_is_gone_on_with_alone_and_the_other_way_round(engine: Engine, group: Group) -> None:
    in_company = paused(engine, group.run(*JOBS))
    alone: dict[tuple[str, str], str] = {}
    expected: dict[tuple[str, str], Path] = {}
    for job in JOBS:
        whole = finished(engine, group.run(job, every_s=ALWAYS_S))
        expected |= files(whole)
        alone |= {(job, member.stage): str(Path(member.checkpoints_dir) / "5") for member in whole.members}
        own = {place: folder for place, folder in in_company.items() if place[0] == job}
        assert_alike(finished(engine, group.run(job, resume=own)), expected)

    assert_alike(finished(engine, group.run(*JOBS, resume=alone)), expected)


def test_states_of_different_steps_do_not_go_together(engine: Engine, group: Group) -> None:
    kept = {}
    for job, step in zip(JOBS, ("4", "5"), strict=True):
        whole = finished(engine, group.run(job, every_s=ALWAYS_S))
        kept |= {(job, member.stage): str(Path(member.checkpoints_dir) / step) for member in whole.members}
    run = group.run(*JOBS, resume=kept)
    engine.send(run)
    end = engine.end(run)[-1]
    assert isinstance(end, Failed)
    assert end.code == "checkpoint_unusable"


def assert_alike(found: Run, expected: dict[tuple[str, str], Path]) -> None:
    assert files(found)
    for name, path in files(found).items():
        assert_same_change(read_lora(path), read_lora(expected[name]), ROUNDING)
