"""Ending a job early with what it has."""

import uuid

import pytest

from api.db import transaction
from api.jobs import repository
from tests.api.factories import LEASE, claim, events, finish, held, snapshot
from tests.api.jobs.test_retry import CHECKPOINT
from tests.api.jobs.test_routes import problem
from tests.support.company import alone, offer_as_tiny


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    offer_as_tiny(monkeypatch, alone)


@pytest.fixture
def job(caller):
    return caller.submit().json()


def stop(caller, job):
    return caller.post(job["urls"]["stop"])


def test_before_both_trainings_have_begun_there_is_nothing_to_keep(caller, sessions, job):
    for _ in range(2):
        before = snapshot(sessions)
        detail = problem(stop(caller, job), 409, "nothing_to_keep")["detail"]
        assert snapshot(sessions) == before
        assert "style_lora" in detail
        claim(sessions)
    assert stop(caller, job).status_code == 202


def test_a_running_job_is_told_once(caller, sessions, job):
    first, second = claim(sessions), claim(sessions)
    answer = stop(caller, job)
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    at = answer.json()["stop_requested_at"]
    assert at is not None
    assert stop(caller, job).json()["stop_requested_at"] == at
    assert events(sessions, uuid.UUID(job["id"])).count("job.stop_requested") == 1
    with transaction(sessions) as session:
        assert repository.heartbeat(session, **held(first), lease=LEASE).stop_requested
    for claimed in (first, second):
        with transaction(sessions) as session:
            repository.finish_stage(session, **held(claimed), artifacts=[], timings={}, stopped_early=True)
    while claimed := claim(sessions):
        assert claimed.stop_requested
        finish(sessions, claimed)
    done = caller.get(job["urls"]["self"]).json()
    assert (done["state"], done["error"]) == ("succeeded", None)
    assert [stage["stopped_early"] for stage in done["stages"]] == [True, True, False, False]
    assert stop(caller, job).status_code == 200


def test_a_checkpoint_or_a_result_is_enough(caller, sessions, job):
    finish(sessions, claim(sessions))
    claimed = claim(sessions)
    with transaction(sessions) as session:
        repository.record_checkpoint(session, **held(claimed), checkpoint=CHECKPOINT)
        repository.release_stage(session, **held(claimed))
    assert stop(caller, job).status_code == 202


def test_a_job_that_is_being_canceled_is_not_stopped_as_well(caller, sessions, job):
    claim(sessions)
    caller.post(job["urls"]["cancel"])
    answer = stop(caller, job)
    assert (answer.status_code, answer.json()["stop_requested_at"]) == (202, None)


def test_an_ended_job_stays_as_it_is(caller, sessions, job):
    caller.post(job["urls"]["cancel"])
    before = snapshot(sessions)
    assert (stop(caller, job).status_code, stop(caller, job).json()["state"]) == (200, "canceled")
    assert snapshot(sessions) == before
