"""What accidents cost: checkpoints, shutdowns, stops, hangs, memory, pairs, and results that are there already."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, ClassVar

import pytest
from sqlalchemy import func, select, text, update

from api.accounts.models import Account
from api.db import transaction
from api.jobs.models import Event, Job, LogLine, Stage, StageAttempt, Worker
from api.storage import ObjectStore, StoreError
from tests.support.company import together
from tests.worker.bench import eventually, is_running, states
from tests.worker.jobs import submit

if TYPE_CHECKING:
    import uuid
    from pathlib import Path

    from tests.worker.bench import Bench

PAIRS = {"WORKER_PAIRS": "true"}
TRAINS = {"content_lora": ["train:30"]}


def result(bench: Bench, job_id: uuid.UUID, name: str) -> dict:
    artifact = next(artifact for artifact in bench.read(job_id).artifacts if artifact.name == name)
    return json.loads(bench.store.get_bytes(artifact.key))


def checkpoint(bench: Bench, job_id: uuid.UUID, stage: str = "content_lora") -> dict:
    return eventually(lambda: bench.stage(job_id, stage).checkpoint)


def checkpoint_objects(bench: Bench) -> list[str]:
    return [key for key in bench.store.keys("accounts/") if "/checkpoints/" in key]


def hurry(bench: Bench) -> None:
    """Let whatever was put off run now."""

    def moved() -> bool:
        later = (Stage.state == "runnable") & (Stage.runnable_at > text("now()"))
        with transaction(bench.sessions) as session:
            return bool(session.execute(update(Stage).where(later).values(runnable_at=text("now()"))).rowcount)

    eventually(moved)


def ask(bench: Bench, job: Job, wish: str) -> None:
    with transaction(bench.sessions) as session:
        setattr(session.get(Job, job.id), wish, func.now())


class TestCheckpoints:
    def test_an_engine_that_dies_costs_only_the_steps_since(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:30:20", "train:30"]}):
            hurry(bench)
            bench.wait_for(job.id, "succeeded")
        counted = result(bench, job.id, "content_lora")["counted"]
        assert len(counted) == 30
        assert counted == sorted(counted)
        assert counted.count(1) >= 5
        with bench.sessions() as session:
            stage = bench.stage(job.id, "content_lora")
            assert session.get(StageAttempt, (stage.id, 2)).resumed_step == counted.count(1)
        assert (stage.checkpoint, checkpoint_objects(bench)) == (None, [])

    def test_a_stage_that_dies_again_and_again_but_gets_further_is_done_in_the_end(self, bench: Bench):
        job = submit(bench)
        deaths = [f"train:40:{step}" for step in (8, 16, 24, 32)]
        with bench.worker({"content_lora": [*deaths, "train:40"]}):
            for _ in deaths:
                hurry(bench)
            bench.wait_for(job.id, "succeeded")
        assert len(bench.attempts(job.id, "content_lora")) == 5

    def test_old_objects_go_when_the_pointer_moves_on(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:500"]}):
            first = checkpoint(bench, job.id)
            eventually(lambda: checkpoint(bench, job.id)["step"] > first["step"] + 10)
            eventually(lambda: first["files"][0]["key"] not in checkpoint_objects(bench))
            assert len(checkpoint_objects(bench)) <= 2
            bench.cancel(job)
            bench.wait_for(job.id, "canceled")
        assert bench.stage(job.id, "content_lora").checkpoint is not None  # for a retry

    @pytest.mark.parametrize("harm", ["gone", "changed"])
    def test_a_checkpoint_that_is_not_what_was_stored_means_a_start_from_the_beginning(self, bench: Bench, harm: str):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:500"]}):
            checkpoint(bench, job.id)
        key = checkpoint(bench, job.id)["files"][0]["key"]
        if harm == "gone":
            bench.store.delete([key])
        else:
            bench.store.put_bytes(key, b"[1, 1]", "application/octet-stream")
        with bench.worker(TRAINS):
            bench.wait_for(job.id, "succeeded")
        assert result(bench, job.id, "content_lora")["counted"] == [2] * 30
        assert bench.stage(job.id, "content_lora").failures == 0

    def test_one_that_the_engine_cannot_read_is_forgotten(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:500"]}):
            checkpoint(bench, job.id)
        with bench.worker({"content_lora": ["refuse:30"]}):
            bench.wait_for(job.id, "succeeded")
        assert result(bench, job.id, "content_lora")["counted"] == [3] * 30
        assert bench.attempts(job.id, "content_lora") == [(1, "released"), (2, "retried"), (3, "succeeded")]

    def test_a_store_that_is_away_holds_nothing_up_and_gets_the_latest_when_it_is_back(
        self, bench: Bench, store_settings
    ):
        class Away(ObjectStore):
            away = True

            def put_file(self, key: str, path: Path, content_type: str) -> None:
                if self.away and "/checkpoints/" in key:
                    raise StoreError("away")
                super().put_file(key, path, content_type)

        job = submit(bench)
        store = Away(store_settings)
        with bench.worker({"content_lora": ["train:500"]}, store=store):
            eventually(lambda: ((bench.stage(job.id, "content_lora").progress or {}).get("step", 0)) > 20)
            assert bench.stage(job.id, "content_lora").checkpoint is None
            store.away = False
            assert checkpoint(bench, job.id)["step"] > 10
            bench.cancel(job)
            bench.wait_for(job.id, "canceled")


class TestShutdown:
    def test_the_stage_goes_on_where_the_shutdown_paused_it(self, bench: Bench):
        job = submit(bench)
        rarely = {"WORKER_CHECKPOINT_S": "30"}
        with bench.worker({"content_lora": ["train:500"]}, **rarely):
            eventually(lambda: ((bench.stage(job.id, "content_lora").progress or {}).get("step", 0)) > 5)
        stage = bench.stage(job.id, "content_lora")
        assert (stage.state, stage.failures, stage.failure_counts) == ("runnable", 0, {})
        assert stage.checkpoint["step"] > 5
        with bench.worker({"content_lora": [f"train:{stage.checkpoint['step'] + 5}"]}, **rarely):
            bench.wait_for(job.id, "succeeded")
        assert result(bench, job.id, "content_lora")["counted"] == [1] * stage.checkpoint["step"] + [2] * 5

    def test_a_worker_says_that_it_is_there_and_leaves(self, bench: Bench):
        def rows() -> list[tuple[str, str, str | None]]:
            with bench.sessions() as session:
                return [(row.id, row.state.value, row.device) for row in session.scalars(select(Worker))]

        with bench.worker({"content_lora": ["gate:go"]}, WORKER_ID="one"):
            eventually(lambda: rows() == [("one", "idle", "none")])
            job = submit(bench)
            bench.wait_for_run("content_lora")
            eventually(lambda: rows() == [("one", "busy", "none")])
            bench.open("go")
            bench.wait_for(job.id, "succeeded")
            eventually(lambda: rows() == [("one", "idle", "none")])
        assert rows() == []


class TestStop:
    def test_a_stopped_stage_ends_early_and_well(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:500"], "style_lora": ["train:500"], "merge": ["train:500"]}):
            checkpoint(bench, job.id)
            ask(bench, job, "stop_requested_at")
            done = bench.wait_for(job.id, "succeeded")
        stopped = {stage.name: stage.stopped_early for stage in done.stages}
        assert stopped == {"content_lora": True, "style_lora": True, "merge": True, "package": False}
        assert len(result(bench, job.id, "style_lora")["counted"]) == 1


class TestWatchdog:
    def test_a_run_that_gets_no_further_is_killed_and_goes_on_from_its_checkpoint(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["hang:30:15", "train:30"]}, ENGINE_STALL_S="0.7") as worker:
            pid = bench.wait_for_run("content_lora")
            hurry(bench)
            assert not is_running(pid)
            assert bench.stage(job.id, "content_lora").failure_counts in ({"death": 1}, {})
            bench.wait_for(job.id, "succeeded")
            assert worker.engine.pid != pid
        counted = result(bench, job.id, "content_lora")["counted"]
        assert (counted.count(1), len(counted)) == (counted.count(1), 30)
        assert counted.count(1) >= 5

    def test_a_process_that_froze_while_idle_is_killed_as_soon_as_one_that_froze_at_work(self, bench: Bench):
        with bench.worker({}, ENGINE_STALL_S="0.7", ENGINE_WARM_TIMEOUT_S="600") as worker:
            first = submit(bench)
            bench.wait_for(first.id, "succeeded")
            frozen = worker.engine.pid
            os.kill(frozen, signal.SIGSTOP)
            second = submit(bench)
            hurry(bench)
            bench.wait_for(second.id, "succeeded")
            assert not is_running(frozen)

    def test_one_that_hangs_every_time_is_poison(self, bench: Bench):
        job = submit(bench)
        stuck = {"ENGINE_STALL_S": "0.3", "ENGINE_WARM_TIMEOUT_S": "0.3", "WORKER_CHECKPOINT_S": "30"}
        with bench.worker({"content_lora": ["hang:30:3"]}, **stuck):
            for _ in range(2):
                hurry(bench)
            failed = bench.wait_for(job.id, "failed")
        assert (failed.error["code"], failed.error["poisoned"]) == ("stage_stuck", True)


class TestEngineMemory:
    def test_an_engine_that_keeps_memory_is_replaced_between_stages(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["grow:100000"]}, ENGINE_MEMORY_SLACK_BYTES="1000"):
            bench.wait_for(job.id, "succeeded")
        assert bench.wait_for_run("content_lora") != bench.wait_for_run("style_lora")
        assert bench.wait_for_run("style_lora") == bench.wait_for_run("merge")
        assert bench.attempts(job.id, "content_lora") == [(1, "succeeded")]

    def test_no_stage_is_claimed_until_the_memory_of_a_dead_engine_is_back(self, bench: Bench):
        left = {"free_bytes": [1_000_000, 10, 10, 1_000_000], "content_lora": ["gate:never", "ok"]}
        job = submit(bench)
        with bench.worker(left, ENGINE_MEMORY_SLACK_BYTES="1000"):
            os.kill(bench.wait_for_run("content_lora"), signal.SIGKILL)
            hurry(bench)
            bench.wait_for(job.id, "succeeded")
        assert len(list(bench.runs.glob("start.*"))) == 4


class TestPairs:
    def test_both_loras_of_a_job_are_trained_in_one_run(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:10"]}, **PAIRS):
            bench.wait_for(job.id, "succeeded")
        assert not (bench.runs / "style_lora.1").exists()
        names = ("content_lora", "style_lora")
        assert [result(bench, job.id, name)["alone"] for name in names] == [False, False]
        assert [bench.attempts(job.id, name) for name in names] == [[(1, "succeeded")]] * 2
        for artifact in bench.read(job.id).artifacts:
            if artifact.name in names:
                assert f"/{artifact.name}/1/" in artifact.key

    def test_an_engine_whose_memory_makes_pairs_slow_gets_none(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"pairs": False, "always": ["train:5"]}, **PAIRS):
            bench.wait_for(job.id, "succeeded")
        assert [result(bench, job.id, name)["alone"] for name in ("content_lora", "style_lora")] == [True, True]

    def test_a_pair_that_dies_goes_on_as_a_pair_from_one_step(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:40:25", "train:40"]}, **PAIRS):
            hurry(bench)
            pointers = [checkpoint(bench, job.id, name) for name in ("content_lora", "style_lora")]
            bench.wait_for(job.id, "succeeded")
        assert [pointer["paired"] for pointer in pointers] == [True, True]
        assert result(bench, job.id, "style_lora")["alone"] is False
        counted = [result(bench, job.id, name)["counted"] for name in ("content_lora", "style_lora")]
        assert counted[0] == counted[1]
        assert 1 in counted[0]
        assert [bench.attempts(job.id, name) for name in ("content_lora", "style_lora")] == [
            [(1, "retried"), (2, "succeeded")]
        ] * 2

    def test_a_pair_that_is_too_large_is_done_one_by_one_with_the_small_profile(self, bench: Bench):
        job = submit(bench)
        plan = {"content_lora": ["fail:memory", "train:5"], "style_lora": ["ok", "train:5"]}
        with bench.worker(plan, **PAIRS):
            bench.wait_for(job.id, "succeeded")
        for name in ("content_lora", "style_lora"):
            told = result(bench, job.id, name)
            assert (told["alone"], told["profile"]) == (True, "small")

    def test_a_canceled_pair_settles_both(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:500"]}, **PAIRS):
            checkpoint(bench, job.id, "style_lora")
            bench.cancel(job)
            canceled = bench.wait_for(job.id, "canceled")
        assert set(states(canceled.stages).values()) == {"canceled"}

    def test_a_shutdown_gives_both_back_with_one_step(self, bench: Bench):
        job = submit(bench)
        with bench.worker({"content_lora": ["train:500"]}, **PAIRS, WORKER_CHECKPOINT_S="30"):
            eventually(lambda: ((bench.stage(job.id, "style_lora").progress or {}).get("step", 0)) > 5)
        steps = {bench.stage(job.id, name).checkpoint["step"] for name in ("content_lora", "style_lora")}
        assert len(steps) == 1
        assert states(bench.read(job.id).stages)["style_lora"] == "runnable"


class TestLibrary:
    KNOWN: ClassVar = {"revision": "r1"}

    def test_an_identical_lora_is_taken_from_there(self, bench: Bench):
        first = submit(bench)
        with bench.worker(self.KNOWN):
            bench.wait_for(first.id, "succeeded")
        before = set(bench.runs.iterdir())
        second = submit(bench)
        with bench.worker(self.KNOWN | {"content_lora": ["die"], "style_lora": ["die"]}):
            done = bench.wait_for(second.id, "succeeded")
        reused = {stage.name: stage.reused_job_id for stage in done.stages}
        assert reused == {"content_lora": first.id, "style_lora": first.id, "merge": None, "package": None}
        assert set(bench.runs.iterdir()) == before
        shas = [{each.name: each.sha256 for each in bench.read(job.id).artifacts} for job in (first, second)]
        assert shas[0]["content_lora"] == shas[1]["content_lora"]
        keys = {each.key for each in done.artifacts}
        assert all(str(second.id) in key and bench.store.get_bytes(key) for key in keys)
        with bench.sessions() as session:
            whole = sum(each.bytes for job in (first, second) for each in bench.read(job.id).artifacts)
            assert session.scalar(select(Account.stored_bytes)) >= whole

    def test_both_sides_of_a_pair_come_from_there(self, bench: Bench):
        first, second = submit(bench), submit(bench)
        with bench.worker(self.KNOWN, **PAIRS):
            bench.wait_for(first.id, "succeeded")
            done = bench.wait_for(second.id, "succeeded")
        assert {stage.reused_job_id for stage in done.stages} == {first.id, None}
        assert all(bench.attempts(second.id, stage.name) == [(1, "succeeded")] for stage in done.stages)

    def test_only_what_differs_is_trained(self, bench: Bench):
        first = submit(bench, recipe=together)
        second = submit(bench, recipe=together, subject_class="cat")
        with bench.worker(self.KNOWN):
            bench.wait_for(first.id, "succeeded")
            done = bench.wait_for(second.id, "succeeded")
        assert {stage.reused_job_id for stage in done.stages} == {None}

    def test_objects_that_are_gone_mean_work_and_no_failure(self, bench: Bench):
        first = submit(bench)
        with bench.worker(self.KNOWN):
            bench.wait_for(first.id, "succeeded")
        bench.store.delete([each.key for each in bench.read(first.id).artifacts])
        second = submit(bench)
        with bench.worker(self.KNOWN):
            done = bench.wait_for(second.id, "succeeded")
        assert {stage.reused_job_id for stage in done.stages} == {None}
        assert {stage.failures for stage in done.stages} == {0}

    def test_a_base_that_nobody_can_name_is_never_taken_for_the_same(self, bench: Bench):
        first, second = submit(bench), submit(bench)
        with bench.worker():
            bench.wait_for(first.id, "succeeded")
            done = bench.wait_for(second.id, "succeeded")
        assert {stage.reuse_key for stage in done.stages} == {None}


def test_the_owner_reads_what_the_engine_says(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["talk:5"]}):
        bench.wait_for(job.id, "succeeded")
    with bench.sessions() as session:
        rows = session.scalars(select(LogLine).where(LogLine.job_id == job.id).order_by(LogLine.id)).all()
    assert [(row.stage, row.message) for row in rows] == [("content_lora", f"line {number}") for number in range(5)]


def test_progress_becomes_events_but_not_all_of_it(bench: Bench):
    job = submit(bench)
    started = time.monotonic()
    with bench.worker({"content_lora": ["train:60"]}, WORKER_EVENT_S="0.3"):
        bench.wait_for(job.id, "succeeded")
    passed_s = time.monotonic() - started
    with bench.sessions() as session:
        told = session.scalars(select(Event).where(Event.job_id == job.id, Event.type == "job.progress")).all()
    assert 2 <= len(told) <= passed_s / 0.3 + 8
    assert {"stage", "attempt", "step", "total", "fraction", "loss", "note", "steps_per_second", "eta_seconds"} <= set(
        told[0].data
    )
