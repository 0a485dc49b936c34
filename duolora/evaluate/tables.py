"""From scores to rows: each method's best setting, means, intervals, and differences to our own method.

P pairs, S seeds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from duolora.evaluate.intervals import Interval, bootstrap, paired_difference
from duolora.evaluate.methods import OURS, Kind
from duolora.evaluate.score_book import Entry, Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from duolora.evaluate.jobs import TrainingCost

OUR_RECIPE = "duolora recipe"
"""Our row among the whole recipes: the LoRAs of the run and their merge by `OURS`, so with the same scores."""
ALSO_RECIPES = {OURS: OUR_RECIPE, "weighted-sum": "weighted-sum"}
"""Merges that stand among the whole recipes too, by their names there, with what training both LoRAs took."""


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


def with_training(setting: Setting[E], costs: Mapping[tuple[str, int], TrainingCost]) -> Setting[E]:
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
    """Group entries by method and setting, in the order they came; settings that lack a pair or a seed are left out.

    Entries of other pairs and seeds, as of a wider list that was run in the same folder, are not looked at.
    """
    wanted = {(pair, seed) for pair in pairs for seed in seeds}
    grouped: dict[tuple[str, str], dict[tuple[str, int], E]] = defaultdict(dict)
    for entry in entries:
        if (entry.pair, entry.seed) in wanted:
            grouped[entry.method, entry.knobs][entry.pair, entry.seed] = entry
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


def difference_records(settings: Sequence[Setting[E]], name: str) -> dict[str, Any]:
    """Return the paired differences of our row to all others of a table as JSON-ready values, if it is there."""
    ours = next((setting for setting in settings if setting.method == name), None)
    if ours is None:
        return {}
    return {rival: asdict(interval) for rival, interval in differences_to(ours, settings).items()}


@dataclass(frozen=True, slots=True, eq=False)
class Outcome(Generic[E]):
    """The settings of a run that are complete, and the two tables: merges, and whole recipes, best settings only."""

    settings: Sequence[Setting[E]]
    merges: Sequence[Setting[E]]
    recipes: Sequence[Setting[E]]


def two_tables(
    settings: Iterable[Setting[E]],
    kinds: Mapping[str, Kind],
    costs: Callable[[], Mapping[tuple[str, int], TrainingCost]],
) -> Outcome[E]:
    """Divide methods into merges and whole recipes, references in both; without a recipe there is one table only.

    Args:
        settings: complete ones; methods that have no kind are left out.
        kinds: method -> what it is given, in the order of the rows.
        costs: gives what training the LoRAs of a pair with a seed took; called when recipes need it.
    """
    known = [setting for setting in settings if setting.method in kinds]
    best = best_settings(known)
    of_kind = {kind: [best[name] for name, given in kinds.items() if given is kind and name in best] for kind in Kind}
    references, merges, recipes = of_kind[Kind.REFERENCE], of_kind[Kind.MERGE], of_kind[Kind.RECIPE]
    if not recipes:
        return Outcome(known, [*references, *merges], [])
    trained = costs()
    whole = [
        with_training(replace(setting, method=ALSO_RECIPES[setting.method]), trained)
        for setting in merges
        if setting.method in ALSO_RECIPES
    ]
    return Outcome(known, [*references, *merges], [*references, *recipes, *whole])
