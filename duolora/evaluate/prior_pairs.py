"""The pairs that layer priors are measured on: subjects of the development list, and pairs that the base knows.

None has a subject, or a style in a colour, of the full suite: what is measured there must not have been tuned on.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import TYPE_CHECKING

from duolora.errors import InvalidConfig
from duolora.evaluate.truth_suite import Selection, TruthPair, truth_pairs
from duolora.tiny.captions import COLOURS, STYLES, training_colours
from duolora.tiny.held_out import companion_subjects

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

COMPANIONS = 3
"""Pictures that show the style of a calibration pair, as many as those of the suite have."""
HELD_BACK_OF = 3
"""One calibration pair of so many has no say in the search."""


class Group(StrEnum):
    """What a pair is for."""

    DEVELOPMENT = "development"
    """The development list: held-out subjects in held-out combinations, as the suite's. It has no say in the search."""
    DEVELOPMENT_GRID = "development grid"
    """Subjects of the development list in seen combinations; they have a say."""
    CALIBRATION = "calibration"
    """Seen subjects in seen combinations; they have a say too."""
    HELD_BACK = "held back"
    """Calibration pairs that have none."""

    @property
    def is_searched(self) -> bool:
        """Whether the search looks at pairs of this group; what it found is checked on the others."""
        return self in {Group.DEVELOPMENT_GRID, Group.CALIBRATION}


def calibration_pairs(count: int, seed: int = 0) -> list[TruthPair]:
    """Return pairs of a subject and a style that the base drew in its training, no two alike.

    Raises:
        InvalidConfig: there are not so many.
    """
    return _pairs_of(companion_subjects(), count, seed)


def development_grid(count: int, seed: int = 0) -> list[TruthPair]:
    """Return pairs of a subject of the development list and a style that the base knows, no two alike.

    Raises:
        InvalidConfig: there are not so many.
    """
    listed = truth_pairs(Selection.DEVELOPMENT)
    subjects = sorted({pair.subject for pair in listed})
    return _pairs_of(subjects, count, seed, besides={pair.name for pair in listed})


def _pairs_of(
    subjects: Sequence[str], count: int, seed: int, besides: AbstractSet[str] = frozenset()
) -> list[TruthPair]:
    """Return pairs of the subjects in turn with looks that the base was trained on, none of a name in `besides`."""
    chance = random.Random(seed)
    pairs: dict[str, TruthPair] = {}
    attempts = 0
    while len(pairs) < count:
        attempts += 1
        if attempts > 20 * count:
            raise InvalidConfig(f"the world has not {count} such pairs; ask for fewer")
        subject = subjects[len(pairs) % len(subjects)]
        style = chance.choice(STYLES)
        colour = chance.choice(training_colours(style))
        ground = chance.choice([name for name in COLOURS if name != colour])
        companions = chance.sample([name for name in companion_subjects() if name != subject], COMPANIONS)
        pair = TruthPair(subject, style, colour, ground, tuple(companions))
        if pair.name not in besides:
            pairs.setdefault(pair.name, pair)
    return list(pairs.values())


def measured_pairs(
    grid: int, calibration: int, *, development: int | None = None, seed: int = 0
) -> list[tuple[Group, TruthPair]]:
    """Return the pairs of all groups.

    Args:
        grid: number of pairs of the development grid.
        calibration: number of calibration pairs, those held back included.
        development: number of pairs from the start of the development list, None for all.
        seed: draws the pairs that are on no list.

    Raises:
        InvalidConfig: a pair belongs to the full suite, there are not so many, or none has a say.
    """
    listed = [(Group.DEVELOPMENT, pair) for pair in truth_pairs(Selection.DEVELOPMENT)[:development]]
    listed += [(Group.DEVELOPMENT_GRID, pair) for pair in development_grid(grid, seed)]
    for index, pair in enumerate(calibration_pairs(calibration, seed)):
        back = index % HELD_BACK_OF == HELD_BACK_OF - 1
        listed.append((Group.HELD_BACK if back else Group.CALIBRATION, pair))
    require_foreign_to_suite(pair for _, pair in listed)
    if not any(group.is_searched for group, _ in listed):
        raise InvalidConfig("a search needs pairs of the development grid or calibration pairs")
    return listed


def require_foreign_to_suite(pairs: Iterable[TruthPair]) -> None:
    """Refuse pairs that share a subject, or a style in a colour, with the full suite.

    Raises:
        InvalidConfig: the message names the pair.
    """
    full = truth_pairs(Selection.WIDE)
    subjects = {pair.subject for pair in full}
    looks = {(pair.style, pair.colour) for pair in full}
    for pair in pairs:
        if pair.subject in subjects or (pair.style, pair.colour) in looks:
            raise InvalidConfig(f"{pair.name} is too near the full suite to tune anything on")
