"""Every query about uploads. Never commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select

from api.accounts.quotas import add_stored
from api.jobs.locking import instant
from api.object_keys import upload_prefix
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
    """An upload that has something in the store that is to go."""

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


def key_of(upload: Upload) -> str:
    """Return the key of the object of an upload that is ready."""
    return upload.key or f"{upload_prefix(upload.account_id, upload.id)}ready"


def remove(session: Session, upload: Upload) -> None:
    """Take an upload away from its owner, and what was kept of it from the account's bytes.

    While a link to it works its row remains, for the janitor to look for what came by it, and counts what may come.
    """
    if upload.link_expires_at is None:
        add_stored(session, upload.account_id, -upload.bytes)
        session.delete(upload)
        return
    if upload.state is UploadState.READY:
        add_stored(session, upload.account_id, -upload.bytes)
        upload.bytes, upload.link_bytes = upload.link_bytes, 0
    upload.state, upload.expires_at = UploadState.REMOVED, upload.link_expires_at


def may_bring(session: Session, upload: Upload) -> int:
    """Return the bytes that may still arrive by the link of an upload that is not ready yet."""
    if upload.link_expires_at is None or upload.link_expires_at + LINK_GRACE < instant(session):
        return 0
    return upload.bytes


def ended_links(session: Session, *, limit: int) -> list[OverdueUpload]:
    """Return uploads that are ready and whose links ended: first the objects of these go, then `forget_link`."""
    rows = session.execute(
        select(Upload.id, Upload.account_id).where(_is_linkless()).order_by(Upload.link_expires_at).limit(limit)
    )
    return [OverdueUpload(*row) for row in rows]


def forget_link(session: Session, upload_id: uuid.UUID) -> None:
    """Give the account the bytes back that an ended link might have brought."""
    upload = session.scalars(select(Upload).where(Upload.id == upload_id, _is_linkless()).with_for_update()).first()
    if upload is not None:
        add_stored(session, upload.account_id, -upload.link_bytes)
        upload.link_bytes = 0


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
        .returning(Upload.account_id, (Upload.bytes + Upload.link_bytes).label("counted"))
        .execution_options(synchronize_session=False)
    ).first()
    if row is None:
        return False
    add_stored(session, row.account_id, -row.counted)
    return True


def _there(account_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    return (
        Upload.account_id == account_id,
        Upload.state != UploadState.REMOVED,
        Upload.expires_at > func.now(),
    )


def _is_overdue() -> ColumnElement[bool]:
    return (Upload.expires_at < func.now()) & (Upload.link_expires_at.is_(None) | _has_ended_link())


def _is_linkless() -> ColumnElement[bool]:
    return (Upload.link_bytes > 0) & _has_ended_link()


def _has_ended_link() -> ColumnElement[bool]:
    return Upload.link_expires_at < func.now() - LINK_GRACE
