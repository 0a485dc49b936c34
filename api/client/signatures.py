"""Proof that a webhook comes from the service (Standard Webhooks 1.0.0)."""

from __future__ import annotations

import hmac
import json
import time
from typing import TYPE_CHECKING, Any

from api.client.errors import ClientError
from api.webhooks.signing import sign

if TYPE_CHECKING:
    from collections.abc import Mapping

TOLERANCE_S = 300
"""Longest that a webhook may be under way, and that clocks may differ."""


class InvalidSignature(ClientError):
    """A webhook is not from the service, or is too old: answer it with 400 and do nothing."""


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | tuple[str, ...],
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> dict[str, Any]:
    """Check a webhook and return what it says: `type`, `timestamp` and `data`.

    The same event may come more than once, always with the same `webhook-id`.

    Args:
        body: exactly as it came: parsing and writing it again changes the signature.
        headers: of the request; case does not matter.
        secret: `whsec_...`, or several where one was changed a moment ago.
        tolerance_s: seconds that the clock of this machine and that of the service may lie apart.
        now: Unix seconds; the clock's if None.

    Raises:
        InvalidSignature: it is none of ours.
    """
    raw = body.encode() if isinstance(body, str) else body
    fields = {name.lower(): value for name, value in headers.items()}
    message, sent, signatures = (fields.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (message and sent.isdecimal() and signatures):
        raise InvalidSignature("the request has no webhook-id, webhook-timestamp and webhook-signature")
    if abs((time.time() if now is None else now) - int(sent)) > tolerance_s:
        raise InvalidSignature("the webhook is too old, or comes from the future: look at both clocks")
    secrets = (secret,) if isinstance(secret, str) else secret
    own = [sign(each, message=message, timestamp=int(sent), body=raw) for each in secrets]
    came = signatures.split()
    if not any(hmac.compare_digest(one.encode(), other.encode()) for one in own for other in came):
        raise InvalidSignature("the signature is not made with this secret")
    event: dict[str, Any] = json.loads(raw)
    return event
