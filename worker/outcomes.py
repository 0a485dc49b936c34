"""What becomes of a stage that did not succeed. Pure: a value in, a decision out.

    whose fault                      decision
    the caller's                     Fail: the same request can never succeed
    the infrastructure's             Retry with backoff; the database caps the attempts
    out of device memory             Retry once, at once, in a fresh engine process, then Fail
    stopped: job cancelled           Cancel
    stopped: worker shuts down       Release: runnable again, the attempt not counted
    stopped: lease lost              Abandon: somebody else decided already, write nothing

Anything this module does not know is a bug of ours; it counts as the infrastructure's fault, and its text stays in
the logs.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from api.errors import LeaseLost, problem
from api.storage import StoreError
from duolora.errors import DuoLoraError, Fault
from worker.mailbox import Interrupt
from worker.supervisor import EngineDied, EngineNotReady, StageFailed, StageInterrupted
from worker.workspace import ArtifactCorrupt, BaseUnavailable, OutputMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

RETRY_FIRST = timedelta(seconds=2)
RETRY_MOST = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Runnable again after a pause; the attempt counts."""

    error: dict[str, Any]
    after: timedelta
    fresh_engine: bool
    """Whether the engine process must be replaced before the next stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The stage and its job fail for good."""

    error: dict[str, Any]
    fresh_engine: bool


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
    fault: Fault
    detail: str


_TITLES = {
    Fault.CALLER: "The job cannot be done as asked",
    Fault.INFRASTRUCTURE: "Something failed on our side",
    Fault.MEMORY: "The device has too little memory for this job",
    Fault.CANCELLED: "The job was stopped",
}
_STATUSES = {Fault.CALLER: 422, Fault.INFRASTRUCTURE: 500, Fault.MEMORY: 507, Fault.CANCELLED: 409}
_KEEPS_ENGINE = (StoreError, DBAPIError, ArtifactCorrupt, BaseUnavailable)
"""Errors that come before or after the engine's work: a warm one need not pay for them."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def classify(error: BaseException, *, failures: int, last_error: Mapping[str, Any] | None) -> Outcome:
    """Decide what becomes of an attempt that ended with `error`.

    Args:
        error: what ended it.
        failures: attempts at the stage that failed before this one; those that a shutdown ended are none.
        last_error: problem of the last of them.
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
            cause = _cause(error)
            document = problem(
                code=cause.code,
                title=_TITLES[cause.fault],
                status=_STATUSES[cause.fault],
                retryable=cause.fault is not Fault.CALLER,
                detail=cause.detail,
            )
            again = last_error is not None and last_error["code"] == cause.code
            return _decide(
                cause.fault, document, failures, again=again, fresh_engine=not isinstance(error, _KEEPS_ENGINE)
            )


def _decide(fault: Fault, error: dict[str, Any], failures: int, *, again: bool, fresh_engine: bool) -> Outcome:
    match fault:
        case Fault.CALLER:
            return Fail(error=error, fresh_engine=False)
        case Fault.MEMORY if again:  # a third time would tell nothing new
            return Fail(error=error, fresh_engine=True)
        case Fault.MEMORY:
            return Retry(error=error, after=timedelta(0), fresh_engine=True)
        case _:
            pause = min(RETRY_FIRST * 2.0**failures, RETRY_MOST)
            return Retry(error=error, after=pause, fresh_engine=fresh_engine)


def _cause(error: BaseException) -> _Cause:
    match error:
        case StageFailed(failure=failure):
            return _Cause(failure.code, _uncancelled(failure.fault), failure.message)
        case DuoLoraError():
            return _Cause(error.code, _uncancelled(error.fault), str(error))
        case ArtifactCorrupt() | OutputMissing() | BaseUnavailable():
            return _Cause(error.code, Fault.INFRASTRUCTURE, str(error))
        case _:
            code, detail = _environment(error)
            return _Cause(code, Fault.INFRASTRUCTURE, detail)


def _environment(error: BaseException) -> tuple[str, str]:
    """Return code and detail of an error of what surrounds the engine; other people's texts stay in the logs."""
    match error:
        case EngineDied() | EngineNotReady():
            return "engine_died", str(error)
        case OSError(errno=number) if number in _FULL:
            return "insufficient_storage", "the worker's disk is full"
        case StoreError():
            return "storage_unavailable", "the object store did not answer"
        case DBAPIError():
            return "database_unavailable", "the database did not answer"
        case _:
            return "internal_error", f"an unexpected {type(error).__name__}; see the logs"


def _uncancelled(fault: Fault) -> Fault:
    """An engine that stops although nobody asked it to has failed."""
    return Fault.INFRASTRUCTURE if fault is Fault.CANCELLED else fault
