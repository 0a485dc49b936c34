"""The worker around the real engine: what is interrupted and gone on with gives the files of what was not."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load
from sqlalchemy import select, text

from api.db import transaction
from api.jobs.models import Stage, StageAttempt
from duolora.lora.read import read_lora
from tests.duolora.dense import assert_same_change
from tests.worker.bench import eventually
from tests.worker.jobs import submit

if TYPE_CHECKING:
    import uuid

    from duolora.lora.weights import LoraWeights
    from tests.worker.bench import Bench

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(240)]

LORAS = ("content_lora", "style_lora")
FEW = {"steps": {"content": 12, "style": 12, "merge": 1}, "rank": 2}
SETTINGS = {"ENGINE_START_TIMEOUT_S": "60", "WORKER_PAIRS": "true", "WORKER_CHECKPOINT_S": "0.05"}


def tensors(bench: Bench, job_id: uuid.UUID) -> dict[str, torch.Tensor]:
    """All of both LoRAs; the headers hold the date."""
    return {
        f"{each.name}/{name}": tensor
        for each in bench.read(job_id).artifacts
        if "_lora" in each.name
        for name, tensor in load(bench.store.get_bytes(each.key)).items()
    }


def trained(bench: Bench, job_id: uuid.UUID) -> bool:
    return all(bench.stage(job_id, name).state == "succeeded" for name in LORAS)


def test_a_pair_whose_engine_is_killed_in_the_middle_gives_the_same_files(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(bench), "engine_command", lambda *_: json.dumps([sys.executable, "-m", "worker.engine"]))
    killed = submit(bench, **FEW)
    with bench.worker(**SETTINGS) as worker:
        eventually(lambda: (bench.stage(killed.id, "style_lora").checkpoint or {}).get("step", 0) >= 3)
        assert bench.stage(killed.id, "content_lora").state == "running"
        os.kill(worker.engine.pid, signal.SIGKILL)
        eventually(lambda: bench.attempts(killed.id, "content_lora") == [(1, "retried")])
        with transaction(bench.sessions) as session:
            session.execute(text("UPDATE stages SET runnable_at = now() WHERE state = 'runnable'"))
        eventually(lambda: trained(bench, killed.id), within_s=100)
    with transaction(bench.sessions) as session:
        session.execute(text("UPDATE stages SET reuse_key = NULL"))
        resumed = session.scalars(
            select(StageAttempt.resumed_step)
            .join(Stage, Stage.id == StageAttempt.stage_id)
            .where(Stage.job_id == killed.id, Stage.name.in_(LORAS), StageAttempt.attempt == 2)
        ).all()
    assert resumed[0] == resumed[1] >= 3
    bench.cancel(killed)
    whole = submit(bench, **FEW)
    with bench.worker(**SETTINGS):
        eventually(lambda: trained(bench, whole.id), within_s=100)
    assert [bench.attempts(whole.id, name) for name in LORAS] == [[(1, "succeeded")]] * 2
    ours, theirs = tensors(bench, killed.id), tensors(bench, whole.id)
    assert {name.partition("/")[0] for name in ours} == {f"{name}{keys}" for name in LORAS for keys in ("", "_kohya")}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_of_two_jobs_in_one_run_one_is_canceled_and_the_other_gets_what_it_gets_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tolerance: Adam makes whole steps of rounding where a gradient is nearly nothing."""
    monkeypatch.setattr(type(bench), "engine_command", lambda *_: json.dumps([sys.executable, "-m", "worker.engine"]))
    gone, stays = submit(bench, seed=1, **FEW), submit(bench, seed=2, **FEW)
    with bench.worker(**SETTINGS, WORKER_JOBS_AT_ONCE="2"):
        eventually(lambda: (bench.stage(stays.id, "style_lora").checkpoint or {}).get("step", 0) >= 3)
        bench.cancel(gone)
        bench.wait_for(gone.id, "canceled")
        eventually(lambda: trained(bench, stays.id), within_s=100)
        bench.cancel(stays)
    for name in LORAS:
        assert bench.attempts(gone.id, name) == [(1, "canceled")]
        assert bench.attempts(stays.id, name) == [(1, "released"), (2, "succeeded")]
    with transaction(bench.sessions) as session:
        session.execute(text("UPDATE stages SET reuse_key = NULL"))
        rows = session.execute(
            select(StageAttempt.jobs, StageAttempt.resumed_step)
            .join(Stage, Stage.id == StageAttempt.stage_id)
            .where(Stage.job_id == stays.id, Stage.name == "content_lora")
            .order_by(StageAttempt.attempt)
        ).all()
    assert [row.jobs for row in rows] == [2, 1]
    assert rows[1].resumed_step >= 3
    whole = submit(bench, seed=2, **FEW)
    with bench.worker(**SETTINGS):
        eventually(lambda: trained(bench, whole.id), within_s=100)
    ours, theirs = (_loras(bench, job.id) for job in (stays, whole))
    for name in LORAS:
        assert_same_change(ours[name], theirs[name], 1e-2)


def _loras(bench: Bench, job_id: uuid.UUID) -> dict[str, LoraWeights]:
    """Both trained LoRAs, as files hold them."""
    found = {}
    for artifact in bench.read(job_id).artifacts:
        if artifact.name in LORAS:
            path = bench.folder / f"{job_id}-{artifact.filename}"
            path.write_bytes(bench.store.get_bytes(artifact.key))
            found[artifact.name] = read_lora(path)
    return found
