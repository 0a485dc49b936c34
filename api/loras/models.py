"""The table of LoRAs, and what a row says of its files."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from api.db import Base
from api.identifiers import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence


class LoraRole(StrEnum):
    """What a LoRA holds."""

    CONTENT = "content"
    """A subject."""
    STYLE = "style"
    """A style."""
    MERGED = "merged"
    """Both."""
    OTHER = "other"
    """Whatever its owner says; of an uploaded one nobody else knows."""


class LoraSource(StrEnum):
    """Where a LoRA came from."""

    JOB = "job"
    UPLOAD = "upload"


class LoraFormat(StrEnum):
    """How the keys of a file are named. The best read everywhere comes first."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    PEFT = "peft"
    OTHER = "other"
    """Another that the engine may read: older diffusers, OneTrainer."""


class LoraState(StrEnum):
    """Whether a LoRA is there."""

    PENDING = "pending"
    """Its bytes are on their way into the store; nobody sees it yet."""
    READY = "ready"
    DELETING = "deleting"
    """Gone for its owner. Its bytes go first, the row after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A safetensors file of a LoRA, whole in the store."""

    format: LoraFormat
    key: str
    """Its place in the store: of the job that made it, or of the library itself."""
    filename: str
    sha256: str
    """Hexadecimal."""
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the object that a row holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LoraFile:
        """Read the object that a row holds."""
        return cls(**{**document, "format": LoraFormat(document["format"])})


class Lora(Base):
    """A LoRA of an account.

    One that a job made stands on the job's own files and goes with it, unless it is kept; a kept or uploaded one has
    files of its own.
    """

    __tablename__ = "loras"
    __table_args__ = (
        CheckConstraint("role IN ('content', 'style', 'merged', 'other')", name="role"),
        CheckConstraint("source IN ('job', 'upload')", name="source"),
        CheckConstraint("state IN ('pending', 'ready', 'deleting')", name="state"),
        CheckConstraint("state = 'ready' OR settle_at IS NOT NULL", name="settled"),
        CheckConstraint("stored_bytes >= 0", name="size"),
        Index("ix_loras_newest", "account_id", text("created_at DESC"), text("id DESC")),
        Index("ix_loras_job", "job_id", postgresql_where=text("job_id IS NOT NULL")),
        Index("ix_loras_settle", "settle_at", postgresql_where=text("settle_at IS NOT NULL")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    name: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default=text("'{}'::text[]"))
    role: Mapped[LoraRole]
    base_model: Mapped[str | None]
    """What it was trained on, as jobs name it; null if its owner did not say."""
    rank: Mapped[int | None]
    """Highest of its layers; null if not known."""
    trigger: Mapped[str | None]
    """Words that call what it was trained on."""
    source: Mapped[LoraSource]
    job_id: Mapped[uuid.UUID | None]
    """The job that made it, which may be gone by now."""
    mock: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """The mock engine made it: it holds nothing, whatever its tags say."""
    kept: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """It has files of its own, and does not go with its job."""
    state: Mapped[LoraState] = mapped_column(default=LoraState.READY, server_default="ready")
    settle_at: Mapped[datetime | None]
    """When its place in the store is looked at, because something may be left there of what was begun."""
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """`LoraFile` as JSON, one of a format."""
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Of files of its own: what the account's quota counts for it."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    @property
    def all_files(self) -> list[LoraFile]:
        """Its files, the most readable first."""
        order = list(LoraFormat)
        return sorted(map(LoraFile.from_json, self.files), key=lambda file: order.index(file.format))

    def file(self, preferred: str = LoraFormat.DIFFUSERS) -> LoraFile:
        """Return the file in a format if there is one, else the most readable.

        Raises:
            LookupError: it has no file at all; a bug, as every row is written with one.
        """
        files = self.all_files
        if not files:
            raise LookupError(f"LoRA {self.id} has no file")
        return next((file for file in files if file.format == preferred), files[0])

    def point_to(self, files: Sequence[LoraFile]) -> None:
        """Let it stand on these files."""
        self.files = [file.to_json() for file in files]
