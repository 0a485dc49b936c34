"""What each duty does in one round."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from api.db import transaction
from api.jobs.repository import drop_published, expire_overdue, reap_stale, republish_runnable, take_outbox

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import psycopg
    from sqlalchemy.orm import Session, sessionmaker

    from worker.dispatcher.publisher import HintPublisher

log = logging.getLogger(__name__)

CHANNEL = "duolora_outbox"
BATCH = 100

SLICE_S = 0.25
"""How long the relay is deaf to being stopped while it listens."""


class Relay:
    """Publishes the outbox as soon as Postgres says that something is in it, and every `poll_s` without a word."""

    def __init__(
        self, sessions: sessionmaker[Session], publisher: HintPublisher, *, stop: threading.Event, poll_s: float
    ) -> None:
        self._sessions = sessions
        self._publisher = publisher
        self._stop = stop
        self._poll_s = poll_s

    def __call__(self, connection: psycopg.Connection) -> None:
        """Publish what there is, then wait for more.

        Listening again is free of effect; doing so before reading means that nothing falls between the two. What a
        notification tells of goes out at once, before the next round asks whether the lock still holds.
        """
        connection.execute(f"LISTEN {CHANNEL}")
        while self._drain():
            pass
        if self._listen(connection):
            self._drain()

    def _listen(self, connection: psycopg.Connection) -> bool:
        """Wait for a notification, for the time, or for the end; True for a notification."""
        waited_s = 0.0
        while waited_s < self._poll_s and not self._stop.is_set():
            if list(connection.notifies(timeout=SLICE_S, stop_after=1)):
                return True
            waited_s += SLICE_S
        return False

    def _drain(self) -> bool:
        """Publish one batch; True if there may be more. A hint is dropped after it was sent, so it may go twice."""
        with transaction(self._sessions) as session:
            messages = take_outbox(session, limit=BATCH)
            if messages:
                self._publisher.publish(messages)
                drop_published(session, [message.id for message in messages])
        return len(messages) == BATCH


def every(seconds: float, stop: threading.Event, act: Callable[[], None]) -> Callable[[psycopg.Connection], None]:
    """Make a round of an act and a wait."""

    def round_(_connection: psycopg.Connection) -> None:
        act()
        stop.wait(seconds)

    return round_


def reap(sessions: sessionmaker[Session]) -> None:
    """Decide about stages whose worker fell silent, and about jobs whose deadline has passed."""
    with transaction(sessions) as session:
        reaped = reap_stale(session)
    if reaped:
        log.warning("leases ran out", extra={"stages": reaped})
    with transaction(sessions) as session:
        expired = expire_overdue(session)
    if expired:
        log.warning("deadlines passed", extra={"jobs": expired})


def republish(sessions: sessionmaker[Session], *, older_than_s: float) -> None:
    """Hint again at stages that nobody took."""
    with transaction(sessions) as session:
        stages = republish_runnable(session, older_than=timedelta(seconds=older_than_s))
    if stages:
        log.info("hinted again", extra={"stages": stages})
