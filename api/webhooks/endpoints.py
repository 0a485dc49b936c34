"""Queries about endpoints. Never commits.

Order of locks: the account (only to count its endpoints), an endpoint, its deliveries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from api.accounts.models import Account
from api.vault import vault_of
from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import timedelta

    from sqlalchemy.orm import Session

GONE = "gone"
EXHAUSTED = "exhausted"
BY_OWNER = "by_owner"
"""Why an endpoint was disabled: it answered 410, the schedule of attempts ended, its owner asked for it."""

DISABLED_ERROR = "the endpoint was disabled"


def lock_endpoint(
    session: Session, endpoint_id: uuid.UUID, *, account_id: uuid.UUID | None = None
) -> WebhookEndpoint | None:
    """Lock an endpoint and read it afresh; None if there is none of that id (in that account)."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).with_for_update(key_share=True)
    if account_id is not None:
        query = query.where(WebhookEndpoint.account_id == account_id)
    return session.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def read_endpoint(session: Session, endpoint_id: uuid.UUID, *, account_id: uuid.UUID) -> WebhookEndpoint | None:
    """Return an endpoint of an account."""
    return session.scalars(
        select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.account_id == account_id)
    ).one_or_none()


def list_endpoints(
    session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID | None = None
) -> Sequence[WebhookEndpoint]:
    """Return the endpoints of an account, or of one of its jobs, oldest first."""
    return session.scalars(
        select(WebhookEndpoint)
        .where(WebhookEndpoint.account_id == account_id, WebhookEndpoint.job_id.is_not_distinct_from(job_id))
        .order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)
    ).all()


def count_endpoints(session: Session, account_id: uuid.UUID) -> int:
    """Count the endpoints of an account, those of single jobs left out; nobody else adds one until the commit."""
    session.execute(select(Account.id).where(Account.id == account_id).with_for_update(key_share=True))
    return session.scalars(
        select(func.count())
        .select_from(WebhookEndpoint)
        .where(WebhookEndpoint.account_id == account_id, WebhookEndpoint.job_id.is_(None))
    ).one()


def disable(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    """Tell a locked endpoint of nothing more; what was on its way to it is exhausted. Again: no effect."""
    if endpoint.state is EndpointState.DISABLED:
        return
    endpoint.state, endpoint.disabled_at, endpoint.disabled_reason = EndpointState.DISABLED, func.now(), reason
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.state == DeliveryState.PENDING)
        .values(state=DeliveryState.EXHAUSTED, last_error=func.coalesce(WebhookDelivery.last_error, DISABLED_ERROR))
        .execution_options(synchronize_session=False)
    )


def enable(endpoint: WebhookEndpoint) -> None:
    """Tell a locked endpoint of what happens from now on. What it missed can be replayed."""
    endpoint.state, endpoint.disabled_at, endpoint.disabled_reason = EndpointState.ENABLED, None, None


def redirect(session: Session, endpoint: WebhookEndpoint, url: str) -> None:
    """Move a locked endpoint to another URL, with what is still on its way to it."""
    endpoint.url = url
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.state == DeliveryState.PENDING)
        .values(url=url)
        .execution_options(synchronize_session=False)
    )


def rotate(session: Session, endpoint: WebhookEndpoint, *, secret: str, keep: timedelta) -> None:
    """Give a locked endpoint a new secret; the one before, if only the account's, signs as well for `keep`."""
    before = endpoint.secret or session.get_one(Account, endpoint.account_id).webhook_secret
    endpoint.previous_secret = before
    endpoint.previous_secret_expires_at = session.execute(select(func.now())).scalar_one() + keep
    endpoint.secret = vault_of(session).seal(secret)
