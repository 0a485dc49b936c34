"""The worker around the real engine: a pair that is killed and gone on with gives the files of one that was not."""

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
from tests.worker.bench import eventually
from tests.worker.jobs import submit

if TYPE_CHECKING:
    import uuid

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
