"""What is stored of a running stage: the engine's report, made plausible. Rates and estimates: `api.jobs.progress`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.wire import ProgressReport


def progress_fields(report: ProgressReport) -> dict[str, Any]:
    """Return `step`, `total`, `loss` and `note`; steps lie within the total, a loss that is no number is None."""
    total = max(report.total, 0)
    return {
        "step": min(max(report.step, 0), total),
        "total": total,
        "loss": report.loss if report.loss is not None and math.isfinite(report.loss) else None,
        "note": report.note,
    }
