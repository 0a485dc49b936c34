"""The form of an API key: `duo_<environment>_<id>_<secret>_<checksum>`.

Underscores, so that a double click selects all of it and scanners find it in leaked text; a checksum, so that a
malformed key is refused without asking the database; a random secret of 190 bits, of which only the hash is stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

KIND = "duo"
ENVIRONMENT = "live"
ID_LENGTH = 12
SECRET_LENGTH = 32
_ALPHABET = string.ascii_letters + string.digits
_FORM = re.compile(rf"({KIND}_[a-z]+_([A-Za-z0-9]{{{ID_LENGTH}}})_([A-Za-z0-9]{{{SECRET_LENGTH}}}))_([0-9a-f]{{8}})")


class MalformedKey(ValueError):
    """The text is no API key, or was mistyped."""


@dataclass(frozen=True, slots=True)
class KeyParts:
    """What an API key says."""

    id: str
    """Public: found and shown by it."""
    secret: str = field(repr=False)

    @property
    def prefix(self) -> str:
        """What may be shown of it."""
        return f"{KIND}_{ENVIRONMENT}_{self.id}"

    @property
    def text(self) -> str:
        """The whole key: shown once, to its owner."""
        body = f"{self.prefix}_{self.secret}"
        return f"{body}_{_checksum(body)}"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret. A fast hash is enough for so much randomness."""
        return hashlib.sha256(self.secret.encode()).digest()

    def matches(self, digest: bytes) -> bool:
        """Compare with a stored digest in constant time."""
        return hmac.compare_digest(self.digest, digest)


def generate() -> KeyParts:
    """Make a fresh key."""
    return KeyParts(_random(ID_LENGTH), _random(SECRET_LENGTH))


def parse(text: str) -> KeyParts:
    """Take a key apart.

    Raises:
        MalformedKey: its form or its checksum is wrong.
    """
    match = _FORM.fullmatch(text)
    if match is None or not hmac.compare_digest(_checksum(match[1]), match[4]):
        raise MalformedKey("not an API key of this service")
    return KeyParts(match[2], match[3])


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
