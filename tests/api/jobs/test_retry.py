"""Trying an ended job again."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from api.db import transaction
from api.jobs import repository
from api.jobs.models import Job, Stage
from api.webhooks.models import WebhookEndpoint
from tests.api.factories import claim, fail, finish, held, snapshot
from tests.api.jobs.test_routes import problem
from tests.support.company import alone, offer_as_tiny

CHECKPOINT = {
    "step": 40,
    "total": 100,
    "attempt": 1,
    "paired": False,
    "at": "2026-01-01T00:00:00+00:00",
    "files": [{"name": "state.safetensors", "key": "k", "sha256": "00", "bytes": 3}],
}


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    offer_as_tiny(monkeypatch, alone)


def failed(caller, sessions, **params):
    """A job of which one LoRA is done and the other failed at step 40."""
    job = caller.submit(params=params).json()
    finish(sessions, claim(sessions))
    claimed = claim(sessions)
    with transaction(sessions) as session:
        repository.record_checkpoint(session, **held(claimed), checkpoint=CHECKPOINT)
    fail(sessions, claimed)
    return caller.get(job["urls"]["self"]).json()


def retry(caller, job, **options):
    return caller.post(job["urls"]["retry"], **options)


def test_a_new_job_goes_on_from_the_old_ones_checkpoints(caller, sessions, store):
    old = failed(caller, sessions, seed=7, deadline_seconds=3600, webhook_url="https://example.org/")
    assert old["state"] == "failed"
    answer = retry(caller, old)
    assert answer.status_code == 202
    new = answer.json()
    assert answer.headers["location"] == new["urls"]["self"] != old["urls"]["self"]
    assert (new["state"], new["retry_of"], new["error"]) == ("queued", old["id"], None)
    for name in ("params", "kind", "priority", "webhook_url"):
        assert new[name] == old[name]
    assert [image["sha256"] for image in new["images"]] == [image["sha256"] for image in old["images"]]
    seconds = [
        (datetime.fromisoformat(job["deadline_at"]) - datetime.fromisoformat(job["created_at"])).total_seconds()
        for job in (old, new)
    ]
    assert seconds == [3600, 3600]
    steps = {stage["name"]: stage["progress"] and stage["progress"]["step"] for stage in new["stages"]}
    assert steps == {"content_lora": None, "style_lora": 40, "merge": None, "package": None}
    assert new["progress"]["fraction"] > 0
    with transaction(sessions) as session:
        stages = session.scalars(select(Stage).where(Stage.job_id == new["id"], Stage.checkpoint.is_not(None))).all()
        assert [stage.checkpoint for stage in stages] == [CHECKPOINT]
        endpoints = session.scalars(select(WebhookEndpoint.job_id).order_by(WebhookEndpoint.created_at)).all()
        assert [str(job_id) for job_id in endpoints] == [old["id"], new["id"]]
    copied = [key for key in store.keys("accounts/") if new["id"] in key]
    assert len(copied) == 2
    assert caller.get(old["urls"]["self"]).json() == old  # final is final


def test_while_it_is_tried_again_the_answer_is_that_job(caller, sessions):
    old = failed(caller, sessions)
    first = retry(caller, old)
    before = snapshot(sessions)
    again = retry(caller, old)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert snapshot(sessions) == before
    caller.post(first.json()["urls"]["cancel"])
    third = retry(caller, old)
    assert third.json()["id"] != first.json()["id"]


def test_of_two_requests_at_once_one_makes_the_job(caller, sessions, store):
    old = failed(caller, sessions)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: retry(caller, old), range(2)))
    assert {answer.status_code for answer in answers} == {202}
    (made,) = {answer.json()["id"] for answer in answers}
    with transaction(sessions) as session:
        assert len(session.scalars(select(Job)).all()) == 2
    assert all(old["id"] in key or made in key for key in store.keys("accounts/"))


def test_a_key_makes_it_once_even_when_that_job_has_ended_too(caller, sessions):
    old = failed(caller, sessions)
    key = {"Idempotency-Key": "again"}
    first = retry(caller, old, headers=key)
    caller.post(first.json()["urls"]["cancel"])
    again = retry(caller, old, headers=key)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    other = failed(caller, sessions)
    problem(retry(caller, other, headers=key), 422, "idempotency_mismatch")


def test_a_canceled_job_can_be_tried_again_and_one_that_goes_on_or_succeeded_cannot(caller, sessions):
    job = caller.submit().json()
    problem(retry(caller, job), 409, "not_retryable")
    caller.post(job["urls"]["cancel"])
    new = retry(caller, job).json()
    while claimed := claim(sessions):
        finish(sessions, claimed)
    assert caller.get(new["urls"]["self"]).json()["state"] == "succeeded"
    problem(retry(caller, new), 409, "not_retryable")


def test_an_expired_job_can_be_tried_again(caller, sessions):
    job = caller.submit(params={"deadline_seconds": 60}).json()
    with transaction(sessions) as session:
        session.get(Job, job["id"]).deadline_at -= timedelta(hours=1)
    with transaction(sessions) as session:
        assert repository.expire_overdue(session) == 1
    assert caller.get(job["urls"]["self"]).json()["state"] == "expired"
    assert retry(caller, job).status_code == 202


def test_a_job_whose_pictures_are_gone_cannot(caller, sessions, store):
    old = failed(caller, sessions)
    store.delete(store.keys())
    problem(retry(caller, old), 409, "not_retryable")
    assert store.keys() == []


def test_another_accounts_job_is_not_there(caller, stranger, sessions):
    old = failed(caller, sessions)
    before = snapshot(sessions)
    for act in ("retry", "stop"):
        problem(stranger.post(old["urls"][act]), 404, "not_found")
        problem(caller.post(f"/jobs/{uuid.uuid4()}/{act}"), 404, "not_found")
    assert snapshot(sessions) == before
