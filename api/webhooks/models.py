"""Table of webhook deliveries: what is to be sent, and how far that got."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from api.db import Base
from api.identifiers import uuid7


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    """To be tried at `next_attempt_at`."""
    DELIVERED = "delivered"
    """The receiver answered 2xx."""
    EXHAUSTED = "exhausted"
    """Every attempt failed, or the receiver said that it is gone (410)."""


class WebhookDelivery(Base):
    """One event on its way to one receiver; its row is written with the event."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'exhausted')", name="state"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    """`webhook-id` is made of it, so it stays the same across attempts."""
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    """Whose secret signs it."""
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"))
    type: Mapped[str]
    url: Mapped[str]
    body: Mapped[str]
    """The exact text that is signed and sent."""
    traceparent: Mapped[str | None]
    state: Mapped[DeliveryState] = mapped_column(default=DeliveryState.PENDING)
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]
