"""Taking deliveries that are due, and writing down how an attempt at one went. Never commits.

Order of locks: an endpoint, then its deliveries. A failed attempt may disable its endpoint and therefore locks that
first; taking deliveries, and those that arrived, lock deliveries alone.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from sqlalchemy import exists, func, select
from sqlalchemy.dialects.postgresql import insert

from api.accounts.models import Account
from api.vault import CannotOpen, vault_of
from api.webhooks import endpoints
from api.webhooks.models import DeliveryState, EndpointState, WebhookAttempt, WebhookDelivery, WebhookEndpoint
from api.webhooks.signing import delay_before, message_id

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from api.vault import Vault

logger = logging.getLogger(__name__)

MAX_PER_ORIGIN = 2
"""Deliveries to one server that are attempted at once: a slow one keeps no more senders busy."""
LOOK_AHEAD = 8
"""How many times more rows are looked at than taken, to find some for other servers."""
ORIGIN = "^[a-z]+://[^/?]+"
"""Scheme, host and port of a URL, as Python and Postgres understand a pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDelivery:
    """A delivery to be attempted now, with everything that sending needs."""

    id: uuid.UUID
    endpoint_id: uuid.UUID | None
    job_id: uuid.UUID | None
    message: str
    """The `webhook-id`."""
    url: str
    body: str
    secrets: tuple[str, ...]
    """What signs it: one, or the new and the old one while the receiver changes over."""
    attempt: int
    """Counted from 1."""
    traceparent: str | None
    tracestate: str | None = None
    request_id: str | None = None


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


@dataclass(frozen=True, slots=True)
class AttemptTime:
    """When an attempt was made and how long it took, by the sender's clock."""

    started_at: datetime
    duration: timedelta


UNSIGNED = "the service cannot open the secret that signs it; its operator is told"


def origin_of(url: str) -> str:
    """Return which server a URL names: deliveries to one are attempted a few at a time."""
    found = re.match(ORIGIN, url)
    return found.group() if found else url


def take_due(
    session: Session, *, limit: int, hold: timedelta, in_flight: Mapping[str, int] | None = None
) -> list[DueDelivery]:
    """Take deliveries whose time has come and hold them for `hold`, oldest first.

    Commit before sending: no row lock may wait for a stranger's server. If the sender dies, the delivery comes back
    after `hold`, which must be longer than an attempt can take.

    Args:
        session: an open transaction.
        limit: how many at most.
        hold: how long nobody else takes them.
        in_flight: how many deliveries the caller is attempting now, by `origin_of` their URL.
    """
    due = (WebhookDelivery.state == DeliveryState.PENDING, WebhookDelivery.next_attempt_at <= func.now())
    chosen = _choose(session, limit, dict(in_flight or {}), due)
    rows = session.execute(
        select(WebhookDelivery, Account.webhook_secret, WebhookEndpoint, func.now())
        .join(Account, Account.id == WebhookDelivery.account_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id.in_(chosen), *due)
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
        .with_for_update(of=WebhookDelivery, skip_locked=True, key_share=True),
        execution_options={"populate_existing": True},
    ).all()
    vault, taken = vault_of(session), []
    for delivery, account_secret, endpoint, now in rows:
        if endpoint is not None and endpoint.state is EndpointState.DISABLED:  # queued while it was being disabled
            delivery.state, delivery.last_error = DeliveryState.EXHAUSTED, endpoints.DISABLED_ERROR
            continue
        delivery.next_attempt_at = now + hold
        try:
            opened = _opened(vault, _secrets(endpoint, account_secret, now))
        except CannotOpen as error:  # no attempt of the receiver's: it waits for the operator
            logger.error("a webhook cannot be signed: %s", error)  # noqa: TRY400 - the message says it all
            delivery.last_error = UNSIGNED
            continue
        delivery.attempts += 1
        taken.append(_due(delivery, opened))
    return taken


