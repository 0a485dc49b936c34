"""The one queue that a worker's main thread waits on.

Everything that may change what the worker does next arrives here as a value: a hint from the broker, a line of the
engine process, its death, a request to stop. `SimpleQueue.put` is safe inside a signal handler, which a lock or an
event is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.wire import Event


class Interrupt(StrEnum):
    """Why a running stage must not go on as it does."""

    CANCEL = "cancel"
    """The caller cancelled the job."""
    LEASE_LOST = "lease_lost"
    """The stage belongs to another worker, or to nobody, by now."""
    SHUTDOWN = "shutdown"
    """This worker was told to exit."""
    REGROUP = "regroup"
    """One of several jobs in the run must leave it: the others go on without it, from a checkpoint made now."""
    FINISH = "finish"
    """The caller wants what there is: the run ends early, and well."""


@dataclass(frozen=True, slots=True)
class Hint:
    """A stage is runnable somewhere; whoever sent it, the database knows better."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """Stop; `run_id` names the run it concerns, None whatever runs."""

    reason: Interrupt
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class FromEngine:
    """A line of the engine process of that generation."""

    generation: int
    event: Event


@dataclass(frozen=True, slots=True)
class EngineGone:
    """The engine process of that generation closed its stdout: it is dead or dying."""

    generation: int


Message = Hint | Interruption | FromEngine | EngineGone


class Mailbox:
    """A queue with one reader; any thread and any signal handler may post."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Message] = SimpleQueue()
        self.shutting_down = False
        self.shut_down_at: float | None = None

    def post(self, message: Message) -> None:
        """Append a message."""
        self._queue.put(message)

    def shut_down(self) -> None:
        """Ask the reader to stop for good; safe in a signal handler."""
        if self.shut_down_at is None:
            self.shut_down_at = monotonic()
        self.shutting_down = True
        self._queue.put(Interruption(Interrupt.SHUTDOWN))

    def grace_left_s(self, grace_s: float) -> float:
        """Return how much is left of a grace period that began when the reader was asked to stop."""
        begun_at = monotonic() if self.shut_down_at is None else self.shut_down_at
        return max(0.0, begun_at + grace_s - monotonic())

    def take(self, timeout_s: float | None) -> Message | None:
        """Return the next message, or None when none came in time; None as timeout waits for ever."""
        try:
            return self._queue.get(timeout=None if timeout_s is None else max(timeout_s, 0.0))
        except Empty:
            return None

    def take_until(self, deadline: float | None) -> Message | None:
        """Return the next message, or None when `deadline` (of `time.monotonic`) passed first."""
        return self.take(None if deadline is None else deadline - monotonic())
