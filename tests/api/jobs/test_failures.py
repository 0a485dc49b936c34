import pytest

from api.jobs.failures import CAPS, FailureClass, judge

MAX_ATTEMPTS = 3


def failures_until_the_end(kind, counts=None):
    """How many failures of one class a stage has when it ends, and whether it is poison."""
    counts = dict(counts or {})
    for number in range(1, 100):
        verdict = judge(kind, counts, max_attempts=MAX_ATTEMPTS)
        if verdict.final:
            return number, verdict.poisoned
        counts = verdict.counts
    pytest.fail("it never ends")


def test_every_class_has_a_cap():
    assert set(CAPS) == set(FailureClass)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FailureClass.CALLER, (1, False)),
        (FailureClass.MEMORY, (2, False)),
        (FailureClass.ENVIRONMENT, (12, False)),
        (FailureClass.DEATH, (MAX_ATTEMPTS, True)),
    ],
)
def test_a_class_ends_at_its_cap(kind, expected):
    assert failures_until_the_end(kind) == expected


def test_failures_of_other_classes_do_not_count():
    others = {kind.value: 50 for kind in FailureClass if kind is not FailureClass.DEATH}
    assert failures_until_the_end(FailureClass.DEATH, others) == (MAX_ATTEMPTS, True)


def test_the_counts_given_are_left_alone():
    counts = {"death": 1}
    assert judge(FailureClass.DEATH, counts, max_attempts=MAX_ATTEMPTS).counts == {"death": 2}
    assert counts == {"death": 1}
