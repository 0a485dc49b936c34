"""Every query about accounts and API keys. Never commits."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from api.accounts.models import Account, ApiKey
from api.identifiers import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

LAST_USED_RESOLUTION = timedelta(minutes=1)
"""`last_used_at` is not written more often, so that reading stays a read."""


def usable_key(session: Session, key_id: str) -> tuple[ApiKey, Account] | None:
    """Return a key that is neither revoked nor expired, with its account."""
    row = session.execute(
        select(ApiKey, Account)
        .join(Account, Account.id == ApiKey.account_id)
        .where(
            ApiKey.id == key_id,
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        )
    ).first()
    return None if row is None else (row[0], row[1])


def touch_key(session: Session, key_id: str) -> None:
    """Note that a key was used."""
    session.execute(
        update(ApiKey)
        .where(
            ApiKey.id == key_id,
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - LAST_USED_RESOLUTION),
        )
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )


def ensure_account(session: Session, *, name: str, webhook_secret: str) -> Account:
    """Return the account of a name, made with this secret if there is none yet."""
    session.execute(
        insert(Account)
        .values(id=uuid7(), name=name, webhook_secret=webhook_secret, max_priority=0)
        .on_conflict_do_nothing(index_elements=[Account.name])
    )
    return session.scalars(select(Account).where(Account.name == name)).one()


def list_keys(session: Session) -> Sequence[tuple[ApiKey, Account]]:
    """Return all keys with their accounts, oldest first."""
    rows = session.execute(
        select(ApiKey, Account).join(Account, Account.id == ApiKey.account_id).order_by(ApiKey.created_at, ApiKey.id)
    )
    return [(row[0], row[1]) for row in rows]


def revoke_key(session: Session, key_id: str) -> bool:
    """Revoke a key; returns False if there is none of that id. Revoking again changes nothing."""
    found = session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey.id)
        .execution_options(synchronize_session=False)
    )
    return found is not None
