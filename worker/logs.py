"""JSON log lines on standard error, one object a line, with the job that they belong to."""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Writes time, level, logger, message, the bound fields and every `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_bound.get({}),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str) -> None:
    """Send every record of this process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    threading.excepthook = _log_death
    for noisy in ("botocore", "boto3", "urllib3", "httpx", "celery", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def _log_death(death: threading.ExceptHookArgs) -> None:
    """Log what ended a thread."""
    if death.exc_value is not None:
        name = "?" if death.thread is None else death.thread.name
        logging.getLogger("threads").error("thread %s died", name, exc_info=death.exc_value)


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add fields to every line that this thread logs inside the block."""
    token = _bound.set({**_bound.get({}), **{key: value for key, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)
