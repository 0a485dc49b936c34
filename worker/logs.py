"""JSON log lines on standard error, as the API writes them; and whatever ends a thread is one of them."""

from __future__ import annotations

import logging
import threading

from api.telemetry import bound, configure_logging

__all__ = ["bound", "configure"]


def configure(level: str) -> None:
    """Send every record of this process to standard error as JSON."""
    configure_logging(level)
    threading.excepthook = _log_death
    for noisy in ("botocore", "boto3", "urllib3", "httpx", "celery", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def _log_death(death: threading.ExceptHookArgs) -> None:
    """Log what ended a thread."""
    if death.exc_value is not None:
        name = "?" if death.thread is None else death.thread.name
        logging.getLogger("threads").error("thread %s died", name, exc_info=death.exc_value)
