"""How far a job is and how long it will take, from what its stages last reported. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.jobs.schemas import JobProgress, StageProgress
from api.jobs.states import TERMINAL_JOBS, JobState, StageState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from api.jobs.models import Stage

MIN_STEPS_FOR_RATE = 5
"""Before so many steps were timed a rate says more about warming up than about the work."""


def stage_progress(stage: Stage, now: datetime) -> StageProgress | None:
    """Return a stage's last report with its fraction and, once the rate is known, the seconds left."""
    report = stage.progress
    if report is None or not report.get("total"):
        return None
    step, total = int(report.get("step", 0)), int(report["total"])
    rate = _rate(report) if stage.state is StageState.RUNNING else None
    left = None if rate is None else max((total - step) / rate - (now.timestamp() - report["at"]), 0.0)
    return StageProgress(
        step=step,
        total=total,
        fraction=min(max(step / total, 0.0), 1.0),
        loss=report.get("loss"),
        note=report.get("note") or "",
        eta_seconds=None if left is None else round(left, 1),
    )


def job_progress(state: JobState, stages: Sequence[Stage], weights: Mapping[str, float], now: datetime) -> JobProgress:
    """Return how far a job is.

    The fraction is the share of the whole plan's work. The time left is the remaining work over the rate at which the
    running stages do it now, so that two stages at once count together.

    Args:
        state: the job's state.
        stages: its stages in the plan's order.
        weights: each stage's share of the whole work; they add up to 1.
        now: the instant to judge by.
    """
    reports = {stage.name: stage_progress(stage, now) for stage in stages}
    done = sum(weights[stage.name] * _fraction(stage, reports[stage.name]) for stage in stages)
    running = [stage for stage in stages if stage.state is StageState.RUNNING]
    speed = sum(_speed(stage, weights[stage.name]) for stage in running)
    current = running[0] if running else None
    report = None if current is None else reports[current.name]
    is_over = state in TERMINAL_JOBS
    return JobProgress(
        fraction=1.0 if state is JobState.SUCCEEDED else round(min(done, 1.0), 4),
        stage=None if current is None else current.name,
        step=None if report is None else report.step,
        total=None if report is None else report.total,
        eta_seconds=None if is_over or speed <= 0 else round((1 - done) / speed, 1),
        loss=None if report is None else report.loss,
        note=None if report is None else report.note or None,
    )


def _fraction(stage: Stage, report: StageProgress | None) -> float:
    if stage.state is StageState.SUCCEEDED:
        return 1.0
    return 0.0 if report is None or stage.state is not StageState.RUNNING else report.fraction


def _speed(stage: Stage, weight: float) -> float:
    """Return the share of the job's work that a running stage does per second; 0 while its rate is unknown."""
    report = stage.progress
    if report is None or not report.get("total"):
        return 0.0
    return weight * (_rate(report) or 0.0) / int(report["total"])


def _rate(report: Mapping[str, Any]) -> float | None:
    """Return steps per second since the count began, or None in the first steps."""
    since = report.get("since")
    if since is None:
        return None
    steps, seconds = report["step"] - since["step"], report["at"] - since["at"]
    return steps / seconds if steps >= MIN_STEPS_FOR_RATE and seconds > 0 else None
