"""How long a job will wait and take, from how long others took: estimates for people, on which nothing depends.

The order is by priority and age. The claim also shares the workers out fairly between accounts, so the place of a job
can change in both directions while it waits. Mock jobs are not measured.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import select, text

from api.db import transaction
from api.jobs.models import Job
from api.jobs.pace import MIN_STEPS_FOR_RATE
from api.jobs.states import JobState
from api.jobs.workers import count_workers

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session, sessionmaker

SAMPLE_JOBS = 50
"""Jobs whose stages are measured: those that succeeded last."""
MAX_PLACES = 10_000
"""Of jobs further behind no place is told."""
KEEP_S = 2.0

_SECONDS = text("""
    SELECT s.name, avg(extract(epoch FROM s.finished_at - s.started_at))::float8 AS seconds
    FROM (SELECT id FROM jobs WHERE finished_at IS NOT NULL AND state = 'succeeded' AND mock_outcome IS NULL
          ORDER BY finished_at DESC LIMIT :sample) j
    JOIN stages s ON s.job_id = j.id
    WHERE s.state = 'succeeded' AND s.reused_job_id IS NULL AND NOT s.stopped_early
    GROUP BY s.name
""")
_LEFT = text("""
    SELECT name,
        sum(CASE WHEN steps >= :least AND took > 0 THEN 0 ELSE share END)::float8 AS stages_left,
        sum(CASE WHEN steps >= :least AND took > 0 THEN share * total * took / steps ELSE 0 END)::float8 AS seconds_left
    FROM (
        SELECT s.name,
            CASE WHEN s.state = 'running' AND r.total > 0 THEN greatest(1 - r.step / r.total, 0) ELSE 1 END AS share,
            CASE WHEN s.state = 'running' AND r.total > 0 THEN r.step - r.since_step END AS steps,
            r.at - r.since_at AS took, r.total
        FROM jobs j JOIN stages s ON s.job_id = j.id
        CROSS JOIN LATERAL (
            SELECT (s.progress ->> 'step')::float8 AS step, (s.progress ->> 'total')::float8 AS total,
                (s.progress ->> 'at')::float8 AS at, (s.progress -> 'since' ->> 'step')::float8 AS since_step,
                (s.progress -> 'since' ->> 'at')::float8 AS since_at
        ) r
        WHERE j.finished_at IS NULL AND j.state = 'running' AND j.mock_outcome IS NULL
          AND s.state IN ('waiting', 'runnable', 'running')
    ) left_of_each
    GROUP BY name
""")

_Place = tuple[int, "datetime", "uuid.UUID"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of the queue at one instant; the empty one knows nothing."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Mean of the last stages of each name."""
    workers: int = 0
    """How many live."""
    begun: Mapping[str, float] = field(default_factory=dict)
    """Stages left of jobs that run, by name, but for those whose own pace is known; one half done counts as a half."""
    begun_s: float = 0.0
    """What is left of the others, each by its own pace: a job may be much longer than those before it."""
    places: tuple[_Place, ...] = ()
    """Queued jobs in order."""

    def position(self, *, priority: int, created_at: datetime, job_id: uuid.UUID) -> int | None:
        """Return a queued job's place, 1 for the next; None too far behind."""
        ahead = bisect_left(self.places, (-priority, created_at, job_id))
        return ahead + 1 if ahead < MAX_PLACES else None

    def work(self, stages: Mapping[str, float]) -> float | None:
        """Return the seconds that so many stages take one after another; None if a name is not known yet."""
        if any(name not in self.seconds for name in stages):
            return None
        return sum(self.seconds[name] * count for name, count in stages.items())

    def wait(self, position: int, plan: Mapping[str, float]) -> float | None:
        """Return the seconds until a queued job starts, if those ahead of it are like it; None if unknown."""
        begun, each = self.work(self.begun), self.work(plan)
        if begun is None or each is None or self.workers == 0:
            return None
        return (self.begun_s + begun + (position - 1) * each) / self.workers


def look(session: Session) -> Outlook:
    """Measure the queue; four reads by index."""
    queue = (
        select(Job.priority, Job.created_at, Job.id)
        .where(Job.state == JobState.QUEUED)
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(MAX_PLACES)
    )
    left = session.execute(_LEFT, {"least": MIN_STEPS_FOR_RATE}).all()
    return Outlook(
        seconds={row.name: row.seconds for row in session.execute(_SECONDS, {"sample": SAMPLE_JOBS})},
        workers=count_workers(session).live,
        begun={row.name: row.stages_left for row in left if row.stages_left > 0},
        begun_s=sum(row.seconds_left for row in left),
        places=tuple((-priority, created_at, job_id) for priority, created_at, job_id in session.execute(queue)),
    )


class Lookout:
    """The outlook of one process: measured at most every `KEEP_S`, and only when somebody asks."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._lock = threading.Lock()
        self._measured_at = float("-inf")
        self._outlook = Outlook()

    def outlook(self) -> Outlook:
        """Return the newest measurement; while one thread renews it, the others take the old one."""
        if time.monotonic() - self._measured_at > KEEP_S and self._lock.acquire(blocking=False):
            try:
                with transaction(self._sessions) as session:
                    self._outlook = look(session)
                self._measured_at = time.monotonic()
            finally:
                self._lock.release()
        return self._outlook
