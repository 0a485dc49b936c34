"""How far a job is and how long it will take, from what its stages last reported and what others took. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from api.jobs.pace import MIN_STEPS_FOR_RATE, steps_per_second
from api.jobs.queue import Outlook
from api.jobs.schemas import JobProgress, StageProgress
from api.jobs.states import TERMINAL_JOBS, JobState, StageState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

_UNKNOWN = Outlook()


class Reporting(Protocol):
    """What is read of a stage, here."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def state(self) -> StageState:
        """Where it stands."""

    @property
    def progress(self) -> dict[str, Any] | None:
        """Its last report."""

    @property
    def checkpoint(self) -> dict[str, Any] | None:
        """From where another attempt goes on."""


def stage_progress(stage: Reporting, now: datetime) -> StageProgress | None:
    """Return a stage's last report with its fraction and, once the rate is known, the seconds left.

    A stage that has reported nothing in this attempt is as far as its checkpoint.
    """
    report = _report(stage)
    if report is None:
        return None
    step, total = int(report.get("step", 0)), int(report["total"])
    rate = steps_per_second(report, MIN_STEPS_FOR_RATE) if stage.state is StageState.RUNNING else None
    left = None if rate is None else max((total - step) / rate - (now.timestamp() - report["at"]), 0.0)
    return StageProgress(
        step=step,
        total=total,
        fraction=min(max(step / total, 0.0), 1.0),
        loss=report.get("loss"),
        note=report.get("note") or "",
        steps_per_second=None if rate is None else round(rate, 3),
        eta_seconds=None if left is None else round(left, 1),
    )


def job_progress(
    state: JobState,
    stages: Sequence[Reporting],
    weights: Mapping[str, float],
    now: datetime,
    *,
    outlook: Outlook = _UNKNOWN,
    queue_position: int | None = None,
) -> JobProgress:
    """Return how far a job is.

    The fraction is the share of the whole plan's work. The time left is the remaining work over the rate at which the
    running stages do it now, so that two stages at once count together; where nothing runs yet, it is what such stages
    took lately, and for a queued job its wait before.

    Args:
        state: the job's state.
        stages: its stages in the plan's order.
        weights: each stage's share of the whole work; they add up to 1.
        now: the instant to judge by.
        outlook: what is known of the queue.
        queue_position: the job's place in it, None unless it is queued.
    """
    reports = {stage.name: stage_progress(stage, now) for stage in stages}
    fractions = {stage.name: _fraction(stage, reports[stage.name]) for stage in stages}
    done = sum(weights[name] * fraction for name, fraction in fractions.items())
    running = [stage for stage in stages if stage.state is StageState.RUNNING]
    speed = sum(_speed(stage, weights[stage.name]) for stage in running)
    left = {name: 1 - fraction for name, fraction in fractions.items() if fraction < 1}
    wait = None if queue_position is None else outlook.wait(queue_position, left)
    current = running[0] if running else None
    report = None if current is None else reports[current.name]
    return JobProgress(
        fraction=1.0 if state is JobState.SUCCEEDED else round(min(done, 1.0), 4),
        stage=None if current is None else current.name,
        step=None if report is None else report.step,
        total=None if report is None else report.total,
        eta_seconds=_seconds_left(state, (1 - done) / speed if speed > 0 else outlook.work(left), wait),
        loss=None if report is None else report.loss,
        note=None if report is None else report.note or None,
        steps_per_second=None if report is None else report.steps_per_second,
        queue_position=queue_position,
        queue_eta_seconds=None if wait is None else round(wait, 1),
    )


def _seconds_left(state: JobState, work: float | None, wait: float | None) -> float | None:
    """Return the seconds until a job ends: its own work, after its wait if it is queued."""
    if state in TERMINAL_JOBS or work is None or (state is JobState.QUEUED and wait is None):
        return None
    return round(work + (wait or 0.0), 1)


def _report(stage: Reporting) -> dict[str, Any] | None:
    """Return the last report that still holds: what an attempt did after its last checkpoint ends with it."""
    report = stage.progress if stage.state in {StageState.RUNNING, StageState.SUCCEEDED} else None
    report = report or stage.checkpoint or stage.progress
    return report if report is not None and report.get("total") else None


def _fraction(stage: Reporting, report: StageProgress | None) -> float:
    if stage.state is StageState.SUCCEEDED:
        return 1.0
    is_kept = stage.state is StageState.RUNNING or stage.checkpoint is not None
    return report.fraction if report is not None and is_kept else 0.0


def _speed(stage: Reporting, weight: float) -> float:
    """Return the share of the job's work that a running stage does per second; 0 while its rate is unknown."""
    report = stage.progress
    if report is None or not report.get("total"):
        return 0.0
    return weight * (steps_per_second(report, MIN_STEPS_FOR_RATE) or 0.0) / int(report["total"])
