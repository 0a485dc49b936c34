"""Tables of accounts and API keys."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, func
from sqlalchemy.orm import Mapped, mapped_column

from api.db import Base
from api.identifiers import uuid7


class Account(Base):
    """Whom jobs belong to; every row of a tenant carries its id."""

    __tablename__ = "accounts"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    name: Mapped[str] = mapped_column(unique=True)
    max_priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Highest priority its jobs may ask for: nobody jumps the queue uninvited."""
    webhook_secret: Mapped[str]
    """`whsec_...`: signs every webhook of the account."""
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
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
