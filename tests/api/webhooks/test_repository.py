"""Deliveries: written with their event, taken once, retried by the schedule, settled once."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, text, update

from api.accounts.models import Account
from api.db import transaction
from api.identifiers import uuid7
from api.jobs import repository as jobs
from api.webhooks import endpoints
from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint
from api.webhooks.repository import origin_of, purge_log
from api.webhooks.schemas import WebhookEvent
from api.webhooks.signing import SCHEDULE, make_secret
from tests.api.factories import cancel, claim, fail, held, make_job, rolled_back
from tests.support.vault import VAULT

SLACK = timedelta(seconds=4)
"""How long a busy machine may take between a write and the look at it."""
URL = "https://receiver.example/hook"


@pytest.fixture
def queued(sessions, account):
    """A job that ended, with one delivery to make."""
    job_id = make_job(sessions, account, webhook_url=URL, traceparent="00-a-b-01", tracestate="c=1", request_id="r-1")
    cancel(sessions, account, job_id)
    return job_id


def test_a_delivery_carries_all_that_sending_needs(sessions, account, queued, post):
    (due,) = post.take()
    assert (due.url, due.job_id, due.attempt) == (URL, queued, 1)
    assert (due.traceparent, due.tracestate, due.request_id) == ("00-a-b-01", "c=1", "r-1")
    assert due.message == f"msg_{due.id.hex}"
    with transaction(sessions) as session:
        assert due.secrets == (VAULT.open(session.get(Account, account).webhook_secret),)
    body = WebhookEvent.model_validate_json(due.body)
    assert (body.type, body.data.job_id, body.data.state) == ("job.canceled", queued, "canceled")
    assert body.data.urls.self == "http://service/jobs/x"
    assert len(due.body) < 2000


def test_a_failed_jobs_event_names_the_fault(sessions, account, post):
    make_job(sessions, account, webhook_url=URL)
    fail(sessions, claim(sessions))
    data = json.loads(post.take()[0].body)["data"]
    assert (data["state"], data["code"], data["stage"], data["attempt"]) == ("failed", "x", "content_lora", 1)


def test_a_terminal_event_that_is_rolled_back_tells_nobody(sessions, account, post):
    make_job(sessions, account, webhook_url=URL)
    claimed = claim(sessions)
    error = {"code": "x"}
    with rolled_back(sessions) as session:
        jobs.fail_stage(session, **held(claimed), error=error, retry_after=None)
    assert post.take() == []


def test_what_was_taken_is_held(queued, post):
    assert len(post.take()) == 1
    assert post.take() == []
    post.make_due()  # the sender died, the hold is over
    assert [due.attempt for due in post.take()] == [2]


def test_many_senders_share_the_work(sessions, account, post):
    for number in range(12):
        cancel(sessions, account, make_job(sessions, account, webhook_url=f"https://receiver-{number}.example/"))

    def work(_):
        mine = []
        while part := post.take(limit=2):
            mine += [due.id for due in part]
        return mine

    with ThreadPoolExecutor(3) as pool:
        taken = [due for mine in pool.map(work, range(3)) for due in mine]
    while rest := post.take():  # rows that another one had locked just then
        taken += [due.id for due in rest]
    assert len(taken) == len(set(taken)) == 12


def test_one_server_never_keeps_all_senders_busy(sessions, account, post):
    for _ in range(5):
        cancel(sessions, account, make_job(sessions, account, webhook_url="https://slow.example/hook"))
    cancel(sessions, account, make_job(sessions, account, webhook_url="https://quick.example/hook"))
    first = post.take(limit=4)
    assert [origin_of(due.url) for due in first] == ["https://slow.example"] * 2 + ["https://quick.example"]
    assert post.take(limit=4, in_flight={"https://slow.example": 2}) == []
    assert len(post.take(limit=4, in_flight={"https://slow.example": 1})) == 1


def test_an_old_backlog_for_one_server_hides_no_other(sessions, account, post):
    for _ in range(9):
        cancel(sessions, account, make_job(sessions, account, webhook_url="https://slow.example/hook?x"))
    cancel(sessions, account, make_job(sessions, account, webhook_url="https://quick.example:443/hook"))
    assert len(post.take(limit=1, in_flight={"https://slow.example": 1})) == 1
    (quick,) = post.take(limit=1, in_flight={"https://slow.example": 2})
    assert quick.url == "https://quick.example:443/hook"


def test_success_settles(queued, post):
    (due,) = post.take()
    assert post.record(due, status=200) is DeliveryState.DELIVERED
    post.make_due()
    assert post.take() == []
    settled = post.row()
    assert (settled.state, settled.last_status, settled.last_error) == (DeliveryState.DELIVERED, 200, None)
    assert settled.delivered_at is not None


def test_failures_follow_the_schedule_until_it_ends_and_disables_the_endpoint(queued, post):
    messages, bodies = set(), set()
    for attempt in range(1, len(SCHEDULE) + 1):
        post.make_due()
        (due,) = post.take()
        assert due.attempt == attempt
        messages.add(due.message)
        bodies.add(due.body)
        state = post.record(due, status=500, error="answered 500")
        if attempt < len(SCHEDULE):
            assert state is DeliveryState.PENDING
            assert SCHEDULE[attempt] - SLACK < post.wait() <= SCHEDULE[attempt] * 1.1
            assert post.endpoint().state is EndpointState.ENABLED
    assert state is DeliveryState.EXHAUSTED
    assert len(messages) == len(bodies) == 1
    post.make_due()
    assert post.take() == []
    assert post.row().last_error == "answered 500"
    assert (post.endpoint().state, post.endpoint().disabled_reason) == (EndpointState.DISABLED, "exhausted")
    assert [(row.attempt, row.status, row.duration_ms, row.error) for row in post.log()] == [
        (attempt, 500, 12, "answered 500") for attempt in range(1, len(SCHEDULE) + 1)
    ]


def test_a_scaled_schedule_keeps_its_shape(queued, post):
    (due,) = post.take()
    for scale in (1 / 3600, 1e-6):
        post.record(due, status=500, error="x", scale=scale)
        assert timedelta(0) - SLACK < post.wait() <= SCHEDULE[1] * 1.1 * scale


def last_attempt(post):
    """The last attempt that the schedule has, at every delivery that is due."""
    for _ in range(len(SCHEDULE)):
        post.make_due()
        due = post.take()
    return due


def test_a_receiver_that_took_something_else_meanwhile_is_not_disabled(sessions, account, queued, post):
    (due,) = last_attempt(post)
    with transaction(sessions) as session:
        session.execute(update(WebhookEndpoint).values(job_id=None))
    make_job(sessions, account)
    (other,) = post.take()
    post.record(other, status=204)
    assert post.record(due, status=500, error="no") is DeliveryState.EXHAUSTED
    assert post.endpoint().state is EndpointState.ENABLED


def test_a_receiver_that_is_gone_is_disabled_with_all_that_was_on_its_way(sessions, account, post):
    post.add_endpoint(account)
    make_job(sessions, account)
    cancel(sessions, account, make_job(sessions, account))
    first, second = post.take(limit=2)
    assert post.record(first, status=410, error="answered 410", final=True) is DeliveryState.EXHAUSTED
    endpoint = post.endpoint()
    assert (endpoint.state, endpoint.disabled_reason) == (EndpointState.DISABLED, "gone")
    assert endpoint.disabled_at is not None
    assert {row.state for row in post.rows()} == {DeliveryState.EXHAUSTED}
    assert {row.last_error for row in post.rows()} == {"answered 410", "the endpoint was disabled"}
    assert post.record(second, status=204) is DeliveryState.DELIVERED, "it was on the wire and arrived after all"
    before = len(post.rows())
    make_job(sessions, account)
    assert len(post.rows()) == before, "nothing is queued for a disabled endpoint"


def test_a_refused_url_ends_its_delivery_and_not_the_endpoint(queued, post):
    (due,) = post.take()
    assert post.record(due, error="not a public address", final=True) is DeliveryState.EXHAUSTED
    assert post.endpoint().state is EndpointState.ENABLED


def test_what_was_queued_while_its_endpoint_was_being_disabled_is_not_sent(sessions, account, queued, post):
    with transaction(sessions) as session:
        session.execute(
            update(WebhookEndpoint).values(state="disabled", disabled_at=func.now(), disabled_reason="gone")
        )
    assert post.take() == []
    assert (post.row().state, post.row().attempts) == (DeliveryState.EXHAUSTED, 0)


@pytest.mark.parametrize(("asked", "low"), [(timedelta(hours=3), timedelta(hours=3)), (timedelta(0), SCHEDULE[1])])
def test_retry_after_can_only_slow_down(queued, post, asked, low):
    (due,) = post.take()
    post.record(due, status=429, error="answered 429", retry_after=asked)
    assert low - SLACK < post.wait() <= low * 1.1


def test_a_late_failure_is_logged_and_changes_nothing(queued, post):
    (slow,) = post.take()
    post.make_due()
    (quick,) = post.take()
    assert post.record(slow, error="no answer") is DeliveryState.PENDING
    assert post.row().last_error is None
    assert post.wait() > timedelta(seconds=30), "the hold of the second attempt stands"
    post.record(quick, status=200)
    assert post.record(slow, error="no answer") is DeliveryState.DELIVERED
    assert post.row().last_error is None
    assert [(row.attempt, row.error) for row in post.log()] == [(1, "no answer"), (2, None)]


def test_a_late_success_settles(queued, post):
    (slow,) = post.take()
    post.make_due()
    (quick,) = post.take()
    post.record(quick, error="no answer")
    assert post.record(slow, status=204) is DeliveryState.DELIVERED


def test_an_endpoints_own_secret_signs_and_the_one_before_as_well_for_a_while(sessions, account, post):
    mine = make_secret()
    endpoint_id = post.add_endpoint(account, secret=mine)
    newest = make_secret()
    for keep, expected in (
        (timedelta(hours=1), (newest, mine)),
        (timedelta(0), (newest,)),
    ):
        with transaction(sessions) as session:
            endpoint = endpoints.lock_endpoint(session, endpoint_id)
            endpoint.secret = mine
            endpoints.rotate(session, endpoint, secret=newest, keep=keep)
        make_job(sessions, account)
        (due,) = post.take()
        assert due.secrets == expected


def test_a_delivery_older_than_endpoints_is_sent_with_the_accounts_secret(sessions, account, queued, post):
    with transaction(sessions) as session:
        session.execute(update(WebhookDelivery).values(endpoint_id=None))
        session.execute(text("DELETE FROM webhook_endpoints"))
    (due,) = post.take()
    with transaction(sessions) as session:
        assert due.secrets == (VAULT.open(session.get(Account, account).webhook_secret),)
    assert post.record(due, status=410, error="gone", final=True) is DeliveryState.EXHAUSTED


def test_a_delivery_that_was_deleted_meanwhile_has_no_outcome(sessions, queued, post):
    (due,) = post.take()
    with transaction(sessions) as session:
        session.execute(text("DELETE FROM webhook_endpoints"))
    assert post.rows() == []
    assert post.record(due, status=204) is DeliveryState.EXHAUSTED
    assert post.record(due, status=500, error="x") is DeliveryState.EXHAUSTED


def born(sessions, account, monkeypatch, *, days_ago, **fields):
    """A delivery with the id and the age of its day."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    with monkeypatch.context() as patch:
        patch.setattr("api.identifiers.time.time_ns", lambda: int(at.timestamp() * 1e9))
        row_id = uuid7()
    with transaction(sessions) as session:
        fields = {"type": "webhook.ping", "url": URL, "body": "{}", "created_at": at, **fields}
        session.add(WebhookDelivery(id=row_id, account_id=account, **fields))
    return row_id


def test_settled_deliveries_are_forgotten_in_time(sessions, account, post, monkeypatch):
    oldest, old = (
        born(sessions, account, monkeypatch, days_ago=days, state=state)
        for days, state in ((50, DeliveryState.DELIVERED), (31, DeliveryState.EXHAUSTED))
    )
    kept = {
        born(sessions, account, monkeypatch, days_ago=29, state=DeliveryState.DELIVERED),
        born(sessions, account, monkeypatch, days_ago=40, state=DeliveryState.PENDING),
    }

    def purge(limit):
        with transaction(sessions) as session:
            return purge_log(session, older_than=timedelta(days=30), limit=limit)

    assert purge(1) == 1
    assert {row.id for row in post.rows()} == kept | {old}, f"{oldest} goes first"
    assert (purge(10), purge(10)) == (1, 0)
    assert {row.id for row in post.rows()} == kept
