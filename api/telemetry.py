"""Request ids, trace context and JSON log lines."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def current_request_id() -> str | None:
    """Return the id of the request being served."""
    return _request_id.get()


def current_traceparent() -> str | None:
    """Return the W3C trace context of the request being served."""
    return _traceparent.get()


def bind_request(*, request_id: str | None, traceparent: str | None) -> str:
    """Keep what the caller sent if it is well-formed, else make new ones; returns the request id."""
    usable = request_id is not None and _REQUEST_ID_FORM.fullmatch(request_id)
    identifier = request_id if usable and request_id else secrets.token_hex(16)
    usable = traceparent is not None and _TRACEPARENT_FORM.fullmatch(traceparent)
    _request_id.set(identifier)
    _traceparent.set(traceparent if usable else f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01")
    return identifier


class JsonFormatter(logging.Formatter):
    """One JSON object per line; `extra={"fields": {...}}` adds members."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": _request_id.get(),
            "traceparent": _traceparent.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in document.items() if value is not None}, default=str)


def configure_logging(level: str) -> None:
    """Send every log line of the process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
