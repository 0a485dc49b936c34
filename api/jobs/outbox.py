"""Hints on their way to the workers. Losing one costs delay, never a job. Never commits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select

from api.jobs.locking import announce, instant
from api.jobs.models import OutboxRow, Stage
from api.jobs.states import StageState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from sqlalchemy.orm import Session

REPUBLISH_LIMIT = 10
"""Stages in one call. A hint only wakes an idle worker, which then takes whatever is best until nothing is left."""


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A hint to be published."""

    id: int
    topic: str
    payload: dict[str, Any]


def take_outbox(session: Session, *, limit: int) -> list[OutboxMessage]:
    """Take hints whose time has come, oldest first; locked until the transaction ends."""
    rows = session.scalars(
        select(OutboxRow)
        .where(OutboxRow.due_at <= func.now())
        .order_by(OutboxRow.due_at, OutboxRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [OutboxMessage(row.id, row.topic, row.payload) for row in rows]


def drop_published(session: Session, ids: Sequence[int]) -> None:
    """Drop hints that were handed to the broker; do it in the transaction that took them."""
    session.execute(delete(OutboxRow).where(OutboxRow.id.in_(ids)).execution_options(synchronize_session=False))


def republish_runnable(session: Session, *, older_than: timedelta) -> int:
    """Write hints for a few runnable stages that nobody took although their last hint is old; returns how many.

    Covers a broker that was emptied, and hints that came while every worker was away.
    """
    now = instant(session)
    stages = session.scalars(
        select(Stage)
        .where(
            Stage.state == StageState.RUNNABLE,
            Stage.runnable_at <= now - older_than,
            func.coalesce(Stage.announced_at, Stage.runnable_at) <= now - older_than,
        )
        .order_by(Stage.runnable_at)
        .limit(REPUBLISH_LIMIT)
        .with_for_update(skip_locked=True, key_share=True),
        execution_options={"populate_existing": True},
    ).all()
    for stage in stages:
        announce(session, stage, due_at=now, now=now)
    return len(stages)
