"""Which engine a job is for: the real one, or one that does nothing but goes the whole way."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    """Who does the work of a job."""

    DUOLORA = "duolora"
    MOCK = "mock"
    """Nothing is learnt: small files that say so come in a second or two, by way of everything else that is real."""


class MockOutcome(StrEnum):
    """What becomes of a job of the mock engine."""

    SUCCEED = "succeed"
    FAIL = "fail"
    """Its first stage fails halfway, for good."""
    SLOW = "slow"
    """It succeeds, after some seconds for each stage: time to follow, stop or cancel it."""
