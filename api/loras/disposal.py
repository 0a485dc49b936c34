"""Emptying a LoRA's place in the store: of all that it has when it was deleted, else of what nobody points to.

Whoever writes there has a time, until which `settle_at` keeps everybody from looking, and after which it gives up
itself. So what is listed and pointed to by nobody then will never be. Objects go first, the row after them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.accounts.quotas import add_stored
from api.db import transaction
from api.loras import repository
from api.loras.models import LoraState
from api.object_keys import loras_prefix

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.orm import Session, sessionmaker

    from api.loras.models import Lora
    from api.storage import ObjectStore


def settle(sessions: sessionmaker[Session], store: ObjectStore, *, limit: int) -> int:
    """Look at the places of LoRAs where something may be left; returns how many there were.

    Raises:
        StoreError: the store does not answer; they are found again.
    """
    with transaction(sessions) as session:
        found = repository.due(session, limit=limit)
    for each in found:
        dispose(sessions, store, account_id=each.account_id, lora_id=each.lora_id)
    return len(found)


def dispose(sessions: sessionmaker[Session], store: ObjectStore, *, account_id: uuid.UUID, lora_id: uuid.UUID) -> None:
    """Delete what a LoRA has in the store that it is not to have, then the row of one that was deleted.

    The row stays, gone for its owner, while somebody may still write there; then it is looked at once more.

    Raises:
        StoreError: the store does not answer; nothing is forgotten.
    """
    listed = store.keys(loras_prefix(account_id, lora_id))  # before the row is read: what is begun later is not in it
    with transaction(sessions) as session:
        lora = repository.lock_any(session, lora_id)
        if lora is None:
            return
        looked_at, now = lora.settle_at, repository.moment(session)
        if not _is_over(looked_at, now) and lora.state is not LoraState.DELETING:
            return
        doomed = set(listed) - _used(lora, now)
    store.delete(sorted(doomed))
    with transaction(sessions) as session:
        lora = repository.lock_any(session, lora_id)
        if lora is None:
            return
        if _is_gone(lora, now):
            _forget(session, lora, now)
        elif lora.settle_at == looked_at:
            lora.settle_at = None


def discard(sessions: sessionmaker[Session], store: ObjectStore, *, lora_id: uuid.UUID, keys: Collection[str]) -> None:
    """Delete what was written for a LoRA and came to nothing.

    A commit whose answer got lost may have happened after all; then it stays.

    Raises:
        StoreError: the store does not answer.
    """
    with transaction(sessions) as session:
        lora = repository.lock_any(session, lora_id)
        used = set() if lora is None else {file.key for file in lora.all_files}
    if used.isdisjoint(keys):
        store.delete(sorted(keys))


def _is_over(settle_at: datetime | None, now: datetime) -> bool:
    return settle_at is not None and settle_at <= now


def _is_gone(lora: Lora, now: datetime) -> bool:
    """Tell whether nothing of it is to stay: it was deleted, or its bytes did not come in time."""
    late = lora.state is LoraState.PENDING and _is_over(lora.settle_at, now)
    return lora.state is LoraState.DELETING or late


def _used(lora: Lora, now: datetime) -> set[str]:
    return set() if _is_gone(lora, now) else {file.key for file in lora.all_files}


def _forget(session: Session, lora: Lora, now: datetime) -> None:
    """Give its bytes back to the account; drop its row if nobody can be writing any more."""
    add_stored(session, lora.account_id, -lora.stored_bytes)
    lora.stored_bytes = 0
    if _is_over(lora.settle_at, now):
        session.delete(lora)
