"""How long a job will wait: estimates from what others took."""

from datetime import timedelta

import pytest
from sqlalchemy import event, func, text, update

from api.db import transaction
from api.jobs import queue
from api.jobs.models import Job, Stage, WorkerState
from api.jobs.queue import Lookout, Outlook, look
from api.jobs.workers import beat_worker
from tests.api.factories import claim, finish, make_account, make_job
from tests.support.company import alone, offer_as_tiny

STAGES = ("content_lora", "style_lora", "merge", "package")


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def seen(sessions):
    with transaction(sessions) as session:
        return look(session)


def succeed(sessions, account, seconds=10, **fields):
    """A job whose every stage took so long."""
    job_id = make_job(sessions, account, **fields)
    while claimed := claim(sessions):
        finish(sessions, claimed)
    with transaction(sessions) as session:
        session.execute(
            update(Stage)
            .where(Stage.job_id == job_id)
            .values(started_at=Stage.finished_at - timedelta(seconds=seconds))
        )
    return job_id


def beat(sessions, *names, state=WorkerState.IDLE):
    with transaction(sessions) as session:
        for name in names:
            beat_worker(session, worker_id=name, state=state, device=None, engine_version=None)


def test_nothing_is_known_of_an_empty_service(sessions):
    assert seen(sessions) == Outlook()


def test_places_go_by_priority_and_age(sessions, account):
    first, second = make_job(sessions, account), make_job(sessions, account)
    urgent = make_job(sessions, account, priority=5)
    outlook = seen(sessions)
    with transaction(sessions) as session:
        places = {
            job.id: outlook.position(priority=job.priority, created_at=job.created_at, job_id=job.id)
            for job in (session.get(Job, job_id) for job_id in (first, second, urgent))
        }
    assert places == {urgent: 1, first: 2, second: 3}


def test_a_job_that_came_after_the_look_is_behind_all(sessions, account):
    make_job(sessions, account)
    outlook = seen(sessions)
    late = make_job(sessions, account)
    with transaction(sessions) as session:
        job = session.get(Job, late)
        assert outlook.position(priority=job.priority, created_at=job.created_at, job_id=job.id) == 2


def test_beyond_the_places_none_is_told(sessions, account, monkeypatch):
    monkeypatch.setattr(queue, "MAX_PLACES", 1)
    make_job(sessions, account)
    outlook = seen(sessions)
    late = make_job(sessions, account)
    with transaction(sessions) as session:
        job = session.get(Job, late)
        assert outlook.position(priority=job.priority, created_at=job.created_at, job_id=job.id) is None


def test_seconds_are_the_mean_of_the_last_jobs_and_reused_or_stopped_stages_do_not_count(sessions, account):
    succeed(sessions, account, 10)
    last = succeed(sessions, account, 20)
    assert seen(sessions).seconds == pytest.approx(dict.fromkeys(STAGES, 15))
    with transaction(sessions) as session:
        session.execute(
            update(Stage)
            .where(Stage.job_id == last, Stage.name == "merge")
            .values(reused_job_id=func.gen_random_uuid())
        )
        session.execute(update(Stage).where(Stage.job_id == last, Stage.name == "package").values(stopped_early=True))
    assert seen(sessions).seconds == pytest.approx({**dict.fromkeys(STAGES, 15), "merge": 10, "package": 10})


def test_the_wait_is_the_work_ahead_shared_out_among_the_workers():
    outlook = Outlook(seconds={"a": 10, "b": 20}, workers=2, begun={"a": 0.5, "b": 1})
    plan = {"a": 1, "b": 1}
    assert outlook.wait(1, plan) == pytest.approx((5 + 20) / 2)
    assert outlook.wait(3, plan) == pytest.approx((5 + 20 + 2 * 30) / 2)


