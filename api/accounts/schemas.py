"""Wire shapes of API keys."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from api.accounts.scopes import USUAL, Scope
from api.schemas import Wire

MAX_LABEL_LENGTH = 200
MAX_DAYS = 3650
DAY_S = 86_400
MAX_OVERLAP_S = 30 * DAY_S


class KeyState(StrEnum):
    """Whether a key works."""

    ACTIVE = "active"
    ROTATED = "rotated"
    """Another one takes its place; it works until `expires_at`."""
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyCreate(Wire):
    """A key to be made."""

    label: str = Field("", max_length=MAX_LABEL_LENGTH, description="What it is for.", examples=["the gallery's CI"])
    scopes: list[Scope] = Field(
        default=list(USUAL),
        min_length=1,
        max_length=len(Scope),
        description="What it may do. A scope to write includes the one to read, `admin` includes all and manages keys.",
    )
    expires_in_days: int | None = Field(None, ge=1, le=MAX_DAYS, description="Null: it does not expire.")


class KeyRotation(Wire):
    """How a key is to be replaced."""

    overlap_seconds: int = Field(
        DAY_S, ge=0, le=MAX_OVERLAP_S, description="So long the old key works beside the new one."
    )


class KeyRead(Wire):
    """A key, without its secret part."""

    id: str
    prefix: str = Field(description="How the key begins.", examples=["duo_live_4fR0kQ2mZx9B"])
    label: str
    scopes: list[str]
    state: KeyState
    is_current: bool = Field(description="It is the key of this request.")
    created_at: datetime
    last_used_at: datetime | None = Field(description="To the minute. Null: never.")
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_to: str | None = Field(description="Id of the key that takes its place.")


class KeyWithSecret(KeyRead):
    """A key just made: shown now and never again."""

    key: str


class KeyPage(Wire):
    """Keys of the account, newest first; there are few."""

    items: list[KeyRead]
