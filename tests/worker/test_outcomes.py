"""What becomes of a stage: one row for every error there is."""

from __future__ import annotations

import errno
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

from api.errors import LeaseLost
from api.jobs.failures import FailureClass
from api.storage import ObjectMissing, StoreError, StoreMisconfigured
from duolora import errors
from duolora.errors import DuoLoraError, Fault
from worker.mailbox import Interrupt
from worker.outcomes import CHECKPOINT_UNUSABLE, RETRY_MOST, Abandon, Cancel, Fail, Release, Retry, classify
from worker.supervisor import EngineDied, EngineNotReady, StageFailed, StageInterrupted, StageStuck
from worker.wire import Failed
from worker.workspace import ArtifactCorrupt, BaseUnavailable, OutputMissing


def failed(code: str, fault: Fault) -> StageFailed:
    return StageFailed(Failed(id="s:1", code=code, message="why", fault=fault))


CALLER, MEMORY, ENVIRONMENT, DEATH = FailureClass

ENGINE_TABLE = {
    # error: (code, class)
    DuoLoraError: ("engine_error", ENVIRONMENT),
    errors.InvalidConfig: ("invalid_config", CALLER),
    errors.InvalidImage: ("invalid_image", CALLER),
    errors.InvalidLora: ("invalid_lora", CALLER),
    errors.InvalidBase: ("invalid_base", ENVIRONMENT),
    errors.LayerGroupEmpty: ("layer_group_empty", CALLER),
    errors.TrainingDiverged: ("training_diverged", CALLER),
    errors.OutOfMemory: ("gpu_out_of_memory", MEMORY),
    errors.Cancelled: ("cancelled", DEATH),
}

ENVIRONMENT_TABLE = [
    # error, code, class, whether the engine is replaced
    (EngineDied("killed by SIGKILL"), "engine_died", DEATH, True),
    (EngineNotReady("no ready"), "engine_died", DEATH, True),
    (StageStuck("no progress"), "stage_stuck", DEATH, True),
    (ArtifactCorrupt("a"), "artifact_corrupt", ENVIRONMENT, False),
    (OutputMissing("a"), "output_missing", ENVIRONMENT, True),
    (BaseUnavailable("a"), "base_unavailable", ENVIRONMENT, False),
    (StoreError("a"), "storage_unavailable", ENVIRONMENT, False),
    (ObjectMissing("a"), "storage_unavailable", ENVIRONMENT, False),
    (StoreMisconfigured("a"), "storage_unavailable", ENVIRONMENT, False),
    (OSError(errno.ENOSPC, "full"), "insufficient_storage", ENVIRONMENT, True),
    (OSError(errno.EACCES, "no"), "internal_error", DEATH, True),
    (OperationalError("x", {}, Exception()), "database_unavailable", ENVIRONMENT, False),
    (KeyError("a bug"), "internal_error", DEATH, True),
]


def every_engine_error() -> set[type[DuoLoraError]]:
    found, todo = set(), [DuoLoraError]
    while todo:
        kind = todo.pop()
        found.add(kind)
        todo += kind.__subclasses__()
    return {kind for kind in found if kind.__module__.startswith("duolora.")}


def test_every_error_of_the_engine_has_a_row():
    ours = {kind for kind in every_engine_error() if kind.code != CHECKPOINT_UNUSABLE}
    assert ours == set(ENGINE_TABLE)


@pytest.mark.parametrize("kind", ENGINE_TABLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("far", [False, True], ids=["raised here", "reported by the engine process"])
def test_code_and_fault_decide(kind: type[DuoLoraError], far: bool):
    code, expected = ENGINE_TABLE[kind]
    outcome = classify(failed(kind.code, kind.fault) if far else kind("why"), failures=0)
    assert (type(outcome), outcome.kind) == (Fail if expected is CALLER else Retry, expected)
    assert outcome.error["code"] == code
    assert outcome.error["detail"] == "why"
    assert outcome.error["type"].endswith(code)
    assert outcome.error["retryable"] is (kind.fault is not Fault.CALLER)


@pytest.mark.parametrize(("error", "code", "kind", "fresh"), ENVIRONMENT_TABLE, ids=lambda value: str(value)[:40])
def test_what_surrounds_the_engine_is_tried_again(error: Exception, code: str, kind: FailureClass, fresh: bool):
    outcome = classify(error, failures=0)
    assert isinstance(outcome, Retry)
    assert (outcome.error["code"], outcome.kind, outcome.fresh_engine) == (code, kind, fresh)


def test_a_bug_inside_the_engine_is_a_death():
    assert classify(failed("internal_error", Fault.INFRASTRUCTURE), failures=0).kind is DEATH


def test_a_checkpoint_that_the_engine_cannot_read_costs_only_the_checkpoint():
    outcome = classify(failed(CHECKPOINT_UNUSABLE, Fault.INFRASTRUCTURE), failures=3)
    assert (outcome.kind, outcome.fresh_start, outcome.fresh_engine) == (ENVIRONMENT, True, False)
    assert outcome.after == timedelta(0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StageInterrupted(Interrupt.CANCEL), Cancel()),
        (StageInterrupted(Interrupt.SHUTDOWN), Release()),
        (StageInterrupted(Interrupt.REGROUP), Release()),
        (StageInterrupted(Interrupt.LEASE_LOST), Abandon()),
        (LeaseLost("gone"), Abandon()),
    ],
)
def test_an_interruption_is_no_failure(error: Exception, expected: object):
    assert classify(error, failures=0) == expected


def test_every_interrupt_has_an_outcome():
    assert all(classify(StageInterrupted(reason), failures=0) for reason in Interrupt)


def test_out_of_memory_is_tried_again_at_once_in_a_fresh_engine():
    outcome = classify(failed("gpu_out_of_memory", Fault.MEMORY), failures=1)
    assert (outcome.after, outcome.fresh_engine) == (timedelta(0), True)


def test_pauses_double_up_to_a_limit():
    pauses = [classify(EngineDied("x"), failures=failures).after for failures in range(39)]
    assert pauses[:3] == [timedelta(seconds=2), timedelta(seconds=4), timedelta(seconds=8)]
    assert max(pauses) == pauses[-1] == RETRY_MOST


def test_the_text_of_an_unknown_error_stays_in_the_logs():
    assert "password" not in str(classify(RuntimeError("password=1"), failures=0).error)
