"""Jobs of the mock engine on a real database and a real object store, with no engine process or beside one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from safetensors import deserialize
from sqlalchemy import select

from api.db import transaction
from api.jobs import repository
from api.jobs.models import Event
from tests.support.company import together
from tests.worker.bench import eventually, states
from tests.worker.jobs import stop, submit
from tests.worker.metric_samples import of_registry
from tests.worker.test_worker import ARTIFACTS as OF_THE_STUB
from worker.mock_engine import STEPS

if TYPE_CHECKING:
    from api.jobs.models import Job
    from tests.worker.bench import Bench

ARTIFACTS = OF_THE_STUB | {"merge_report": "merge_report.json", "merge_plot": "merge_plot.png"}
ALONE = {"WORKER_ENGINE": "mock"}


def content(bench: Bench, job: Job, name: str) -> bytes:
    return bench.store.get_bytes(next(each.key for each in job.artifacts if each.name == name))


def happened(bench: Bench, job: Job) -> list[str]:
    with bench.sessions() as session:
        return [
            str(kind) for kind in session.scalars(select(Event.type).where(Event.job_id == job.id).order_by(Event.id))
        ]


def losses(bench: Bench, job: Job) -> dict[str, bool]:
    """Say of every stage that told how far it is whether it ever told a loss."""
    told = select(Event.data).where(Event.job_id == job.id, Event.type == "job.progress")
    found: dict[str, bool] = {}
    with bench.sessions() as session:
        for data in session.scalars(told):
            found[data["stage"]] = found.get(data["stage"], False) or data.get("loss") is not None
    return found


@pytest.mark.parametrize("alone", [True, False], ids=["without an engine process", "beside one"])
def test_a_mock_job_goes_the_whole_way_and_its_files_say_that_they_are_none(bench: Bench, alone: bool):
    job = submit(bench, engine="mock")
    with bench.worker(**(ALONE if alone else {})) as worker:
        done = bench.wait_for(job.id, "succeeded")
        assert worker.engine.starts == (0 if alone else 1)
    assert {each.name: each.filename for each in done.artifacts} == ARTIFACTS
    header = content(bench, done, "merged_diffusers")
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["duolora.engine"] == "mock"
    assert len(deserialize(header)) == 2
    assert {name for name, _ in deserialize(content(bench, done, "merged_kohya"))} == {
        f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.{part}"
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert Image.open(io.BytesIO(content(bench, done, "preview"))).text == {"duolora.engine": "mock"}
    report = json.loads(content(bench, done, "report"))
    assert report["engine"] == "mock"
    assert {"000.png", "merged.diffusers.safetensors"} <= set(report["inputs"])
    told = happened(bench, job)
    assert told[:2] == ["job.queued", "job.started"]
    assert told.count("job.progress") >= 4
    assert told[-1] == "job.succeeded"
    assert all(stage.progress["step"] == stage.progress["total"] for stage in done.stages)


def test_one_that_trains_both_sides_at_once_leaves_the_same_files(bench: Bench):
    job = submit(bench, recipe=together, engine="mock")
    with bench.worker(**ALONE):
        done = bench.wait_for(job.id, "succeeded")
    assert {each.name: each.filename for each in done.artifacts} == ARTIFACTS


def test_jobs_that_draw_leave_as_many_pictures_as_they_were_asked_for(bench: Bench):
    drawing = submit(bench, engine="mock", kind="generate", pictures=(), prompts=["a", "b"], images_per_prompt=2)
    sliding = submit(bench, engine="mock", slider=2)
    with bench.worker(**ALONE):
        done = [bench.wait_for(job.id, "succeeded") for job in (drawing, sliding)]
    pictures = {f"picture_{place:03d}": f"picture_{place:03d}.png" for place in range(4)}
    last = {"preview": "preview.png", "report": "report.json"}
    slider = {f"slider_{place}": f"slider_{place}.png" for place in range(2)}
    assert [{each.name: each.filename for each in job.artifacts} for job in done] == [
        pictures | last,
        ARTIFACTS | slider,
    ]


def test_stages_that_learn_tell_losses_and_those_that_draw_tell_none(bench: Bench):
    drawing = submit(bench, engine="mock", kind="generate", pictures=(), prompts=["a"])
    learning = submit(bench, engine="mock")
    with bench.worker(**ALONE):
        for job in (drawing, learning):
            bench.wait_for(job.id, "succeeded")
    assert losses(bench, drawing) == {"generate": False}
    assert losses(bench, learning) == {"content_lora": True, "style_lora": True, "merge": True, "package": False}


def test_a_pair_is_worked_on_like_any_other(bench: Bench):
    job = submit(bench, engine="mock")
    with bench.worker(WORKER_PAIRS="true"):
        done = bench.wait_for(job.id, "succeeded")
    assert {each.name: each.filename for each in done.artifacts} == ARTIFACTS


def test_one_that_is_to_fail_fails_for_good_with_a_code_of_its_own(bench: Bench):
    job = submit(bench, engine="mock", mock_outcome="fail")
    with bench.worker(**ALONE):
        done = bench.wait_for(job.id, "failed")
    assert (done.error["code"], done.error["stage"], done.error["retryable"]) == ("mock_failure", "content_lora", False)
    assert bench.attempts(job.id, "content_lora") == [(1, "failed")]
    assert done.artifacts == []


def test_a_slow_one_that_is_stopped_ends_early_and_well(bench: Bench):
    job = submit(bench, engine="mock", mock_outcome="slow", kind="train", pictures=("style",))
    with bench.worker(**ALONE):
        eventually(lambda: (bench.stage(job.id, "style_lora").progress or {}).get("step"))
        stop(bench, job)
        done = bench.wait_for(job.id, "succeeded")
    assert {stage.name: stage.stopped_early for stage in done.stages} == {"style_lora": True, "package": True}
    assert all((stage.progress or {"step": 0})["step"] < STEPS for stage in done.stages)
    assert [bench.attempts(job.id, stage.name) for stage in done.stages] == [[(1, "succeeded")]] * 2
    assert {each.name for each in done.artifacts} == {"style_lora", "style_lora_kohya", "preview", "report"}


def test_a_slow_one_can_be_canceled_and_is_given_back_at_the_end_of_its_worker(bench: Bench):
    first, second = submit(bench, engine="mock", mock_outcome="slow"), submit(bench, engine="mock", mock_outcome="slow")
    with bench.worker(**ALONE):
        eventually(lambda: (bench.stage(first.id, "content_lora").progress or {}).get("step"))
        bench.cancel(first)
        bench.wait_for(first.id, "canceled")
        eventually(lambda: bench.stage(second.id, "content_lora").state == "running")
        eventually(lambda: (bench.stage(second.id, "content_lora").progress or {}).get("step"))
    assert bench.attempts(second.id, "content_lora") == [(1, "released")]


def test_what_it_makes_is_never_taken_for_the_real_thing(bench: Bench):
    wishes = {"seed": 3}
    mock = submit(bench, engine="mock", **wishes)
    with bench.worker():
        bench.wait_for(mock.id, "succeeded")
        real = submit(bench, **wishes)
        done = bench.wait_for(real.id, "succeeded")
        again = submit(bench, engine="mock", **wishes)
        mocked = bench.wait_for(again.id, "succeeded")
    assert {stage.reused_job_id for stage in (*done.stages, *mocked.stages)} == {None}
    assert [stage.reuse_key for stage in bench.read(mock.id).stages] == [None] * 4
    assert b"mock" not in content(bench, done, "content_lora")


def test_it_shares_no_pass_with_other_jobs(bench: Bench):
    mock, real = submit(bench, engine="mock"), submit(bench)
    assert {stage.likeness for stage in bench.read(mock.id).stages} == {None}
    assert any(stage.likeness for stage in bench.read(real.id).stages)


def test_times_of_attempts_say_which_engine_it_was(bench: Bench):
    job = submit(bench, engine="mock")
    with bench.worker(**ALONE) as worker:
        bench.wait_for(job.id, "succeeded")
        count = ("duolora_attempt_seconds_count", "mock", "succeeded", "package")
        eventually(lambda: of_registry(worker.registry).get(count) == 1)
    assert not [key for key in of_registry(worker.registry) if "duolora" in key]


def test_a_worker_without_an_engine_leaves_real_work_to_others_and_is_no_reason_to_wait(bench: Bench):
    real = submit(bench)
    mock = submit(bench, engine="mock")
    with bench.worker(**ALONE):
        bench.wait_for(mock.id, "succeeded")
        with transaction(bench.sessions) as session:
            assert repository.count_workers(session).idle == 0
    assert states(bench.read(real.id).stages)["content_lora"] == "runnable"


def test_it_needs_no_torch():
    code = "import sys, worker.runner; print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert output.stdout.strip() == "[]"
