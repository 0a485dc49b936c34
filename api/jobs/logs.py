"""What an owner may read of a job's past: its log, its attempts, the id of its last event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from api.db import transaction
from api.jobs import listing
from api.jobs.models import Event, Job, LogLine, Stage, StageAttempt
from api.jobs.schemas import AttemptPage, AttemptRead, LogLineRead, LogPage
from api.jobs.states import TERMINAL_JOBS
from api.schemas import Problem

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller


class JobHistory:
    """Tells owners of their jobs' past."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def read_logs(
        self,
        caller: Caller,
        job_id: uuid.UUID,
        *,
        stage: str | None,
        attempt: int | None,
        after: int,
        limit: int,
    ) -> LogPage:
        """Return lines of a job's log in the order they were written.

        Args:
            caller: whose job it is.
            job_id: the job.
            stage: only of this stage.
            attempt: only of attempts of this number.
            after: id of the last line that is known.
            limit: most lines.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        query = (
            select(LogLine).where(LogLine.job_id == job_id, LogLine.id > after).order_by(LogLine.id).limit(limit + 1)
        )
        if stage is not None:
            query = query.where(LogLine.stage == stage)
        if attempt is not None:
            query = query.where(LogLine.attempt == attempt)
        with transaction(self._sessions) as session:
            _require(session, caller, job_id)
            rows = session.scalars(query.order_by(LogLine.id).limit(limit + 1)).all()
        lines = [
            LogLineRead(
                id=row.id, at=row.at, stage=row.stage, attempt=row.attempt, level=row.level.lower(), message=row.message
            )
            for row in rows[:limit]
        ]
        return LogPage(items=lines, next_after=lines[-1].id if len(rows) > limit else None, limit=limit)

    def read_attempts(self, caller: Caller, job_id: uuid.UUID) -> AttemptPage:
        """Return every attempt at every stage of a job, oldest first.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        query = (
            select(StageAttempt, Stage.name)
            .join(Stage, Stage.id == StageAttempt.stage_id)
            .where(Stage.job_id == job_id)
            .order_by(StageAttempt.started_at, Stage.ordinal, StageAttempt.attempt)
        )
        with transaction(self._sessions) as session:
            _require(session, caller, job_id)
            rows = session.execute(query).all()
        return AttemptPage(
            items=[
                AttemptRead(
                    stage=name,
                    attempt=attempt.attempt,
                    worker=attempt.worker_id,
                    started_at=attempt.started_at,
                    finished_at=attempt.finished_at,
                    outcome=attempt.outcome,
                    failure_class=attempt.failure_class,
                    resumed_step=attempt.resumed_step,
                    error=None if attempt.error is None else Problem.model_validate(attempt.error),
                )
                for attempt, name in rows
            ]
        )

    def last_event(self, caller: Caller, job_id: uuid.UUID) -> int | None:
        """Return the id of the last event of a job that has ended, None of one that has not.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        newest = select(func.max(Event.id)).where(Event.job_id == job_id).scalar_subquery()
        query = select(Job.state, newest).where(Job.id == job_id)
        with transaction(self._sessions) as session:
            _require(session, caller, job_id)
            row = session.execute(query).one()
        state, last = row
        return (last or 0) if state in TERMINAL_JOBS else None


def _require(session: Session, caller: Caller, job_id: uuid.UUID) -> None:
    if not listing.is_there(session, account_id=caller.account_id, job_id=job_id):
        raise listing.missing(session, account_id=caller.account_id, job_id=job_id)
