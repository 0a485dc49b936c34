"""Pictures of what a training has learnt, every so many steps.

The training is done in legs: each ends as one that is stopped early does, its LoRAs are drawn with, and the next goes
on from its last state, which on a CPU gives the bits of a training without legs. Every state says which step was shown
last: a show that a stop fell on is made when the training goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.events import Observer, Progress, Quiet, Silent
from duolora.keeping import Keeper, Part, Saved, kept_when_stopped, resumed
from duolora.personalize import TrainingJob, train_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

    Loras = Sequence[Mapping[str, LoraWeights]]
    """Of every job, side -> LoRA."""

_SHOWN = "shown"
"""The value of every part that says the last step shown; states from before it was kept have none."""


def train_showing(
    base: DiffusionBase,
    jobs: Sequence[TrainingJob],
    show: Callable[[int, Loras, Observer], None],
    observer: Observer | None = None,
    *,
    every: int,
    keeper: Keeper | None = None,
) -> Loras:
    """Train as `train_jobs` does, and show the LoRAs every so many steps, but for the last.

    A step may be shown again by a training that goes on from a state of before.

    Args:
        base: the frozen base model.
        jobs: what is trained.
        show: is given the step, the LoRAs of then, and an observer for its own work.
        observer: receives progress.
        every: steps between two shows.
        keeper: keeps checkpoints.

    Takes and raises otherwise what `train_jobs` does, and what `show` raises.
    """
    leg = _Leg(observer or Silent(), keeper, every)
    while True:
        loras = train_jobs(base, jobs, leg, keeper=leg, until=leg.due)
        if leg.is_last:
            return loras
        leg.tell("drawing what is learnt so far")
        with kept_when_stopped(keeper, lambda: leg.saved):
            show(leg.step, loras, Quiet(leg))
        leg.shown = leg.step


class _Leg:
    """The observer and the keeper of a leg: both of the whole training, but that this ends every so many steps."""

    def __init__(self, observer: Observer, keeper: Keeper | None, every: int) -> None:
        self.step = self.shown = self._total = 0
        self.saved: Saved | None = None
        self._observer = observer
        self._keeper = keeper
        self._every = every
        self._finished = False

    @property
    def is_last(self) -> bool:
        """Whether the training is over, in time or early."""
        return self._finished or self.step >= self._total

    @property
    def due(self) -> int | None:
        """The step of the state to go on from if that is still to be shown: no step is taken before."""
        found = self.resume()
        return found.step if found is not None and self._is_to_show(found.step, found.total) else None

    @property
    def _ends(self) -> bool:
        return self._is_to_show(self.step, self._total)

    def _is_to_show(self, step: int, total: int) -> bool:
        return self.shown < step < total and step % self._every == 0

    def tell(self, note: str) -> None:
        """Say what is done between two legs."""
        self._observer.on_progress(Progress(step=self.step, total=self._total, note=note))

    def on_progress(self, progress: Progress) -> None:
        """Pass a report on."""
        self.step, self._total = progress.step, progress.total
        self._observer.on_progress(progress)

    def should_stop(self) -> bool:
        """Ask the observer of the whole."""
        return self._observer.should_stop()

    def resume(self) -> Saved | None:
        """Return the state that the leg before ended with."""
        found = self.saved or resumed(self._keeper)
        if found is not None:
            self.shown = max(self.shown, _last_shown(found))
        return found

    def is_due(self) -> bool:
        """Say whether a checkpoint is to be kept, or the leg ends here."""
        return self._ends or (self._keeper is not None and self._keeper.is_due())

    def keep(self, saved: Saved) -> None:
        """Keep a checkpoint where one is due, and the state at the end of a leg in memory."""
        if self._ends:
            self.saved = _copied(saved, self.shown)
        if self._keeper is not None and (self.is_last or self._keeper.is_due()):
            self._keeper.keep(_saying(saved, self.shown))

    def should_finish(self) -> bool:
        """Say whether the leg ends here, or all of it is to end early."""
        self._finished = self._keeper is not None and self._keeper.should_finish()
        return self._finished or self._ends


def _last_shown(saved: Saved) -> int:
    """Return the last step shown before a state was kept: as good as all before its own if it does not say."""
    return min((part.values.get(_SHOWN, saved.step - 1) for part in saved.parts.values()), default=0)


def _saying(saved: Saved, shown: int) -> Saved:
    """Return a state that says the last step shown."""
    parts = {name: Part(part.tensors, {**part.values, _SHOWN: shown}) for name, part in saved.parts.items()}
    return Saved(saved.step, saved.total, parts)


def _copied(saved: Saved, shown: int) -> Saved:
    """Return the same of a state on the CPU, whose tensors do not change any more."""
    parts = {
        name: Part({key: tensor.detach().cpu().clone() for key, tensor in part.tensors.items()}, part.values)
        for name, part in saved.parts.items()
    }
    return _saying(Saved(saved.step, saved.total, parts), shown)
