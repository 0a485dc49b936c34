"""How fast a stage goes, by its own reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_STEPS_FOR_RATE = 5
"""Steps of a count before its pace is trusted in estimates: the first ones say more about warming up."""


def steps_per_second(report: Mapping[str, Any], least: int = 1) -> float | None:
    """Return a stage's pace since its count began, or None in the first `least` steps.

    `report` is a stage's progress as it is kept: `step` and `at` (epoch seconds), and both under `since`.
    """
    since = report.get("since")
    if since is None:
        return None
    steps, seconds = report["step"] - since["step"], report["at"] - since["at"]
    return steps / seconds if steps >= least and seconds > 0 else None
