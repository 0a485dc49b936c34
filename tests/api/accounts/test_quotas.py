"""Quotas are counted under the account's lock."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from api.accounts import quotas
from api.accounts.models import Account
from api.db import transaction
from api.errors import QuotaExceeded
from tests.api.factories import claim, make_account, make_job


def bound(sessions, account_id, **bounds):
    with transaction(sessions) as session:
        session.execute(update(Account).where(Account.id == account_id).values(**bounds))


def stored(sessions, account_id):
    with transaction(sessions) as session:
        return session.get(Account, account_id).stored_bytes


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def reserve(sessions, account_id, stored_bytes=10):
    with transaction(sessions) as session:
        return quotas.reserve(session, account_id, stored_bytes=stored_bytes)


def test_an_account_without_bounds_may_have_anything_and_hears_of_no_limit(sessions, account):
    used = reserve(sessions, account, 10**12)
    assert used.headers() == {}
    assert stored(sessions, account) == 10**12


def test_so_many_jobs_may_wait_and_no_more(sessions, account):
    bound(sessions, account, max_queued_jobs=2)
    make_job(sessions, account)
    used = reserve(sessions, account)
    assert used.headers() == {
        "RateLimit-Policy": '"queued-jobs";q=2;qu="concurrent-requests"',
        "RateLimit": '"queued-jobs";r=0',
    }
    make_job(sessions, account)
    with pytest.raises(QuotaExceeded, match="2 jobs wait, and 2 may") as refusal:
        reserve(sessions, account)
    assert refusal.value.extensions == {"violated_policies": ["queued-jobs"]}
    assert int(refusal.value.headers["Retry-After"]) > 0
    assert stored(sessions, account) == 10
    claim(sessions)  # one starts: its place is free
    reserve(sessions, account)


def test_another_accounts_jobs_take_no_place(sessions, account):
    bound(sessions, account, max_queued_jobs=1)
    make_job(sessions, make_account(sessions, "theirs"))
    reserve(sessions, account)


def test_bytes_are_bounded_and_come_back(sessions, account):
    bound(sessions, account, max_stored_bytes=100)
    reserve(sessions, account, 100)
    with pytest.raises(QuotaExceeded, match="1 more came"):
        reserve(sessions, account, 1)
    with transaction(sessions) as session:
        quotas.add_stored(session, account, -40)
    used = reserve(sessions, account, 30)
    assert used.headers()["RateLimit"] == '"stored-bytes";r=10'
    with transaction(sessions) as session:
        quotas.add_stored(session, account, -(10**6))
    assert stored(sessions, account) == 0


def test_of_two_that_want_the_last_place_one_is_refused(sessions, account):
    bound(sessions, account, max_queued_jobs=1)
    first_holds, second_asks = threading.Event(), threading.Event()

    def first():
        with transaction(sessions) as session:
            quotas.reserve(session, account, stored_bytes=1)
            first_holds.set()
            second_asks.wait(10)
            time.sleep(0.2)
            make_job(sessions, account)

    def second():
        second_asks.set()
        reserve(sessions, account)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert first_holds.wait(10)
        with pytest.raises(QuotaExceeded):
            pool.submit(second).result()
        one.result()
    assert stored(sessions, account) == 1