@pytest.mark.parametrize(
    "unknown", [{"workers": 0}, {"seconds": {"a": 10}}, {"begun": {"new": 1}}], ids=["workers", "stage", "begun"]
)
def test_without_workers_or_experience_no_wait_is_told(unknown):
    known = {"seconds": {"a": 10, "b": 20}, "workers": 2, "begun": {"a": 0.5}}
    assert Outlook(**known | unknown).wait(1, {"a": 1, "b": 1}) is None


def test_work_begun_counts_what_is_left_of_it(sessions, account):
    make_job(sessions, account)
    claimed = claim(sessions)
    with transaction(sessions) as session:
        session.get(Stage, claimed.stage_id).progress = {"step": 75, "total": 100, "at": 0, "since": None}
    assert seen(sessions).begun == pytest.approx({**dict.fromkeys(STAGES, 1.0), claimed.name: 0.25})


def test_a_stage_whose_own_pace_is_known_is_taken_by_that(sessions, account):
    """A long job is ahead: 25 steps of 100 took 50 s, whatever stages of that name took before."""
    succeed(sessions, account, 10)
    make_job(sessions, account)
    claimed = claim(sessions)
    with transaction(sessions) as session:
        progress = {"step": 35, "total": 100, "at": 1050.0, "since": {"step": 10, "at": 1000.0}}
        session.get(Stage, claimed.stage_id).progress = progress
    beat(sessions, "a")
    outlook = seen(sessions)
    assert outlook.begun == {name: 1.0 for name in STAGES if name != claimed.name}
    assert outlook.begun_s == pytest.approx(65 * 2)
    assert outlook.wait(1, dict.fromkeys(STAGES, 1)) == pytest.approx(65 * 2 + 3 * 10)


def test_workers_that_live_and_go_on_count(sessions):
    beat(sessions, "a", "b")
    beat(sessions, "c", state=WorkerState.STOPPING)
    with transaction(sessions) as session:
        session.execute(text("UPDATE workers SET heartbeat_at = now() - interval '1 minute' WHERE id = 'b'"))
    assert seen(sessions).workers == 1


def test_it_is_measured_once_for_many_questions(sessions, account, engine):
    lookout = Lookout(sessions)
    first = lookout.outlook()
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    assert all(lookout.outlook() is first for _ in range(100))
    assert statements == []


def test_a_queued_job_tells_its_place_and_estimates(caller, sessions, monkeypatch):
    offer_as_tiny(monkeypatch, alone)
    monkeypatch.setattr(queue, "KEEP_S", 0.0)
    first, second = caller.submit().json(), caller.submit().json()
    progress = second["progress"]
    assert (progress["queue_position"], progress["queue_eta_seconds"], progress["eta_seconds"]) == (2, None, None)
    caller.post(first["urls"]["cancel"])
    assert caller.get(second["urls"]["self"]).json()["progress"]["queue_position"] == 1
    caller.post(second["urls"]["cancel"])
    succeed(sessions, make_account(sessions, "before"), 30)
    beat(sessions, "a", "b")
    caller.submit()
    third = caller.submit().json()["progress"]
    assert third["queue_position"] == 2
    assert third["queue_eta_seconds"] == pytest.approx(4 * 30 / 2)
    assert third["eta_seconds"] == pytest.approx(4 * 30 / 2 + 4 * 30)
    listed = caller.get("/jobs?state=queued").json()["items"]
    assert [job["progress"]["queue_position"] for job in listed] == [2, 1]
    claim(sessions)
    running = caller.get("/jobs?state=running").json()["items"][0]["progress"]
    assert (running["queue_position"], running["queue_eta_seconds"]) == (None, None)
    assert running["eta_seconds"] == pytest.approx(4 * 30)  # no rate yet: from experience


def test_mock_jobs_say_nothing_about_how_long_work_takes(sessions, account):
    succeed(sessions, account)
    succeed(sessions, account, seconds=1, mock_outcome="succeed")
    make_job(sessions, account, mock_outcome="slow")
    claim(sessions)
    outlook = seen(sessions)
    assert set(outlook.seconds.values()) == {10}
    assert outlook.begun == {}
