"""Places in lists that are read page by page, newest first."""

from __future__ import annotations

import base64
import binascii
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from api.errors import FieldError, InvalidParameters

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class InvalidCursor(ValueError):
    """The text is no cursor of ours."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of a page: the next one begins after it, whatever was inserted meanwhile."""

    created_at: datetime
    id: uuid.UUID

    def encode(self) -> str:
        """Return the opaque text."""
        micros = (self.created_at - _EPOCH) // _MICROSECOND
        return base64.urlsafe_b64encode(micros.to_bytes(8) + self.id.bytes).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read the opaque text.

        Raises:
            InvalidCursor: it was not made by `encode`.
        """
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if len(raw) != 8 + 16:
                raise InvalidCursor(text)
            return cls(_EPOCH + int.from_bytes(raw[:8]) * _MICROSECOND, uuid.UUID(bytes=raw[8:]))
        except (binascii.Error, ValueError, OverflowError) as error:
            raise InvalidCursor(text) from error


def read_cursor(text: str | None) -> Cursor | None:
    """Read the `cursor` of a request, None if it has none.

    Raises:
        InvalidParameters: it is none of ours.
    """
    try:
        return None if text is None else Cursor.decode(text)
    except InvalidCursor as error:
        detail = "pass next_cursor of the page before, unchanged, or leave it out"
        raise InvalidParameters(errors=[FieldError(pointer="/cursor", detail=detail, code="invalid")]) from error
