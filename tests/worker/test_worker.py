"""Stages on a real database and a real object store; only the engine process is a stub."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text, update

from api.db import transaction
from api.jobs.models import Event, OutboxRow, Stage
from api.storage import ObjectStore, StoreError
from tests.support.company import together
from tests.worker.bench import eventually, is_running, sha256, states
from tests.worker.jobs import submit
from worker.supervisor import EngineSupervisor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker.bench import Bench

ARTIFACTS = {
    "content_lora": "content_lora.safetensors",
    "content_lora_kohya": "content_lora.kohya.safetensors",
    "style_lora": "style_lora.safetensors",
    "style_lora_kohya": "style_lora.kohya.safetensors",
    "merged_diffusers": "merged.diffusers.safetensors",
    "merged_kohya": "merged.kohya.safetensors",
    "preview": "preview.png",
    "report": "report.json",
}


def scratch_is_empty(bench: Bench) -> bool:
    return not any(path.is_dir() and path.name != "inputs" for path in (bench.folder / "scratch").glob("worker-*/*"))


def test_a_job_runs_all_its_stages_to_stored_artifacts(bench: Bench):
    job = submit(bench)
    with bench.worker() as worker:
        done = bench.wait_for(job.id, "succeeded")
        assert scratch_is_empty(bench)
        pid = worker.engine.pid
    assert set(states(done.stages).values()) == {"succeeded"}
    assert {artifact.name: artifact.filename for artifact in done.artifacts} == ARTIFACTS
    for artifact in done.artifacts:
        data = bench.store.get_bytes(artifact.key)
        assert (sha256(data), len(data)) == (artifact.sha256, artifact.bytes)
        assert f"/{artifact.attempt}/" in artifact.key
    stage = bench.stage(job.id, "content_lora")
    assert {"train_s", "fetch_s", "engine_s", "publish_s"} <= set(stage.timings)
    assert stage.progress is None or stage.progress["total"] == 3
    assert not is_running(pid)


def test_the_engine_sees_the_pictures_and_every_file_of_the_stages_before(bench: Bench):
    job = submit(bench)
    with bench.worker():
        done = bench.wait_for(job.id, "succeeded")
    told = {artifact.name: json.loads(bench.store.get_bytes(artifact.key))["inputs"] for artifact in done.artifacts}
    pictures = {"content/000.png", "style/000.png"}
    loras = {"content_lora.safetensors", "content_lora.kohya.safetensors", "style_lora.safetensors"}
    assert set(told["content_lora"]) == pictures
    assert set(told["merged_diffusers"]) >= pictures | loras
    assert set(told["preview"]) >= pictures | loras | {"merged.diffusers.safetensors"}
    content = next(artifact for artifact in done.artifacts if artifact.name == "content_lora")
    assert told["merged_diffusers"]["content_lora.safetensors"] == content.sha256


def test_a_job_that_trains_both_sides_at_once_leaves_the_same_files(bench: Bench):
    job = submit(bench, recipe=together)
    with bench.worker():
        done = bench.wait_for(job.id, "succeeded")
    assert states(done.stages) == dict.fromkeys(("loras", "merge", "package"), "succeeded")
    assert {artifact.name: artifact.filename for artifact in done.artifacts} == ARTIFACTS
    told = {artifact.name: json.loads(bench.store.get_bytes(artifact.key))["inputs"] for artifact in done.artifacts}
    loras = {filename for name, filename in ARTIFACTS.items() if "_lora" in name}
    assert set(told["style_lora"]) == {"content/000.png", "style/000.png"}
    assert set(told["merged_diffusers"]) == set(told["style_lora"]) | loras


def test_lines_that_are_no_events_and_news_of_other_runs_are_passed_over(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["chatty"]}):
        bench.wait_for(job.id, "succeeded")
    assert bench.attempts(job.id, "content_lora") == [(1, "succeeded")]


def test_content_and_style_run_at_once_on_two_workers(bench: Bench):
    job = submit(bench)
    together = {"content_lora": ["gate:go"], "style_lora": ["gate:go"]}
    with bench.worker(together, WORKER_ID="one"), bench.worker(together, WORKER_ID="two"):
        bench.wait_for_run("content_lora")
        bench.wait_for_run("style_lora")
        assert {stage.worker_id for stage in bench.read(job.id).stages if stage.state == "running"} == {"one", "two"}
        bench.open("go")
        bench.wait_for(job.id, "succeeded")
    assert all(bench.attempts(job.id, stage) == [(1, "succeeded")] for stage in states(bench.read(job.id).stages))


def test_progress_is_written_while_a_stage_runs(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:go"]}):
        progress = eventually(lambda: bench.stage(job.id, "content_lora").progress)
        expected = {"step": 1, "total": 3, "loss": 0.5, "note": "gate"}
        assert expected.items() <= progress.items()
        bench.open("go")
        bench.wait_for(job.id, "succeeded")


def test_an_engine_killed_in_the_middle_is_replaced_and_the_stage_done_once(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:never", "ok"]}) as worker:
        pid = bench.wait_for_run("content_lora")
        os.kill(pid, signal.SIGKILL)
        soon(bench)
        done = bench.wait_for(job.id, "succeeded")
        assert worker.engine.pid != pid
    assert bench.attempts(job.id, "content_lora") == [(1, "retried"), (2, "succeeded")]
    assert [artifact.attempt for artifact in done.artifacts if artifact.name == "content_lora"] == [2]


def test_an_engine_that_dies_every_time_fails_the_job_when_the_attempts_are_used_up(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["die"]}):
        for _ in range(2):
            soon(bench)
        failed = bench.wait_for(job.id, "failed")
    assert failed.error["code"] == "engine_died"
    assert "SIGKILL" in failed.error["detail"]
    assert (failed.error["stage"], failed.error["attempt"]) == ("content_lora", 3)
    assert [outcome for _, outcome in bench.attempts(job.id, "content_lora")] == ["retried", "retried", "failed"]


def soon(bench: Bench) -> None:
    """Wait for a stage to be put off, and let it run now: seconds of backoff would only slow the suite."""
    later = (Stage.state == "runnable") & (Stage.runnable_at > text("now()"))

    def hurry() -> bool:
        with transaction(bench.sessions) as session:
            return bool(session.execute(update(Stage).where(later).values(runnable_at=text("now()"))).rowcount)

    eventually(hurry)


def test_an_engine_that_dies_idle_is_replaced_before_it_is_needed(bench: Bench):
    with bench.worker() as worker:
        first = eventually(lambda: worker.engine.pid)
        eventually(worker.engine.is_alive)
        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: (pid := worker.engine.pid) != first and pid)
        job = submit(bench)
        bench.wait_for(job.id, "succeeded")
        assert worker.engine.pid == second
    assert bench.attempts(job.id, "content_lora") == [(1, "succeeded")]


def test_the_callers_fault_fails_the_job_at_once_with_a_problem(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["fail:caller"]}) as worker:
        failed = bench.wait_for(job.id, "failed")
        assert worker.engine.is_alive()
    assert failed.error["type"] == "urn:duolora:problem:stub_caller"
    assert failed.error["retryable"] is False
    assert bench.attempts(job.id, "content_lora") == [(1, "failed")]
    assert states(failed.stages)["merge"] == "canceled"


def test_out_of_memory_is_tried_once_more_in_a_fresh_engine(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["fail:memory"]}):
        failed = bench.wait_for(job.id, "failed")
    assert failed.error["status"] == 507
    assert bench.attempts(job.id, "content_lora") == [(1, "retried"), (2, "failed")]
    assert bench.wait_for_run("content_lora", 1) != bench.wait_for_run("content_lora", 2)


def test_a_shutdown_does_not_use_up_the_retry_after_running_out_of_memory(bench: Bench):
    job = submit(bench)
    behaviours = {"content_lora": ["gate:never", "fail:memory", "ok"]}
    with bench.worker(behaviours):
        bench.wait_for_run("content_lora")
    with bench.worker(behaviours):
        bench.wait_for(job.id, "succeeded")
    assert bench.attempts(job.id, "content_lora") == [(1, "released"), (2, "retried"), (3, "succeeded")]


def test_an_output_that_is_not_there_is_our_fault(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["missing", "ok"]}):
        soon(bench)
        bench.wait_for(job.id, "succeeded")
    assert bench.stage(job.id, "content_lora").failures == 1


def test_a_running_job_is_cancelled_and_the_engine_stays_warm(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:never"]}) as worker:
        pid = bench.wait_for_run("content_lora")
        bench.cancel(job)
        canceled = bench.wait_for(job.id, "canceled")
        assert worker.engine.pid == pid
        assert worker.engine.is_alive()
    assert set(states(canceled.stages).values()) == {"canceled"}
    assert canceled.artifacts == []


def test_an_engine_that_ignores_cancel_and_term_is_killed(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["deaf"]}) as worker:
        pid = bench.wait_for_run("content_lora")
        bench.cancel(job)
        bench.wait_for(job.id, "canceled")
        assert not is_running(pid)
        after = submit(bench)
        eventually(lambda: worker.engine.pid not in {None, pid})
        bench.cancel(after)
        bench.wait_for(after.id, "canceled")


def test_a_stage_given_to_somebody_else_is_stopped_and_nothing_is_written(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:never"]}):
        bench.wait_for_run("content_lora")
        with transaction(bench.sessions) as session:
            session.execute(
                update(Stage)
                .where(Stage.job_id == job.id, Stage.name == "content_lora")
                .values(fencing_token=text("gen_random_uuid()"), worker_id="another")
            )
        bench.wait_for_run("style_lora")  # the worker has turned to other work
        bench.cancel(job)
    stage = bench.stage(job.id, "content_lora")
    assert (stage.state, stage.worker_id, stage.error) == ("running", "another", None)
    assert not [artifact for artifact in bench.read(job.id).artifacts if artifact.stage_id == stage.id]


def test_work_done_without_the_lease_is_not_published(bench: Bench):
    job = submit(bench)
    quiet = {"WORKER_HEARTBEAT_S": "60", "WORKER_PROGRESS_S": "60"}
    with bench.worker({"content_lora": ["gate:go"]}, **quiet):
        bench.wait_for_run("content_lora")
        with transaction(bench.sessions) as session:
            session.execute(
                update(Stage)
                .where(Stage.job_id == job.id, Stage.name == "content_lora")
                .values(fencing_token=text("gen_random_uuid()"), worker_id="another")
            )
        bench.open("go")
        eventually(lambda: bench.stage(job.id, "style_lora").state == "succeeded")
    stage = bench.stage(job.id, "content_lora")
    assert (stage.state, stage.worker_id) == ("running", "another")
    assert not [artifact for artifact in bench.read(job.id).artifacts if artifact.stage_id == stage.id]


def test_a_shutdown_gives_the_stage_back_without_counting_the_attempt(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:never"]}):
        pid = bench.wait_for_run("content_lora")
    stage = bench.stage(job.id, "content_lora")
    assert (stage.state, stage.failures, stage.error) == ("runnable", 0, None)
    assert bench.attempts(job.id, "content_lora") == [(1, "released")]
    assert not is_running(pid)
    with bench.worker():
        bench.wait_for(job.id, "succeeded")


def test_a_worker_that_stops_starts_no_engine_in_place_of_the_one_it_ended(bench: Bench, monkeypatch):
    spawn, spawned = EngineSupervisor._spawn, []
    monkeypatch.setattr(EngineSupervisor, "_spawn", lambda engine: (spawned.append(engine), spawn(engine))[1])
    submit(bench)
    with bench.worker({"content_lora": ["deaf"]}):
        bench.wait_for_run("content_lora")
    assert len(spawned) == 1


def test_an_engine_that_is_ended_together_with_its_worker_counts_as_a_shutdown(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:never"]}) as worker:
        pid = bench.wait_for_run("content_lora")
        worker.mailbox.shutting_down = True
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: bench.attempts(job.id, "content_lora") == [(1, "released")])
    assert bench.stage(job.id, "content_lora").failures == 0


def test_an_upload_waits_for_an_object_store_that_comes_back(bench: Bench, store_settings):
    class Flaky(ObjectStore):
        refused = 0

        def put_file(self, key: str, path: Path, content_type: str) -> None:
            if self.refused < 2:
                self.refused += 1
                raise StoreError("away")
            super().put_file(key, path, content_type)

    job = submit(bench)
    store = Flaky(store_settings)
    with bench.worker(store=store):
        bench.wait_for(job.id, "succeeded")
    assert store.refused == 2
    assert bench.attempts(job.id, "content_lora") == [(1, "succeeded")]


def test_a_worker_that_lost_the_store_takes_no_stage_until_it_answers(bench: Bench, store_settings):
    """Or one host that has lost its way to the store uses up the attempts of every stage."""

    class Away(ObjectStore):
        away = True
        asked = 0

        def get_file(self, key: str, path: Path) -> None:
            if self.away:
                raise StoreError("away")
            super().get_file(key, path)

        def ping(self) -> None:
            self.asked += 1
            if self.away:
                raise StoreError("away")

    jobs = [submit(bench), submit(bench)]
    store = Away(store_settings)
    with bench.worker(store=store, WORKER_PATIENCE_S="0.1"):
        eventually(lambda: store.asked >= 3)
        stages = ("content_lora", "style_lora")
        attempts = [attempt for job in jobs for name in stages for attempt in bench.attempts(job.id, name)]
        assert attempts == [(1, "retried")]
        store.away = False
        for job in jobs:
            bench.wait_for(job.id, "succeeded")


def test_a_tampered_input_is_noticed(bench: Bench):
    job = submit(bench)
    key = next(key for key in bench.store.keys("accounts/") if "/content/" in key)
    good = bench.store.get_bytes(key)
    bench.store.put_bytes(key, b"not the picture", "image/png")
    with bench.worker({}):
        stage = eventually(lambda: (stage := bench.stage(job.id, "content_lora")).error and stage)
        assert stage.error["code"] == "artifact_corrupt"
        bench.store.put_bytes(key, good, "image/png")
        while bench.read(job.id).state == "running":
            time.sleep(0.01)
            with transaction(bench.sessions) as session:
                session.execute(update(Stage).where(Stage.state == "runnable").values(runnable_at=text("now()")))
    assert bench.read(job.id).state == "succeeded"


def test_postgres_cutting_every_connection_costs_nothing(bench: Bench):
    job = submit(bench)
    with bench.worker({"content_lora": ["gate:go"]}):
        bench.wait_for_run("content_lora")
        with bench.sessions() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        bench.open("go")
        bench.wait_for(job.id, "succeeded")
    assert bench.attempts(job.id, "content_lora") == [(1, "succeeded")]


def test_a_dead_workers_scratch_is_swept_and_a_living_ones_kept(bench: Bench):
    left = bench.folder / "scratch" / "worker-dead"
    (left / "content_lora-1" / "inputs").mkdir(parents=True)
    (left / "lock").touch()
    with bench.worker(WORKER_ID="one"), bench.worker(WORKER_ID="two"):
        assert not left.exists()
        assert len(list((bench.folder / "scratch").glob("worker-*"))) == 2
    assert list((bench.folder / "scratch").iterdir()) == []


def test_exactly_one_terminal_event_and_a_hint_for_every_runnable_stage(bench: Bench):
    job = submit(bench)
    with bench.worker():
        bench.wait_for(job.id, "succeeded")
    with bench.sessions() as session:
        kinds = list(session.scalars(select(Event.type).where(Event.job_id == job.id)))
        hints = session.scalars(select(OutboxRow)).all()
    assert [kind for kind in kinds if kind in {"job.succeeded", "job.failed", "job.canceled"}] == ["job.succeeded"]
    assert len(hints) == 4


@pytest.mark.parametrize("kind", ["no such program", "mute"])
def test_no_stage_is_claimed_while_the_engine_does_not_start(bench: Bench, kind: str, monkeypatch):
    command = {"no such program": ["/nonexistent"], "mute": ["sleep", "60"]}[kind]
    monkeypatch.setattr(type(bench), "engine_command", lambda _self, _behaviours: json.dumps(command))
    job = submit(bench)
    with bench.worker(ENGINE_START_TIMEOUT_S="0.2"):
        time.sleep(0.5)
    assert bench.read(job.id).state == "queued"
