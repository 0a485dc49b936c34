"""Several jobs in one run of the engine: each gets what is its own, and what befalls one costs the others nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, text

from api.db import transaction
from api.jobs import repository
from api.jobs.models import Event, Job, JobImage, LogLine, Stage, StageAttempt
from tests.worker.bench import eventually
from tests.worker.jobs import submit
from tests.worker.test_durability import ask, checkpoint, checkpoint_objects, hurry, result

if TYPE_CHECKING:
    import uuid

    from tests.worker.bench import Bench

LORAS = ("content_lora", "style_lora")
TOGETHER = {"WORKER_JOBS_AT_ONCE": "3", "WORKER_PAIRS": "true"}
RARELY = {"WORKER_CHECKPOINT_S": "30"}


@pytest.fixture
def jobs(bench: Bench) -> list[Job]:
    """Three jobs, alike but for their seeds."""
    return [submit(bench, seed=seed) for seed in range(3)]


def ways(bench: Bench, job: Job) -> list[list[tuple[int, str | None]]]:
    """The attempts at both trainings."""
    return [bench.attempts(job.id, name) for name in LORAS]


def company(bench: Bench, job: Job) -> list[int]:
    """How many jobs shared the passes of every attempt at the content LoRA."""
    with bench.sessions() as session:
        query = select(StageAttempt.jobs).join(Stage, Stage.id == StageAttempt.stage_id)
        own = query.where(Stage.job_id == job.id, Stage.name == "content_lora")
        return list(session.scalars(own.order_by(StageAttempt.attempt)))


def under_way(bench: Bench, job: Job) -> int:
    """Wait until some steps are done; the last that was reported."""
    return eventually(lambda: max(0, ((bench.stage(job.id, "style_lora").progress or {}).get("step", 0)) - 5))


def resumed(bench: Bench, job_id: uuid.UUID, attempt: int) -> int | None:
    with bench.sessions() as session:
        return session.get_one(StageAttempt, (bench.stage(job_id, "content_lora").id, attempt)).resumed_step


def failures(bench: Bench, job: Job) -> list[int]:
    return [stage.failures for stage in bench.read(job.id).stages]


class TestTogether:
    def test_alike_jobs_are_trained_in_one_run_and_each_gets_its_own(self, bench: Bench, jobs: list[Job]):
        with bench.worker({"content_lora": ["train:10"]}, **TOGETHER):
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        for job in jobs:
            assert ways(bench, job) == [[(1, "succeeded")]] * 2
            assert company(bench, job) == [3]
            for name in LORAS:
                told = result(bench, job.id, name)
                assert told["jobs"] == 3
                pictures = {f"{image.side}/000.png": image.sha256 for image in _images(bench, job)}
                assert told["inputs"] == pictures
            keys = [artifact.key for artifact in bench.read(job.id).artifacts]
            assert all(f"/{job.id}/" in key for key in keys)
        assert checkpoint_objects(bench) == []

    def test_unless_it_is_asked_for_every_job_is_trained_by_itself(self, bench: Bench, jobs: list[Job]):
        with bench.worker({"always": ["train:3"]}, WORKER_PAIRS="true"):
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        assert [result(bench, job.id, "content_lora")["jobs"] for job in jobs] == [1] * 3

    def test_an_engine_whose_memory_is_for_one_job_gets_one(self, bench: Bench, jobs: list[Job]):
        with bench.worker({"shares_passes": False, "always": ["train:3"]}, **TOGETHER):
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        assert [result(bench, job.id, "content_lora")["jobs"] for job in jobs] == [1] * 3

    def test_progress_and_log_are_told_to_every_owner_the_loss_to_whose_it_is(self, bench: Bench, jobs: list[Job]):
        with bench.worker({"content_lora": ["train:500"]}, **TOGETHER):
            for job in jobs:
                under_way(bench, job)
            assert {int(_loss(bench, job)) for job in jobs} == {0, 1, 2}
            for job in jobs:
                eventually(lambda job=job: _told(bench, job))
                bench.cancel(job)
            for job in jobs:
                bench.wait_for(job.id, "canceled")

    def test_every_owner_reads_the_log(self, bench: Bench, jobs: list[Job]):
        with bench.worker({"content_lora": ["talk:4"]}, **TOGETHER):
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        with bench.sessions() as session:
            for job in jobs:
                lines = session.scalars(select(LogLine.message).where(LogLine.job_id == job.id).order_by(LogLine.id))
                assert list(lines) == [f"line {number}" for number in range(4)]

    def test_what_the_library_has_is_taken_and_the_others_are_trained(self, bench: Bench):
        first = submit(bench, seed=0)
        with bench.worker({"revision": "r1"}):
            bench.wait_for(first.id, "succeeded")
        known, new = submit(bench, seed=0), submit(bench, seed=1)
        with bench.worker({"revision": "r1", "content_lora": ["train:5"]}, **TOGETHER):
            for job in (known, new):
                bench.wait_for(job.id, "succeeded")
        assert [bench.stage(known.id, name).reused_job_id for name in LORAS] == [first.id] * 2
        assert [bench.stage(new.id, name).reused_job_id for name in LORAS] == [None] * 2
        assert [result(bench, new.id, name)["jobs"] for name in LORAS] == [1, 1]
        assert company(bench, new) == [2]


class TestOneLeaves:
    def test_a_canceled_job_ends_and_the_others_go_on_from_where_they_were(self, bench: Bench, jobs: list[Job]):
        gone, *stay = jobs
        with bench.worker({"content_lora": ["train:150"]}, **TOGETHER, **RARELY):
            under_way(bench, gone)
            bench.cancel(gone)
            bench.wait_for(gone.id, "canceled")
            for job in stay:
                bench.wait_for(job.id, "succeeded")
        assert ways(bench, gone) == [[(1, "canceled")]] * 2
        for job in stay:
            assert ways(bench, job) == [[(1, "released"), (2, "succeeded")]] * 2
            assert company(bench, job) == [3, 2]
            assert failures(bench, job) == [0] * 4
            assert (resumed(bench, job.id, 2) or 0) > 5
            assert len(result(bench, job.id, "content_lora")["counted"]) == 150

    def test_a_job_that_is_to_finish_early_does_and_the_others_do_not(self, bench: Bench, jobs: list[Job]):
        done, *stay = jobs
        with bench.worker({"content_lora": ["train:150"], "merge": ["train:5"]}, **TOGETHER, **RARELY):
            under_way(bench, done)
            ask(bench, done, "stop_requested_at")
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        assert [bench.stage(done.id, name).stopped_early for name in LORAS] == [True, True]
        assert company(bench, done) == [3, 1]
        assert len(result(bench, done.id, "content_lora")["counted"]) == (resumed(bench, done.id, 2) or 0) + 1
        for job in stay:
            assert [bench.stage(job.id, name).stopped_early for name in LORAS] == [False, False]
            assert len(result(bench, job.id, "content_lora")["counted"]) == 150

    def test_a_job_whose_deadline_passes_fails_and_the_others_go_on(self, bench: Bench, jobs: list[Job]):
        late, *stay = jobs
        with bench.worker({"content_lora": ["train:150"]}, **TOGETHER, **RARELY):
            under_way(bench, late)
            with transaction(bench.sessions) as session:
                session.get_one(Job, late.id).deadline_at = func.now() - text("interval '1 s'")
            with transaction(bench.sessions) as session:
                assert repository.expire_overdue(session) == 1
            for job in stay:
                bench.wait_for(job.id, "succeeded")
        assert bench.state(late.id) == "failed"
        for job in stay:
            assert ways(bench, job) == [[(1, "released"), (2, "succeeded")]] * 2
            assert (resumed(bench, job.id, 2) or 0) > 5

    def test_a_lease_that_is_lost_costs_the_others_nothing(self, bench: Bench, jobs: list[Job]):
        lost, *stay = jobs
        with bench.worker({"content_lora": ["train:150"]}, **TOGETHER, **RARELY):
            under_way(bench, lost)
            with transaction(bench.sessions) as session:
                for stage in session.scalars(select(Stage).where(Stage.job_id == lost.id, Stage.state == "running")):
                    stage.lease_expires_at = func.now() - text("interval '1 s'")
                session.flush()
                assert repository.reap_stale(session) == 2
            hurry(bench)
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        assert ways(bench, lost) == [[(1, "lease_expired"), (2, "succeeded")]] * 2
        for job in stay:
            assert ways(bench, job) == [[(1, "released"), (2, "succeeded")]] * 2
            assert (resumed(bench, job.id, 2) or 0) > 5

    def test_a_checkpoint_that_is_gone_sends_only_its_own_job_to_the_beginning(self, bench: Bench, jobs: list[Job]):
        harmed, *stay = jobs
        with bench.worker({"content_lora": ["train:500"]}, **TOGETHER, **RARELY):
            under_way(bench, harmed)
        bench.store.delete([file["key"] for file in checkpoint(bench, harmed.id)["files"]])
        with bench.worker({"content_lora": ["train:100"]}, **TOGETHER):
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        assert failures(bench, harmed) == [0] * 4
        last = len(bench.attempts(harmed.id, "content_lora"))
        assert resumed(bench, harmed.id, last) is None
        for job in stay:
            assert (resumed(bench, job.id, len(bench.attempts(job.id, "content_lora"))) or 0) > 5


class TestAllStop:
    def test_a_shutdown_gives_all_back_at_one_step_and_they_go_on_together(self, bench: Bench, jobs: list[Job]):
        with bench.worker({"content_lora": ["train:500"]}, **TOGETHER, **RARELY):
            under_way(bench, jobs[0])
        steps = {bench.stage(job.id, name).checkpoint["step"] for job in jobs for name in LORAS}
        assert len(steps) == 1
        with bench.worker({"content_lora": [f"train:{max(steps) + 5}"]}, **TOGETHER):
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        for job in jobs:
            assert ways(bench, job) == [[(1, "released"), (2, "succeeded")]] * 2
            assert company(bench, job) == [3, 3]
            assert resumed(bench, job.id, 2) in steps

    def test_an_engine_that_is_killed_costs_every_job_the_steps_since_and_no_failure(
        self, bench: Bench, jobs: list[Job]
    ):
        with bench.worker({"content_lora": ["train:60"]}, **TOGETHER) as worker:
            kept = [checkpoint(bench, job.id) for job in jobs]
            os.kill(worker.engine.pid, signal.SIGKILL)
            hurry(bench)
            for job in jobs:
                bench.wait_for(job.id, "succeeded")
        for job, pointer in zip(jobs, kept, strict=True):
            assert ways(bench, job) == [[(1, "released"), (2, "succeeded")]] * 2
            assert company(bench, job) == [3, 1]
            assert failures(bench, job) == [0] * 4
            assert (resumed(bench, job.id, 2) or 0) >= pointer["step"]

    def test_one_that_kills_every_engine_fails_by_itself(self, bench: Bench, jobs: list[Job]):
        poison, *stay = jobs
        with bench.worker({str(poison.id): ["die"], "content_lora": ["train:20"]}, **TOGETHER):
            eventually(lambda: _hurried(bench) and bench.state(poison.id) == "failed")
            for job in stay:
                eventually(lambda job=job: _hurried(bench) and bench.state(job.id) == "succeeded")
        failed = bench.read(poison.id)
        assert (failed.error["code"], failed.error["poisoned"]) == ("engine_died", True)
        assert company(bench, poison) == [3, 1, 1, 1]
        for job in stay:
            assert failures(bench, job) == [0] * 4
            assert ways(bench, job) == [[(1, "released"), (2, "succeeded")]] * 2

    @pytest.mark.parametrize("fault", ["caller", "infrastructure", "memory"])
    def test_what_the_engine_refuses_together_it_is_asked_for_one_by_one(
        self, bench: Bench, jobs: list[Job], fault: str
    ):
        with bench.worker({"content_lora": [f"fail:{fault}", "train:5"]}, **TOGETHER):
            for job in jobs:
                eventually(lambda job=job: _hurried(bench) and bench.state(job.id) == "succeeded")
        for job in jobs:
            assert company(bench, job) == [3, 1]
            told = result(bench, job.id, "content_lora")
            assert (told["jobs"], told["profile"]) == (1, "full")
            assert failures(bench, job) == [0] * 4


def _images(bench: Bench, job: Job) -> list[JobImage]:
    with bench.sessions() as session:
        return list(session.scalars(select(JobImage).where(JobImage.job_id == job.id)))


def _loss(bench: Bench, job: Job) -> float:
    return bench.stage(job.id, "content_lora").progress["loss"]


def _told(bench: Bench, job: Job) -> int:
    with bench.sessions() as session:
        told = select(func.count()).select_from(Event).where(Event.job_id == job.id, Event.type == "job.progress")
        return session.scalar(told) or 0


def _hurried(bench: Bench) -> bool:
    """Let whatever was put off run now."""
    with transaction(bench.sessions) as session:
        session.execute(text("UPDATE stages SET runnable_at = now() WHERE state = 'runnable' AND runnable_at > now()"))
    return True
