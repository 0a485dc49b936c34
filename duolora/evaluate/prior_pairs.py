"""The pairs that layer priors are measured on: the development list, and pairs that the base knows.

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
    from collections.abc import Iterable

COMPANIONS = 3
"""Pictures that show the style of a calibration pair, as many as those of the suite have."""
HELD_BACK_OF = 6
"""One calibration pair of so many has no say in the search."""


class Group(StrEnum):
    """What a pair is for."""

    DEVELOPMENT = "development"
    """Held-out subjects in held-out combinations, as the suite's; they have a say in the search."""
    CALIBRATION = "calibration"
    """Seen subjects in seen combinations; they have a say too."""
    HELD_BACK = "held back"
    """Calibration pairs that have none: what was found is checked on them."""


def calibration_pairs(count: int, seed: int = 0) -> list[TruthPair]:
    """Return pairs of a subject and a style that the base drew in its training, no two alike.

    Raises:
        InvalidConfig: there are not so many.
    """
    chance = random.Random(seed)
    subjects = companion_subjects()
    pairs: dict[str, TruthPair] = {}
    attempts = 0
    while len(pairs) < count:
        attempts += 1
        if attempts > 20 * count:
            raise InvalidConfig(f"the world has not {count} calibration pairs; ask for fewer")
        subject = subjects[len(pairs) % len(subjects)]
        style = chance.choice(STYLES)
        colour = chance.choice(training_colours(style))
        ground = chance.choice([name for name in COLOURS if name != colour])
        companions = chance.sample([name for name in subjects if name != subject], COMPANIONS)
        pair = TruthPair(subject, style, colour, ground, tuple(companions))
        pairs.setdefault(pair.name, pair)
    return list(pairs.values())


def measured_pairs(development: int | None, calibration: int, seed: int = 0) -> list[tuple[Group, TruthPair]]:
    """Return the pairs of all groups; `development` takes only so many from the start of the list.

    Raises:
        InvalidConfig: a pair belongs to the full suite, or there are not so many.
    """
    listed = [(Group.DEVELOPMENT, pair) for pair in truth_pairs(Selection.DEVELOPMENT)[:development]]
    for index, pair in enumerate(calibration_pairs(calibration, seed)):
        back = index % HELD_BACK_OF == HELD_BACK_OF - 1
        listed.append((Group.HELD_BACK if back else Group.CALIBRATION, pair))
    require_foreign_to_suite(pair for _, pair in listed)
    return listed


def require_foreign_to_suite(pairs: Iterable[TruthPair]) -> None:
    """Refuse pairs that share a subject, or a style in a colour, with the full suite.

    Raises:
        InvalidConfig: the message names the pair.
    """
    full = truth_pairs(Selection.FULL)
    subjects = {pair.subject for pair in full}
    looks = {(pair.style, pair.colour) for pair in full}
    for pair in pairs:
        if pair.subject in subjects or (pair.style, pair.colour) in looks:
            raise InvalidConfig(f"{pair.name} is too near the full suite to tune anything on")
