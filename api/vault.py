"""Secrets that have to be read again, as those that sign webhooks: sealed in the database, open in memory only.

Whoever reads the database, a dump or a backup of it has none of them without the keys, which are in the environment.
A sealed secret names its key, so that keys can be replaced: the newest seals, all of them open. Plain ones, of before
there was a vault, are read as they are and sealed by the dispatcher.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

PREFIX = "sealed:"
SHORTEST_KEY = 32
"""Characters. A key is no password: it is derived from quickly (RFC 5869), so it must be random."""
_PURPOSE = b"duolora sealed secrets 1"
_IN_SESSION = "vault"


class CannotOpen(Exception):
    """A secret was sealed with a key that is not there any more, or was changed since."""


class Vault:
    """Seals and opens.

    Args:
        keys: random texts of 32 characters or more, the newest first.

    Raises:
        ValueError: there is none, or one is too short.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise ValueError("names no key; make one, for example: openssl rand -hex 24")
        self._locks = {_name(key): _lock(key) for key in keys}
        self._newest = _name(keys[0])

    @property
    def mark(self) -> str:
        """What everything begins with that the newest key has sealed."""
        return f"{PREFIX}{self._newest}:"

    @property
    def names(self) -> frozenset[str]:
        """What its keys are told by, as sealed secrets name them."""
        return frozenset(self._locks)

    def seal(self, secret: str) -> str:
        """Return what may be stored of a secret."""
        return self.mark + self._locks[self._newest].encrypt(secret.encode()).decode()

    def open(self, stored: str) -> str:
        """Return a stored secret; one that was stored plainly is that.

        Raises:
            CannotOpen: none of the keys fits.
        """
        if not stored.startswith(PREFIX):
            return stored
        name, _, token = stored.removeprefix(PREFIX).partition(":")
        lock = self._locks.get(name)
        if lock is None:
            raise CannotOpen(
                f"a secret was sealed with the key {name}, which SECRET_KEYS lacks; add it as the last one"
            )
        try:
            return lock.decrypt(token).decode()
        except InvalidToken as error:
            raise CannotOpen(f"a secret that was sealed with the key {name} has been changed since") from error


def vault_of(session: Session) -> Vault:
    """Return the vault of a session.

    Raises:
        LookupError: its factory was made without one: this process has no business with secrets.
    """
    vault: Vault | None = session.info.get(_IN_SESSION)
    if vault is None:
        raise LookupError("no vault was given to api.db.session_factory")
    return vault


def carried(vault: Vault | None) -> dict[str, Vault]:
    """Return what a session is to carry for `vault_of`."""
    return {} if vault is None else {_IN_SESSION: vault}


def _lock(key: str) -> Fernet:
    """Return the lock of a key.

    Raises:
        ValueError: it is too short.
    """
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"has a key of fewer than {SHORTEST_KEY} characters; make one: openssl rand -hex 24")
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(key.encode())
    return Fernet(base64.urlsafe_b64encode(derived))


def _name(key: str) -> str:
    """Return what a key is told by, which says nothing of it that helps."""
    return hashlib.sha256(_PURPOSE + key.encode()).hexdigest()[:8]
