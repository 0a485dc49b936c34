"""One attempt at one delivery: signed, guarded, bounded in time and bytes. The loop around it is the dispatcher's."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpcore

from api.webhooks.guard import GuardedBackend, TargetRefused, parse_target, resolve_all
from api.webhooks.repository import DeliveryOutcome, DueDelivery
from api.webhooks.signing import sign

if TYPE_CHECKING:
    from api.settings import WebhookSettings
    from api.webhooks.guard import Resolver, Target

USER_AGENT = "DuoLoRA-Webhooks"
MAX_ANSWER_BYTES = 2048
"""More of an answer is not read."""
MAX_QUOTED_CHARACTERS = 200
"""So much of a refusing answer is kept, escaped."""
MAX_RETRY_AFTER = timedelta(hours=24)
MAX_RETRY_AFTER_DIGITS = 9


class WebhookSender:
    """Sends deliveries. Holds no connection between two, so that each is resolved and checked anew."""

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        resolve: Resolver = resolve_all,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._ssl_context = ssl_context or ssl.create_default_context()

    def send(self, delivery: DueDelivery) -> DeliveryOutcome:
        """Attempt a delivery once; whatever the receiver does becomes an outcome, never an exception."""
        try:
            target = parse_target(delivery.url)
        except TargetRefused as refusal:
            return DeliveryOutcome(error=str(refusal), final=True)
        try:
            return self._post(delivery, target)
        except TargetRefused as refusal:
            return DeliveryOutcome(error=str(refusal), final=target.address is not None)
        except (httpcore.TimeoutException, TimeoutError):
            return DeliveryOutcome(error=f"no complete answer within {self._settings.timeout_s:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            return DeliveryOutcome(error=_quoted(f"{type(error).__name__}: {error}"))

    def _post(self, delivery: DueDelivery, target: Target) -> DeliveryOutcome:
        body = delivery.body.encode()
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        deadline = time.monotonic() + self._settings.timeout_s
        backend = GuardedBackend(target, allow=self._settings.allow_cidrs, deadline=deadline, resolve=self._resolve)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._settings.timeout_s)
        with (
            httpcore.ConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool,
            pool.stream(
                "POST", url, headers=_headers(delivery, body), content=body, extensions={"timeout": timeouts}
            ) as response,
        ):
            return _judge(response)


def _headers(delivery: DueDelivery, body: bytes) -> dict[str | bytes, str | bytes]:
    """Make the headers of one attempt; the timestamp is the attempt's, the id the delivery's.

    While an endpoint changes its secret there is a signature by each, newest first.
    """
    timestamp = int(time.time())
    signatures = [sign(key, message=delivery.message, timestamp=timestamp, body=body) for key in delivery.secrets]
    headers: dict[str | bytes, str | bytes] = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": delivery.message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
    if delivery.traceparent is not None:
        headers["traceparent"] = delivery.traceparent
        if delivery.tracestate is not None:
            headers["tracestate"] = delivery.tracestate
    if delivery.request_id is not None:
        headers["x-request-id"] = delivery.request_id
    return headers


def _judge(response: httpcore.Response) -> DeliveryOutcome:
    """Turn an answer into an outcome: 2xx is success, a redirect is not followed, 410 ends it."""
    status = response.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return DeliveryOutcome(status=status)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return DeliveryOutcome(status=status, error=f"answered {status}; redirects are not followed")
    answer = b""
    for chunk in response.iter_stream():
        answer += chunk
        if len(answer) >= MAX_ANSWER_BYTES:
            break
    return DeliveryOutcome(
        status=status,
        error=_quoted(f"answered {status}: {answer[:MAX_ANSWER_BYTES].decode(errors='replace')}"),
        final=status == HTTPStatus.GONE,
        retry_after=_retry_after(dict(response.headers)),
    )


def _retry_after(headers: dict[bytes, bytes]) -> timedelta | None:
    """Read Retry-After, in seconds or as a date; None if it is absent or makes no sense."""
    value = next((value.decode("latin-1") for name, value in headers.items() if name.lower() == b"retry-after"), "")
    if value.isdecimal() and len(value) <= MAX_RETRY_AFTER_DIGITS:
        wait = timedelta(seconds=min(int(value), int(MAX_RETRY_AFTER.total_seconds())))
    else:
        try:
            wait = parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)
        except (ValueError, OverflowError):  # not a date; a date at the end of time, moved out of it by its zone
            return None
    return min(max(wait, timedelta(0)), MAX_RETRY_AFTER)


def _quoted(text: str) -> str:
    """Return a short text without control characters, fit to be stored and shown."""
    return text.encode("unicode_escape").decode("ascii")[:MAX_QUOTED_CHARACTERS]
