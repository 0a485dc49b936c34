"""When a run counts as stuck: it has told of nothing new for too long."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from worker.wire import Checkpointed, ProgressReport, Shown

if TYPE_CHECKING:
    from worker.wire import LogLine


class Watchdog:
    """Looks at what a run tells. Only another step, total or note counts, and a checkpoint; lines of a log do not.

    Before the first report a base may have to be loaded, so that has a patience of its own, `first_s`.
    """

    def __init__(self, *, first_s: float, stall_s: float) -> None:
        self._stall_s = stall_s
        self._seen: tuple[int, int, str] | None = None
        self.patience_s = max(first_s, stall_s)
        self.bites_at = monotonic() + self.patience_s
        """Instant of `time.monotonic` at which the run counts as stuck unless it tells something new."""

    def see(self, news: ProgressReport | Checkpointed | LogLine | Shown) -> None:
        """Take what the run tells."""
        match news:
            case ProgressReport(step=step, total=total, note=note) if (step, total, note) != self._seen:
                self._seen = (step, total, note)
            case Checkpointed() | Shown():
                pass
            case _:
                return
        self.patience_s = self._stall_s
        self.bites_at = monotonic() + self.patience_s
