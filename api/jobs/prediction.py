"""How long stages would take, from how long others of their name took for the same base model: an estimate for people.

The unit of work is one sample of one step and one pixel. What does not depend on steps is thereby taken to grow with
them, which is wrong for very short jobs only. Jobs that show their trainings are not measured: they draw meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

RECENT_JOBS = 200
"""Jobs that are looked through for stages of the base model."""

_MEASURED = text("""
    SELECT s.name, extract(epoch FROM s.finished_at - s.started_at)::float8 AS seconds, j.params
    FROM (SELECT id, params FROM jobs WHERE finished_at IS NOT NULL AND state = 'succeeded' AND mock_outcome IS NULL
          ORDER BY finished_at DESC LIMIT :recent) j
    JOIN stages s ON s.job_id = j.id
    WHERE j.params ->> 'base_model' = :base AND s.state = 'succeeded' AND s.attempt = 1
      AND s.reused_job_id IS NULL AND NOT s.stopped_early
      AND coalesce((j.params ->> 'preview_every')::int, 0) = 0
""")


def steps_of(stage: str, config: Mapping[str, Any]) -> int | None:
    """Return the steps of a stage by the configuration of its job, None for what does not count in steps."""
    counts = {
        "content_lora": _field(config, "content", "steps"),
        "style_lora": _field(config, "style", "steps"),
        "loras": max(_field(config, "content", "steps"), _field(config, "style", "steps")),
        "merge": _field(config, "merge", "steps"),
        "generate": _field(config, "sampling", "steps") * len(config.get("prompts") or ()),
    }
    return counts.get(stage)


def work_of(stage: str, config: Mapping[str, Any]) -> float | None:
    """Return the work of a stage, None for one that nothing is known of."""
    content, style = _training(config, "content"), _training(config, "style")
    sides = sum(config.get(side) is not None for side in ("content", "style"))
    models = 3 if config.get("merge") else sides  # a merge's preview also draws with either side
    pictures = models * _field(config, "preview", "images") + int(config.get("slider") or 0)
    drawn = pictures * _field(config, "preview", "steps") * _pixels(config, "preview")
    merged_px = _pixels(config, "content") or int(config.get("resolution_px") or 0) ** 2
    sampled = _field(config, "sampling", "images") * _field(config, "sampling", "steps") * _pixels(config, "sampling")
    work = {
        "content_lora": content,
        "style_lora": style,
        "loras": content + style,
        "merge": (_field(config, "merge", "steps") * _field(config, "merge", "batch_size") + 1) * merged_px,
        "package": drawn,
        "generate": sampled * len(config.get("prompts") or ()),
    }
    return float(work[stage]) if work.get(stage) else None


def predict(session: Session, stages: Iterable[str], config: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the seconds that stages of a job of this configuration would take; None for those never seen here."""
    seconds: dict[str, float] = defaultdict(float)
    work: dict[str, float] = defaultdict(float)
    for row in session.execute(_MEASURED, {"recent": RECENT_JOBS, "base": config["base_model"]}):
        amount = work_of(row.name, row.params)
        if amount is not None:
            seconds[row.name] += row.seconds
            work[row.name] += amount
    return {name: _scaled(work_of(name, config), seconds[name], work[name]) for name in stages}


def _scaled(amount: float | None, seconds: float, work: float) -> float | None:
    return None if amount is None or work == 0 else round(amount * seconds / work, 1)


def _training(config: Mapping[str, Any], part: str) -> int:
    return _field(config, part, "steps") * _field(config, part, "batch_size") * _pixels(config, part)


def _pixels(config: Mapping[str, Any], part: str) -> int:
    return _field(config, part, "resolution_px") ** 2


def _field(config: Mapping[str, Any], part: str, name: str) -> int:
    """Return a number of a part, 0 if jobs of this kind have no such part."""
    return int((config.get(part) or {}).get(name) or 0)