def record_outcome(
    session: Session, *, due: DueDelivery, outcome: DeliveryOutcome, time: AttemptTime, scale: float = 1
) -> DeliveryState:
    """Log how an attempt ended and plan the next one, if any is left; returns where the delivery stands now.

    A failure that comes after another attempt was begun (two senders, one of them slow) is only logged. A receiver that
    is gone, and one that took nothing while the whole schedule went by, is disabled.

    Args:
        session: an open transaction.
        due: what was attempted.
        outcome: how it ended.
        time: when and how long it was.
        scale: factor of the schedule's waits.
    """
    endpoint = None
    if not outcome.is_delivered and due.endpoint_id is not None:
        endpoint = endpoints.lock_endpoint(session, due.endpoint_id)
    delivery = session.scalars(
        select(WebhookDelivery).where(WebhookDelivery.id == due.id).with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if delivery is None:
        return DeliveryState.EXHAUSTED
    _log(session, due, outcome, time)
    now = session.execute(select(func.now())).scalar_one()
    if outcome.is_delivered:
        if delivery.state is not DeliveryState.DELIVERED:
            delivery.state, delivery.delivered_at = DeliveryState.DELIVERED, now
            delivery.last_status, delivery.last_error = outcome.status, None
    elif delivery.state is DeliveryState.PENDING and delivery.attempts == due.attempt:
        delivery.last_status, delivery.last_error = outcome.status, outcome.error
        _plan_next(session, delivery, endpoint, outcome, now=now, scale=scale)
    return delivery.state


def _plan_next(
    session: Session,
    delivery: WebhookDelivery,
    endpoint: WebhookEndpoint | None,
    outcome: DeliveryOutcome,
    *,
    now: datetime,
    scale: float,
) -> None:
    delay = delay_before(delivery.attempts + 1, scale=scale) if delivery.retries else None
    if not outcome.final and delay is not None:
        delivery.next_attempt_at = now + max(delay, outcome.retry_after or delay)
        return
    delivery.state = DeliveryState.EXHAUSTED
    if endpoint is None:
        return
    session.flush()
    if outcome.status == HTTPStatus.GONE:
        endpoints.disable(session, endpoint, endpoints.GONE)
    elif delivery.retries and not outcome.final and not _took_something_since(session, delivery):
        endpoints.disable(session, endpoint, endpoints.EXHAUSTED)


def _took_something_since(session: Session, delivery: WebhookDelivery) -> bool:
    """Tell whether the receiver lives after all, and only this one delivery is not to its taste."""
    other = exists().where(
        WebhookDelivery.endpoint_id == delivery.endpoint_id, WebhookDelivery.delivered_at > delivery.created_at
    )
    return bool(session.scalar(select(other)))


def _choose(
    session: Session, limit: int, in_flight: dict[str, int], due: Sequence[ColumnElement[bool]]
) -> list[uuid.UUID]:
    """Return ids of due deliveries, not more to one server than may be attempted at once."""
    query = (
        select(WebhookDelivery.id, WebhookDelivery.url)
        .where(*due)
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
        .limit(limit * LOOK_AHEAD)
    )
    busy = [origin for origin, count in in_flight.items() if count >= MAX_PER_ORIGIN]
    if busy:
        query = query.where(func.substring(WebhookDelivery.url, ORIGIN).not_in(busy))
    chosen: list[uuid.UUID] = []
    for row in session.execute(query):
        origin = origin_of(row.url)
        if len(chosen) < limit and in_flight.get(origin, 0) < MAX_PER_ORIGIN:
            in_flight[origin] = in_flight.get(origin, 0) + 1
            chosen.append(row.id)
    return chosen


def _secrets(endpoint: WebhookEndpoint | None, account_secret: str, now: datetime) -> tuple[str, ...]:
    if endpoint is None:
        return (account_secret,)
    secret = endpoint.secret or account_secret
    expires_at = endpoint.previous_secret_expires_at
    if endpoint.previous_secret is None or expires_at is None or expires_at <= now:
        return (secret,)
    return secret, endpoint.previous_secret


def _opened(vault: Vault, stored: tuple[str, ...]) -> tuple[str, ...]:
    """Return the secrets that sign: the newest, and the one before as far as it can be opened.

    Raises:
        CannotOpen: the newest cannot be.
    """
    newest, *before = stored
    opened = [vault.open(newest)]
    for each in before:
        try:
            opened.append(vault.open(each))
        except CannotOpen as error:  # a receiver that has changed over does not miss it
            logger.warning("a webhook is signed with its new secret only: %s", error)
    return tuple(opened)


def _due(delivery: WebhookDelivery, secrets: tuple[str, ...]) -> DueDelivery:
    return DueDelivery(
        id=delivery.id,
        endpoint_id=delivery.endpoint_id,
        job_id=delivery.job_id,
        message=message_id(delivery.replay_of or delivery.id),
        url=delivery.url,
        body=delivery.body,
        secrets=secrets,
        attempt=delivery.attempts,
        traceparent=delivery.traceparent,
        tracestate=delivery.tracestate,
        request_id=delivery.request_id,
    )


def _log(session: Session, due: DueDelivery, outcome: DeliveryOutcome, time: AttemptTime) -> None:
    session.execute(
        insert(WebhookAttempt)
        .values(
            delivery_id=due.id,
            attempt=due.attempt,
            started_at=time.started_at,
            duration_ms=round(time.duration.total_seconds() * 1000),
            status=outcome.status,
            error=outcome.error,
        )
        .on_conflict_do_nothing()
    )
