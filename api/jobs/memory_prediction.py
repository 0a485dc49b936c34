"""How much memory stages would take: the most that stages alike took here lately. Nothing is guessed from other sizes.

Alike are those of the same name and base model whose configuration differs only in what memory does not depend on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from api.jobs.prediction import RECENT_JOBS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

PEAK = "peak_bytes"
"""Name of a stage's peak among its timings."""
_OF_NO_MATTER = frozenset(
    {
        "steps",
        "learning_rate",
        "warmup_steps",
        "seed",
        "flip",
        "snr_gamma",
        "guidance_scale",
        "ridge",
        "prior_weight",
        "prior_hinge",
        "prior_start",
        "constyle_every",
        "prune_below",
    }
)
"""Fields of a part that make a stage longer, or other numbers, but not larger."""
_TRAINING = ("content", "style")
_PARTS = {
    "content_lora": ("content",),
    "style_lora": ("style",),
    "loras": _TRAINING,
    "merge": ("merge", "resolution_px", *_TRAINING),
    "package": ("preview", "slider", "merge"),
    "generate": ("sampling",),
}
_SHOWING = frozenset({"content_lora", "style_lora", "loras"})
"""Stages that may draw pictures meanwhile."""

_MEASURED = text("""
    SELECT s.name, (s.timings ->> 'peak_bytes')::numeric::bigint AS peak, j.params
    FROM (SELECT id, params FROM jobs WHERE finished_at IS NOT NULL AND state = 'succeeded' AND mock_outcome IS NULL
          ORDER BY finished_at DESC LIMIT :recent) j
    JOIN stages s ON s.job_id = j.id
    WHERE j.params ->> 'base_model' = :base AND s.state = 'succeeded' AND s.timings ->> 'peak_bytes' IS NOT NULL
""")


def predict_peaks(session: Session, stages: Iterable[str], config: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the bytes that stages of a job of this configuration would take; None for those none alike was seen of."""
    most: dict[str, int] = {}
    shapes = {name: _shape(name, config) for name in stages}
    for row in session.execute(_MEASURED, {"recent": RECENT_JOBS, "base": config["base_model"]}):
        if row.name in shapes and _shape(row.name, row.params) == shapes[row.name]:
            most[row.name] = max(most.get(row.name, 0), row.peak)
    return {name: most.get(name) for name in shapes}


def _shape(stage: str, config: Mapping[str, Any]) -> str:
    """Return what of a configuration a stage's memory depends on."""
    parts = {name: _bare(config.get(name)) for name in _PARTS.get(stage, ())}
    if stage in _SHOWING and config.get("preview_every"):
        parts["preview"] = _bare(config.get("preview"))
    if stage == "generate":
        parts["loras"] = len(config.get("strengths") or ())
    return json.dumps(parts, sort_keys=True)


def _bare(part: Any) -> Any:  # noqa: ANN401 - JSON
    return (
        {name: value for name, value in part.items() if name not in _OF_NO_MATTER} if isinstance(part, dict) else part
    )
