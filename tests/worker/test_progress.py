"""What is stored of a report."""

from __future__ import annotations

import math

import pytest

from worker.progress import progress_fields
from worker.wire import ProgressReport


def report(step: int, total: int, loss: float | None = None) -> ProgressReport:
    return ProgressReport(id="x:1", step=step, total=total, loss=loss, note="training")


def test_a_report_is_stored_as_it_is():
    assert progress_fields(report(3, 10, 0.5)) == {"step": 3, "total": 10, "loss": 0.5, "note": "training"}


@pytest.mark.parametrize(("step", "total", "stored"), [(11, 10, (10, 10)), (-1, 10, (0, 10)), (3, -1, (0, 0))])
def test_steps_lie_within_the_total(step: int, total: int, stored: tuple[int, int]):
    fields = progress_fields(report(step, total))
    assert (fields["step"], fields["total"]) == stored


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_no_number_is_none(loss: float | None):
    assert progress_fields(report(1, 2, loss))["loss"] is None
