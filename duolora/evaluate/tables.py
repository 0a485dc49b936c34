"""From scores to rows: each method's best setting, means, intervals, and differences to our own method.

P pairs, S seeds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from duolora.evaluate.intervals import Interval, bootstrap, paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from duolora.evaluate.score_book import Entry


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


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """All entries of one setting of a method, complete over the pairs and seeds of a run."""

    method: str
    knobs: str
    cells: Mapping[tuple[str, int], Entry]
    pairs: Sequence[str]
    seeds: Sequence[int]

    def values_PS(self, of: Callable[[Entry], float]) -> NDArray[np.float64]:
        """Return one number of every entry, pairs by seeds."""
        return np.array([[of(self.cells[pair, seed]) for seed in self.seeds] for pair in self.pairs], dtype=np.float64)

    def mean(self, of: Callable[[Entry], float]) -> float:
        """Return the mean of one number over all entries."""
        return float(self.values_PS(of).mean())

    @property
    def hmean_PS(self) -> NDArray[np.float64]:
        """Harmonic means on the joint prompt."""
        return self.values_PS(lambda entry: entry.joint.hmean)

    def with_seconds(self, more: Mapping[tuple[str, int], float]) -> Setting:
        """Return the same scores with seconds added to every entry."""
        cells = {cell: replace(entry, seconds=entry.seconds + more[cell]) for cell, entry in self.cells.items()}
        return replace(self, cells=cells)

    def row(self) -> Row:
        """Return the line of this setting."""
        return Row(
            method=self.method,
            content=self.mean(lambda entry: entry.joint.content),
            style=self.mean(lambda entry: entry.joint.style),
            hmean=bootstrap(self.hmean_PS),
            truth_distance=self.mean(lambda entry: entry.joint.truth_distance),
            trainable=round(self.mean(lambda entry: entry.trainable)),
            seconds=self.mean(lambda entry: entry.seconds),
            recontext_hmean=bootstrap(self.values_PS(lambda entry: entry.recontext.hmean)),
            knobs=self.knobs,
        )


def complete_settings(entries: Iterable[Entry], pairs: Sequence[str], seeds: Sequence[int]) -> list[Setting]:
    """Group entries by method and setting, in the order they came; settings that lack a pair or a seed are left out."""
    grouped: dict[tuple[str, str], dict[tuple[str, int], Entry]] = defaultdict(dict)
    for entry in entries:
        grouped[entry.method, entry.knobs][entry.pair, entry.seed] = entry
    wanted = {(pair, seed) for pair in pairs for seed in seeds}
    return [
        Setting(method, knobs, cells, pairs, seeds)
        for (method, knobs), cells in grouped.items()
        if wanted <= cells.keys()
    ]


def best_settings(settings: Iterable[Setting]) -> dict[str, Setting]:
    """Return each method's setting of the highest mean harmonic mean, in the order methods came."""
    best: dict[str, Setting] = {}
    for setting in settings:
        if setting.method not in best or setting.hmean_PS.mean() > best[setting.method].hmean_PS.mean():
            best[setting.method] = setting
    return best


def differences_to(ours: Setting, rivals: Iterable[Setting]) -> dict[str, Interval]:
    """Return, for every rival, the mean of ours minus the rival's harmonic mean on the same pairs and seeds."""
    return {
        rival.method: paired_difference(ours.hmean_PS, rival.hmean_PS)
        for rival in rivals
        if rival.method != ours.method
    }
