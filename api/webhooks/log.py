"""The log of deliveries: read, sent again, and in the end forgotten. Never commits."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, tuple_

from api.jobs.models import Event, Job
from api.webhooks.models import DeliveryState, WebhookAttempt, WebhookDelivery, WebhookEndpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

CLOCK_SLACK = timedelta(hours=1)
"""How far the clock that makes ids may lead or trail the database's."""


def list_deliveries(
    session: Session,
    *,
    endpoint_id: uuid.UUID,
    before: tuple[datetime, uuid.UUID] | None,
    limit: int,
    state: DeliveryState | None = None,
) -> Sequence[WebhookDelivery]:
    """Return up to `limit` deliveries to an endpoint, newest first, from those older than `before`."""
    query = (
        select(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id)
        .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(tuple_(WebhookDelivery.created_at, WebhookDelivery.id) < before)
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    return session.scalars(query).all()


def read_delivery(session: Session, delivery_id: uuid.UUID, *, account_id: uuid.UUID) -> WebhookDelivery | None:
    """Return a delivery of an account."""
    return session.scalars(
        select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, WebhookDelivery.account_id == account_id)
    ).one_or_none()


def list_attempts(session: Session, delivery_id: uuid.UUID) -> Sequence[WebhookAttempt]:
    """Return the attempts at a delivery, in order."""
    return session.scalars(
        select(WebhookAttempt).where(WebhookAttempt.delivery_id == delivery_id).order_by(WebhookAttempt.attempt)
    ).all()


def hold_subject(session: Session, delivery: WebhookDelivery) -> bool:
    """Keep the job and the event that a delivery tells of from being deleted; False if they are gone already.

    Comes before any lock of an endpoint, as everywhere.
    """
    for key, column in ((delivery.job_id, Job.id), (delivery.event_id, Event.id)):
        if key is None:
            continue
        row = session.execute(select(column).where(column == key).with_for_update(read=True, key_share=True)).first()
        if row is None:
            return False
    return True


def replay(session: Session, delivery: WebhookDelivery, endpoint: WebhookEndpoint | None) -> WebhookDelivery:
    """Write a delivery that sends the same event again, to where its endpoint is now; returns it.

    It has the original's `webhook-id`, as it tells of the same event: a receiver that has seen it may drop it.
    """
    again = WebhookDelivery(
        account_id=delivery.account_id,
        endpoint_id=delivery.endpoint_id,
        job_id=delivery.job_id,
        event_id=delivery.event_id,
        type=delivery.type,
        url=delivery.url if endpoint is None else endpoint.url,
        body=delivery.body,
        retries=delivery.retries,
        replay_of=delivery.replay_of or delivery.id,
        traceparent=delivery.traceparent,
        tracestate=delivery.tracestate,
        request_id=delivery.request_id,
    )
    session.add(again)
    session.flush()
    return again


def purge_log(session: Session, *, older_than: timedelta, limit: int) -> int:
    """Delete up to `limit` settled deliveries older than this, with their attempts; returns how many.

    Ids begin with their time of birth, so the oldest rows are found by the primary key.
    """
    ended_before = session.execute(select(func.now())).scalar_one() - older_than
    newest_id = uuid.UUID(int=int((ended_before + CLOCK_SLACK).timestamp() * 1000) << 80)
    old = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.id < newest_id,
            WebhookDelivery.created_at < ended_before,
            WebhookDelivery.state != DeliveryState.PENDING,
        )
        .order_by(WebhookDelivery.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("old")  # evaluated exactly once
    )
    gone = session.execute(
        delete(WebhookDelivery)
        .where(WebhookDelivery.id == old.c.id)
        .returning(WebhookDelivery.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(gone)
