"""The scores of a run on disk, one JSON line for each method, setting, pair and seed, so that a run can be resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from duolora.errors import InvalidConfig
from duolora.evaluate.metrics import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from duolora.evaluate.methods import Knobs
    from duolora.evaluate.suite_plan import Part


def knobs_word(knobs: Knobs) -> str:
    """Return a setting as one word, `mu=0.5,steps=100`; `-` for a method without knobs."""
    return ",".join(f"{name}={value}" for name, value in knobs.items()) or "-"


class Scored(Protocol):
    """What every entry has: the setting of a method, the pair and the seed it was scored on, and its cost."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def knobs(self) -> str:
        """Its setting, as `knobs_word` says it."""

    @property
    def pair(self) -> str:
        """Name of the pair."""

    @property
    def seed(self) -> int:
        """Seed of trainings and samplings."""

    @property
    def trainable(self) -> int:
        """How many numbers were trained."""

    @property
    def seconds(self) -> float:
        """Time of the merge, or of the whole recipe, for this pair."""

    @property
    def hmean(self) -> float:
        """What settings are compared by."""

    def record(self) -> dict[str, Any]:
        """Return the entry as JSON-ready values."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one setting of one method reached on one pair and seed of the truth suite.

    `seconds` is the pair's share of the pass that merged it, `sampling_seconds` that of the one that drew its pictures.
    """

    method: str
    knobs: str
    pair: str
    seed: int
    joint: Score
    recontext: Score
    trainable: int
    seconds: float
    sampling_seconds: float = 0.0

    @property
    def hmean(self) -> float:
        """Harmonic mean on the joint prompt."""
        return self.joint.hmean

    def record(self) -> dict[str, Any]:
        """Return the entry as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Entry:
        """Build an entry from its JSON."""
        scores = {part: Score(**record[part]) for part in ("joint", "recontext")}
        return cls(**{**record, **scores})


Key = tuple[str, str, str, int]
E = TypeVar("E", bound=Scored)


def key_of(entry: Scored) -> Key:
    """Return what tells entries apart: method, setting, pair, seed."""
    return entry.method, entry.knobs, entry.pair, entry.seed


class ScoreBook(Generic[E]):
    """Entries by key, kept in a file that grows by whole lines."""

    def __init__(self, path: Path, from_record: Callable[[Mapping[str, Any]], E]) -> None:
        """Read what is there; a line that was cut off by the end of an earlier run is dropped.

        Raises:
            InvalidConfig: a line before the last is damaged.
        """
        self._path = path
        self._entries: dict[Key, E] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                entry = from_record(json.loads(line))
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                if number < len(lines):
                    raise InvalidConfig(f"line {number} of {path} is damaged; move the file away") from error
                break
            self._entries[key_of(entry)] = entry
        if lines:
            self._rewrite()

    def __contains__(self, key: Key) -> bool:
        """Say whether an entry is there."""
        return key in self._entries

    def entries(self) -> list[E]:
        """Return all entries in the order they came."""
        return list(self._entries.values())

    def add(self, entries: Iterable[E]) -> None:
        """Take entries and write them at once."""
        fresh = list(entries)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry.record()) + "\n" for entry in fresh)
        self._entries.update((key_of(entry), entry) for entry in fresh)

    def absorb(self, other: ScoreBook[E]) -> None:
        """Take over what another book has and this one has not."""
        self.add(entry for entry in other.entries() if key_of(entry) not in self)

    def forget(self, methods: Collection[str]) -> None:
        """Drop all entries of the given methods, to score them anew."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.method not in methods}
        self._rewrite()

    def forget_all(self) -> None:
        """Drop every entry."""
        self._entries = {}
        self._rewrite()

    def _rewrite(self) -> None:
        """Write the whole file anew."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(entry.record()) + "\n" for entry in self._entries.values()), encoding="utf-8"
        )
        partial.replace(self._path)


def open_book(folder: Path, from_record: Callable[[Mapping[str, Any]], E], part: Part | None = None) -> ScoreBook[E]:
    """Open the book of a run, or of one part of it; that of the run takes over what its parts have scored.

    Raises:
        InvalidConfig: a line of a file is damaged.
    """
    if part is not None:
        return ScoreBook(folder / part.file_name, from_record)
    book = ScoreBook(folder / "scores.jsonl", from_record)
    for path in sorted(folder.glob("scores.*-of-*.jsonl")):
        book.absorb(ScoreBook(path, from_record))
    return book
