"""Requests that may be sent again without anything being done twice: the header Idempotency-Key (IETF httpapi draft).

A key belongs to an account and to one request, known by its fingerprint. While the request is worked on, the key is
locked; its outcome is written in the transaction that does the work, under the token of the request that did it, so
that work and outcome exist together or not at all. What was refused leaves no trace: the same key may be tried again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from api.accounts.models import IdempotencyKey
from api.db import transaction
from api.errors import Conflict, InvalidParameters, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session, sessionmaker

    from api.settings import ApiSettings

logger = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
_QUOTED = re.compile(r'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')
"""A string of structured fields (RFC 9651), but without blanks."""
_BARE = re.compile(r"[\x21\x23-\x7e][\x21-\x7e]*")
MAX_LENGTH = 255
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fresh:
    """Nobody has done this yet: do it, and `complete` with the token."""

    account_id: uuid.UUID
    key: str
    token: uuid.UUID
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Replay:
    """It was done: answer as then."""

    made_id: uuid.UUID
    """Of the job or the LoRA that came of it."""
    status: int
    body: str
    location: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request is answered with, and again when it is sent again."""

    id: uuid.UUID
    """Of what came of it."""
    status: int
    body: str
    """As JSON."""
    headers: Mapping[str, str]


def again(done: Replay) -> Answer:
    """Return the answer to a request that was answered before."""
    headers = {"Location": done.location, **expiry(done), "Idempotency-Replayed": "true"}
    return Answer(id=done.made_id, status=done.status, body=done.body, headers=headers)


def expiry(entry: Fresh | Replay | None) -> dict[str, str]:
    """Return the field that says until when the key of a request is known, if it has one."""
    return {} if entry is None else {"Idempotency-Expires": format_datetime(entry.expires_at, usegmt=True)}


def read_key(values: Sequence[str]) -> str | None:
    """Return the key of the header's values: a quoted string, or bare as most clients send it. None if there is none.

    Raises:
        InvalidRequest: it is no key, or there are several.
    """
    if not values:
        return None
    if len(values) == 1:
        text = values[0].strip()
        quoted = _QUOTED.fullmatch(text)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
        if len(key) <= MAX_LENGTH and (quoted or _BARE.fullmatch(text)):
            return key
    raise InvalidRequest(
        f"Send one {HEADER} of 1 to {MAX_LENGTH} visible ASCII characters, quoted or bare.",
        code="invalid_idempotency_key",
    )


