"""Says in the database that this worker lives and what it does, so that others know whether a worker is free."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.jobs.models import WorkerState
from api.jobs.repository import beat_worker, leave_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session, sessionmaker

    from worker.supervisor import EngineSupervisor

log = logging.getLogger(__name__)


class Presence:
    """Keeps one row from a thread of its own. Losing it costs an estimate, so errors of the database are only logged.

    A worker without a ready engine counts as busy: nobody should leave work to it.
    """

    def __init__(
        self, worker_id: str, *, sessions: sessionmaker[Session], engine: EngineSupervisor, heartbeat_s: float
    ) -> None:
        self._worker_id = worker_id
        self._sessions = sessions
        self._engine = engine
        self._heartbeat_s = heartbeat_s
        self._state = WorkerState.BUSY
        self._writing = threading.Lock()
        self._changed = threading.Event()
        self._left = False
        self._thread = threading.Thread(target=self._beat_on, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def become(self, state: WorkerState) -> None:
        """Say what this worker does from now on."""
        if state is not self._state:
            self._state = state
            self._changed.set()

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Keep the thread from writing while a claim's transaction may write the row itself."""
        with self._writing:
            yield

    def claimed(self, session: Session) -> None:
        """Say, in the transaction of a claim, that this worker is not free any more."""
        self._state = WorkerState.BUSY
        self._write(session)

    def leave(self) -> None:
        """Take the row away: this worker exits."""
        self._left = True
        self._changed.set()
        self._thread.join()
        try:
            with transaction(self._sessions) as session:
                leave_worker(session, self._worker_id)
        except DBAPIError as error:
            log.warning("the database did not take a farewell", extra={"error": type(error).__name__})

    def _beat_on(self) -> None:
        while not self._left:
            self._changed.clear()
            try:
                with self._writing, transaction(self._sessions) as session:
                    self._write(session)
            except DBAPIError as error:
                log.warning("the database did not take a sign of life", extra={"error": type(error).__name__})
            self._changed.wait(self._heartbeat_s)

    def _write(self, session: Session) -> None:
        beat_worker(
            session,
            worker_id=self._worker_id,
            state=self._state,
            device=self._engine.device,
            engine_version=self._engine.version,
        )
