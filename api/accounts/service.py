"""Who is calling, and the making of keys. Each function is one transaction."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from api.accounts import keys, repository
from api.accounts.scopes import Scope, missing, tidy
from api.db import transaction
from api.errors import Forbidden, Unauthenticated
from api.vault import vault_of
from api.webhooks.signing import make_secret

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping
    from datetime import timedelta

    from sqlalchemy.orm import Session, sessionmaker

MAX_REMEMBERED = 10_000
"""Keys in memory; then all are forgotten, which costs each of them one look-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The account behind a request."""

    account_id: uuid.UUID
    key_id: str
    max_priority: int
    scopes: frozenset[str]

    def require(self, scopes: Iterable[str]) -> None:
        """Refuse a key that lacks some of these scopes; none stand for `admin`, as in `scopes.missing`.

        Raises:
            Forbidden: it names what is lacking (RFC 6750, 3.1).
        """
        lacking = missing(self.scopes, scopes)
        if not lacking:
            return
        names = " ".join(lacking)
        raise Forbidden(
            f"The key lacks the scope {names}; use another one, or have one made that has it.",
            headers={"WWW-Authenticate": f'Bearer realm="duolora", error="insufficient_scope", scope="{names}"'},
            extensions={"missing_scopes": lacking},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A key just made; its text exists nowhere else."""

    id: str
    text: str
    account: str
    webhook_secret: str


class KeyRing:
    """Keys that were found good a moment ago: those are not looked up again, so a revocation takes effect that late.

    Args:
        sessions: factory of sessions.
        keep_s: how long a key is remembered.
    """

    def __init__(self, sessions: sessionmaker[Session], *, keep_s: float) -> None:
        self._sessions = sessions
        self._keep_s = keep_s
        self._known: dict[bytes, tuple[Caller, float]] = {}

    def remembered(self, token: str) -> Caller | None:
        """Return the caller of a key that is remembered; asks nobody."""
        entry = self._known.get(_digest(token))
        return None if entry is None or entry[1] <= time.monotonic() else entry[0]

    def authenticate(self, token: str) -> Caller:
        """Look a key up and remember it.

        Raises:
            Unauthenticated: it is malformed, unknown, revoked or expired.
        """
        caller, expires_at = _look_up(self._sessions, token)
        left_s = math.inf if expires_at is None else (expires_at - datetime.now(UTC)).total_seconds()
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[_digest(token)] = (caller, time.monotonic() + min(self._keep_s, left_s))
        return caller

    def forget(self, key_id: str) -> None:
        """Look a key up again the next time: it was changed."""
        self._known = {token: entry for token, entry in self._known.items() if entry[0].key_id != key_id}


def authenticate(sessions: sessionmaker[Session], token: str) -> Caller:
    """Find the account of a bearer token.

    Raises:
        Unauthenticated: it is malformed (known without the database), unknown, revoked or expired.
    """
    return _look_up(sessions, token)[0]


def _look_up(sessions: sessionmaker[Session], token: str) -> tuple[Caller, datetime | None]:
    """Return the account of a bearer token, and when that key expires."""
    try:
        parts = keys.parse(token)
    except keys.MalformedKey as error:
        raise Unauthenticated("The API key is malformed.", code="invalid_api_key") from error
    with transaction(sessions) as session:
        found = repository.usable_key(session, parts.id)
        if found is None or not parts.matches(found[0].secret_sha256):
            raise Unauthenticated("The API key is unknown, revoked or expired.", code="invalid_api_key")
        key, account = found
        repository.touch_key(session, key.id)
        caller = Caller(
            account_id=account.id,
            key_id=key.id,
            max_priority=account.max_priority,
            scopes=frozenset(key.scopes),
        )
        return caller, key.expires_at


def _digest(token: str) -> bytes:
    """Return what a key is remembered by: the key itself is kept nowhere."""
    return hashlib.sha256(token.encode()).digest()


def issue_key(
    sessions: sessionmaker[Session],
    *,
    account: str,
    label: str = "",
    scopes: Iterable[Scope] = (Scope.ADMIN,),
    lifetime: timedelta | None = None,
    max_priority: int | None = None,
    quotas: Mapping[str, int | None] | None = None,
) -> IssuedKey:
    """Make a key, and its account if there is none of that name.

    Args:
        sessions: factory of sessions.
        account: name of the account.
        label: what the key is for.
        scopes: what it may do.
        lifetime: None for a key that does not expire.
        max_priority: set the account's bound; None leaves it.
        quotas: set the account's bounds `max_running_jobs`, `max_queued_jobs`, `max_stored_bytes`, None for no bound;
            those left out stay as they are.
    """
    parts = keys.generate()
    with transaction(sessions) as session:
        owner = repository.ensure_account(session, name=account, webhook_secret=make_secret())
        if max_priority is not None:
            owner.max_priority = max_priority
        for column, most in (quotas or {}).items():
            setattr(owner, column, most)
        expires_at = None if lifetime is None else datetime.now(UTC) + lifetime
        repository.add_key(session, parts, account_id=owner.id, label=label, scopes=tidy(scopes), expires_at=expires_at)
        secret = vault_of(session).open(owner.webhook_secret)
        return IssuedKey(id=parts.id, text=parts.text, account=owner.name, webhook_secret=secret)
