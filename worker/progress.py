"""What a job shows of a running stage: the engine's reports with the finished fraction and an estimate of the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.wire import ProgressReport

QUIET_STEPS = 10
"""Steps without an estimate: the first ones load, compile and warm caches, and would promise nonsense."""

WARMUP_STEPS = 2
"""First steps that do not count in the estimate at all."""

SMOOTHING = 0.1
"""Weight of the newest step in the smoothed time per step."""


@dataclass(slots=True)
class StageProgress:
    """Turns reports into progress fields. A stage may report several phases; a new `total` starts a new estimate."""

    _total: int = 0
    _first_step: int = 0
    _step: int = 0
    _step_at: float = 0.0
    _seconds_per_step: float | None = field(default=None)

    def fields(self, report: ProgressReport, *, now: float) -> dict[str, Any]:
        """Take one report at `now` (seconds, monotonic) and return what is stored on the stage."""
        self._learn(report, now)
        total = max(report.total, 0)
        step = min(max(report.step, 0), total)
        loss = report.loss if report.loss is not None and math.isfinite(report.loss) else None
        return {
            "step": step,
            "total": total,
            "loss": loss,
            "note": report.note,
            "fraction": round(step / total, 4) if total else 0.0,
            "eta_seconds": self._eta_s(total - step),
        }

    def _learn(self, report: ProgressReport, now: float) -> None:
        if report.total != self._total or report.step < self._step:
            self._total, self._first_step = report.total, report.step
            self._step, self._step_at, self._seconds_per_step = report.step, now, None
            return
        done = report.step - self._step
        if done == 0:
            return
        seconds = (now - self._step_at) / done
        if self._seconds_per_step is None:
            warm = self._step - self._first_step >= WARMUP_STEPS
            self._seconds_per_step = seconds if warm else None
        else:
            keep = (1.0 - SMOOTHING) ** done
            self._seconds_per_step = keep * self._seconds_per_step + (1.0 - keep) * seconds
        self._step, self._step_at = report.step, now

    def _eta_s(self, remaining: int) -> float | None:
        if self._seconds_per_step is None or self._step - self._first_step < QUIET_STEPS:
            return None
        return round(remaining * self._seconds_per_step, 1)
