"""Owns the engine process: starts it, talks to it, stops it, replaces it when it dies, hangs or keeps memory.

Never imports the engine. The process keeps the base model loaded between stages. A crash, a hang or a refused cancel
loses only it. All methods belong to one thread, the one that lives longest (worker.process says why).
"""

from __future__ import annotations

import logging
import signal
import threading
from time import monotonic
from typing import IO, TYPE_CHECKING, TypeVar

from worker.engine_memory import EngineMemory
from worker.mailbox import EngineGone, FromEngine, Interrupt, Interruption
from worker.process import ChildProcess
from worker.watchdog import Watchdog
from worker.wire import (
    Cancel,
    Checkpointed,
    Done,
    Failed,
    Finish,
    LogLine,
    Pause,
    ProgressReport,
    Ready,
    Run,
    Shown,
    Warm,
    Warmed,
    WireError,
    parse_event,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.mailbox import Mailbox, Message
    from worker.settings import EngineSettings
    from worker.wire import Command, Event

log = logging.getLogger(__name__)

News = ProgressReport | Checkpointed | LogLine | Shown
"""What is told of a run while it goes on."""

EventT = TypeVar("EventT", Ready, Warmed)


class EngineDied(Exception):
    """The engine process ended in the middle of its work."""


class EngineNotReady(Exception):
    """The engine process did not start, did not report itself in time, or lacks the memory it had before."""


class StageStuck(Exception):
    """A run got no further for so long that its process was killed."""


class StageInterrupted(Exception):
    """A stage ended early because somebody asked for it; `reason` says who."""

    def __init__(self, reason: Interrupt) -> None:
        super().__init__(f"interrupted: {reason}")
        self.reason = reason


class StageFailed(Exception):
    """The engine reported that the stage could not be done."""

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class EngineSupervisor:
    """At most one engine process at a time; `generation` tells messages of this one from those of a dead one."""

    def __init__(
        self, settings: EngineSettings, *, env: Mapping[str, str], mailbox: Mailbox, pause_s: float | None = None
    ) -> None:
        self._command: Sequence[str] = settings.command
        self._settings = settings
        self._env = env
        self._mailbox = mailbox
        self._pause_s = settings.cancel_grace_s if pause_s is None else pause_s
        self._child: ChildProcess | None = None
        self._reader: threading.Thread | None = None
        self._generation = 0
        self._ended_generation = 0
        self._warm_base: str | None = None
        self._loaded_base: str | None = None
        self._ready: Ready | None = None
        self._revisions: dict[str, str | None] = {}
        self._pairs = True
        self._shares_passes = False
        self._memory = EngineMemory(slack_bytes=settings.memory_slack_bytes)

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None when there is none."""
        return None if self._child is None else self._child.pid

    @property
    def device(self) -> str | None:
        """What the engine computes on, None before one said so."""
        return None if self._ready is None else self._ready.device

    @property
    def version(self) -> str | None:
        """Version of the engine, None before one said so."""
        return None if self._ready is None else self._ready.engine_version

    @property
    def starts(self) -> int:
        """How many engine processes there have been."""
        return self._generation

    @property
    def held_bytes(self) -> int | None:
        """Memory that the engine held when it last rested, of its GPU if it has one; None if it has not said."""
        return self._memory.held_bytes

    @property
    def pairs(self) -> bool:
        """Whether it trains two LoRAs in one pass with advantage, as far as the last base loaded said."""
        return self._pairs

    @property
    def shares_passes(self) -> bool:
        """Whether it trains LoRAs of several jobs in one pass, as far as the last base loaded said."""
        return self._shares_passes

    def is_alive(self) -> bool:
        """Say whether an engine process runs and has not closed its output."""
        ended = self._ended_generation == self._generation
        return self._child is not None and not ended and self._child.is_alive()

    def ensure_running(self, *, warm_base: str | None = None) -> None:
        """See to an engine process that takes commands, its base loaded; one that keeps too much memory is replaced.

        Raises:
            EngineNotReady: when it exits or says nothing within the start timeout, or memory did not come back.
            StageInterrupted: when the worker is told to exit meanwhile.
        """
        if warm_base is not None:
            self._warm_base = warm_base
        if self.is_alive() and not self._memory.is_swollen:
            return
        self.stop()
        self._spawn()
        try:
            self._greet(self._await(Ready, self._settings.start_timeout_s))
            if self._warm_base is not None:
                self._warm(self._warm_base)
        except (EngineDied, EngineNotReady, StageInterrupted):
            self.stop()
            raise

    def revision_of(self, base: str, run_id: str) -> str | None:
        """Return which files the base consists of, None if nobody can tell; loads it if it was not loaded yet.

        An interruption of that run, or of all, ends the wait and is left in the mailbox.

        Raises:
            EngineDied: the process ended by itself.
        """
        if base not in self._revisions and self.is_alive():
            self._send(Warm(base=base))
            deadline = monotonic() + self._settings.warm_timeout_s
            while (message := self._mailbox.take_until(deadline)) is not None:
                if isinstance(message, Interruption) and message.run_id in {None, run_id}:
                    self._mailbox.post(message)
                    return None
                event = self._event(message)
                if isinstance(event, Warmed) and event.base == base:
                    self._learn(event)
                    break
        return self._revisions.get(base)

    def run(self, command: Run, on_news: Callable[[News], None]) -> Done:
        """Run one stage, or several, to the end and return the outputs.

        Raises:
            StageFailed: the engine says that it cannot be done.
            StageInterrupted: it was stopped on request, in good order or by force.
            StageStuck: it got no further; the process is gone.
            EngineDied: the process ended by itself.
        """
        if not self.is_alive():  # its last message may have been read while it was idle
            raise EngineDied("the engine process ended before the stage began")
        watchdog = self._watchdog(command.base)
        self._send(command)
        while (message := self._mailbox.take_until(watchdog.bites_at)) is not None:
            if isinstance(message, Interruption) and message.run_id in {None, command.id}:
                if message.reason is not Interrupt.FINISH:
                    return self._wind_down(command, message.reason, on_news)
                self._send(Finish(id=command.id))
            match self._event(message):
                case (
                    ProgressReport(id=command.id)
                    | Checkpointed(id=command.id)
                    | LogLine(id=command.id)
                    | Shown(id=command.id) as news
                ):
                    watchdog.see(news)
                    on_news(news)
                case Done(id=command.id) as done:
                    self._loaded_base = command.base
                    self._memory.see(command.base, done.held_bytes)
                    return done
                case Failed(id=command.id) as failure:
                    self._memory.see(command.base, failure.held_bytes)
                    raise StageFailed(failure)
        self.stop()
        raise StageStuck(f"no progress for {watchdog.patience_s:.0f} s")

    def _watchdog(self, base: str) -> Watchdog:
        """Return what sees to a run on a base; only one that is still to be loaded may take longer to begin."""
        stall_s = self._settings.stall_s
        if self._loaded_base == base:
            return Watchdog(first_s=stall_s, stall_s=stall_s)
        self._loaded_base = None
        return Watchdog(first_s=self._settings.warm_timeout_s, stall_s=stall_s)

    def stop(self) -> None:
        """End the engine process and its group, if there is one: TERM, grace, KILL."""
        self._revisions.clear()
        self._loaded_base = None
        self._memory.forget()
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate(self._settings.term_grace_s)
        if self._reader is not None:
            self._reader.join(self._settings.term_grace_s)
        child.close()

    def _wind_down(self, run: Run, reason: Interrupt, on_news: Callable[[News], None]) -> Done:
        """Ask the engine to give up a run, and make it when it does not.

        Where others go on with the work, it may write a checkpoint first; one that ends well all the same is returned:
        the work is done.
        """
        pauses = reason in {Interrupt.SHUTDOWN, Interrupt.REGROUP}
        grace_s = self._settings.cancel_grace_s
        if reason is Interrupt.SHUTDOWN:
            grace_s = self._mailbox.grace_left_s(self._pause_s)
        elif pauses:  # every job's checkpoint takes its time, and a new engine takes more
            grace_s *= len(run.jobs)
        deadline = monotonic() + grace_s
        try:
            self._send(Pause(id=run.id) if pauses else Cancel(id=run.id))
            while (message := self._mailbox.take_until(deadline)) is not None:
                match self._event(message):
                    case Done(id=run.id) as done if pauses:
                        return done
                    case Done(id=run.id) | Failed(id=run.id):
                        raise StageInterrupted(reason)
                    case Checkpointed(id=run.id) | LogLine(id=run.id) | Shown(id=run.id) as news if pauses:
                        on_news(news)
        except EngineDied as error:
            raise StageInterrupted(reason) from error
        log.warning("engine did not stop when asked, ending it", extra={"pid": self.pid, "reason": reason})
        self.stop()
        raise StageInterrupted(reason)

    def _greet(self, ready: Ready) -> None:
        log.info("engine ready", extra={"engine": ready.engine_version, "device": ready.device, "pid": self.pid})
        if not self._memory.came_back(ready.free_bytes):
            raise EngineNotReady("the device has less free memory than before: that of the last engine is not back")
        self._ready = ready

    def _warm(self, base: str) -> None:
        self._send(Warm(base=base))
        warmed = self._await(Warmed, self._settings.warm_timeout_s)
        self._learn(warmed)
        if warmed.error is not None:  # a job that wants this base will say so to its owner
            log.warning("base not loaded", extra={"base": warmed.base, "error": warmed.error})

    def _learn(self, warmed: Warmed) -> None:
        self._revisions[warmed.base] = None if warmed.error is not None else warmed.revision
        if warmed.error is None:
            self._loaded_base = warmed.base
            self._pairs = warmed.pairs
            self._shares_passes = warmed.shares_passes
            self._memory.see(warmed.base, warmed.held_bytes)

    def _spawn(self) -> None:
        self._generation += 1
        try:
            self._child = ChildProcess(self._command, self._env)
        except OSError as error:
            raise EngineNotReady(f"cannot start the engine: {error}") from error
        self._reader = threading.Thread(
            target=self._read, args=(self._child.stdout, self._generation), name="engine-reader", daemon=True
        )
        self._reader.start()

    def _read(self, stdout: IO[bytes], generation: int) -> None:
        for line in stdout:
            try:
                event = parse_event(line)
            except WireError as error:
                log.warning("engine wrote a line that is no event", extra={"error": str(error)})
                continue
            self._mailbox.post(FromEngine(generation, event))
        self._ended_generation = generation
        self._mailbox.post(EngineGone(generation))

    def _send(self, command: Command) -> None:
        if self._child is None:
            raise EngineDied("no engine process")
        try:
            self._child.send(command.line())
        except BrokenPipeError as error:
            raise EngineDied(self._death()) from error

    def _await(self, kind: type[EventT], timeout_s: float) -> EventT:
        """Wait for the first event of `kind`; anything else that is not a reason to stop waiting is dropped."""
        deadline = monotonic() + timeout_s
        while (message := self._mailbox.take_until(deadline)) is not None:
            if isinstance(message, Interruption) and message.reason is Interrupt.SHUTDOWN:
                raise StageInterrupted(message.reason)
            event = self._event(message)
            if isinstance(event, kind):
                return event
        raise EngineNotReady(f"no {kind.__name__.lower()} from the engine within {timeout_s:.0f} s")

    def _event(self, message: Message | None) -> Event | None:
        """Return the engine event in a message, None for any other message or for one of a dead process."""
        match message:
            case EngineGone(generation) if generation == self._generation:
                death = self._death()
                self.stop()
                raise EngineDied(death)
            case FromEngine(generation, event) if generation == self._generation:
                return event
            case _:
                return None

    def _death(self) -> str:
        """Say how the process ended; it has closed its stdout, so its end is near."""
        status = None if self._child is None else self._child.wait(self._settings.term_grace_s)
        if status is None:
            return "the engine process closed its output"
        if status < 0:
            return f"the engine process was killed by {signal.Signals(-status).name}"
        return f"the engine process ended with status {status}"
