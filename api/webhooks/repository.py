"""Every query about webhook deliveries. Never commits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from api.accounts.models import Account
from api.webhooks.models import DeliveryState, WebhookDelivery
from api.webhooks.signing import delay_before

if TYPE_CHECKING:
    import uuid
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDelivery:
    """A delivery to be attempted now, with everything that sending needs."""

    id: uuid.UUID
    job_id: uuid.UUID
    url: str
    body: str
    secret: str
    attempt: int
    """Counted from 1."""
    traceparent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """How one attempt ended."""

    status: int | None = None
    """HTTP status of the answer, None if there was none."""
    error: str | None = None
    """Why it failed, in a few words; None when it was delivered."""
    final: bool = False
    """No further attempt may follow: the receiver is gone, or its URL is one that stays refused.

    A name whose addresses are refused is tried again, for names may come to point elsewhere.
    """
    retry_after: timedelta | None = None
    """What the receiver asked for; the schedule is never faster than this."""

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.error is None


def queue_delivery(
    session: Session,
    *,
    account_id: uuid.UUID,
    job_id: uuid.UUID,
    event_id: int,
    event_type: str,
    occurred_at: datetime,
    data: dict[str, Any],
    url: str,
    traceparent: str | None,
) -> None:
    """Write a delivery row; its body is made here, once, so that every attempt sends the same bytes."""
    body = json.dumps({"type": event_type, "timestamp": occurred_at.isoformat(), "data": data}, separators=(",", ":"))
    session.add(
        WebhookDelivery(
            account_id=account_id,
            job_id=job_id,
            event_id=event_id,
            type=event_type,
            url=url,
            body=body,
            traceparent=traceparent,
        )
    )


def take_due(session: Session, *, limit: int, hold: timedelta) -> list[DueDelivery]:
    """Take deliveries whose time has come and hold them for `hold`, oldest first.

    Commit before sending: no row lock may wait for a stranger's server. If the sender dies, the delivery comes back
    after `hold`, which must be longer than an attempt can take.
    """
    chosen = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.state == DeliveryState.PENDING, WebhookDelivery.next_attempt_at <= func.now())
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("chosen")  # evaluated exactly once; as a subquery it may be run again and lock more rows
    )
    taken = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == chosen.c.id, Account.id == WebhookDelivery.account_id)
        .values(next_attempt_at=func.now() + hold, attempts=WebhookDelivery.attempts + 1)
        .returning(
            WebhookDelivery.id,
            WebhookDelivery.job_id,
            WebhookDelivery.url,
            WebhookDelivery.body,
            Account.webhook_secret,
            WebhookDelivery.attempts,
            WebhookDelivery.traceparent,
        )
        .execution_options(synchronize_session=False)
    ).all()
    return [
        DueDelivery(
            id=row.id,
            job_id=row.job_id,
            url=row.url,
            body=row.body,
            secret=row.webhook_secret,
            attempt=row.attempts,
            traceparent=row.traceparent,
        )
        for row in taken
    ]


def record_outcome(session: Session, *, delivery_id: uuid.UUID, outcome: DeliveryOutcome) -> DeliveryState:
    """Write down how an attempt ended and plan the next one, if any is left; returns where the delivery stands now.

    An outcome that comes after the delivery was settled (two senders, one of them slow) changes nothing.
    """
    delivery = session.get(WebhookDelivery, delivery_id, with_for_update=True, populate_existing=True)
    if delivery is None or delivery.state is not DeliveryState.PENDING:
        return DeliveryState.EXHAUSTED if delivery is None else delivery.state
    now = session.execute(select(func.now())).scalar_one()
    delivery.last_status, delivery.last_error = outcome.status, outcome.error
    delay = delay_before(delivery.attempts + 1)
    if outcome.is_delivered:
        delivery.state, delivery.delivered_at = DeliveryState.DELIVERED, now
    elif outcome.final or delay is None:
        delivery.state = DeliveryState.EXHAUSTED
    else:
        delivery.next_attempt_at = now + max(delay, outcome.retry_after or delay)
    return delivery.state
