"""Every query about accounts and API keys. Never commits."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from api.accounts.models import Account, ApiKey
from api.identifiers import uuid7
from api.vault import vault_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from api.accounts.keys import KeyParts

LAST_USED_RESOLUTION = timedelta(minutes=1)
"""`last_used_at` is not written more often, so that reading stays a read."""

_WORKING = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()))


def usable_key(session: Session, key_id: str) -> tuple[ApiKey, Account] | None:
    """Return a key that is neither revoked nor expired, with its account."""
    row = session.execute(
        select(ApiKey, Account).join(Account, Account.id == ApiKey.account_id).where(ApiKey.id == key_id, *_WORKING)
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
        .values(id=uuid7(), name=name, webhook_secret=vault_of(session).seal(webhook_secret), max_priority=0)
        .on_conflict_do_nothing(index_elements=[Account.name])
    )
    return session.scalars(select(Account).where(Account.name == name)).one()


def list_keys(session: Session) -> Sequence[tuple[ApiKey, Account]]:
    """Return all keys with their accounts, oldest first."""
    rows = session.execute(
        select(ApiKey, Account).join(Account, Account.id == ApiKey.account_id).order_by(ApiKey.created_at, ApiKey.id)
    )
    return [(row[0], row[1]) for row in rows]


def keys_of(session: Session, account_id: uuid.UUID, *, ended: bool, limit: int = 1000) -> Sequence[ApiKey]:
    """Return an account's keys, newest first; those that are revoked or expired only if asked for."""
    wanted = select(ApiKey).where(ApiKey.account_id == account_id, *(() if ended else _WORKING))
    return session.scalars(wanted.order_by(ApiKey.created_at.desc(), ApiKey.id).limit(limit)).all()


def key_of(session: Session, account_id: uuid.UUID, key_id: str) -> ApiKey | None:
    """Return a key if it is the account's, locked."""
    return session.scalars(
        select(ApiKey).where(ApiKey.id == key_id, ApiKey.account_id == account_id).with_for_update()
    ).one_or_none()


def count_working_keys(session: Session, account_id: uuid.UUID) -> int:
    """Count an account's keys that are neither revoked nor expired; the account stays locked, so that none is added."""
    session.execute(select(Account.id).where(Account.id == account_id).with_for_update())
    working = select(func.count()).select_from(ApiKey).where(ApiKey.account_id == account_id, *_WORKING)
    return session.execute(working).scalar_one()


def add_key(
    session: Session,
    parts: KeyParts,
    *,
    account_id: uuid.UUID,
    label: str,
    scopes: Sequence[str],
    expires_at: datetime | None,
) -> ApiKey:
    """Write a key, of whose secret only the hash is kept."""
    row = ApiKey(
        id=parts.id,
        account_id=account_id,
        label=label,
        prefix=parts.prefix,
        secret_sha256=parts.digest,
        scopes=list(scopes),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row


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
