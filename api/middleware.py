"""What surrounds every request: ids, rate limits, the access log, the size limit, and the broad catch around it all."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from api.errors import ServiceError, TooLarge
from api.problems import service_problem
from api.telemetry import bind_request
from api.tracing import span

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from api.request_times import RequestTimes

logger = logging.getLogger("api.access")

SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "private, no-cache",
}
"""Of every answer that says nothing else: no browser makes anything but data of it, and none keeps it unasked.

No answer lets another origin read it: without `Access-Control-*` browsers keep it from scripts of other sites.
"""


class RequestContext:
    """Binds and echoes the request id, tells how many requests are left, logs one line, answers 500 as a problem."""

    def __init__(self, app: ASGIApp, *, times: RequestTimes) -> None:
        self._app = app
        self._times = times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope)
        request_id = bind_request(
            request_id=sent.get("x-request-id"),
            traceparent=sent.get("traceparent"),
            tracestate=sent.getlist("tracestate"),
        )
        began, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in scope.get("state", {}).get("rate_limit", {}).items():
                    headers[name] = f"{value}, {headers[name]}" if name in headers else value  # quotas have theirs
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                self._times.take(scope, status, time.monotonic() - began)
            await send(message)

        try:
            with span(scope["method"], "server", http__request__method=scope["method"]) as told:
                await self._app(scope, receive, send_with_id)
                told["http.response.status_code"] = status
        except Exception:
            logger.exception("a request failed for a reason nobody foresaw")
            if status:
                raise  # the answer has begun; all that is left is to break the connection
            await service_problem(ServiceError(), scope["path"])(scope, receive, send_with_id)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
                "key_id": scope.get("state", {}).get("key_id"),
            }
            logger.info("%s %s %s", scope["method"], scope["path"], status, extra=fields)


class BodyLimit:
    """Refuses a body that is too large: at once when its length is announced, else while it streams in."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            await service_problem(self._refusal(), scope["path"])(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, count, send)

    def _refusal(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._max_bytes} bytes; send fewer or smaller pictures.")
