"""A submission that is sent again, has a deadline, tells a webhook, or exceeds a quota."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from sqlalchemy import func, select, update

from api.accounts.models import Account, IdempotencyKey
from api.accounts.service import issue_key
from api.db import transaction
from api.jobs.models import Job, JobImage, Stage
from api.storage import ObjectStore, StoreError
from api.webhooks.models import WebhookDelivery, WebhookEndpoint
from api.webhooks.signing import make_secret
from tests.api.factories import Caller, png, snapshot
from tests.api.jobs.test_routes import problem
from tests.support.vault import VAULT

KEY = {"Idempotency-Key": '"8e03978e"'}


def count(sessions, model):
    with transaction(sessions) as session:
        return session.scalar(select(func.count()).select_from(model))


class TestIdempotencyKey:
    def test_the_second_answer_is_the_first_and_nothing_is_done_twice(self, caller, sessions, store):
        first = caller.submit(params={"seed": 1}, headers=KEY)
        before = snapshot(sessions)
        keys = store.keys()
        again = caller.submit(params='{ "seed":1 }', headers={"Idempotency-Key": "8e03978e"})  # bare is the same key
        assert (first.status_code, again.status_code) == (202, 202)
        assert again.content == first.content
        assert again.headers["location"] == first.headers["location"]
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["idempotency-expires"] == first.headers["idempotency-expires"]
        left = parsedate_to_datetime(first.headers["idempotency-expires"]) - datetime.now(UTC)
        assert timedelta(hours=23) < left <= timedelta(hours=24)
        assert snapshot(sessions) == before
        assert store.keys() == keys

    @pytest.mark.parametrize("other", [{"params": {"seed": 2}}, {"content": [png(color=(1, 2, 3))]}])
    def test_another_payload_is_refused(self, caller, sessions, other):
        caller.submit(params={"seed": 1}, headers=KEY)
        problem(caller.submit(**{"params": {"seed": 1}} | other, headers=KEY), 422, "idempotency_mismatch")
        assert count(sessions, Job) == 1

    def test_while_the_first_is_in_flight_the_second_is_asked_to_wait(self, caller, sessions):
        caller.submit(headers=KEY)
        with transaction(sessions) as session:
            session.execute(update(IdempotencyKey).values(status=None, response=None))
        answer = caller.submit(headers=KEY)
        assert problem(answer, 409, "idempotency_in_flight")["retryable"]
        assert answer.headers["retry-after"] == "1"

    def test_a_request_that_was_taken_over_leaves_nothing(self, caller, sessions, store, monkeypatch):
        """It took so long that its lock ended, and another one has the key now."""
        put_file = ObjectStore.put_file

        def slow(self, *arguments):
            put_file(self, *arguments)
            with transaction(sessions) as session:
                session.execute(update(IdempotencyKey).values(token=func.gen_random_uuid()))

        monkeypatch.setattr(ObjectStore, "put_file", slow)
        problem(caller.submit(headers=KEY), 409, "idempotency_in_flight")
        assert count(sessions, Job) == 0
        assert store.keys() == []

    def test_a_refused_or_failed_request_may_be_sent_again_under_its_key(self, caller, sessions, monkeypatch):
        problem(caller.submit([b"x"], headers=KEY), 422, "invalid_parameters")
        with monkeypatch.context() as patch:

            def full(*_):
                raise StoreError("full")

            patch.setattr(ObjectStore, "put_file", full)
            problem(caller.submit(headers=KEY), 503)
        assert count(sessions, IdempotencyKey) == 0
        assert caller.submit(headers=KEY).status_code == 202

    def test_another_account_has_keys_of_its_own(self, caller, stranger):
        mine, theirs = caller.submit(headers=KEY), stranger.submit(params={"seed": 3}, headers=KEY)
        assert (mine.status_code, theirs.status_code) == (202, 202)
        assert mine.json()["id"] != theirs.json()["id"]

    @pytest.mark.parametrize("key", ["", "a b", '"', "x" * 256])
    def test_a_malformed_key_is_refused(self, caller, key):
        problem(caller.submit(headers={"Idempotency-Key": key}), 400, "invalid_idempotency_key")


class TestQuotas:
    @pytest.fixture
    def bounded(self, http, sessions):
        return Caller(http, issue_key(sessions, account="small", quotas={"max_queued_jobs": 1}))

    def test_one_job_more_than_may_wait_is_429(self, bounded, store):
        first = bounded.submit()
        assert first.headers["ratelimit-policy"].endswith(', "queued-jobs";q=1;qu="concurrent-requests"')
        assert first.headers["ratelimit"].endswith(', "queued-jobs";r=0')
        keys = store.keys()
        answer = bounded.submit(headers=KEY)
        document = problem(answer, 429, "quota_exceeded")
        assert document["violated_policies"] == ["queued-jobs"]
        assert document["retryable"]
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["ratelimit"].endswith(', "queued-jobs";r=0')
        assert store.keys() == keys
        bounded.post(first.json()["urls"]["cancel"])
        assert bounded.submit(headers=KEY).status_code == 202  # the refusal did not use the key up

    def test_pictures_count_as_stored_and_are_bounded(self, http, sessions, store):
        caller = Caller(http, issue_key(sessions, account="tight", quotas={"max_stored_bytes": 500}))
        assert caller.submit().status_code == 202
        with transaction(sessions) as session:
            total = session.scalar(select(func.sum(JobImage.bytes)))
            assert session.scalar(select(Account.stored_bytes).where(Account.name == "tight")) == total
        keys = store.keys()
        document = problem(caller.submit([png((200, 200))] * 4), 429, "quota_exceeded")
        assert document["violated_policies"] == ["stored-bytes"]
        assert store.keys() == keys


def test_a_deadline_counts_from_the_submission(caller):
    job = caller.submit(params={"deadline_seconds": 3600}).json()
    assert job["deadline_at"] is not None
    created, deadline = (job[name].replace("Z", "+00:00") for name in ("created_at", "deadline_at"))
    assert datetime.fromisoformat(deadline) - datetime.fromisoformat(created) == timedelta(hours=1)
    for bad in (59, 2_592_001):
        problem(caller.submit(params={"deadline_seconds": bad}), 422)


def test_a_webhook_has_its_own_events_and_secret_and_the_secret_is_not_shown(caller, sessions):
    secret = make_secret()
    url = "https://example.org/hook"
    params = {"webhook_url": url, "webhook_events": ["job.queued", "job.succeeded"], "webhook_secret": secret}
    answer = caller.submit(params=params)
    job = answer.json()
    assert job["webhook_url"] == url
    assert job["webhook"] == {"url": url, "state": "enabled", "disabled_reason": None, "last_status": None}
    assert secret not in answer.text
    with transaction(sessions) as session:
        endpoint = session.scalars(select(WebhookEndpoint)).one()
        assert (str(endpoint.job_id), endpoint.events) == (job["id"], params["webhook_events"])
        assert VAULT.open(endpoint.secret) == secret
        assert secret not in str(session.get(Job, job["id"]).request)
        assert [row.type for row in session.scalars(select(WebhookDelivery))] == ["job.queued"]
        session.scalars(select(WebhookDelivery)).one().last_status = 500
    assert caller.get(job["urls"]["self"]).json()["webhook"]["last_status"] == 500


def test_stages_know_their_share_of_the_work(caller, sessions):
    caller.submit()
    with transaction(sessions) as session:
        assert session.scalar(select(func.sum(Stage.weight))) == pytest.approx(1)
