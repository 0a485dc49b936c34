"""Deliveries: written with their event, taken once, retried by the schedule, settled once."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from api.accounts.models import Account
from api.db import transaction
from api.jobs import repository as jobs
from api.webhooks.models import DeliveryState, WebhookDelivery
from api.webhooks.repository import AttemptTime, DeliveryOutcome, record_outcome, take_due
from api.webhooks.schemas import WebhookEvent
from api.webhooks.signing import SCHEDULE
from tests.api.factories import cancel, claim, fail, held, make_account, make_job, rolled_back

HOLD = timedelta(seconds=60)
SLACK = timedelta(seconds=4)
"""How long a busy machine may take between a write and the look at it."""
TOOK = AttemptTime(datetime(2026, 1, 2, tzinfo=UTC), timedelta(milliseconds=12))
URL = "https://receiver.example/hook"


@pytest.fixture
def account(sessions):
    return make_account(sessions)


@pytest.fixture
def queued(sessions, account):
    """A job that ended, with one delivery to make."""
    job_id = make_job(sessions, account, webhook_url=URL, traceparent="00-a-b-01")
    cancel(sessions, account, job_id)
    return job_id


def take(sessions, limit=10):
    with transaction(sessions) as session:
        return take_due(session, limit=limit, hold=HOLD)


def record(sessions, due, **outcome):
    with transaction(sessions) as session:
        return record_outcome(session, due=due, outcome=DeliveryOutcome(**outcome), time=TOOK)


def row(sessions):
    with transaction(sessions) as session:
        return session.scalars(select(WebhookDelivery)).one()


def make_due(sessions):
    with transaction(sessions) as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=func.now()))


def wait(sessions):
    with transaction(sessions) as session:
        return session.scalar(select(WebhookDelivery.next_attempt_at - func.now()))


def test_a_delivery_carries_all_that_sending_needs(sessions, account, queued):
    (due,) = take(sessions)
    assert (due.url, due.job_id, due.attempt, due.traceparent) == (URL, queued, 1, "00-a-b-01")
    with transaction(sessions) as session:
        assert due.secrets == (session.get(Account, account).webhook_secret,)
    body = WebhookEvent.model_validate_json(due.body)
    assert (body.type, body.data.job_id, body.data.state) == ("job.canceled", queued, "canceled")
    assert body.data.urls.self == "http://service/jobs/x"
    assert len(due.body) < 2000


def test_a_failed_jobs_event_names_the_fault(sessions, account):
    make_job(sessions, account, webhook_url=URL)
    fail(sessions, claim(sessions))
    data = json.loads(take(sessions)[0].body)["data"]
    assert (data["state"], data["code"], data["stage"], data["attempt"]) == ("failed", "x", "content_lora", 1)


def test_a_job_without_a_url_has_no_delivery(sessions, account):
    cancel(sessions, account, make_job(sessions, account))
    assert take(sessions) == []


def test_a_terminal_event_that_is_rolled_back_tells_nobody(sessions, account):
    make_job(sessions, account, webhook_url=URL)
    claimed = claim(sessions)
    error = {"code": "x"}
    with rolled_back(sessions) as session:
        jobs.fail_stage(session, **held(claimed), error=error, retry_after=None)
    assert take(sessions) == []


def test_what_was_taken_is_held(sessions, queued):
    assert len(take(sessions)) == 1
    assert take(sessions) == []
    make_due(sessions)  # the sender died, the hold is over
    assert [due.attempt for due in take(sessions)] == [2]


def test_many_senders_share_the_work(sessions, account):
    for _ in range(12):
        cancel(sessions, account, make_job(sessions, account, webhook_url=URL))

    def work(_):
        mine = []
        while part := take(sessions, limit=2):
            mine += [due.id for due in part]
        return mine

    with ThreadPoolExecutor(3) as pool:
        taken = [due for mine in pool.map(work, range(3)) for due in mine]
    assert len(taken) == len(set(taken)) == 12


def test_success_settles(sessions, queued):
    (due,) = take(sessions)
    assert record(sessions, due, status=200) is DeliveryState.DELIVERED
    make_due(sessions)
    assert take(sessions) == []
    settled = row(sessions)
    assert (settled.state, settled.last_status, settled.last_error) == (DeliveryState.DELIVERED, 200, None)
    assert settled.delivered_at is not None


def test_failures_follow_the_schedule_until_it_ends(sessions, queued):
    ids, bodies = set(), set()
    for attempt in range(1, len(SCHEDULE) + 1):
        make_due(sessions)
        (due,) = take(sessions)
        assert due.attempt == attempt
        ids.add(due.id)
        bodies.add(due.body)
        state = record(sessions, due, status=500, error="answered 500")
        if attempt < len(SCHEDULE):
            assert state is DeliveryState.PENDING
            assert SCHEDULE[attempt] - SLACK < wait(sessions) <= SCHEDULE[attempt] * 1.1
    assert state is DeliveryState.EXHAUSTED
    assert len(ids) == len(bodies) == 1
    make_due(sessions)
    assert take(sessions) == []
    assert row(sessions).last_error == "answered 500"


def test_a_receiver_that_is_gone_is_left_alone(sessions, queued):
    (due,) = take(sessions)
    assert record(sessions, due, status=410, error="answered 410", final=True) is DeliveryState.EXHAUSTED


@pytest.mark.parametrize(("asked", "low"), [(timedelta(hours=3), timedelta(hours=3)), (timedelta(0), SCHEDULE[1])])
def test_retry_after_can_only_slow_down(sessions, queued, asked, low):
    (due,) = take(sessions)
    record(sessions, due, status=429, error="answered 429", retry_after=asked)
    assert low - SLACK < wait(sessions) <= low * 1.1


def test_a_late_outcome_changes_nothing(sessions, queued):
    (slow,) = take(sessions)
    make_due(sessions)
    (quick,) = take(sessions)
    record(sessions, quick, status=200)
    assert record(sessions, slow, error="no answer") is DeliveryState.DELIVERED
    assert row(sessions).last_error is None
