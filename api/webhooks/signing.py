"""Standard Webhooks 1.0.0: secrets, signatures and the schedule of attempts."""

from __future__ import annotations

import base64
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
"""The standard asks for 24 to 64."""

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


def make_secret() -> str:
    """Make a signing secret, `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def message_id(delivery_id: uuid.UUID) -> str:
    """Return the `webhook-id` of a delivery: the same for all its attempts, without a full stop."""
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


def delay_before(attempt: int) -> timedelta | None:
    """Return how long to wait before attempt number `attempt` (from 1), or None when none is left."""
    if attempt > len(SCHEDULE):
        return None
    return SCHEDULE[attempt - 1] * (1 + random.uniform(0, JITTER))
