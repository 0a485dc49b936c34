"""One duty of the dispatcher: done by whoever holds its advisory lock, again and again, whatever server goes away."""

from __future__ import annotations

import logging
import threading
import zlib
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from api.db import LIVENESS
from worker.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    Round = Callable[[psycopg.Connection], None]

log = logging.getLogger(__name__)

LOCK_SPACE = 0x44554F  # "DUO": the first half of our advisory locks' keys


class ServerAway(Exception):
    """A server that a duty needs does not answer; the next round may find it back."""


class Duty:
    """A thread that calls `round_` over and over while it holds the lock named `name`.

    `round_` gets the connection that holds the lock and waits by itself, on `stop` or on the connection. Any other
    exception than a server's absence is a bug: it ends the thread, and the process with it.
    """

    def __init__(self, name: str, round_: Round, *, database_url: str, stop: threading.Event, standby_s: float) -> None:
        self.name = name
        self._round = round_
        self._dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._stop = stop
        self._standby_s = standby_s
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Say whether its thread still runs."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to notice `stop`."""
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    if not self._hold(connection):
                        return
                    log.info("on duty", extra={"duty": self.name})
                    while not self._stop.is_set():
                        connection.execute("SELECT 1")  # a lost connection is a lost lock
                        self._round(connection)
                        backoff.reset()
            except (psycopg.OperationalError, DBAPIError, ServerAway) as error:
                pause_s = backoff.next_s()
                log.warning(
                    "off duty for a moment",
                    extra={"duty": self.name, "error": str(error), "pause_s": round(pause_s, 2)},
                )
                self._stop.wait(pause_s)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._dsn, autocommit=True, application_name=f"dispatcher {self.name}", **LIVENESS)

    def _hold(self, connection: psycopg.Connection) -> bool:
        """Wait for the lock; False when told to stop before it came."""
        key = zlib.crc32(self.name.encode()) - 2**31
        while not self._stop.is_set():
            row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_SPACE, key)).fetchone()
            if row is not None and row[0]:
                return True
            self._stop.wait(self._standby_s)
        return False
