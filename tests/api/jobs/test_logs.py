"""A job's log and the history of its attempts."""

from datetime import UTC, datetime, timedelta

import pytest

from api.db import transaction
from api.jobs import repository
from api.jobs.failures import FailureClass
from api.jobs.models import LogLine
from tests.api.factories import PROBLEM, claim, finish, held, make_all_due
from tests.api.jobs.test_retry import CHECKPOINT
from tests.api.jobs.test_routes import problem
from tests.support.company import alone, offer_as_tiny

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    offer_as_tiny(monkeypatch, alone)


@pytest.fixture
def job(caller, sessions):
    """Two lines of each of three attempts."""
    job = caller.submit().json()
    with transaction(sessions) as session:
        session.add_all(
            LogLine(job_id=job["id"], stage=stage, attempt=number, at=AT, level="INFO", message=f"{stage} {number} {n}")
            for stage, number in (("content_lora", 1), ("content_lora", 2), ("merge", 1))
            for n in (1, 2)
        )
    return job


def messages(page):
    return [line["message"] for line in page["items"]]


def test_lines_come_in_order_page_by_page(caller, job):
    path = job["urls"]["logs"]
    everything = caller.get(path).json()
    assert len(everything["items"]) == 6
    assert everything["next_after"] is None
    first = everything["items"][0]
    assert (first["stage"], first["attempt"], first["level"], first["at"]) == (
        "content_lora",
        1,
        "info",
        "2026-01-01T00:00:00Z",
    )
    seen, after = [], 0
    while after is not None:
        page = caller.get(path, params={"after": after, "limit": 4}).json()
        seen, after = seen + messages(page), page["next_after"]
    assert seen == messages(everything)


def test_stage_and_attempt_filter(caller, job):
    page = caller.get(job["urls"]["logs"], params={"stage": "content_lora", "attempt": 2}).json()
    assert messages(page) == ["content_lora 2 1", "content_lora 2 2"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=-1", "after=x", "attempt=0", f"after={2**63}"])
def test_a_bad_query_is_named(caller, job, query):
    document = problem(caller.get(f"{job['urls']['logs']}?{query}"), 422)
    assert [entry["pointer"] for entry in document["errors"]] == ["/" + query.split("=")[0]]


def test_every_attempt_is_told_with_its_end(caller, sessions):
    job = caller.submit().json()
    first = claim(sessions)
    with transaction(sessions) as session:
        repository.record_checkpoint(session, **held(first), checkpoint=CHECKPOINT)
        repository.fail_stage(
            session, **held(first), error=PROBLEM, retry_after=timedelta(0), kind=FailureClass.ENVIRONMENT
        )
    make_all_due(sessions)
    second = claim(sessions, "w2")
    assert second.name == first.name
    finish(sessions, second)
    claim(sessions)
    told = [
        (one["stage"], one["attempt"], one["worker"], one["outcome"], one["failure_class"], one["resumed_step"])
        for one in caller.get(job["urls"]["attempts"]).json()["items"]
    ]
    assert told == [
        ("content_lora", 1, "w1", "retried", "environment", None),
        ("content_lora", 2, "w2", "succeeded", None, 40),
        ("style_lora", 1, "w1", None, None, None),
    ]


def test_another_accounts_past_is_not_there(stranger, job):
    for name in ("logs", "attempts", "events"):
        problem(stranger.get(job["urls"][name]), 404, "not_found")
