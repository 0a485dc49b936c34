"""How far webhooks are behind: read from the rows when somebody asks. Never commits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class WebhookGauges:
    """One look at the rows."""

    pending: int
    """Deliveries that will be tried, now or later."""
    lag_s: float
    """How long the most overdue attempt has been due; 0 where none is."""
    disabled_endpoints: int


def look_at_webhooks(session: Session) -> WebhookGauges:
    """Read all of it."""
    overdue = func.extract("epoch", func.now() - func.min(WebhookDelivery.next_attempt_at))
    pending, lag_s = session.execute(
        select(func.count(), overdue).where(WebhookDelivery.state == DeliveryState.PENDING)
    ).one()
    disabled = session.scalar(
        select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.state == EndpointState.DISABLED)
    )
    return WebhookGauges(pending, max(0.0, float(lag_s or 0)), disabled or 0)
