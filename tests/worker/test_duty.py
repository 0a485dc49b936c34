"""Duties of the dispatcher: one holder at a time, a bug ends the thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.worker.bench import PATIENCE_S, eventually
from worker.backoff import Backoff
from worker.dispatcher.duty import Duty, ServerAway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def on_duty(database_url: str, round_: Callable[[], None], name: str = "sweep") -> Iterator[Duty]:
    stop = threading.Event()

    def one_round(_connection: object) -> None:
        round_()
        stop.wait(0.01)

    duty = Duty(name, one_round, database_url=database_url, stop=stop, standby_s=0.02)
    duty.start()
    try:
        yield duty
    finally:
        stop.set()
        duty.join(PATIENCE_S)
        assert not duty.is_alive()


def test_one_does_it_and_the_next_takes_over(database_url: str):
    first, second = [], []
    with on_duty(database_url, lambda: first.append(1)):
        eventually(lambda: first)
        with on_duty(database_url, lambda: second.append(1)):
            seen = len(first)
            eventually(lambda: len(first) > seen + 5)
            assert not second
    with on_duty(database_url, lambda: second.append(1)):
        eventually(lambda: second)


def test_different_duties_do_not_wait_for_each_other(database_url: str):
    one, other = [], []
    with (
        on_duty(database_url, lambda: one.append(1), "one"),
        on_duty(database_url, lambda: other.append(1), "other"),
    ):
        eventually(lambda: one and other)


def test_an_absent_server_is_waited_for(database_url: str):
    rounds = []

    def away_once() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise ServerAway("for a moment")

    with on_duty(database_url, away_once):
        eventually(lambda: len(rounds) > 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_ends_the_thread(database_url: str):
    def bug() -> None:
        raise KeyError("a bug")

    with on_duty(database_url, bug) as duty:
        eventually(lambda: not duty.is_alive())


def test_backoff_grows_to_its_limit_and_starts_again_after_a_success():
    backoff = Backoff(first_s=1.0, most_s=8.0)
    pauses = [backoff.next_s() for _ in range(100)]
    for pause, full in zip(pauses, [1, 2, 4, *[8] * 97], strict=True):
        assert full / 2 <= pause <= full
    backoff.reset()
    assert backoff.next_s() <= 1.0
