"""What happens to those who had to wait for a lock: they must judge by what they find then, not by what they saw."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.models import Stage
from api.jobs.states import JobState
from tests.api.factories import (
    LEASE,
    cancel,
    claim,
    expire_lease,
    finish,
    held,
    job_state,
    make_account,
    make_job,
    reap,
    snapshot,
    stage_states,
)


@pytest.fixture
def account(sessions):
    return make_account(sessions)


@contextmanager
def while_waiting(sessions, act):
    """Run `act` in a thread, enter the block once it waits for a row lock; yields its future."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(act)
        waiting = False
        while not waiting:
            assert not future.done(), "it did not wait for any lock"
            with transaction(sessions) as session:
                waiting = session.scalar(
                    text(
                        "SELECT count(*) > 0 FROM pg_stat_activity"
                        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                    )
                )
        yield future


def test_a_finish_that_waited_for_the_reaper_has_lost(sessions, account):
    make_job(sessions, account)
    claimed = claim(sessions)
    expire_lease(sessions, claimed)
    with sessions() as reaper:
        assert repository.reap_stale(reaper) == 1
        with while_waiting(sessions, lambda: finish(sessions, claimed)) as late:
            reaper.commit()
            with pytest.raises(LeaseLost):
                late.result(30)
    with transaction(sessions) as session:
        assert session.get(Stage, claimed.stage_id).state == "runnable"


def test_a_reaper_that_waited_for_a_sign_of_life_spares_the_worker(sessions, account):
    make_job(sessions, account)
    claimed = claim(sessions)
    expire_lease(sessions, claimed)
    with sessions() as worker:
        repository.heartbeat(worker, **held(claimed), lease=LEASE)
        with while_waiting(sessions, lambda: reap(sessions)) as reaping:
            worker.commit()
            assert reaping.result(30) == 0
    finish(sessions, claimed)


def test_a_heartbeat_that_waited_for_the_reaper_has_lost(sessions, account):
    make_job(sessions, account)
    claimed = claim(sessions)
    expire_lease(sessions, claimed)

    def beat():
        with transaction(sessions) as session:
            repository.heartbeat(session, **held(claimed), lease=LEASE)

    with sessions() as reaper:
        repository.reap_stale(reaper)
        reaper.flush()
        with while_waiting(sessions, beat) as late:
            reaper.commit()
            with pytest.raises(LeaseLost):
                late.result(30)


def test_a_cancel_that_waited_for_a_claim_finds_the_stage_running(sessions, account):
    job_id = make_job(sessions, account)
    with sessions() as worker:
        claimed = repository.claim_stage(worker, worker_id="w", lease=LEASE)
        worker.flush()
        with while_waiting(sessions, lambda: cancel(sessions, account, job_id)) as canceling:
            worker.commit()
            assert canceling.result(30)
    assert job_state(sessions, job_id) is JobState.RUNNING
    assert stage_states(sessions, job_id)["content_lora"] == "running"
    with transaction(sessions) as session:
        assert repository.heartbeat(session, **held(claimed), lease=LEASE).cancel_requested


def test_the_second_of_two_cancels_changes_nothing(sessions, account):
    job_id = make_job(sessions, account)
    with sessions() as first:
        repository.request_cancel(first, account_id=account, job_id=job_id)
        first.flush()
        with while_waiting(sessions, lambda: cancel(sessions, account, job_id)) as second:
            first.commit()
            after_first = snapshot(sessions)
            assert second.result(30)
    assert snapshot(sessions) == after_first
