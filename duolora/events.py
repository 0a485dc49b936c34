"""What a running stage tells whoever watches it, and how it learns that it should stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from duolora.errors import Cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report of a running stage.

    `step` counts finished steps, from 0 to `total`; `loss` is the last training loss where there is one; `note` says
    in a few words what the stage is doing ("caching latents", "sampling merged"). Where several tenants are trained
    together, `losses` are each one's own, and `loss` is their mean.
    """

    step: int
    total: int
    loss: float | None = None
    note: str = ""
    losses: tuple[float, ...] = ()


class Observer(Protocol):
    """Receives progress; asked between steps whether to stop. Both calls must return at once."""

    def on_progress(self, progress: Progress) -> None:
        """Take one report."""

    def should_stop(self) -> bool:
        """Say whether the work should stop at the next step."""


class Silent:
    """An observer for callers that want neither reports nor a way to stop."""

    def on_progress(self, progress: Progress) -> None:
        """Drop the report."""

    def should_stop(self) -> bool:
        """Never stop."""
        return False


class Quiet:
    """Passes on a request to stop, but no reports: for work inside a step of other work."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_progress(self, progress: Progress) -> None:
        """Drop the report."""

    def should_stop(self) -> bool:
        """Ask the observer of the other work."""
        return self._observer.should_stop()


class Segment:
    """Shows one part of a longer piece of work as a stretch of the whole."""

    def __init__(self, observer: Observer, *, before: int, total: int, note: str) -> None:
        self._observer = observer
        self._before = before
        self._total = total
        self._note = note

    def on_progress(self, progress: Progress) -> None:
        """Report the part's progress as the whole's."""
        step = self._before + progress.step
        self._observer.on_progress(Progress(step=step, total=self._total, loss=progress.loss, note=self._note))

    def should_stop(self) -> bool:
        """Ask the observer of the whole."""
        return self._observer.should_stop()


def advance(observer: Observer, progress: Progress) -> None:
    """Report progress and honour a request to stop.

    Raises:
        Cancelled: when the observer asks for it.
    """
    observer.on_progress(progress)
    if observer.should_stop():
        raise Cancelled(f"stopped on request after step {progress.step} of {progress.total}")
