"""Which workers live, as far as anybody knows. Nothing depends on it but estimates and company. Never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from api.jobs.models import Worker, WorkerState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

FRESH = timedelta(seconds=30)
"""A worker silent for longer counts as gone."""


@dataclass(frozen=True, slots=True)
class WorkerCount:
    """How many workers there are."""

    live: int
    """All that do not stop."""
    idle: int
    """Those of them that have nothing to do."""


def beat_worker(
    session: Session, *, worker_id: str, state: WorkerState, device: str | None, engine_version: str | None
) -> None:
    """Say that a worker lives and what it does."""
    said = {"state": state, "device": device, "engine_version": engine_version}
    session.execute(
        insert(Worker)
        .values(id=worker_id, **said)
        .on_conflict_do_update(index_elements=[Worker.id], set_=said | {"heartbeat_at": func.now()})
    )


def leave_worker(session: Session, worker_id: str) -> None:
    """Forget a worker that exits."""
    session.execute(delete(Worker).where(Worker.id == worker_id).execution_options(synchronize_session=False))


def count_workers(session: Session, *, fresh: timedelta = FRESH, but: str | None = None) -> WorkerCount:
    """Count the workers that gave a sign of life within `fresh`, not counting one named `but`."""
    living = select(
        func.count().filter(Worker.state != WorkerState.STOPPING),
        func.count().filter(Worker.state == WorkerState.IDLE),
    ).where(Worker.heartbeat_at > func.now() - fresh)
    if but is not None:
        living = living.where(Worker.id != but)
    live, idle = session.execute(living).one()
    return WorkerCount(live=live, idle=idle)


def forget_workers(session: Session, *, silent_for: timedelta) -> int:
    """Drop the rows of workers that died without leaving; returns how many."""
    gone = session.execute(
        delete(Worker)
        .where(Worker.heartbeat_at < func.now() - silent_for)
        .returning(Worker.id)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())
