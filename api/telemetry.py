"""Request ids, trace context and JSON log lines. Knows no web framework: the worker writes the same lines."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from api.tracestate import read_tracestate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_NOTHING: Mapping[str, Any] = {}
_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=_NOTHING)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
"""Attributes of a record that are no `extra` of ours; the last is uvicorn's, its message once more."""

_UNTOLD = frozenset({"tracestate"})
"""Bound only to be handed on: up to half a kilobyte that means something to vendors alone."""

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PARTS = 4
"""Version, trace id, span id and flags."""
_TRACEPARENT_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def current_request_id() -> str | None:
    """Return the id of the request being served."""
    return _bound.get().get("request_id")


def current_traceparent() -> str | None:
    """Return the W3C trace context of the request being served."""
    return _bound.get().get("traceparent")


def current_tracestate() -> str | None:
    """Return what vendors say beside the trace context of the request being served."""
    return _bound.get().get("tracestate")


def bind_request(*, request_id: str | None, traceparent: str | None, tracestate: Sequence[str] = ()) -> str:
    """Keep what the caller sent if it is well-formed, else make new ones; returns the request id.

    Args:
        request_id: the field, as it came.
        traceparent: the field, as it came.
        tracestate: the fields of that name, as they came; dropped with a `traceparent` that is not well-formed.
    """
    usable = request_id is not None and _REQUEST_ID_FORM.fullmatch(request_id)
    identifier = request_id if usable and request_id else secrets.token_hex(16)
    usable = traceparent is not None and _TRACEPARENT_FORM.fullmatch(traceparent)
    trace = traceparent if usable else f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    state = read_tracestate(tracestate) if usable else None
    _bound.set({"request_id": identifier, "traceparent": trace, "tracestate": state})
    return identifier


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add fields to every line that this thread logs inside the block."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def _trace_ids() -> dict[str, str]:
    """Return the ids inside the trace context, by the names under which log stores look for them."""
    parts = (current_traceparent() or "").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) >= _PARTS else {}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at, level, logger, message, the bound fields, and every `extra`; without nulls."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_bound.get(),
            **_trace_ids(),
            **{key: value for key, value in record.__dict__.items() if key not in _STANDARD},
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        written = {key: value for key, value in document.items() if value is not None and key not in _UNTOLD}
        return json.dumps(written, default=str, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Send every log line of the process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
