"""The table of uploads."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from api.db import Base
from api.identifiers import uuid7


class UploadState(StrEnum):
    """Where an upload stands."""

    PENDING = "pending"
    """Its bytes are on their way, or came and were not looked at yet."""
    READY = "ready"
    """It may be named in a submission."""
    REMOVED = "removed"
    """Gone for its owner. The row remains as long as a link to write to works, so that what comes by it is deleted."""


class UploadKind(StrEnum):
    """What an upload is for."""

    IMAGE = "image"
    LORA = "lora"


class Upload(Base):
    """A file that came before the job it is for."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'ready', 'removed')", name="state"),
        CheckConstraint("kind IN ('image', 'lora')", name="kind"),
        CheckConstraint(
            "state <> 'ready' OR (sha256 IS NOT NULL AND (kind <> 'image'"
            " OR (width > 0 AND height > 0 AND dhash IS NOT NULL)))",
            name="ready",
        ),
        CheckConstraint("link_bytes >= 0", name="link_bytes"),
        Index("ix_uploads_links", "link_expires_at", postgresql_where=text("link_bytes > 0")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    state: Mapped[UploadState] = mapped_column(default=UploadState.PENDING)
    kind: Mapped[UploadKind]
    content_type: Mapped[str]
    """As it was announced; of a ready one, of what is kept."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    """As announced, then of what is kept; of a removed one what its link may still bring. Counts in the account's
    `stored_bytes`, as the next does.
    """
    link_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Of a ready one, what may be written by its link beside what is kept; 0 once nothing arrives by it any more."""
    sha256: Mapped[str | None]
    """Hexadecimal. Of a pending one what its bytes are to have, if that was said; of a ready one, of what is kept."""
    key: Mapped[str | None]
    """Of the object of a ready one. Null if it was made ready before this column was there; see `repository.key_of`."""
    width: Mapped[int | None]
    """In pixels, of a picture that is ready; null otherwise, as the next two."""
    height: Mapped[int | None]
    dhash: Mapped[str | None]
    """`api.jobs.resemblance`, as 16 hexadecimal digits."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(index=True)
    """From then on there is none for its owner, and the janitor removes it."""
    link_expires_at: Mapped[datetime | None]
    """Until when its caller may write to it by a signed link; null if there is no such link."""
