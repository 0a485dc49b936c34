"""What becomes of a stage: one row for every error there is."""

from __future__ import annotations

import errno
from datetime import timedelta

import pytest
from sqlalchemy.exc import OperationalError

from api.errors import LeaseLost
from api.storage import ObjectMissing, StoreError, StoreMisconfigured
from duolora import errors
from duolora.errors import DuoLoraError, Fault
from worker.mailbox import Interrupt
from worker.outcomes import RETRY_MOST, Abandon, Cancel, Fail, Release, Retry, classify
from worker.supervisor import EngineDied, EngineNotReady, StageFailed, StageInterrupted
from worker.wire import Failed
from worker.workspace import ArtifactCorrupt, BaseUnavailable, OutputMissing


def failed(code: str, fault: Fault) -> StageFailed:
    return StageFailed(Failed(id="s:1", code=code, message="why", fault=fault))


ENGINE_TABLE = {
    # error: (code, after the first failure, after the second)
    DuoLoraError: ("engine_error", Retry, Retry),
    errors.InvalidConfig: ("invalid_config", Fail, Fail),
    errors.InvalidImage: ("invalid_image", Fail, Fail),
    errors.InvalidLora: ("invalid_lora", Fail, Fail),
    errors.InvalidBase: ("invalid_base", Retry, Retry),
    errors.LayerGroupEmpty: ("layer_group_empty", Fail, Fail),
    errors.TrainingDiverged: ("training_diverged", Fail, Fail),
    errors.OutOfMemory: ("gpu_out_of_memory", Retry, Fail),
    errors.Cancelled: ("cancelled", Retry, Retry),
}

ENVIRONMENT_TABLE = [
    # error, code, whether the engine is replaced
    (EngineDied("killed by SIGKILL"), "engine_died", True),
    (EngineNotReady("no ready"), "engine_died", True),
    (ArtifactCorrupt("a"), "artifact_corrupt", False),
    (OutputMissing("a"), "output_missing", True),
    (BaseUnavailable("a"), "base_unavailable", False),
    (StoreError("a"), "storage_unavailable", False),
    (ObjectMissing("a"), "storage_unavailable", False),
    (StoreMisconfigured("a"), "storage_unavailable", False),
    (OSError(errno.ENOSPC, "full"), "insufficient_storage", True),
    (OSError(errno.EACCES, "no"), "internal_error", True),
    (OperationalError("x", {}, Exception()), "database_unavailable", False),
    (KeyError("a bug"), "internal_error", True),
]


def every_engine_error() -> set[type[DuoLoraError]]:
    found, todo = set(), [DuoLoraError]
    while todo:
        kind = todo.pop()
        found.add(kind)
        todo += kind.__subclasses__()
    return {kind for kind in found if kind.__module__.startswith("duolora.")}


def test_every_error_of_the_engine_has_a_row():
    assert every_engine_error() == set(ENGINE_TABLE)


@pytest.mark.parametrize("kind", ENGINE_TABLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("far", [False, True], ids=["raised here", "reported by the engine process"])
def test_fault_and_attempt_decide(kind: type[DuoLoraError], far: bool):
    code, first, second = ENGINE_TABLE[kind]
    error = failed(kind.code, kind.fault) if far else kind("why")
    before = None
    for failures, expected in enumerate((first, second)):
        outcome = classify(error, failures=failures, last_error=before)
        before = outcome.error
        assert type(outcome) is expected
        assert outcome.error["code"] == code
        assert outcome.error["detail"] == "why"
        assert outcome.error["type"].endswith(code)
        assert outcome.error["retryable"] is (kind.fault is not Fault.CALLER)


@pytest.mark.parametrize(("error", "code", "fresh"), ENVIRONMENT_TABLE, ids=lambda value: str(value)[:40])
def test_what_surrounds_the_engine_is_tried_again(error: Exception, code: str, fresh: bool):
    outcome = classify(error, failures=0, last_error=None)
    assert isinstance(outcome, Retry)
    assert outcome.fresh_engine is fresh
    assert outcome.error["code"] == code


def test_the_callers_fault_keeps_the_engine_warm():
    outcome = classify(failed("invalid_image", Fault.CALLER), failures=0, last_error=None)
    assert isinstance(outcome, Fail)
    assert not outcome.fresh_engine


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StageInterrupted(Interrupt.CANCEL), Cancel()),
        (StageInterrupted(Interrupt.SHUTDOWN), Release()),
        (StageInterrupted(Interrupt.LEASE_LOST), Abandon()),
        (LeaseLost("gone"), Abandon()),
    ],
)
def test_an_interruption_is_no_failure(error: Exception, expected: object):
    assert classify(error, failures=0, last_error=None) == expected


def test_every_interrupt_has_an_outcome():
    assert all(classify(StageInterrupted(reason), failures=0, last_error=None) for reason in Interrupt)


def test_out_of_memory_gets_its_retry_after_a_failure_of_another_kind():
    died = classify(EngineDied("x"), failures=0, last_error=None)
    outcome = classify(failed("gpu_out_of_memory", Fault.MEMORY), failures=1, last_error=died.error)
    assert isinstance(outcome, Retry)
    assert outcome.after == timedelta(0)
    assert outcome.fresh_engine


def test_pauses_double_up_to_a_limit():
    pauses = [classify(EngineDied("x"), failures=failures, last_error=None).after for failures in range(39)]
    assert pauses[:3] == [timedelta(seconds=2), timedelta(seconds=4), timedelta(seconds=8)]
    assert max(pauses) == pauses[-1] == RETRY_MOST


def test_the_text_of_an_unknown_error_stays_in_the_logs():
    assert "password" not in str(classify(RuntimeError("password=1"), failures=0, last_error=None).error)