def fingerprint(route: str, params: dict[str, Any], parts: Iterable[tuple[str, int, str]] = ()) -> str:
    """Return the hash by which a request is known again, whatever the boundaries of its body.

    Args:
        route: method and path.
        params: its parameters as the caller gave them.
        parts: side, place and SHA-256 of each file.
    """
    document = json.dumps([route, params, list(parts)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()


def sha256_of(file: BinaryIO) -> str:
    """Return the digest by which a file that came is known again. It is at its beginning afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


class Ledger:
    """The keys of all accounts.

    Args:
        sessions: factory of sessions.
        keeps: how long an outcome is kept.
        locks: how long a request may take before another may take it over.
    """

    def __init__(self, sessions: sessionmaker[Session], *, keeps: timedelta, locks: timedelta) -> None:
        self._sessions = sessions
        self._keeps = keeps
        self._locks = locks

    @classmethod
    def of(cls, settings: ApiSettings, sessions: sessionmaker[Session]) -> Self:
        """Return the ledger of an installation."""
        keeps, locks = settings.idempotency_ttl_s, settings.idempotency_lock_s
        return cls(sessions, keeps=timedelta(seconds=keeps), locks=timedelta(seconds=locks))

    def begin(self, account_id: uuid.UUID, key: str, mark: str) -> Fresh | Replay:
        """Take a key for a request of this fingerprint, or return how that request ended.

        Raises:
            InvalidParameters: another request had the key.
            Conflict: the same request is in flight.
        """
        while True:
            with transaction(self._sessions) as session:
                entry = self._insert(session, account_id, key, mark) or self._held(session, account_id, key, mark)
            if entry is not None:
                return entry

    @contextmanager
    def once(self, account_id: uuid.UUID, key: str | None, mark: Callable[[], str]) -> Iterator[Fresh | Replay | None]:
        """Do the block once for a key: it gets None without one, `Fresh` to do the work, `Replay` if that is done.

        If the block raises, the key is free again.

        Raises:
            InvalidParameters: another request had the key.
            Conflict: the same request is in flight.
        """
        if key is None:
            yield None
            return
        entry = self.begin(account_id, key, mark())
        try:
            yield entry
        except BaseException:
            if isinstance(entry, Fresh):
                self._let_go(entry)
            raise

    def _let_go(self, entry: Fresh) -> None:
        """Abandon a key; if the database does not answer, its lock ends by itself."""
        try:
            self.abandon(entry)
        except SQLAlchemyError as error:
            logger.warning("the idempotency key of a refused request stays locked for a while: %s", error)

    def abandon(self, entry: Fresh) -> None:
        """Give a key back whose request was refused or failed; one with an outcome, or taken over, stays."""
        with transaction(self._sessions) as session:
            session.execute(delete(IdempotencyKey).where(_mine(entry)).execution_options(synchronize_session=False))

    def _insert(self, session: Session, account_id: uuid.UUID, key: str, mark: str) -> Fresh | None:
        row = session.execute(
            insert(IdempotencyKey)
            .values(account_id=account_id, key=key, **self._locked(mark))
            .on_conflict_do_nothing()
            .returning(IdempotencyKey.token, IdempotencyKey.expires_at)
        ).first()
        return None if row is None else Fresh(account_id, key, row.token, row.expires_at)

    def _held(self, session: Session, account_id: uuid.UUID, key: str, mark: str) -> Fresh | Replay | None:
        """Judge a key that was there; returns None if it has gone meanwhile."""
        row = session.execute(
            select(
                IdempotencyKey,
                (IdempotencyKey.expires_at <= func.now()).label("is_over"),
                (IdempotencyKey.locked_until > func.now()).label("is_locked"),
            )
            .where(_is(account_id, key))
            .with_for_update()
        ).first()
        if row is None:
            return None
        entry: IdempotencyKey = row[0]
        if not row.is_over:
            if entry.fingerprint != mark:
                raise InvalidParameters(
                    f"This {HEADER} was used for another request; send a new one.", code="idempotency_mismatch"
                )
            made_id = entry.job_id or entry.lora_id
            if entry.status is not None and entry.response is not None and made_id is not None:
                body, location = entry.response["body"], entry.response["location"]
                return Replay(made_id, entry.status, body, location, entry.expires_at)
            if row.is_locked:
                raise in_flight()
        taken = session.execute(
            update(IdempotencyKey)
            .where(_is(account_id, key))
            .values(**self._locked(mark), job_id=None, lora_id=None, status=None, response=None, created_at=func.now())
            .returning(IdempotencyKey.token, IdempotencyKey.expires_at)
            .execution_options(synchronize_session=False)
        ).one()
        return Fresh(account_id, key, taken.token, taken.expires_at)

    def _locked(self, mark: str) -> dict[str, Any]:
        return {
            "fingerprint": mark,
            "token": uuid.uuid4(),
            "locked_until": func.now() + self._locks,
            "expires_at": func.now() + self._keeps,
        }


def complete(
    session: Session,
    entry: Fresh,
    *,
    status: int,
    body: str,
    location: str,
    job_id: uuid.UUID | None = None,
    lora_id: uuid.UUID | None = None,
) -> None:
    """Write the outcome, in the transaction of the work itself; it goes with the job or the LoRA that came of it.

    Raises:
        Conflict: another request took the key over meanwhile; this transaction must leave nothing.
    """
    written = session.execute(
        update(IdempotencyKey)
        .where(_mine(entry))
        .values(job_id=job_id, lora_id=lora_id, status=status, response={"body": body, "location": location})
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    ).first()
    if written is None:
        raise in_flight()


def forget_lora(session: Session, lora_id: uuid.UUID) -> None:
    """Drop the outcome of the request that a LoRA came of: the LoRA is gone for its owner."""
    session.execute(
        delete(IdempotencyKey).where(IdempotencyKey.lora_id == lora_id).execution_options(synchronize_session=False)
    )


def in_flight() -> Conflict:
    """Return the refusal of a request whose twin is being worked on."""
    refusal = Conflict(
        f"A request with this {HEADER} is being worked on; ask again for its outcome.",
        code="idempotency_in_flight",
        headers={"Retry-After": "1"},
    )
    refusal.retryable = True
    return refusal


def _mine(entry: Fresh) -> ColumnElement[bool]:
    """Return the clause for a key that a request still holds."""
    return _is(entry.account_id, entry.key) & (IdempotencyKey.token == entry.token) & IdempotencyKey.status.is_(None)


def _is(account_id: uuid.UUID, key: str) -> ColumnElement[bool]:
    return (IdempotencyKey.account_id == account_id) & (IdempotencyKey.key == key)
