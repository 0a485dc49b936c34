"""From scores to rows: each method's best setting, means, intervals, and differences to our own method.

P pairs, S seeds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from duolora.evaluate.intervals import Interval, bootstrap, paired_difference
from duolora.evaluate.score_book import Entry, Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from duolora.evaluate.jobs import TrainingCost


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: means over pairs and seeds, `hmean` with its interval.

    `trainable` and `seconds` are for one pair; `knobs` is the setting, the best of those tried.
    """

    method: str
    content: float
    style: float
    hmean: Interval
    truth_distance: float
    trainable: int
    seconds: float
    recontext_hmean: Interval
    knobs: str


E = TypeVar("E", bound=Scored)


@dataclass(frozen=True, slots=True, eq=False)
class Setting(Generic[E]):
    """All entries of one setting of a method, complete over the pairs and seeds of a run."""

    method: str
    knobs: str
    cells: Mapping[tuple[str, int], E]
    pairs: Sequence[str]
    seeds: Sequence[int]

    def values_PS(self, of: Callable[[E], float]) -> NDArray[np.float64]:
        """Return one number of every entry, pairs by seeds."""
        return np.array([[of(self.cells[pair, seed]) for seed in self.seeds] for pair in self.pairs], dtype=np.float64)

    def mean(self, of: Callable[[E], float]) -> float:
        """Return the mean of one number over all entries."""
        return float(self.values_PS(of).mean())

    @property
    def hmean_PS(self) -> NDArray[np.float64]:
        """Harmonic means, by which settings are compared."""
        return self.values_PS(lambda entry: entry.hmean)


def truth_row(setting: Setting[Entry]) -> Row:
    """Return the line of a setting of the truth suite."""
    return Row(
        method=setting.method,
        content=setting.mean(lambda entry: entry.joint.content),
        style=setting.mean(lambda entry: entry.joint.style),
        hmean=bootstrap(setting.hmean_PS),
        truth_distance=setting.mean(lambda entry: entry.joint.truth_distance),
        trainable=round(setting.mean(lambda entry: entry.trainable)),
        seconds=setting.mean(lambda entry: entry.seconds),
        recontext_hmean=bootstrap(setting.values_PS(lambda entry: entry.recontext.hmean)),
        knobs=setting.knobs,
    )


def with_training(setting: Setting[Entry], costs: Mapping[tuple[str, int], TrainingCost]) -> Setting[Entry]:
    """Return the same scores with what training the LoRAs took added to every entry."""
    cells = {
        cell: replace(
            entry,
            seconds=entry.seconds + costs[cell].seconds,
            trainable=entry.trainable + costs[cell].trainable,
        )
        for cell, entry in setting.cells.items()
    }
    return replace(setting, cells=cells)


def complete_settings(entries: Iterable[E], pairs: Sequence[str], seeds: Sequence[int]) -> list[Setting[E]]:
    """Group entries by method and setting, in the order they came; settings that lack a pair or a seed are left out."""
    grouped: dict[tuple[str, str], dict[tuple[str, int], E]] = defaultdict(dict)
    for entry in entries:
        grouped[entry.method, entry.knobs][entry.pair, entry.seed] = entry
    wanted = {(pair, seed) for pair in pairs for seed in seeds}
    return [
        Setting(method, knobs, cells, pairs, seeds)
        for (method, knobs), cells in grouped.items()
        if wanted <= cells.keys()
    ]


def best_settings(settings: Iterable[Setting[E]]) -> dict[str, Setting[E]]:
    """Return each method's setting of the highest mean harmonic mean, in the order methods came."""
    best: dict[str, Setting[E]] = {}
    for setting in settings:
        if setting.method not in best or setting.hmean_PS.mean() > best[setting.method].hmean_PS.mean():
            best[setting.method] = setting
    return best


def differences_to(ours: Setting[E], rivals: Iterable[Setting[E]]) -> dict[str, Interval]:
    """Return, for every rival, the mean of ours minus the rival's harmonic mean on the same pairs and seeds."""
    return {
        rival.method: paired_difference(ours.hmean_PS, rival.hmean_PS)
        for rival in rivals
        if rival.method != ours.method
    }
