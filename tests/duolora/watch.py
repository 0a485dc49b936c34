"""An observer that remembers what it was told, and can ask to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duolora.events import Progress


class Watcher:
    """Keeps every report; asks to stop once `stop_after` steps are done."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.reports: list[Progress] = []
        self._stop_after = stop_after

    def on_progress(self, progress: Progress) -> None:
        self.reports.append(progress)

    def should_stop(self) -> bool:
        return self._stop_after is not None and self.reports[-1].step >= self._stop_after

    @property
    def losses(self) -> list[float]:
        return [report.loss for report in self.reports if report.loss is not None]
