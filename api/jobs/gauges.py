"""How much work waits and runs, and who is there to do it: read from the rows when somebody asks. Never commits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, text

from api.jobs.models import OutboxRow, Worker
from api.jobs.workers import FRESH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

_STAGES = text("""
    SELECT j.kind, s.name AS stage, s.state, count(*) AS stages,
           coalesce(max(extract(epoch FROM now() - s.runnable_at)) FILTER (WHERE s.state = 'runnable'), 0)::float8
               AS oldest_s
    FROM stages s JOIN jobs j ON j.id = s.job_id
    WHERE s.state = 'running' OR (s.state = 'runnable' AND s.runnable_at <= now())
    GROUP BY j.kind, s.name, s.state
""")


@dataclass(frozen=True, slots=True)
class StageGauge:
    """Stages of one kind of job and one name that wait for a worker (`runnable`) or have one (`running`)."""

    kind: str
    stage: str
    state: str
    count: int
    oldest_s: float
    """How long the oldest of those that wait has been runnable."""


@dataclass(frozen=True, slots=True)
class WorkGauges:
    """One look at the rows."""

    stages: Sequence[StageGauge]
    workers: Sequence[tuple[str, int]]
    """State and number of the workers that live."""
    hints: int
    """Hints that are due and not published yet."""


def look_at_work(session: Session) -> WorkGauges:
    """Read all of it: three statements by index."""
    stages = [StageGauge(*row) for row in session.execute(_STAGES)]
    living = select(Worker.state, func.count()).where(Worker.heartbeat_at > func.now() - FRESH).group_by(Worker.state)
    hints = select(func.count()).select_from(OutboxRow).where(OutboxRow.due_at <= func.now())
    workers = [(str(state), count) for state, count in session.execute(living)]
    return WorkGauges(stages, workers, session.scalar(hints) or 0)
