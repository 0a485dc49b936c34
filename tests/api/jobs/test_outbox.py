"""Hints: written with what they speak of, taken once, written again when nobody came."""

from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import func, select, update

from api.db import transaction
from api.jobs import repository
from api.jobs.models import Job, OutboxRow, Stage
from api.jobs.plan import StagePlan
from duolora.config import Prompts
from tests.api.factories import claim, fail, finish, make_account, make_job, rolled_back
from tests.support.company import together


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def take(sessions, limit=100):
    with transaction(sessions) as session:
        messages = repository.take_outbox(session, limit=limit)
        repository.drop_published(session, [message.id for message in messages])
        return messages


def names(sessions, messages):
    with transaction(sessions) as session:
        return [session.get(Stage, message.payload["stage_id"]).name for message in messages]


def test_a_new_job_announces_its_runnable_stages_once(sessions, account):
    job_id = make_job(sessions, account)
    messages = take(sessions)
    assert {message.topic for message in messages} == {"stage.runnable"}
    assert {message.payload["job_id"] for message in messages} == {str(job_id)}
    assert sorted(names(sessions, messages)) == ["content_lora", "style_lora"]
    assert take(sessions) == []


def test_the_outbox_keeps_nothing_that_was_published(sessions, account):
    make_job(sessions, account)
    taken = take(sessions, limit=1)
    with transaction(sessions) as session:
        left = session.scalars(select(OutboxRow.id)).all()
    assert len(left) == 1
    assert taken[0].id not in left


def test_a_stage_that_becomes_runnable_is_announced(sessions, account):
    make_job(sessions, account)
    take(sessions)
    finish(sessions, claim(sessions))
    assert take(sessions) == []
    finish(sessions, claim(sessions))
    assert names(sessions, take(sessions)) == ["merge"]


def test_a_hint_lives_and_dies_with_its_transaction(sessions, account):
    params = together("tiny", Prompts()).model_dump(mode="json")
    with rolled_back(sessions) as session:
        job = Job(account_id=account, kind="personalize", params=params, params_version=1, request={}, self_url="/")
        repository.insert_job(session, job, [StagePlan(name="loras")])
    with transaction(sessions) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
    assert take(sessions) == []


def test_a_finish_that_fails_later_announces_nothing(sessions, account):
    make_job(sessions, account)
    finish(sessions, claim(sessions))
    take(sessions)
    claimed = claim(sessions)
    with rolled_back(sessions) as session:
        repository.finish_stage(
            session, stage_id=claimed.stage_id, fencing_token=claimed.fencing_token, artifacts=[], timings={}
        )
    assert take(sessions) == []
    finish(sessions, claimed)  # still its own
    assert names(sessions, take(sessions)) == ["merge"]


def test_two_relays_never_take_the_same_hint(sessions, account):
    make_job(sessions, account)
    with sessions.begin() as one, sessions.begin() as two:
        first = repository.take_outbox(one, limit=1)
        second = repository.take_outbox(two, limit=100)
        assert len(first) == len(second) == 1
        assert first[0].id != second[0].id


def test_a_relay_that_dies_before_its_commit_leaves_the_hint(sessions, account):
    make_job(sessions, account)
    with rolled_back(sessions) as session:
        repository.drop_published(session, [message.id for message in repository.take_outbox(session, limit=9)])
    assert len(take(sessions)) == 2


def test_a_retrys_hint_waits_as_long_as_the_retry(sessions, account):
    make_job(sessions, account)
    take(sessions)
    fail(sessions, claim(sessions), retry_after=timedelta(hours=1))
    assert take(sessions) == []
    with transaction(sessions) as session:
        session.execute(update(OutboxRow).values(due_at=func.now()))
    assert names(sessions, take(sessions)) == ["content_lora"]


def test_stages_that_nobody_took_are_announced_again(sessions, account):
    make_job(sessions, account)
    taken = claim(sessions)
    take(sessions)

    def republish(older_than):
        with transaction(sessions) as session:
            return repository.republish_runnable(session, older_than=older_than)

    assert republish(timedelta(minutes=1)) == 0
    with transaction(sessions) as session:
        past = func.now() - timedelta(minutes=2)
        session.execute(update(Stage).values(runnable_at=past, announced_at=past))
    assert republish(timedelta(minutes=1)) == 1  # the other one is running, the rest waits
    assert republish(timedelta(minutes=1)) == 0  # just announced
    assert names(sessions, take(sessions)) == ["style_lora"]
    assert taken.name == "content_lora"


def test_a_long_queue_is_announced_again_a_handful_at_a_time(sessions, account):
    for _ in range(8):
        make_job(sessions, account)
    take(sessions)
    with transaction(sessions) as session:
        past = func.now() - timedelta(minutes=2)
        session.execute(update(Stage).values(runnable_at=past, announced_at=past))
    announced = []
    for _ in range(3):
        with transaction(sessions) as session:
            announced.append(repository.republish_runnable(session, older_than=timedelta(minutes=1)))
    assert announced == [10, 6, 0]


def test_an_insert_wakes_whoever_listens(sessions, account, database_url):
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as listener:
        listener.execute("LISTEN duolora_outbox")
        make_job(sessions, account)
        assert [note.channel for note in listener.notifies(timeout=10, stop_after=1)] == ["duolora_outbox"]
