"""Every query about uploads. Never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select

from api.accounts.quotas import add_stored
from api.uploads.models import Upload, UploadState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

LINK_GRACE = timedelta(hours=1)
"""What was begun to be written while a link worked may still arrive for so long."""


@dataclass(frozen=True, slots=True)
class OverdueUpload:
    """An upload whose objects and row are to go."""

    upload_id: uuid.UUID
    account_id: uuid.UUID


def find(session: Session, *, account_id: uuid.UUID, upload_id: uuid.UUID, lock: bool = False) -> Upload | None:
    """Return an account's upload that is neither removed nor over; locked if it is to be changed."""
    query = select(Upload).where(Upload.id == upload_id, *_there(account_id))
    return session.scalars(query.with_for_update() if lock else query).first()


def find_several(session: Session, *, account_id: uuid.UUID, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Upload]:
    """Return those of an account's uploads that are neither removed nor over, by id."""
    rows = session.scalars(select(Upload).where(Upload.id.in_(ids), *_there(account_id)))
    return {row.id: row for row in rows}


def remove(session: Session, upload: Upload) -> None:
    """Take an upload away from its owner, and its bytes from the account's; delete its objects afterwards.

    While a link to it works its row remains, for the janitor to look for what came by it.
    """
    add_stored(session, upload.account_id, -upload.bytes)
    if upload.link_expires_at is None:
        session.delete(upload)
        return
    upload.state, upload.bytes, upload.expires_at = UploadState.REMOVED, 0, upload.link_expires_at


def overdue(session: Session, *, limit: int) -> list[OverdueUpload]:
    """Return uploads that are to be purged: objects first, then `purge`."""
    rows = session.execute(
        select(Upload.id, Upload.account_id).where(_is_overdue()).order_by(Upload.expires_at).limit(limit)
    )
    return [OverdueUpload(*row) for row in rows]


def purge(session: Session, upload_id: uuid.UUID) -> bool:
    """Delete the row of an upload that is over; do so after its objects. False if it is gone already."""
    row = session.execute(
        delete(Upload)
        .where(Upload.id == upload_id, _is_overdue())
        .returning(Upload.account_id, Upload.bytes)
        .execution_options(synchronize_session=False)
    ).first()
    if row is None:
        return False
    add_stored(session, row.account_id, -row.bytes)
    return True


def _there(account_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    return (
        Upload.account_id == account_id,
        Upload.state != UploadState.REMOVED,
        Upload.expires_at > func.now(),
    )


def _is_overdue() -> ColumnElement[bool]:
    return (Upload.expires_at < func.now()) & (
        Upload.link_expires_at.is_(None) | (Upload.link_expires_at < func.now() - LINK_GRACE)
    )
