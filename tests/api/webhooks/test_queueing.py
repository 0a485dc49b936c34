"""Which endpoints are told of which events, by what is written with the event."""

import json
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event as listening
from sqlalchemy import func, select, text, update

from api.db import transaction
from api.jobs.events import LIFECYCLE_EVENTS, TERMINAL_EVENTS, EventType, record_event
from api.jobs.locking import instant, lock_job
from api.jobs.models import Event
from api.webhooks import endpoints
from api.webhooks.models import EndpointState, WebhookDelivery
from api.webhooks.queueing import MAX_BODY_BYTES, make_body
from api.webhooks.repository import add_job_endpoint, copy_job_endpoint
from api.webhooks.schemas import WebhookEvent
from api.webhooks.signing import make_secret
from tests.api.factories import cancel, claim, fail, finish, make_account, make_job

URL = "https://receiver.example/hook"


def tell(sessions, job_id, kind, **data):
    with transaction(sessions) as session:
        job = lock_job(session, job_id).job
        record_event(session, job, kind, now=instant(session), data=data)


def clear(sessions):
    with transaction(sessions) as session:
        session.execute(text("DELETE FROM webhook_deliveries"))


def told(sessions, job_id, post):
    """Types of the deliveries that one event of each kind makes."""
    clear(sessions)
    for kind in EventType:
        tell(sessions, job_id, kind)
    return {row.type for row in post.rows()}


def give_endpoint(sessions, account_id, job_id, **fields):
    with transaction(sessions) as session:
        add_job_endpoint(session, account_id=account_id, job_id=job_id, **{"url": URL, **fields})


def test_without_a_filter_an_account_hears_the_lifecycle_and_a_job_its_end(sessions, account, post):
    job_id = make_job(sessions, account)
    give_endpoint(sessions, account, job_id)
    assert told(sessions, job_id, post) == TERMINAL_EVENTS
    other = make_job(sessions, account)
    post.add_endpoint(account)
    assert told(sessions, other, post) == LIFECYCLE_EVENTS


@pytest.mark.parametrize("for_job", [False, True])
@pytest.mark.parametrize(
    "wanted", [[EventType.PROGRESS], [EventType.QUEUED, EventType.STOP_REQUESTED], list(EventType)]
)
def test_a_filter_is_exact(sessions, account, post, wanted, for_job):
    job_id = make_job(sessions, account)
    post.add_endpoint(account, job_id=job_id if for_job else None, events=wanted)
    assert told(sessions, job_id, post) == set(wanted)


def test_only_the_accounts_own_enabled_endpoints_and_the_jobs_are_told(sessions, account, post):
    theirs = make_account(sessions, "theirs")
    job_id, other = make_job(sessions, account), make_job(sessions, account)
    mine = post.add_endpoint(account)
    of_job = post.add_endpoint(account, job_id=job_id)
    post.add_endpoint(account, job_id=other)
    post.add_endpoint(theirs)
    post.add_endpoint(account, state=EndpointState.DISABLED, disabled_at=func.now(), disabled_reason="by_owner")
    cancel(sessions, account, job_id)
    assert {row.endpoint_id for row in post.rows() if row.type == "job.canceled"} == {mine, of_job}
    assert len({row.id for row in post.rows()}) == len(post.rows())


def test_only_the_lifecycle_is_tried_again(sessions, account, post):
    job_id = make_job(sessions, account)
    post.add_endpoint(account, events=list(EventType))
    told(sessions, job_id, post)
    assert {row.type for row in post.rows() if row.retries} == LIFECYCLE_EVENTS
    post.make_due()
    for due in post.take():
        post.record(due, status=500, error="no")
    once = [row for row in post.rows() if row.attempts and not row.retries]
    assert all(row.state == "exhausted" for row in once)
    assert post.endpoint().state is EndpointState.ENABLED


def test_newer_progress_takes_the_place_of_what_was_not_sent(sessions, account, post):
    job_id, other = make_job(sessions, account), make_job(sessions, account)
    post.add_endpoint(account, events=["job.progress"])
    tell(sessions, other, EventType.PROGRESS, step=1)
    for step in (1, 2, 3):
        tell(sessions, job_id, EventType.PROGRESS, step=step)
    assert [json.loads(row.body)["data"]["step"] for row in post.rows()] == [1, 3]
    (_, sent) = sorted(post.take(), key=lambda due: due.job_id == job_id)
    tell(sessions, job_id, EventType.PROGRESS, step=4)
    steps = [json.loads(row.body)["data"]["step"] for row in post.rows() if row.job_id == job_id]
    assert steps == [3, 4], "what a sender holds is left alone"
    assert post.record(sent, status=204) == "delivered"


def test_a_stage_that_changes_is_told_beside_the_jobs_state(sessions, account, post):
    post.add_endpoint(account)
    job_id = make_job(sessions, account)
    finish(sessions, claim(sessions))
    bodies = [WebhookEvent.model_validate_json(row.body) for row in post.rows()]
    changed = [body.data for body in bodies if body.type == "job.stage_changed"]
    assert {(data.state, data.stage, data.stage_state) for data in changed} >= {
        ("running", "content_lora", "succeeded")
    }
    assert {body.data.job_id for body in bodies} == {job_id}
    assert bodies[0].type == "job.queued"


def test_the_end_comes_once_to_each(sessions, account, post):
    post.add_endpoint(account)
    job_id = make_job(sessions, account, webhook_url=URL)
    fail(sessions, claim(sessions))
    cancel(sessions, account, job_id)
    ends = [row for row in post.rows() if row.type in TERMINAL_EVENTS]
    assert len(ends) == len({row.endpoint_id for row in ends}) == 2


