"""Listens for hints: a Celery consumer in a thread of its own, which may fail at any time without stopping the work."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from celery.worker import WorkController

from worker.app import QUEUE
from worker.backoff import Backoff

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)


class HintListener:
    """Runs a consumer until the process ends.

    Celery reconnects by itself while it can; where its consumer gives up, a new one is made. Losing the broker costs
    delay only, because the worker asks the database from time to time without any hint.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._thread = threading.Thread(target=self._listen, name="hints", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def _listen(self) -> None:
        backoff = Backoff(first_s=1.0, most_s=30.0)
        pause = threading.Event()
        while True:
            consumer = WorkController(
                app=self._app,
                pool_cls="solo",
                concurrency=1,
                queues=[QUEUE],
                without_mingle=True,
                without_gossip=True,
                without_heartbeat=True,
            )
            consumer.start()
            log.warning("the consumer of hints stopped", extra={"exit_code": consumer.exitcode})
            pause.wait(backoff.next_s())
