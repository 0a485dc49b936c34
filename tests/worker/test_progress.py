"""Progress fields: fraction and estimate."""

from __future__ import annotations

import math

from worker.progress import QUIET_STEPS, StageProgress
from worker.wire import ProgressReport


def report(step: int, total: int = 100, loss: float | None = None) -> ProgressReport:
    return ProgressReport(id="x:1", step=step, total=total, loss=loss)


def test_first_steps_promise_nothing():
    progress = StageProgress()
    for step in range(QUIET_STEPS):
        assert progress.fields(report(step), now=float(step))["eta_seconds"] is None
    assert progress.fields(report(QUIET_STEPS), now=float(QUIET_STEPS))["eta_seconds"] is not None


def test_a_steady_rate_gives_the_exact_rest_although_the_first_steps_were_slow():
    progress = StageProgress()
    progress.fields(report(0), now=0.0)
    progress.fields(report(1), now=60.0)
    for step in range(2, 51):
        fields = progress.fields(report(step), now=60.0 + 0.5 * step)
    assert fields["eta_seconds"] == 25.0
    assert fields["fraction"] == 0.5


def test_skipped_reports_weigh_as_much_as_the_steps_they_stand_for():
    each, some = StageProgress(), StageProgress()
    for step in range(41):
        now = step * 0.1 if step <= 20 else 2.0 + (step - 20) * 0.3
        one = each.fields(report(step), now=now)
        if step % 5 == 0:
            other = some.fields(report(step), now=now)
    assert one["eta_seconds"] == other["eta_seconds"]


def test_another_total_begins_another_estimate():
    progress = StageProgress()
    for step in range(20):
        progress.fields(report(step, total=20), now=float(step))
    assert progress.fields(report(1, total=300), now=21.0)["eta_seconds"] is None


def test_a_report_of_the_same_step_does_not_spoil_the_rate():
    progress = StageProgress()
    for step in range(31):
        fields = progress.fields(report(step), now=float(step))
    again = progress.fields(report(30), now=500.0)
    assert again["eta_seconds"] == fields["eta_seconds"] == 70.0


def test_a_loss_that_is_no_number_and_an_empty_total_are_shown_as_nothing():
    fields = StageProgress().fields(report(0, total=0, loss=math.nan), now=0.0)
    assert fields == {"step": 0, "total": 0, "loss": None, "note": "", "fraction": 0.0, "eta_seconds": None}
