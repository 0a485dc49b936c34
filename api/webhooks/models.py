"""Tables of webhooks: who is told of what, what is to be sent, and how every attempt at it went."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

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


class EndpointState(StrEnum):
    """Whether an endpoint is told of anything."""

    ENABLED = "enabled"
    DISABLED = "disabled"


class WebhookEndpoint(Base):
    """A receiver of an account's events, or of one job's."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        CheckConstraint("state IN ('enabled', 'disabled')", name="state"),
        CheckConstraint("(state = 'disabled') = (disabled_at IS NOT NULL)", name="disabled"),
        Index("ix_webhook_endpoints_account_id", "account_id", "job_id"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    """The one job it is told of; null for all of the account's."""
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default=text("'{}'::text[]"))
    """Types it wants to hear of; empty for the lifecycle, and for a job's endpoint its end."""
    secret: Mapped[str | None]
    """`whsec_...`, sealed; null for the account's."""
    previous_secret: Mapped[str | None]
    """Sealed. Signs as well until it expires, so that a receiver can change over."""
    previous_secret_expires_at: Mapped[datetime | None]
    description: Mapped[str] = mapped_column(default="", server_default="")
    state: Mapped[EndpointState] = mapped_column(default=EndpointState.ENABLED, server_default="enabled")
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    """`gone`, `exhausted` or `by_owner`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """One event on its way to one receiver; its row is written with the event."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'exhausted')", name="state"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
        Index("ix_webhook_deliveries_newest", "endpoint_id", text("created_at DESC"), text("id DESC")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    """`webhook-id` is made of it, so it stays the same across attempts."""
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    """Whose secret signs it, if its endpoint has none of its own."""
    endpoint_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    """Null only in rows older than endpoints."""
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    """Null for a ping, as is the event."""
    event_id: Mapped[int | None] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"), index=True)
    type: Mapped[str]
    url: Mapped[str]
    body: Mapped[str]
    """The exact text that is signed and sent."""
    retries: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    """Whether a failed attempt is followed by another: progress and pings are sent once."""
    replay_of: Mapped[uuid.UUID | None]
    """The delivery that this one sends again, with its `webhook-id`."""
    traceparent: Mapped[str | None]
    tracestate: Mapped[str | None]
    request_id: Mapped[str | None]
    """Of the request that made the job, or asked for the ping."""
    state: Mapped[DeliveryState] = mapped_column(default=DeliveryState.PENDING)
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    delivered_at: Mapped[datetime | None]


class WebhookAttempt(Base):
    """The log of deliveries: one attempt and how it ended."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    attempt: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    duration_ms: Mapped[int]
    status: Mapped[int | None]
    """HTTP status of the answer, null if there was none."""
    error: Mapped[str | None]
    """Why it failed, with a short, escaped piece of the answer; null when it was delivered."""
