"""Tables of accounts, API keys, and the idempotency keys of their requests."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from api.db import Base, Document
from api.identifiers import uuid7


class Account(Base):
    """Whom jobs belong to; every row of a tenant carries its id."""

    __tablename__ = "accounts"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    name: Mapped[str] = mapped_column(unique=True)
    max_priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Highest priority its jobs may ask for: nobody jumps the queue uninvited."""
    webhook_secret: Mapped[str]
    """`whsec_...`, sealed: signs every webhook of the account whose endpoint has no secret of its own."""
    max_running_jobs: Mapped[int | None]
    """So many of its jobs run at once; others wait. Null for any number, here and below."""
    max_queued_jobs: Mapped[int | None]
    """So many of its jobs may wait for their first stage; a further one is refused."""
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """A job or a LoRA whose files would exceed it is refused."""
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Of pictures and artifacts of its jobs, and of its library. Kept by `api.accounts.quotas`, this row locked."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """One API key. Only a hash of its secret part is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    """The public part of the key: found by it, shown in lists."""
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    label: Mapped[str] = mapped_column(default="", server_default="")
    prefix: Mapped[str]
    """First characters of the key, for the eye: `duo_live_<id>`."""
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{admin}'::text[]"))
    """What it may do: names of `api.accounts.scopes.Scope`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    rotated_to: Mapped[str | None]
    """Id of the key that takes its place; it works beside that one until it expires."""


class IdempotencyKey(Base):
    """A request that its caller may send again without doing anything twice."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("(status IS NULL) = (response IS NULL)", name="outcome"),
        Index("ix_idempotency_keys_expires_at", "expires_at"),
    )

    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    """Hash over the route, the parameters and the digests of the parts."""
    token: Mapped[uuid.UUID]
    """Of the request that works on it: only that one may write the outcome."""
    locked_until: Mapped[datetime]
    """Without an outcome by then, another request may take it over."""
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    lora_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("loras.id", ondelete="CASCADE"), index=True)
    """What came of it, one of the two."""
    status: Mapped[int | None]
    """HTTP status that was answered; null while the request is in flight."""
    response: Mapped[Document | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
