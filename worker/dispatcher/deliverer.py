"""Sends the webhooks that are due, several at a time, so that a slow receiver keeps nobody else waiting."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.webhooks.repository import DeliveryOutcome, record_outcome, take_due
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
    """A round takes as many due deliveries as senders are idle.

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
    ) -> None:
        self._sessions = sessions
        self._send = send
        self._stop = stop
        self._poll_s = poll_s
        self._hold = timedelta(seconds=timeout_s + HOLD_SPARE_S)
        self._due: SimpleQueue[DueDelivery] = SimpleQueue()
        self._idle = threading.Semaphore(SENDERS)
        for number in range(SENDERS):
            threading.Thread(target=self._deliver_on, name=f"sender-{number}", daemon=True).start()

    def __call__(self, _connection: psycopg.Connection) -> None:
        """Hand what is due to idle senders, then wait a little."""
        idle = 0
        while idle < SENDERS and self._idle.acquire(blocking=False):
            idle += 1
        taken: list[DueDelivery] = []
        try:
            if idle:
                with transaction(self._sessions) as session:
                    taken = take_due(session, limit=idle, hold=self._hold)
        finally:
            for _ in range(idle - len(taken)):
                self._idle.release()
        for delivery in taken:
            self._due.put(delivery)
        self._stop.wait(self._poll_s)

    def _deliver_on(self) -> None:
        while True:
            delivery = self._due.get()
            try:
                with logs.bound(job=str(delivery.job_id), traceparent=delivery.traceparent):
                    self._deliver(delivery)
            finally:
                self._idle.release()

    def _deliver(self, delivery: DueDelivery) -> None:
        outcome = self._attempt(delivery)
        try:
            with transaction(self._sessions) as session:
                state = record_outcome(session, delivery_id=delivery.id, outcome=outcome)
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
