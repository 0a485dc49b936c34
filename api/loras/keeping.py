"""Giving a LoRA files of its own: copied of its job's, or sent in. Bytes come first, what points to them after them.

No transaction is open while the store is talked to. A row is marked beforehand, so that what is broken off anywhere is
found and cleared away (`disposal.py`), and everybody who writes gives up before that may happen.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from api.accounts import quotas
from api.db import transaction
from api.errors import NotFound, Unavailable
from api.identifiers import uuid7
from api.loras import disposal, repository
from api.loras.models import LoraState
from api.storage import ObjectMissing, StoreError, lora_key

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy.orm import Session, sessionmaker

    from api.loras.models import Lora, LoraFile
    from api.storage import ObjectStore

logger = logging.getLogger(__name__)

Told = TypeVar("Told")

CONTENT_TYPE = "application/octet-stream"
WRITING_TIME = timedelta(hours=1)
"""Whoever has not written all files of a LoRA by then gives up."""


class Keeper:
    """Writes files of the library."""

    def __init__(self, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self._sessions = sessions
        self._store = store

    def keep(self, account_id: uuid.UUID, lora_id: uuid.UUID, change: Callable[[Lora], None]) -> None:
        """Copy a LoRA's files from its job to a place of its own; one that has its own only gets the change.

        Args:
            account_id: whose.
            lora_id: which.
            change: what else to do to the row, in the transaction that lets it stand on its own.

        Raises:
            NotFound: the account has none of that id, or its job was deleted meanwhile.
            QuotaExceeded: the account may not store so much more.
            StoreError: the store does not answer.
        """
        with transaction(self._sessions) as session:
            lora = _locked(session, account_id, lora_id)
            if lora.kept:
                change(lora)
                return
            deadline = repository.moment(session) + WRITING_TIME
            lora.settle_at = max(lora.settle_at or deadline, deadline)
            files = lora.all_files
        quotas.precheck(self._sessions, account_id, jobs=0)
        writing = uuid7()
        copies = [replace(file, key=lora_key(account_id, lora_id, writing, file.filename)) for file in files]
        try:
            for file, copy in zip(files, copies, strict=True):
                self._store.copy(file.key, copy.key)
            with transaction(self._sessions) as session:
                lora = _locked(session, account_id, lora_id)
                change(lora)
                was_kept = lora.kept
                if not was_kept:
                    _stand(session, lora, copies, deadline)
        except ObjectMissing as error:
            self._discard(lora_id, copies)
            raise missing(lora_id) from error
        except Exception:
            self._discard(lora_id, copies)
            raise
        if was_kept:
            self._discard(lora_id, copies)

    def store(self, lora: Lora, file: LoraFile, path: Path, tell: Callable[[Session, Lora], Told]) -> Told:
        """Write a LoRA that was sent in: a row that nobody sees, its bytes, then the row for everybody to see.

        Args:
            lora: the row, without state and files.
            file: what the row will say of the file.
            path: the file.
            tell: what else to do in the transaction that shows it; its value is returned.

        Raises:
            QuotaExceeded: the account may not store so much more.
            StoreError: the store does not answer; nothing is left.
        """
        lora.state, lora.stored_bytes = LoraState.PENDING, file.bytes
        lora.point_to([file])
        with transaction(self._sessions) as session:
            quotas.reserve(session, lora.account_id, stored_bytes=file.bytes, jobs=0)
            lora.settle_at = repository.moment(session) + WRITING_TIME
            session.add(lora)
        try:
            self._store.put_file(file.key, path, CONTENT_TYPE)
            with transaction(self._sessions) as session:
                return tell(session, _published(session, lora.id))
        except Exception:
            self._give_up(lora.account_id, lora.id)
            raise

    def _discard(self, lora_id: uuid.UUID, copies: Sequence[LoraFile]) -> None:
        """Delete copies that are of no use; if that fails, the row has a note of it."""
        try:
            disposal.discard(self._sessions, self._store, lora_id=lora_id, keys=[copy.key for copy in copies])
        except (StoreError, SQLAlchemyError) as error:
            logger.warning("copies of LoRA %s are deleted later: %s", lora_id, error)

    def _give_up(self, account_id: uuid.UUID, lora_id: uuid.UUID) -> None:
        """Leave nothing of a LoRA whose bytes did not come; if that fails, it is found later."""
        try:
            with transaction(self._sessions) as session:
                lora = repository.lock_any(session, lora_id)
                if lora is None or lora.state is not LoraState.PENDING:
                    return  # a commit whose answer got lost has happened after all
                lora.state, lora.settle_at = LoraState.DELETING, repository.moment(session)
            disposal.dispose(self._sessions, self._store, account_id=account_id, lora_id=lora_id)
        except (StoreError, SQLAlchemyError) as error:
            logger.warning("LoRA %s, which was not written, is cleared away later: %s", lora_id, error)


def missing(lora_id: uuid.UUID) -> NotFound:
    """Return the refusal of a LoRA that the caller does not have, or not any more."""
    return NotFound(f"There is no LoRA {lora_id}.")


def _locked(session: Session, account_id: uuid.UUID, lora_id: uuid.UUID) -> Lora:
    lora = repository.lock(session, account_id=account_id, lora_id=lora_id)
    if lora is None:
        raise missing(lora_id)
    return lora


def _stand(session: Session, lora: Lora, copies: Sequence[LoraFile], deadline: datetime) -> None:
    """Let a LoRA stand on copies of its own, whole in the store.

    Raises:
        QuotaExceeded: the account may not store so much more.
        Unavailable: they took too long; they may be gone again.
    """
    if repository.moment(session) >= deadline:
        raise _too_slow()
    size = sum(file.bytes for file in copies)
    quotas.reserve(session, lora.account_id, stored_bytes=size, jobs=0)
    lora.point_to(copies)
    lora.kept, lora.stored_bytes = True, size
    if lora.settle_at == deadline:  # nobody else is writing
        lora.settle_at = None


def _published(session: Session, lora_id: uuid.UUID) -> Lora:
    """Show a LoRA whose bytes are there, and return it.

    Raises:
        Unavailable: they took too long; they may be gone again.
    """
    lora = repository.lock_any(session, lora_id)
    if lora is None or lora.settle_at is None or lora.settle_at <= repository.moment(session):
        raise _too_slow()
    lora.state, lora.settle_at = LoraState.READY, None
    return lora


def _too_slow() -> Unavailable:
    return Unavailable("The files took too long to be stored; try again.", code="store_unavailable")
