"""Moves made under the locks: whoever waited for one judges by what it finds then, and every move is told of."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.event_types import TERMINAL_EVENTS, EventType
from api.jobs.models import Event, Stage
from api.jobs.states import JobState
from api.webhooks.models import WebhookDelivery, WebhookEndpoint
from tests.api.factories import (
    LEASE,
    cancel,
    claim,
    events,
    expire_lease,
    fail,
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
        claimed = repository.claim_stage(worker, repository.Claimant(worker_id="w", lease=LEASE))
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


def told(sessions, job_id):
    """What the events say of each stage: (name, state), in order."""
    with transaction(sessions) as session:
        rows = session.scalars(
            select(Event).where(Event.job_id == job_id, Event.type == EventType.STAGE_CHANGED).order_by(Event.id)
        )
        return [(row.data["stage"], row.data["state"]) for row in rows]


def ends_with(sessions, job_id, kind):
    """Say whether the last event, and no other, tells of the job's end."""
    *before, last = events(sessions, job_id)
    return last == kind and TERMINAL_EVENTS.isdisjoint(before)


def last_told(sessions, job_id):
    """The state of each stage as the events leave it."""
    return dict(told(sessions, job_id))


def test_a_merge_is_told_to_be_runnable_once_both_loras_are_there(sessions, account):
    job_id = make_job(sessions, account)
    finish(sessions, claim(sessions))
    assert ("merge", "runnable") not in told(sessions, job_id)
    finish(sessions, claim(sessions))
    assert told(sessions, job_id)[-1] == ("merge", "runnable")
    finish(sessions, claim(sessions))
    finish(sessions, claim(sessions))
    for name in ("merge", "package"):
        assert [state for stage, state in told(sessions, job_id) if stage == name] == [
            "runnable",
            "running",
            "succeeded",
        ]
    assert ends_with(sessions, job_id, "job.succeeded")


def test_a_failure_tells_of_what_it_cancels_and_the_jobs_end_comes_last(sessions, account):
    job_id = make_job(sessions, account)
    claimed, _running = claim(sessions), claim(sessions)
    before = len(told(sessions, job_id))
    fail(sessions, claimed)
    assert sorted(told(sessions, job_id)[before:]) == [
        ("content_lora", "failed"),
        ("merge", "canceled"),
        ("package", "canceled"),
        ("style_lora", "canceled"),
    ]
    assert ends_with(sessions, job_id, "job.failed")


@pytest.mark.parametrize(("claims", "end"), [(0, "job.expired"), (1, "job.failed"), (2, "job.failed")])
def test_a_deadline_tells_of_every_stage_before_the_jobs_end(sessions, account, claims, end):
    job_id = make_job(sessions, account, deadline_at=datetime.now(UTC) + timedelta(hours=1))
    for _ in range(claims):
        claim(sessions)
    with transaction(sessions) as session:
        assert repository.expire_overdue(session, now=datetime.now(UTC) + timedelta(hours=2)) == 1
    assert last_told(sessions, job_id) == stage_states(sessions, job_id)
    assert set(last_told(sessions, job_id).values()) == {"canceled"}
    assert ends_with(sessions, job_id, end)


@pytest.mark.parametrize("claims", [0, 1])
def test_a_cancel_tells_of_what_no_worker_holds(sessions, account, claims):
    job_id = make_job(sessions, account)
    held_by_worker = [claim(sessions) for _ in range(claims)]
    cancel(sessions, account, job_id)
    assert last_told(sessions, job_id) == stage_states(sessions, job_id)
    assert last_told(sessions, job_id)["merge"] == "canceled"
    for claimed in held_by_worker:
        with transaction(sessions) as session:
            repository.settle_cancel(session, **held(claimed))
    assert last_told(sessions, job_id) == stage_states(sessions, job_id)
    assert ends_with(sessions, job_id, "job.canceled")


def test_an_endpoint_hears_what_a_failure_cancels(sessions, account):
    with transaction(sessions) as session:
        session.add(WebhookEndpoint(account_id=account, url="https://receiver.example/hook"))
    job_id = make_job(sessions, account)
    fail(sessions, claim(sessions))
    with transaction(sessions) as session:
        rows = session.scalars(
            select(WebhookDelivery).where(WebhookDelivery.job_id == job_id).order_by(WebhookDelivery.event_id)
        )
        bodies = [json.loads(row.body) for row in rows]
    heard = {(body["data"].get("stage"), body["data"].get("stage_state")) for body in bodies}
    assert heard >= {("style_lora", "canceled"), ("merge", "canceled")}
    assert bodies[-1]["type"] == "job.failed"
