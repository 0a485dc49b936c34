"""Keys of requests that may be sent again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from api import idempotency
from api.accounts.models import IdempotencyKey
from api.db import transaction
from api.errors import Conflict, InvalidParameters, InvalidRequest
from api.idempotency import Fresh, Ledger, Replay, fingerprint, read_key
from tests.api.factories import make_account, make_job


@pytest.fixture
def account(sessions):
    return make_account(sessions)


@pytest.fixture
def ledger(sessions):
    return Ledger(sessions, keeps=timedelta(hours=24), locks=timedelta(seconds=120))


def complete(sessions, entry, body="{}"):
    job_id = make_job(sessions, entry.account_id)
    with transaction(sessions) as session:
        idempotency.complete(session, entry, job_id=job_id, status=202, body=body, location="/jobs/x")
    return job_id


def age(sessions, **columns):
    with transaction(sessions) as session:
        session.execute(update(IdempotencyKey).values(**columns))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], None),
        (["abc"], "abc"),
        (['"abc"'], "abc"),
        ([r'"a\"b\\c"'], 'a"b\\c'),
        (["8e03978e-40d5-43e8-bc93-6894a57f9324"], "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (["x" * 255], "x" * 255),
        (['"' + "x" * 255 + '"'], "x" * 255),
    ],
)
def test_a_key_is_quoted_or_bare(values, key):
    assert read_key(values) == key


@pytest.mark.parametrize(
    "values", [[""], ['""'], ["a b"], ['"a b"'], ['"abc'], ["é"], ["x" * 256], ["a\tb"], ["a", "b"], ['"a"; b=1']]
)
def test_what_is_no_key_is_refused(values):
    with pytest.raises(InvalidRequest) as refusal:
        read_key(values)
    assert refusal.value.code == "invalid_idempotency_key"


def test_a_fingerprint_knows_a_request_again_and_nothing_else():
    parts = [("content", 0, "aa"), ("style", 0, "bb")]
    mark = fingerprint("POST /jobs", {"rank": 4, "seed": 1}, parts)
    assert mark == fingerprint("POST /jobs", {"seed": 1, "rank": 4}, parts)
    others = [
        fingerprint("POST /other", {"rank": 4, "seed": 1}, parts),
        fingerprint("POST /jobs", {"rank": 5, "seed": 1}, parts),
        fingerprint("POST /jobs", {"rank": 4, "seed": 1}, parts[::-1]),
        fingerprint("POST /jobs", {"rank": 4, "seed": 1}, [("content", 0, "aa"), ("style", 0, "bc")]),
    ]
    assert len({mark, *others}) == 5


def test_the_outcome_is_told_again(sessions, ledger, account):
    entry = ledger.begin(account, "k", "m")
    job_id = complete(sessions, entry, '{"b": 1, "a": 2}')
    again = ledger.begin(account, "k", "m")
    assert again == Replay(job_id, 202, '{"b": 1, "a": 2}', "/jobs/x", entry.expires_at)


def test_while_it_is_worked_on_its_twin_has_to_wait(ledger, account):
    ledger.begin(account, "k", "m")
    with pytest.raises(Conflict) as refusal:
        ledger.begin(account, "k", "m")
    assert refusal.value.code == "idempotency_in_flight"
    assert refusal.value.headers["Retry-After"] == "1"


def test_another_request_may_not_have_the_key_in_flight_or_done(sessions, ledger, account):
    entry = ledger.begin(account, "k", "m")
    for _ in range(2):
        with pytest.raises(InvalidParameters) as refusal:
            ledger.begin(account, "k", "other")
        assert refusal.value.code == "idempotency_mismatch"
        if _ == 0:
            complete(sessions, entry)


def test_another_account_may_have_the_same_key(sessions, ledger, account):
    ledger.begin(account, "k", "m")
    assert isinstance(ledger.begin(make_account(sessions, "theirs"), "k", "other"), Fresh)


def test_a_lost_request_is_taken_over_and_can_then_write_nothing(sessions, ledger, account):
    first = ledger.begin(account, "k", "m")
    age(sessions, locked_until=func.now() - timedelta(seconds=1))
    with pytest.raises(InvalidParameters):
        ledger.begin(account, "k", "other")  # a mismatch is judged before the lock
    second = ledger.begin(account, "k", "m")
    assert isinstance(second, Fresh)
    with pytest.raises(Conflict):
        complete(sessions, first)
    ledger.abandon(first)  # not its own any more
    complete(sessions, second)


def test_an_outcome_is_kept_for_its_time_only(sessions, ledger, account):
    complete(sessions, ledger.begin(account, "k", "m"))
    age(sessions, expires_at=func.now())
    assert isinstance(ledger.begin(account, "k", "other"), Fresh)


def test_a_refusal_frees_the_key(sessions, ledger, account):
    with pytest.raises(RuntimeError), ledger.once(account, "k", lambda: "m"):
        raise RuntimeError
    with transaction(sessions) as session:
        assert session.scalars(select(IdempotencyKey)).all() == []
    with ledger.once(account, "k", lambda: "other") as entry:
        assert isinstance(entry, Fresh)


def test_a_request_without_a_key_is_not_looked_up(ledger, account):
    with ledger.once(account, None, lambda: 1 / 0) as entry:
        assert entry is None


def test_of_many_at_once_one_does_the_work(sessions, ledger, account):
    gate = threading.Barrier(4)

    def ask(_):
        gate.wait(10)
        try:
            return ledger.begin(account, "k", "m")
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert sum(isinstance(answer, Fresh) for answer in answers) == 1
