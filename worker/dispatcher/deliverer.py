"""Sends the webhooks that are due, several at a time, so that a slow receiver keeps nobody else waiting."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.telemetry import current_traceparent, current_tracestate
from api.tracing import span
from api.webhooks.repository import AttemptTime, DeliveryOutcome, origin_of, record_outcome, take_due
from worker import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from sqlalchemy.orm import Session, sessionmaker

    from api.webhooks.repository import DueDelivery

log = logging.getLogger(__name__)

SENDERS = 8
HOLD_SPARE_S = 30
"""What a held delivery may take beyond the time limit of the request itself: waiting, and writing the outcome."""


class Deliverer:
    """A round takes due deliveries for the senders that are idle, few at once for any one server.

    The senders are daemon threads: a dispatcher that exits leaves a delivery in the middle of its request, and the row
    comes back when its hold ends. A receiver may so hear of one event twice, with the same `webhook-id`.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        send: Callable[[DueDelivery], DeliveryOutcome],
        *,
        stop: threading.Event,
        poll_s: float,
        timeout_s: float,
        time_scale: float = 1,
    ) -> None:
        self._sessions = sessions
        self._send = send
        self._stop = stop
        self._poll_s = poll_s
        self._hold = timedelta(seconds=timeout_s + HOLD_SPARE_S)
        self._time_scale = time_scale
        self._due: SimpleQueue[DueDelivery] = SimpleQueue()
        self._lock = threading.Lock()
        self._in_flight: Counter[str] = Counter()
        """Deliveries handed to senders, by server; under the lock."""
        self._freed = threading.Event()
        for number in range(SENDERS):
            threading.Thread(target=self._deliver_on, name=f"sender-{number}", daemon=True).start()

    def __call__(self, _connection: psycopg.Connection) -> None:
        """Hand what is due to idle senders, then wait a little, or until a sender is done while all were busy."""
        self._freed.clear()
        idle = SENDERS
        while not self._stop.is_set():
            with self._lock:
                in_flight = +self._in_flight
            idle = SENDERS - in_flight.total()
            if idle <= 0 or not self._hand_out(idle, in_flight):
                break
        if idle < SENDERS:
            self._freed.wait(self._poll_s)
        else:
            self._stop.wait(self._poll_s)

    def _hand_out(self, limit: int, in_flight: Counter[str]) -> int:
        """Take what is due, up to `limit`, and give it to the senders; returns how many that were."""
        with transaction(self._sessions) as session:
            taken = take_due(session, limit=limit, hold=self._hold, in_flight=in_flight)
        with self._lock:
            self._in_flight.update(origin_of(delivery.url) for delivery in taken)
        for delivery in taken:
            self._due.put(delivery)
        return len(taken)

    def _deliver_on(self) -> None:
        while True:
            delivery = self._due.get()
            try:
                origin = {
                    "traceparent": delivery.traceparent,
                    "tracestate": delivery.tracestate,
                    "request_id": delivery.request_id,
                }
                with logs.bound(job=delivery.job_id and str(delivery.job_id), **origin):
                    self._deliver(delivery)
            finally:
                with self._lock:
                    self._in_flight[origin_of(delivery.url)] -= 1
                self._freed.set()

    def _deliver(self, delivery: DueDelivery) -> None:
        started_at, began = datetime.now(UTC), time.monotonic()
        with span("webhook", "client", attempt=delivery.attempt) as told:
            traced = replace(delivery, traceparent=current_traceparent(), tracestate=current_tracestate())
            outcome = self._attempt(traced)
            told["http.response.status_code"] = outcome.status or 0
        took = AttemptTime(started_at, timedelta(seconds=time.monotonic() - began))
        try:
            with transaction(self._sessions) as session:
                state = record_outcome(session, due=delivery, outcome=outcome, time=took, scale=self._time_scale)
        except DBAPIError as error:  # the row comes back when its hold ends
            log.warning("outcome of a webhook lost", extra={"error": type(error).__name__})
            return
        log.log(
            logging.INFO if outcome.is_delivered else logging.WARNING,
            "webhook %s",
            state.value,
            extra={"attempt": delivery.attempt, "status": outcome.status, "error": outcome.error},
        )

    def _attempt(self, delivery: DueDelivery) -> DeliveryOutcome:
        """Send once. A bug that some answer brings to light costs this attempt, never the sender."""
        try:
            return self._send(delivery)
        except Exception as error:
            log.exception("sending a webhook failed for a reason nobody foresaw")
            return DeliveryOutcome(error=f"an unexpected {type(error).__name__} on our side")
