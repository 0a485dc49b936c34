"""Standard Webhooks 1.0.0: secrets, signatures and the schedule of attempts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import random
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid

SECRET_PREFIX = "whsec_"  # noqa: S105 - the marker of a secret, not one
SECRET_BYTES = 32
"""How long the secrets are that are made here."""
SHORTEST_SECRET_BYTES = 24
LONGEST_SECRET_BYTES = 64
"""What the standard allows."""

SCHEDULE = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""Wait before each attempt, counted from the end of the one before: about 75 hours in all."""

JITTER = 0.1
"""A wait is stretched by up to this share, so that receivers that come back are not hit by all at once."""


class InvalidSecret(ValueError):
    """A signing secret has the wrong form; the message says which is right, and does not hold the secret."""


def make_secret() -> str:
    """Make a signing secret, `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def check_secret(secret: str) -> None:
    """Refuse a secret of the caller's own that the standard does not allow.

    Raises:
        InvalidSecret: it is not `whsec_` and the base64 of 24 to 64 bytes.
    """
    try:
        length = len(base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        length = 0
    if not secret.startswith(SECRET_PREFIX) or not SHORTEST_SECRET_BYTES <= length <= LONGEST_SECRET_BYTES:
        raise InvalidSecret(
            f"write {SECRET_PREFIX} and the base64 of {SHORTEST_SECRET_BYTES} to {LONGEST_SECRET_BYTES} random bytes"
        )


def message_id(delivery_id: uuid.UUID) -> str:
    """Return the `webhook-id` of a delivery: the same for all its attempts and replays, without a full stop."""
    return f"msg_{delivery_id.hex}"


def sign(secret: str, *, message: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` of one attempt.

    Args:
        secret: `whsec_...`.
        message: the `webhook-id`.
        timestamp: Unix seconds of the attempt.
        body: the exact bytes sent.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    signed = f"{message}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def delay_before(attempt: int, *, scale: float = 1) -> timedelta | None:
    """Return how long to wait before attempt number `attempt` (from 1), or None when none is left.

    Args:
        attempt: from 1.
        scale: factor of the schedule's waits (WEBHOOK_TIME_SCALE).
    """
    if attempt > len(SCHEDULE):
        return None
    return SCHEDULE[attempt - 1] * (scale * (1 + random.uniform(0, JITTER)))
