"""What a worker writes while a stage runs: checkpoints, events of progress, logs; always under its token."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.models import Event, Job, LogLine, Stage, StageAttempt
from api.jobs.repository import LogEntry
from api.jobs.running import MAX_LOG_LINES
from tests.api.factories import (
    LEASE,
    claim,
    expire_lease,
    fail,
    finish,
    held,
    make_account,
    make_all_due,
    make_job,
    reap,
    snapshot,
)


@pytest.fixture
def claimed(sessions):
    make_job(sessions, make_account(sessions))
    return claim(sessions)


def pointer(step, attempt=1):
    return {"step": step, "total": 8, "attempt": attempt, "paired": False, "at": 0.0, "files": [{"key": f"k{step}"}]}


def keep(sessions, claimed, checkpoint):
    with transaction(sessions) as session:
        return repository.record_checkpoint(session, **held(claimed), checkpoint=checkpoint)


def stage_of(sessions, claimed):
    with transaction(sessions) as session:
        return session.get(Stage, claimed.stage_id)


class TestCheckpoints:
    def test_the_next_attempt_gets_the_last_one(self, sessions, claimed):
        assert keep(sessions, claimed, pointer(2)) is None
        assert keep(sessions, claimed, pointer(4)) == pointer(2)
        fail(sessions, claimed, retry_after=timedelta(0))
        again = claim(sessions)
        assert (again.name, again.checkpoint) == (claimed.name, pointer(4))
        with transaction(sessions) as session:
            assert session.get(StageAttempt, (again.stage_id, 2)).resumed_step == 4

    def test_it_never_goes_back(self, sessions, claimed):
        keep(sessions, claimed, pointer(4))
        assert keep(sessions, claimed, pointer(3)) == pointer(3)
        assert stage_of(sessions, claimed).checkpoint == pointer(4)

    def test_a_later_step_empties_the_counts_and_the_same_step_does_not(self, sessions, claimed):
        keep(sessions, claimed, pointer(2))
        for _ in range(2):
            fail(sessions, claimed, retry_after=timedelta(0))
            claimed = claim(sessions)
        assert claimed.failure_counts == {"death": 2}
        keep(sessions, claimed, pointer(2, attempt=3))
        assert stage_of(sessions, claimed).failure_counts == {"death": 2}
        keep(sessions, claimed, pointer(3, attempt=3))
        assert (stage_of(sessions, claimed).failure_counts, stage_of(sessions, claimed).failures) == ({}, 0)

    def test_a_stage_that_gets_further_survives_any_number_of_deaths(self, sessions, claimed):
        for step in range(1, 8):
            keep(sessions, claimed, pointer(step))
            expire_lease(sessions, claimed)
            assert reap(sessions) == 1
            make_all_due(sessions)
            while (again := claim(sessions)).stage_id != claimed.stage_id:
                pass
            claimed = again
        assert claimed.attempt == 8

    def test_one_that_cannot_be_used_is_forgotten(self, sessions, claimed):
        keep(sessions, claimed, pointer(4))
        fail(sessions, claimed, retry_after=timedelta(0))
        again = claim(sessions)
        with transaction(sessions) as session:
            repository.drop_checkpoint(session, **held(again))
        assert stage_of(sessions, again).checkpoint is None
        with transaction(sessions) as session:
            assert session.get(StageAttempt, (again.stage_id, 2)).resumed_step is None
        assert keep(sessions, again, pointer(1, attempt=2)) is None

    def test_a_finished_stage_has_none(self, sessions, claimed):
        keep(sessions, claimed, pointer(4))
        finish(sessions, claimed)
        assert stage_of(sessions, claimed).checkpoint is None


class TestEvents:
    def test_progress_is_told_when_asked_for(self, sessions, claimed):
        for step, tell in ((1, False), (2, True)):
            with transaction(sessions) as session:
                report = {"step": step, "total": 8, "loss": 0.5, "note": "training"}
                repository.record_progress(session, **held(claimed), progress=report, tell=tell)
        with transaction(sessions) as session:
            told = session.scalars(select(Event).where(Event.type == "job.progress")).one().data
        assert {"stage": claimed.name, "attempt": 1, "step": 2, "total": 8, "fraction": 0.25}.items() <= told.items()
        assert told["steps_per_second"] > 0
        assert told["eta_seconds"] is not None

    def test_a_heartbeat_hears_what_the_owner_wants(self, sessions, claimed):
        with transaction(sessions) as session:
            session.get(Job, claimed.job_id).stop_requested_at = func.now()
        with transaction(sessions) as session:
            heard = repository.heartbeat(session, **held(claimed), lease=LEASE)
        assert (heard.cancel_requested, heard.stop_requested) == (False, True)


class TestLogs:
    def test_lines_are_kept_in_order_and_made_fit(self, sessions, claimed):
        at = datetime.now(UTC)
        lines = [LogEntry(at, "INFO", "one"), LogEntry(at, "WARNING", "two\0" + "x" * 3000)]
        with transaction(sessions) as session:
            repository.record_logs(session, **held(claimed), lines=lines)
        with transaction(sessions) as session:
            rows = session.scalars(select(LogLine).order_by(LogLine.id)).all()
        assert [(row.stage, row.attempt, row.level) for row in rows] == [
            ("content_lora", 1, "INFO"),
            ("content_lora", 1, "WARNING"),
        ]
        assert len(rows[1].message) == 2000

    def test_a_flood_ends_in_a_line_that_says_so(self, sessions, claimed):
        at = datetime.now(UTC)
        for _ in range(3):
            with transaction(sessions) as session:
                flood = [LogEntry(at, "INFO", "again")] * (MAX_LOG_LINES // 2 + 1)
                repository.record_logs(session, **held(claimed), lines=flood)
        with transaction(sessions) as session:
            messages = session.scalars(select(LogLine.message).order_by(LogLine.id)).all()
        assert len(messages) == MAX_LOG_LINES + 1
        assert "not kept" in messages[-1]


WRITES = {
    "checkpoint": lambda session, proof: repository.record_checkpoint(session, **proof, checkpoint=pointer(9)),
    "drop": lambda session, proof: repository.drop_checkpoint(session, **proof),
    "progress": lambda session, proof: repository.record_progress(
        session, **proof, progress={"step": 1, "total": 2}, tell=True
    ),
    "logs": lambda session, proof: repository.record_logs(
        session, **proof, lines=[LogEntry(datetime.now(UTC), "INFO", "x")]
    ),
}


@pytest.mark.parametrize("write", list(WRITES))
def test_a_zombie_changes_nothing(sessions, claimed, write):
    keep(sessions, claimed, pointer(2))
    expire_lease(sessions, claimed)
    assert reap(sessions) == 1
    before = snapshot(sessions)
    with pytest.raises(LeaseLost), transaction(sessions) as session:
        WRITES[write](session, held(claimed))
    assert snapshot(sessions) == before