def test_without_endpoints_an_event_costs_one_query_and_writes_nothing(sessions, engine, account):
    job_id = make_job(sessions, account)
    statements = []
    with transaction(sessions) as session:
        job = lock_job(session, job_id).job
        now = instant(session)
        listening.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        record_event(session, job, EventType.STARTED, now=now, data={})
    assert [statement.split()[0] for statement in statements] == ["INSERT", "SELECT"]


def test_the_query_for_endpoints_is_an_index_scan(sessions, engine, account, post):
    """An account with thousands of jobs that have endpoints of their own, which its events have nothing to do with."""
    job_id = make_job(sessions, account)
    post.add_endpoint(account)
    with transaction(sessions) as session:
        session.execute(
            text(
                "INSERT INTO jobs (id, account_id, kind, state, params, params_version, request, self_url)"
                " SELECT gen_random_uuid(), account_id, kind, state, params, params_version, request, self_url"
                " FROM jobs, generate_series(1, 5000) WHERE id = :job"
            ),
            {"job": job_id},
        )
        session.execute(
            text(
                "INSERT INTO webhook_endpoints (id, account_id, job_id, url)"
                " SELECT gen_random_uuid(), account_id, id, 'https://x' FROM jobs"
            )
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE webhook_endpoints"))
    seen = []

    def explain(_connection, _cursor, statement, parameters, *_):
        if "FROM webhook_endpoints" in statement and not seen:
            seen.append((statement, parameters))

    listening.listen(engine, "before_cursor_execute", explain)
    tell(sessions, job_id, EventType.STARTED)
    ((statement, parameters),) = seen
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
    assert "Index Scan" in "\n".join(plan)
    assert "Seq Scan" not in "\n".join(plan)


@given(st.dictionaries(st.text(max_size=50), st.text(max_size=20_000), max_size=5))
def test_a_body_is_always_small_and_names_its_job(data):
    data = {**data, "job_id": "0" * 36, "state": "failed"}
    body = make_body("job.failed", datetime.now(UTC), data)
    assert len(body.encode()) < MAX_BODY_BYTES
    assert json.loads(body)["data"]["job_id"] == "0" * 36


def test_a_large_event_loses_its_data_and_not_itself(sessions, account, post):
    post.add_endpoint(account)
    job_id = make_job(sessions, account)
    clear(sessions)
    tell(sessions, job_id, EventType.FAILED, code="é" * 10_000)
    assert json.loads(post.row().body)["data"] == {"job_id": str(job_id), "state": "queued"}


def test_an_endpoint_made_with_its_job_hears_of_the_queueing_it_asked_for(sessions, account, post):
    job_id = make_job(sessions, account)
    give_endpoint(sessions, account, job_id, events=["job.queued", "job.succeeded"], secret=make_secret())
    row = post.row()
    with transaction(sessions) as session:
        assert row.event_id == session.scalar(select(Event.id))
    assert (row.type, row.retries) == ("job.queued", True)
    assert WebhookEvent.model_validate_json(row.body).data.state == "queued"


def test_a_job_of_older_code_is_given_its_endpoint_at_its_end_and_only_one(sessions, account, post):
    job_id = make_job(sessions, account, webhook_url=URL)
    tell(sessions, job_id, EventType.FAILED)
    tell(sessions, job_id, EventType.FAILED)
    assert (post.endpoint().job_id, post.endpoint().url) == (job_id, URL)
    assert post.endpoint().events == []
    assert [row.url for row in post.rows()] == [URL, URL]


def test_a_job_that_tries_another_again_tells_the_same_receiver(sessions, account, post):
    secret = make_secret()
    old, new, silent = (make_job(sessions, account) for _ in range(3))
    give_endpoint(sessions, account, old, events=["job.failed"], secret=secret)
    with transaction(sessions) as session:
        session.execute(update(WebhookDelivery).values(attempts=1))
        endpoints.disable(session, endpoints.lock_endpoint(session, post.endpoint().id), "gone")
        copy_job_endpoint(session, job_id=old, to_job_id=new)
        copy_job_endpoint(session, job_id=silent, to_job_id=silent)
    tell(sessions, new, EventType.FAILED)
    (due,) = post.take()
    assert (due.url, due.secrets, due.job_id) == (URL, (secret,), new)


def test_an_endpoint_that_is_deleted_meanwhile_costs_the_event_nothing(sessions, account, post):
    """The event waits for the deletion instead of failing by it: a job's end must be written whatever else happens."""
    endpoint_id = post.add_endpoint(account)
    job_id = make_job(sessions, account)
    done = threading.Event()

    def end():
        cancel(sessions, account, job_id)
        done.set()

    with transaction(sessions) as session:
        session.delete(endpoints.lock_endpoint(session, endpoint_id))
        session.flush()
        thread = threading.Thread(target=end)
        thread.start()
        assert not done.wait(0.3)
    thread.join(10)
    assert done.is_set()
    assert post.rows() == []


def test_events_of_two_jobs_do_not_wait_for_each_other_nor_for_a_rotation(sessions, account, post):
    endpoint_id = post.add_endpoint(account)
    one, other = make_job(sessions, account), make_job(sessions, account)
    with transaction(sessions) as session, transaction(sessions) as second:
        record_event(session, lock_job(session, one).job, EventType.STARTED, now=instant(session), data={})
        second.execute(text("SET LOCAL lock_timeout = '2s'"))
        record_event(second, lock_job(second, other).job, EventType.STARTED, now=instant(second), data={})
        assert endpoints.lock_endpoint(second, endpoint_id) is not None
