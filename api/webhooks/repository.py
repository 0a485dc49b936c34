"""Every query about webhooks, shared by the API, the worker and the dispatcher. Never commits; knows no HTTP.

What an event makes is `queueing.py`; what a sender does with it is `attempts.py`; whom to tell is `endpoints.py`; what
became of it is `log.py`.
"""

from __future__ import annotations

from api.webhooks.attempts import (
    AttemptTime,
    DeliveryOutcome,
    DueDelivery,
    origin_of,
    record_outcome,
    take_due,
)
from api.webhooks.log import purge_log
from api.webhooks.queueing import (
    Occurrence,
    add_job_endpoint,
    adopt_job_endpoint,
    copy_job_endpoint,
    event_data,
    queue_deliveries,
)

__all__ = [
    "AttemptTime",
    "DeliveryOutcome",
    "DueDelivery",
    "Occurrence",
    "add_job_endpoint",
    "adopt_job_endpoint",
    "copy_job_endpoint",
    "event_data",
    "origin_of",
    "purge_log",
    "queue_deliveries",
    "record_outcome",
    "take_due",
]
