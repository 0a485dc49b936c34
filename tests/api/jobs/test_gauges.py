"""Work that waits and runs, as a scrape sees it."""

from datetime import timedelta

import pytest
from sqlalchemy import func, update

from api.db import transaction
from api.jobs.gauges import look_at_work
from api.jobs.models import OutboxRow, Stage, Worker, WorkerState
from api.jobs.repository import beat_worker
from tests.api.factories import claim, make_account, make_job


@pytest.fixture
def look(sessions):
    def look():
        with transaction(sessions) as session:
            return look_at_work(session)

    return look


def stages(seen):
    return {(each.stage, each.state): each.count for each in seen.stages}


def test_an_empty_installation_has_no_series_of_stages(look):
    assert look().stages == []
    assert (look().workers, look().hints) == ([], 0)


def test_stages_are_counted_by_what_they_wait_for(sessions, look):
    account = make_account(sessions)
    make_job(sessions, account)
    make_job(sessions, account)
    claim(sessions)
    seen = look()
    assert {each.kind for each in seen.stages} == {"personalize"}
    both = {"content_lora", "style_lora"}
    assert sum(count for (name, state), count in stages(seen).items() if state == "runnable" and name in both) == 3
    assert [count for (_, state), count in stages(seen).items() if state == "running"] == [1]
    assert seen.hints > 0


def test_a_stage_whose_time_has_not_come_does_not_wait_yet_and_others_age(sessions, look):
    make_job(sessions, make_account(sessions))
    with transaction(sessions) as session:
        session.execute(
            update(Stage).where(Stage.name == "content_lora").values(runnable_at=func.now() + timedelta(hours=1))
        )
        session.execute(
            update(Stage).where(Stage.name == "style_lora").values(runnable_at=func.now() - timedelta(minutes=5))
        )
        session.execute(update(OutboxRow).values(due_at=func.now() + timedelta(hours=1)))
    seen = look()
    assert stages(seen) == {("style_lora", "runnable"): 1}
    assert 300 <= seen.stages[0].oldest_s < 330
    assert seen.hints == 0


def test_workers_are_counted_by_what_they_do_and_the_silent_ones_not(sessions, look):
    with transaction(sessions) as session:
        for name, state in (
            ("a", WorkerState.IDLE),
            ("b", WorkerState.BUSY),
            ("c", WorkerState.BUSY),
            ("d", WorkerState.IDLE),
        ):
            beat_worker(session, worker_id=name, state=state, device="cpu", engine_version="1")
    with transaction(sessions) as session:
        session.execute(update(Worker).where(Worker.id == "d").values(heartbeat_at=func.now() - timedelta(minutes=2)))
    assert dict(look().workers) == {"idle": 1, "busy": 2}
