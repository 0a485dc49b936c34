"""How long a worker bears with a server that is away before an attempt ends."""

from __future__ import annotations

import logging
import time
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.storage import StoreError
from worker.backoff import Backoff
from worker.mailbox import Interrupt
from worker.supervisor import StageInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sqlalchemy.orm import Session, sessionmaker

    from worker.mailbox import Mailbox

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Patience:
    """Does a thing again and again while what it needs is away, for `patience_s` at most."""

    def __init__(self, patience_s: float, *, sessions: sessionmaker[Session], mailbox: Mailbox) -> None:
        self._patience_s = patience_s
        self._sessions = sessions
        self._mailbox = mailbox

    def with_store(self, act: Callable[[], Result]) -> Result:
        """Do what needs the object store.

        Raises:
            StoreError: it stayed away.
            StageInterrupted: the worker is told to exit while it is away.
        """
        give_up_at = monotonic() + self._patience_s
        backoff = Backoff(most_s=2.0)
        while True:
            try:
                return act()
            except StoreError as error:
                pause_s = backoff.next_s()
                if monotonic() + pause_s > give_up_at:
                    raise
                log.warning("the object store does not answer", extra={"error": str(error)})
            if self._mailbox.shutting_down:
                raise StageInterrupted(Interrupt.SHUTDOWN)
            time.sleep(pause_s)

    def with_database(self, write: Callable[[Session], Any]) -> None:
        """Make the last write of an attempt.

        A commit whose answer was lost shows as `LeaseLost` the second time: the write is there, or somebody else
        decided. Either way there is nothing left to do. After the patience the reaper takes over.

        Raises:
            LeaseLost: the stage is no longer ours.
            DBAPIError: the database stayed away.
        """
        give_up_at = monotonic() + self._patience_s
        backoff = Backoff(most_s=2.0)
        while True:
            try:
                with transaction(self._sessions) as session:
                    write(session)
            except DBAPIError as error:
                pause_s = backoff.next_s()
                if self._mailbox.shutting_down or monotonic() + pause_s > give_up_at:
                    raise
                log.warning("the database did not take a result", extra={"error": type(error).__name__})
            else:
                return
            time.sleep(pause_s)
