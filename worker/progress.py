"""What is stored of a running stage: the engine's report, made plausible. Rates and estimates: `api.jobs.progress`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.wire import ProgressReport


def progress_fields(report: ProgressReport, job: int = 0) -> dict[str, Any]:
    """Return `step`, `total`, `loss` and `note`; steps lie within the total, a loss that is no number is None.

    Args:
        report: of a run.
        job: whose loss, by its place among the jobs of the run.
    """
    total = max(report.total, 0)
    loss = report.losses[job] if job < len(report.losses) else report.loss
    return {
        "step": min(max(report.step, 0), total),
        "total": total,
        "loss": loss if loss is not None and math.isfinite(loss) else None,
        "note": report.note,
    }
