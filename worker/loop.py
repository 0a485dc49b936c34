"""What a worker does all day: claim stages until there is none, then wait for a hint or for a while."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from api.jobs.models import WorkerState
from api.storage import StoreError
from worker.backoff import Backoff
from worker.mailbox import EngineGone, Hint
from worker.supervisor import EngineDied, EngineNotReady, StageInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.mailbox import Mailbox
    from worker.presence import Presence
    from worker.runner import StageRunner
    from worker.supervisor import EngineSupervisor

log = logging.getLogger(__name__)


class IdleGate:
    """Tells the thread that receives hints when this worker has nothing to do."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle = False
        self._rounds = 0

    def enter(self) -> None:
        """The worker looked for work and found none."""
        with self._changed:
            self._idle = True
            self._rounds += 1
            self._changed.notify_all()

    def leave(self) -> None:
        """The worker looks for work."""
        with self._changed:
            self._idle = False

    def is_idle(self) -> bool:
        """Say whether the worker waits for something to do."""
        with self._changed:
            return self._idle

    def wait_idle(self) -> None:
        """Wait until the worker has nothing to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle)

    def pass_on(self, wake: Callable[[], None]) -> None:
        """Wake the idle worker, and wait until it has once more found nothing to do."""
        with self._changed:
            seen = self._rounds
            wake()
            self._changed.wait_for(lambda: self._rounds > seen)


class WorkLoop:
    """Runs in the main thread, which owns the engine process. Claims only while an engine is ready, if it needs one."""

    def __init__(
        self,
        runner: StageRunner,
        *,
        engine: EngineSupervisor,
        mailbox: Mailbox,
        presence: Presence,
        poll_s: float,
        warm_base: str | None,
        needs_engine: bool = True,
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._mailbox = mailbox
        self._presence = presence
        self._poll_s = poll_s
        self._warm_base = warm_base
        self._needs_engine = needs_engine
        self.gate = IdleGate()

    def run(self) -> None:
        """Work until the mailbox says to stop; the engine process is ended on the way out, whatever happens."""
        backoff = Backoff()
        self._presence.start()
        try:
            while not self._mailbox.shutting_down:
                try:
                    self._drain()
                except StageInterrupted:
                    continue
                except (DBAPIError, StoreError, EngineDied, EngineNotReady) as error:
                    log.warning("cannot work now", extra={"error": f"{type(error).__name__}: {error}"})
                    self._presence.become(WorkerState.BUSY)
                    self._idle(backoff.next_s(), hints=False)
                    continue
                backoff.reset()
                if self._needs_engine:  # one that does mock jobs only is nobody to leave work to
                    self._presence.become(WorkerState.IDLE)
                self._idle(self._poll_s)
        finally:
            self._engine.stop()
            self._presence.leave()

    def _drain(self) -> None:
        """Run stages until none is runnable. Told to stop, the loop starts no new engine for the one it ended."""
        warm_base = self._warm_base
        while not self._mailbox.shutting_down:
            if self._needs_engine:
                self._engine.ensure_running(warm_base=warm_base)
            warm_base = None
            if not self._runner.run_next():
                return

    def _idle(self, seconds: float, *, hints: bool = True) -> None:
        """Wait for a hint, the engine's death, a shutdown, or the time."""
        deadline = monotonic() + seconds
        self.gate.enter()
        while not self._mailbox.shutting_down:
            message = self._mailbox.take_until(deadline)
            if message is None or (hints and isinstance(message, Hint | EngineGone)):
                break
        self.gate.leave()
