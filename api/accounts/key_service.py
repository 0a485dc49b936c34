"""What the owners of an account do with its keys. Each call is one transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from api.accounts import keys, repository
from api.accounts.schemas import KeyPage, KeyRead, KeyState, KeyWithSecret
from api.accounts.scopes import tidy
from api.db import transaction
from api.errors import Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.models import ApiKey
    from api.accounts.schemas import KeyCreate
    from api.accounts.service import Caller, KeyRing

MAX_KEYS = 100
"""Working keys of an account."""


class KeyService:
    """Lists, makes, replaces and revokes keys.

    Args:
        sessions: factory of sessions.
        ring: what this process remembers of keys; another one forgets a key that ended within its own time for that.
    """

    def __init__(self, sessions: sessionmaker[Session], ring: KeyRing) -> None:
        self._sessions = sessions
        self._ring = ring

    def list(self, caller: Caller, *, ended: bool) -> KeyPage:
        """Return the keys of the caller's account, newest first; those that work no more only if asked for."""
        now = datetime.now(UTC)
        with transaction(self._sessions) as session:
            rows = repository.keys_of(session, caller.account_id, ended=ended)
        return KeyPage(items=[_describe(row, caller, now) for row in rows])

    def read(self, caller: Caller, key_id: str) -> KeyRead:
        """Return one key.

        Raises:
            NotFound: the account has none of that id.
        """
        with transaction(self._sessions) as session:
            return _describe(_find(session, caller, key_id), caller, datetime.now(UTC))

    def create(self, caller: Caller, wish: KeyCreate) -> KeyWithSecret:
        """Make a key.

        Raises:
            Conflict: `too_many_keys`.
        """
        now = datetime.now(UTC)
        expires_at = None if wish.expires_in_days is None else now + timedelta(days=wish.expires_in_days)
        with transaction(self._sessions) as session:
            return self._add(session, caller, label=wish.label, scopes=tidy(wish.scopes), expires_at=expires_at)

    def rotate(self, caller: Caller, key_id: str, overlap: timedelta) -> KeyWithSecret:
        """Make a key like another one, which ends after the overlap. One that expires lives as long as the old one did.

        Raises:
            NotFound: the account has none of that id.
            Conflict: `key_not_active`: it works no more, or was replaced before; or `too_many_keys`.
        """
        now = datetime.now(UTC)
        with transaction(self._sessions) as session:
            old = _find(session, caller, key_id)
            state = _state(old, now)
            if state is not KeyState.ACTIVE:
                raise Conflict(f"Only an active key can be replaced; this one is {state}.", code="key_not_active")
            expires_at = None if old.expires_at is None else now + (old.expires_at - old.created_at)
            made = self._add(session, caller, label=old.label, scopes=old.scopes, expires_at=expires_at)
            old.rotated_to = made.id
            old.expires_at = min(old.expires_at or now + overlap, now + overlap)
        self._ring.forget(key_id)
        return made

    def revoke(self, caller: Caller, key_id: str) -> None:
        """Make a key useless, for good. Again changes nothing.

        Raises:
            NotFound: the account has none of that id.
        """
        with transaction(self._sessions) as session:
            _find(session, caller, key_id)
            repository.revoke_key(session, key_id)
        self._ring.forget(key_id)

    @staticmethod
    def _add(
        session: Session, caller: Caller, *, label: str, scopes: Sequence[str], expires_at: datetime | None
    ) -> KeyWithSecret:
        if repository.count_working_keys(session, caller.account_id) >= MAX_KEYS:
            raise Conflict(f"The account has {MAX_KEYS} working keys; revoke one.", code="too_many_keys")
        parts = keys.generate()
        row = repository.add_key(
            session, parts, account_id=caller.account_id, label=label, scopes=scopes, expires_at=expires_at
        )
        shown = _describe(row, caller, datetime.now(UTC))
        return KeyWithSecret(**shown.model_dump(), key=parts.text)


def _find(session: Session, caller: Caller, key_id: str) -> ApiKey:
    row = repository.key_of(session, caller.account_id, key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id}.")
    return row


def _describe(row: ApiKey, caller: Caller, now: datetime) -> KeyRead:
    names = ("id", "prefix", "label", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at", "rotated_to")
    return KeyRead(
        **{name: getattr(row, name) for name in names}, state=_state(row, now), is_current=row.id == caller.key_id
    )


def _state(row: ApiKey, now: datetime) -> KeyState:
    if row.revoked_at is not None:
        return KeyState.REVOKED
    if row.expires_at is not None and row.expires_at <= now:
        return KeyState.EXPIRED
    return KeyState.ACTIVE if row.rotated_to is None else KeyState.ROTATED
