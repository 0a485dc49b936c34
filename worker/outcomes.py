"""What becomes of a stage that did not succeed. Pure: a value in, a decision out.

    why it ended                     class          decision
    the caller's fault               caller         Fail: the same request can never succeed
    out of device memory             memory         Retry at once, in a fresh engine process, with the small profile
    store, database, disk, base      environment    Retry with backoff
    died, stuck, a bug               death          Retry with backoff
    stopped: job cancelled                          Cancel
    stopped: worker shuts down                      Release: runnable again, the attempt not counted
    stopped: one of several jobs leaves             Release: those that are to be canceled are
    stopped: lease lost                             Abandon: somebody else decided already, write nothing

How many failures of a class a stage may have is the database's to decide (`api.jobs.failures`), and also that none of
several jobs in one pass is blamed for its failure (`api.jobs.endings.fail_stage`). Anything this module
does not know is a bug of ours; it counts as a death, and its text stays in the logs.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import DBAPIError

from api.errors import LeaseLost, problem
from api.jobs.failures import FailureClass
from api.storage import StoreError
from duolora.errors import DuoLoraError, Fault
from worker.mailbox import Interrupt
from worker.supervisor import EngineDied, EngineNotReady, StageFailed, StageInterrupted, StageStuck
from worker.workspace import ArtifactCorrupt, BaseUnavailable, OutputMissing

RETRY_FIRST = timedelta(seconds=2)
RETRY_MOST = timedelta(minutes=2)

CHECKPOINT_UNUSABLE = "checkpoint_unusable"
"""Code of an engine that cannot read the checkpoint it was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Runnable again after a pause, if the database finds that the class has attempts left."""

    error: dict[str, Any]
    kind: FailureClass
    after: timedelta
    fresh_engine: bool
    """Whether the engine process must be replaced before the next stage."""
    fresh_start: bool = False
    """Whether its checkpoint must be forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The stage and its job fail for good."""

    error: dict[str, Any]
    kind: FailureClass = FailureClass.CALLER


@dataclass(frozen=True, slots=True)
class Cancel:
    """The stage is canceled, as its job's owner asked."""


@dataclass(frozen=True, slots=True)
class Release:
    """Runnable again at once; the attempt does not count."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Not ours any more: write nothing."""


Outcome = Retry | Fail | Cancel | Release | Abandon


@dataclass(frozen=True, slots=True)
class _Cause:
    """An error in the words of a problem document."""

    code: str
    kind: FailureClass
    detail: str


_TITLES = {
    FailureClass.CALLER: "The job cannot be done as asked",
    FailureClass.MEMORY: "The device has too little memory for this job",
    FailureClass.ENVIRONMENT: "Something failed on our side",
    FailureClass.DEATH: "Something failed on our side",
}
_STATUSES = {
    FailureClass.CALLER: 422,
    FailureClass.MEMORY: 507,
    FailureClass.ENVIRONMENT: 500,
    FailureClass.DEATH: 500,
}
_KINDS = {Fault.CALLER: FailureClass.CALLER, Fault.MEMORY: FailureClass.MEMORY}
_DEATHS = frozenset({"internal_error", "cancelled"})
"""Codes with which an engine process ends: a bug, or a signal from somebody else."""
_KEEPS_ENGINE = (StoreError, DBAPIError, ArtifactCorrupt, BaseUnavailable)
"""Errors that come before or after the engine's work: a warm one need not pay for them."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def classify(error: BaseException, *, failures: int) -> Outcome:
    """Decide what becomes of an attempt that ended with `error`.

    Args:
        error: what ended it.
        failures: attempts at the stage that failed since it last got further; those that a shutdown ended are none.
    """
    match error:
        case LeaseLost():
            return Abandon()
        case StageInterrupted(reason=Interrupt.LEASE_LOST):
            return Abandon()
        case StageInterrupted(reason=Interrupt.CANCEL):
            return Cancel()
        case StageInterrupted():
            return Release()
        case _:
            return _decide(error, _cause(error), failures)


def _decide(error: BaseException, cause: _Cause, failures: int) -> Outcome:
    document = problem(
        code=cause.code,
        title=_TITLES[cause.kind],
        status=_STATUSES[cause.kind],
        retryable=cause.kind is not FailureClass.CALLER,
        detail=cause.detail,
    )
    if cause.kind is FailureClass.CALLER:
        return Fail(error=document)
    unreadable = cause.code == CHECKPOINT_UNUSABLE
    at_once = unreadable or cause.kind is FailureClass.MEMORY
    return Retry(
        error=document,
        kind=cause.kind,
        after=timedelta(0) if at_once else min(RETRY_FIRST * 2.0**failures, RETRY_MOST),
        fresh_engine=not (unreadable or isinstance(error, _KEEPS_ENGINE)),
        fresh_start=unreadable,
    )


def _cause(error: BaseException) -> _Cause:
    match error:
        case StageFailed(failure=failure):
            return _Cause(failure.code, _kind(failure.code, failure.fault), failure.message)
        case DuoLoraError():
            return _Cause(error.code, _kind(error.code, error.fault), str(error))
        case ArtifactCorrupt() | OutputMissing() | BaseUnavailable():
            return _Cause(error.code, FailureClass.ENVIRONMENT, str(error))
        case EngineDied() | EngineNotReady():
            return _Cause("engine_died", FailureClass.DEATH, str(error))
        case StageStuck():
            return _Cause("stage_stuck", FailureClass.DEATH, str(error))
        case _:
            return _environment(error)


def _environment(error: BaseException) -> _Cause:
    """Describe an error of what surrounds the engine; other people's texts stay in the logs."""
    match error:
        case OSError(errno=number) if number in _FULL:
            return _Cause("insufficient_storage", FailureClass.ENVIRONMENT, "the worker's disk is full")
        case StoreError():
            return _Cause("storage_unavailable", FailureClass.ENVIRONMENT, "the object store did not answer")
        case DBAPIError():
            return _Cause("database_unavailable", FailureClass.ENVIRONMENT, "the database did not answer")
        case _:
            said = f"an unexpected {type(error).__name__}; see the logs"
            return _Cause("internal_error", FailureClass.DEATH, said)


def _kind(code: str, fault: Fault) -> FailureClass:
    """Return the class of an error that the engine names; one that stops although nobody asked it to has died."""
    return _KINDS.get(fault, FailureClass.DEATH if code in _DEATHS else FailureClass.ENVIRONMENT)
