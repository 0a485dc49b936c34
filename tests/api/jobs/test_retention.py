"""What is deleted when, and what must not be yet."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from api.accounts.models import Account
from api.db import transaction
from api.errors import NotFound
from api.jobs import repository
from api.jobs.locking import lock_job
from api.jobs.models import Event, Job, Stage
from tests.api.factories import claim, fail, finish, held, make_account, make_job

SOON = timedelta(hours=1)
POINTER = {"step": 1, "total": 2, "attempt": 1, "paired": False, "at": 0.0, "files": [{"key": "k"}]}


@pytest.fixture
def account(sessions):
    return make_account(sessions)


@pytest.fixture
def failed(sessions, account):
    """A job that failed with a checkpoint."""
    return make_failed(sessions, account)


def make_failed(sessions, account, **fields):
    job_id = make_job(sessions, account, checkpoints={"content_lora": POINTER}, **fields)
    fail(sessions, claim(sessions))
    return job_id


def stale(sessions, before=SOON):
    with transaction(sessions) as session:
        return repository.stale_checkpoints(session, finished_before=datetime.now(UTC) + before, limit=10)


def overdue(sessions, before=SOON):
    with transaction(sessions) as session:
        rows = repository.overdue_jobs(session, finished_before=datetime.now(UTC) + before, limit=10)
        return [row.job_id for row in rows]


def test_the_checkpoint_of_an_ended_job_goes_after_a_while(sessions, failed):
    assert stale(sessions, -SOON) == []
    (found,) = stale(sessions)
    assert (found.job_id, found.checkpoint) == (failed, POINTER)
    with transaction(sessions) as session:
        repository.forget_checkpoint(session, found.stage_id)
    assert stale(sessions) == []


def test_an_unfinished_retry_keeps_it_and_so_does_a_retry_of_the_retry(sessions, account, failed):
    second = make_failed(sessions, account, retry_of=failed)
    third = make_job(sessions, account, retry_of=second)
    assert (stale(sessions), overdue(sessions)) == ([], [])
    with transaction(sessions) as session:
        repository.request_cancel(session, account_id=account, job_id=third)
    assert {found.job_id for found in stale(sessions)} == {failed, second}
    assert set(overdue(sessions)) == {failed, second, third}


def test_a_retry_that_ended_lately_keeps_the_checkpoint_for_the_next_one(sessions, account, failed):
    second = make_job(sessions, account, retry_of=failed)
    with transaction(sessions) as session:
        repository.request_cancel(session, account_id=account, job_id=second)
        long_ago = datetime.now(UTC) - timedelta(hours=25)
        session.execute(update(Job).where(Job.id == failed).values(finished_at=long_ago))
    assert stale(sessions, -timedelta(hours=24)) == []
    assert [found.job_id for found in stale(sessions)] == [failed]


def test_a_purged_job_is_gone_with_its_bytes(sessions, account):
    job_id = make_job(sessions, account)
    with transaction(sessions) as session:
        session.get(Account, account).stored_bytes = 100
    finish(sessions, claim(sessions))
    fail(sessions, claim(sessions))
    assert overdue(sessions, -SOON) == []
    assert overdue(sessions) == [job_id]
    with transaction(sessions) as session:
        assert session.get(Account, account).stored_bytes == 107
        assert repository.purge_job(session, job_id)
        assert not repository.purge_job(session, job_id)
    with transaction(sessions) as session:
        assert session.get(Account, account).stored_bytes == 98  # two pictures of a byte, seven of the artifact
        assert [session.scalar(select(func.count()).select_from(table)) for table in (Job, Stage, Event)] == [0, 0, 0]


def test_whoever_meets_a_purge_is_told_that_the_job_is_gone(sessions, account, failed):
    with transaction(sessions) as session:
        repository.purge_job(session, failed)
    with transaction(sessions) as session, pytest.raises(NotFound):
        lock_job(session, failed)


def test_a_purge_waits_for_whoever_has_a_stage_without_holding_the_job(sessions, account, failed):
    with transaction(sessions) as holder, ThreadPoolExecutor(1) as pool:
        stages = select(Stage.id).where(Stage.job_id == failed).order_by(Stage.id)
        holder.execute(stages.with_for_update(key_share=True))
        purged = pool.submit(lambda: _purge(sessions, failed))
        with pytest.raises(TimeoutError):
            purged.result(timeout=0.5)
        # The purge must not have the job yet: this is what `lock_job` takes next.
        assert holder.execute(select(Job.id).where(Job.id == failed).with_for_update(nowait=True)).one()
        holder.commit()
        assert purged.result(timeout=10)


def _purge(sessions, job_id):
    with transaction(sessions) as session:
        return repository.purge_job(session, job_id)


def test_a_job_that_has_not_ended_is_never_purged(sessions, account):
    job_id = make_job(sessions, account)
    with transaction(sessions) as session:
        assert not repository.purge_job(session, job_id)


def test_reports_of_progress_go_before_the_job_and_nothing_else_does(sessions, account):
    job_id = make_job(sessions, account)
    claimed = claim(sessions)
    with transaction(sessions) as session:
        repository.record_progress(session, **held(claimed), progress={"step": 1, "total": 2}, tell=True)
    fail(sessions, claimed)

    def trim():
        with transaction(sessions) as session:
            return repository.trim_events(session, older_than=SOON, limit=10)

    assert trim() == 0
    with transaction(sessions) as session:
        session.execute(update(Job).values(finished_at=func.now() - 2 * SOON))
    assert [trim(), trim()] == [1, 0]
    with transaction(sessions) as session:
        kinds = session.scalars(select(Event.type).where(Event.job_id == job_id)).all()
    assert {"job.queued", "job.started", "job.failed"} <= set(kinds)
