"""Hands hints to the broker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from worker.app import QUEUE, TASK
from worker.dispatcher.duty import ServerAway

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from api.jobs.repository import OutboxMessage

log = logging.getLogger(__name__)

ENOUGH_HINTS = 1_000
"""With so many hints waiting every worker is awake already; more would only fill the broker's memory."""


class HintPublisher:
    """Sends by task name, never by import."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, messages: Sequence[OutboxMessage]) -> None:
        """Send hints; those that would find a full queue are dropped.

        Raises:
            ServerAway: the broker does not answer; some hints may have been sent.
        """
        try:
            with self._app.producer_pool.acquire(block=True) as producer:
                waiting = producer.channel.queue_declare(queue=QUEUE, durable=True).message_count
                if waiting + len(messages) > ENOUGH_HINTS:
                    log.warning("hints dropped, the queue is full", extra={"waiting": waiting})
                    return
                for message in messages:
                    self._app.send_task(TASK, kwargs=message.payload, queue=QUEUE, producer=producer, retry=False)
        except (OperationalError, RedisError, OSError) as error:
            raise ServerAway(f"the broker does not answer: {error}") from error
