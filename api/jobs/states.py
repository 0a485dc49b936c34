"""States of jobs and stages, the one table that says which may follow which, and how attempts end.

Nothing but the standard library: everybody may import this.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class StageState(StrEnum):
    """Where a stage stands."""

    WAITING = "waiting"
    """A stage it depends on has not succeeded yet."""
    RUNNABLE = "runnable"
    """Any worker may claim it, not before `runnable_at`."""
    RUNNING = "running"
    """A worker holds its lease and fencing token."""
    SUCCEEDED = "succeeded"
    """Its artifacts are published."""
    FAILED = "failed"
    """It will not be tried again."""
    CANCELED = "canceled"
    """The caller asked for it, or the job failed elsewhere."""


class JobState(StrEnum):
    """Where a job stands. Derived from its stages by `derive_job_state`, never set by hand."""

    QUEUED = "queued"
    """No stage was ever claimed."""
    RUNNING = "running"
    """A stage was claimed; it may be between two stages or two attempts now."""
    SUCCEEDED = "succeeded"
    """Every stage succeeded; the result is there."""
    FAILED = "failed"
    """A stage failed for good; `error` says why."""
    CANCELED = "canceled"
    """Stopped on request."""
    EXPIRED = "expired"
    """Its deadline passed before it started."""


class AttemptOutcome(StrEnum):
    """How one attempt at a stage ended."""

    SUCCEEDED = "succeeded"
    RETRIED = "retried"
    """Failed, and another attempt follows."""
    FAILED = "failed"
    """Failed for good."""
    RELEASED = "released"
    """Given back, at a shutdown or because a pass that it shared with other jobs ended; does not count."""
    CANCELED = "canceled"
    LEASE_EXPIRED = "lease_expired"
    """The worker fell silent."""


class IllegalTransition(ValueError):
    """A programmer's mistake: the table does not know this step."""


TERMINAL_STAGES = frozenset({StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELED})
TERMINAL_JOBS = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})

STAGE_TRANSITIONS: Mapping[tuple[StageState, StageState], str] = {
    (StageState.WAITING, StageState.RUNNABLE): "the last stage it depends on succeeded",
    (StageState.WAITING, StageState.CANCELED): "the job was canceled, or another stage failed",
    (StageState.RUNNABLE, StageState.RUNNING): "a worker claimed it",
    (StageState.RUNNABLE, StageState.CANCELED): "the job was canceled, or another stage failed",
    (StageState.RUNNING, StageState.SUCCEEDED): "its worker finished it under a valid token",
    (StageState.RUNNING, StageState.RUNNABLE): "it will be retried, was released at shutdown, or its lease ran out",
    (StageState.RUNNING, StageState.FAILED): "the fault is the caller's, or no attempt is left",
    (StageState.RUNNING, StageState.CANCELED): "its worker stopped on request, or the job ended without it",
}

JOB_TRANSITIONS: Mapping[tuple[JobState, JobState], str] = {
    (JobState.QUEUED, JobState.RUNNING): "its first stage was claimed",
    (JobState.QUEUED, JobState.CANCELED): "the caller canceled it before any stage was claimed",
    (JobState.QUEUED, JobState.EXPIRED): "its deadline passed before any stage was claimed",
    (JobState.RUNNING, JobState.SUCCEEDED): "its last stage succeeded",
    (JobState.RUNNING, JobState.FAILED): "a stage failed for good, or its deadline passed",
    (JobState.RUNNING, JobState.CANCELED): "the caller canceled it and nothing runs any more",
}


def check_stage(before: StageState, after: StageState) -> None:
    """Refuse a step of a stage that the table does not know.

    Raises:
        IllegalTransition: always a bug of ours, never the caller's.
    """
    if (before, after) not in STAGE_TRANSITIONS:
        raise IllegalTransition(f"a stage cannot go from {before} to {after}")


def check_job(before: JobState, after: JobState) -> None:
    """Refuse a step of a job that the table does not know.

    Raises:
        IllegalTransition: always a bug of ours, never the caller's.
    """
    if (before, after) not in JOB_TRANSITIONS:
        raise IllegalTransition(f"a job cannot go from {before} to {after}")


def derive_job_state(stages: Collection[StageState], *, started: bool, overdue: bool = False) -> JobState:
    """Derive a job's state from its stages.

    Failure outweighs everything; a job is canceled only once nothing of it runs; a job whose last stage succeeds while
    a request to cancel is on its way has succeeded.

    Args:
        stages: the states of all its stages.
        started: whether a stage was ever claimed.
        overdue: whether it was its deadline that canceled its stages.
    """
    if not stages:
        raise ValueError("a job without stages has no state")
    if StageState.FAILED in stages:
        return JobState.FAILED
    if all(state is StageState.SUCCEEDED for state in stages):
        return JobState.SUCCEEDED
    if StageState.CANCELED in stages and all(state in TERMINAL_STAGES for state in stages):
        if overdue:
            return JobState.FAILED if started else JobState.EXPIRED
        return JobState.CANCELED
    return JobState.RUNNING if started else JobState.QUEUED
