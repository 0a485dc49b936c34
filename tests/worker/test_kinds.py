"""Jobs that train, merge or draw only, with the real engine: from the submission to the files, however interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from sqlalchemy import select, text

from api.db import transaction
from api.jobs.models import Stage, StageAttempt
from api.loras.models import Lora, LoraRole
from tests.support.company import alone, quick
from tests.worker.bench import eventually, states
from tests.worker.jobs import retry, stop
from tests.worker.jobs import submit as submit_by

if TYPE_CHECKING:
    from api.jobs.models import Job
    from tests.worker.bench import Bench

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(400)]

PATIENCE_S = 150

SETTINGS = {"ENGINE_START_TIMEOUT_S": "60", "WORKER_CHECKPOINT_S": "0.05"}
MANY = {
    "kind": "generate",
    "pictures": (),
    "prompts": [f"a dog {number}" for number in range(10)],
    "images_per_prompt": 2,
    "steps": {"sampling": 10},
}
"""Of a job that draws for a while, with the base alone."""


@pytest.fixture(autouse=True)
def real_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(bench), "engine_command", lambda *_: json.dumps([sys.executable, "-m", "worker.engine"]))


def submit(bench: Bench, **wishes: Any) -> Job:
    return submit_by(bench, recipe=quick(alone), **wishes)


def finished(bench: Bench, job: Job) -> Job:
    return bench.wait_for(job.id, "succeeded", within_s=PATIENCE_S)


def in_the_library(bench: Bench, job: Job, role: LoraRole) -> str:
    """The id of what a job made."""
    with bench.sessions() as session:
        return str(session.scalars(select(Lora.id).where(Lora.job_id == job.id, Lora.role == role)).one())


def files(bench: Bench, job: Job) -> dict[str, bytes]:
    return {each.name: bench.store.get_bytes(each.key) for each in bench.read(job.id).artifacts}


def report(bench: Bench, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(bench, job)["report"])
    return found


def size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


def drawn(bench: Bench, job: Job) -> dict[str, bytes]:
    return {name: data for name, data in files(bench, job).items() if name.startswith("picture_")}


def test_what_is_trained_is_merged_and_what_is_merged_draws(bench: Bench) -> None:
    with bench.worker(**SETTINGS):
        ids = {}
        for side in ("content", "style"):
            job = submit(bench, kind="train", pictures=(side,), rank=2, steps={side: 3}, style_trigger="inky")
            trained = finished(bench, job)
            assert list(states(trained.stages)) == [f"{side}_lora", "package"]
            assert {each.name for each in trained.artifacts} == {
                f"{side}_lora",
                f"{side}_lora_kohya",
                "preview",
                "report",
            }
            ids[side] = in_the_library(bench, trained, LoraRole(side))

        job = submit(
            bench, kind="merge", pictures=(), slider=3, content_lora_id=ids["content"], style_lora_id=ids["style"]
        )
        merged = finished(bench, job)
        assert list(states(merged.stages)) == ["merge", "package"]
        assert (merged.params["prompts"]["subject_class"], merged.params["prompts"]["style_trigger"]) == ("dog", "inky")
        found = files(bench, merged)
        assert {name for name in found if name.startswith("merge")} == {
            "merged_diffusers",
            "merged_kohya",
            "merge_report",
            "merge_plot",
        }
        assert [each["artifact"] for each in report(bench, merged)["slider"]] == ["slider_0", "slider_1", "slider_2"]
        assert [size(found[f"slider_{place}"]) for place in range(3)] == [(64, 64)] * 3

        lora = {"lora_id": in_the_library(bench, merged, LoraRole.MERGED), "strength": 0.8}
        job = submit(
            bench,
            kind="generate",
            pictures=(),
            loras=[lora],
            prompts=["a sbu dog", "a sbu dog in szn style"],
            images_per_prompt=2,
            steps={"sampling": 3},
        )
        done = finished(bench, job)
    assert list(states(done.stages)) == ["generate"]
    assert list(drawn(bench, done)) == [f"picture_{place:03d}" for place in range(4)]
    assert report(bench, done)["loras"][0]["strength"] == 0.8
    assert [each["prompt"] for each in report(bench, done)["pictures"]] == [
        "a sbu dog",
        "a sbu dog",
        "a sbu dog in szn style",
        "a sbu dog in szn style",
    ]


def test_a_generate_job_whose_engine_is_killed_draws_the_same_pictures(bench: Bench) -> None:
    killed = submit(bench, **MANY)
    with bench.worker(**SETTINGS) as worker:
        eventually(lambda: (bench.stage(killed.id, "generate").checkpoint or {}).get("step", 0) >= 10)
        os.kill(worker.engine.pid, signal.SIGKILL)
        eventually(lambda: bench.attempts(killed.id, "generate") == [(1, "retried")])
        with transaction(bench.sessions) as session:
            session.execute(text("UPDATE stages SET runnable_at = now() WHERE state = 'runnable'"))
        finished(bench, killed)
        whole = submit(bench, **MANY)
        finished(bench, whole)
    assert bench.attempts(killed.id, "generate") == [(1, "retried"), (2, "succeeded")]
    with bench.sessions() as session:
        resumed = session.scalars(
            select(StageAttempt.resumed_step)
            .join(Stage, Stage.id == StageAttempt.stage_id)
            .where(Stage.job_id == killed.id, StageAttempt.attempt == 2)
        ).one()
    assert resumed >= 10
    ours, theirs = drawn(bench, killed), drawn(bench, whole)
    assert len(ours) == 20
    assert ours == theirs


def test_a_generate_job_ends_early_with_what_it_has_and_a_canceled_one_goes_on_when_tried_again(bench: Bench) -> None:
    with bench.worker(**SETTINGS):
        stopped = submit(bench, **MANY)
        eventually(lambda: (bench.stage(stopped.id, "generate").checkpoint or {}).get("step", 0) >= 10)
        stop(bench, stopped)
        finished(bench, stopped)
        pictures = drawn(bench, stopped)
        assert bench.stage(stopped.id, "generate").stopped_early
        assert 2 <= len(pictures) < 20
        assert len(pictures) == len(report(bench, stopped)["pictures"])

        canceled = submit(bench, **MANY)
        eventually(lambda: (bench.stage(canceled.id, "generate").checkpoint or {}).get("step", 0) >= 10)
        bench.cancel(canceled)
        bench.wait_for(canceled.id, "canceled")
        assert bench.read(canceled.id).artifacts == []
        again = retry(bench, canceled)
        finished(bench, again)
    whole = drawn(bench, again)
    assert len(whole) == 20
    assert {name: whole[name] for name in pictures} == pictures


def test_a_merge_that_is_stopped_takes_a_step_and_ends(bench: Bench) -> None:
    with bench.worker(**SETTINGS):
        ids = {}
        for side in ("content", "style"):
            job = submit(bench, kind="train", pictures=(side,), rank=2, steps={side: 1})
            ids[f"{side}_lora_id"] = in_the_library(bench, finished(bench, job), LoraRole(side))
        merging = submit(bench, kind="merge", merge_recipe="paper", steps={"merge": 5000}, **ids)
        eventually(lambda: (bench.stage(merging.id, "merge").progress or {}).get("step", 0) >= 1)
        stop(bench, merging)
        done = finished(bench, merging)
    assert bench.stage(merging.id, "merge").stopped_early
    assert {"merged_diffusers", "preview", "report"} <= {each.name for each in done.artifacts}
    assert len(report(bench, done)["merge"]["losses"]) < 5000


def test_a_training_is_shown_while_it_runs_and_its_pictures_outlive_a_crash(bench: Bench) -> None:
    job = submit(bench, kind="train", pictures=("content",), rank=2, steps={"content": 60}, preview_every=10)
    with bench.worker(**SETTINGS) as worker:
        eventually(lambda: "training_content_000010" in shown(bench, job), within_s=PATIENCE_S)
        assert bench.stage(job.id, "content_lora").state == "running"
        eventually(lambda: (bench.stage(job.id, "content_lora").checkpoint or {}).get("step", 0) > 10)
        os.kill(worker.engine.pid, signal.SIGKILL)
        eventually(lambda: bench.attempts(job.id, "content_lora") == [(1, "retried")])
        before = shown(bench, job)
        with transaction(bench.sessions) as session:
            session.execute(text("UPDATE stages SET runnable_at = now() WHERE state = 'runnable'"))
        finished(bench, job)
    pictures = shown(bench, job)
    assert list(pictures) == [f"training_content_{step:06d}" for step in (10, 20, 30, 40, 50)]
    assert pictures.items() >= before.items()
    assert all(size(data)[1] > 200 for data in pictures.values())


def shown(bench: Bench, job: Job) -> dict[str, bytes]:
    return {name: data for name, data in sorted(files(bench, job).items()) if name.startswith("training_")}
