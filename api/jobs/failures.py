"""Classes of failures, and how many of each a stage may have in a row before it fails for good.

In a row: since it last got further than ever before. A checkpoint of a later step empties the counts, so a long stage
may survive any number of accidents, while one that kills its worker again and again without a step done in between is
poison and ends. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class FailureClass(StrEnum):
    """Why an attempt failed.

    A shutdown, a cancel, a lost lease that somebody else counted and the end of a pass that several jobs shared are no
    failures.
    """

    CALLER = "caller"
    """The same request can never succeed."""
    MEMORY = "memory"
    """The device had too little memory; the next attempt takes the small profile."""
    ENVIRONMENT = "environment"
    """The store, the database or a disk was away or full: not the stage's doing, so it has the most patience."""
    DEATH = "death"
    """The worker or the engine process died, hung or met a bug: the stage itself may be the cause."""


CAPS: Mapping[FailureClass, int | None] = {
    FailureClass.CALLER: 1,
    FailureClass.MEMORY: 2,
    FailureClass.ENVIRONMENT: 12,
    FailureClass.DEATH: None,
}
"""With so many failures of a class in a row the stage fails for good; None: `stages.max_attempts`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means for its stage."""

    counts: dict[str, int]
    """`stages.failure_counts` from now on."""
    final: bool
    """No attempt is left."""
    poisoned: bool
    """The stage has ended because it kills whoever runs it."""


def judge(kind: FailureClass, counts: Mapping[str, int], *, max_attempts: int) -> Verdict:
    """Count a failure and say whether another attempt may follow.

    Args:
        kind: its class.
        counts: failures before it, by class.
        max_attempts: the stage's own cap of deaths.
    """
    counted = {**counts, kind.value: counts.get(kind.value, 0) + 1}
    cap = CAPS[kind]
    final = counted[kind.value] >= (max_attempts if cap is None else cap)
    return Verdict(counts=counted, final=final, poisoned=final and kind is FailureClass.DEATH)
