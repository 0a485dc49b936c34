"""How stages and jobs end: classes of failures and their caps, deadlines, and what an end leaves behind."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from api.accounts.models import Account
from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.models import Job, Stage, StageAttempt
from api.jobs.repository import FailureClass
from api.jobs.states import JobState
from tests.api.factories import (
    PROBLEM,
    cancel,
    claim,
    events,
    finish,
    held,
    job_state,
    make_account,
    make_job,
    stage_states,
)


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def fail_as(sessions, claimed, kind, retry_after=timedelta(0)):
    with transaction(sessions) as session:
        return repository.fail_stage(session, **held(claimed), error=PROBLEM, retry_after=retry_after, kind=kind)


def expire(sessions, **options):
    with transaction(sessions) as session:
        return repository.expire_overdue(session, **options)


class TestFailureClasses:
    @pytest.mark.parametrize(("kind", "cap"), [("caller", 1), ("memory", 2), ("environment", 12), ("death", 3)])
    def test_each_has_its_own_cap(self, sessions, account, kind, cap):
        job_id = make_job(sessions, account)
        finish(sessions, claim(sessions))
        for _ in range(cap):
            assert job_state(sessions, job_id) is JobState.RUNNING
            claimed = claim(sessions)
            fail_as(sessions, claimed, FailureClass(kind))
        with transaction(sessions) as session:
            job = session.get(Job, job_id)
            assert job.state is JobState.FAILED
            assert job.error.get("poisoned", False) is (kind == "death")
            assert session.get(StageAttempt, (claimed.stage_id, cap)).failure_class == kind

    def test_classes_are_counted_apart(self, sessions, account):
        make_job(sessions, account)
        for kind in (FailureClass.DEATH, FailureClass.MEMORY, FailureClass.ENVIRONMENT, FailureClass.DEATH):
            claimed = claim(sessions)
            assert fail_as(sessions, claimed, kind) == "runnable"
        with transaction(sessions) as session:
            stage = session.get(Stage, claimed.stage_id)
            assert stage.failure_counts == {"death": 2, "memory": 1, "environment": 1}
            assert stage.failures == 4

    def test_neither_shutdown_nor_cancel_counts(self, sessions, account):
        job_id = make_job(sessions, account)
        claimed = claim(sessions)
        with transaction(sessions) as session:
            repository.release_stage(session, **held(claimed))
        claimed = claim(sessions)
        cancel(sessions, account, job_id)
        with transaction(sessions) as session:
            repository.settle_cancel(session, **held(claimed))
        with transaction(sessions) as session:
            assert session.get(Stage, claimed.stage_id).failure_counts == {}


class TestFinish:
    def test_bytes_are_counted_and_the_library_is_told(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions)
        before = stored(sessions, account)
        artifact = repository.StoredArtifact(name="n", filename="f", key="k", sha256="00", bytes=70, content_type="x/y")
        with transaction(sessions) as session:
            repository.finish_stage(
                session, **held(claimed), artifacts=[artifact], timings={}, reuse_key="key", reused_job_id=None
            )
        assert stored(sessions, account) - before == 70
        with transaction(sessions) as session:
            found = repository.find_reusable(session, account_id=account, reuse_key="key")
        assert (found.job_id, [file.key for file in found.artifacts]) == (claimed.job_id, ["k"])

    def test_a_stopped_stage_is_not_entered_in_the_library(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions)
        with transaction(sessions) as session:
            repository.finish_stage(
                session, **held(claimed), artifacts=[], timings={}, reuse_key="key", stopped_early=True
            )
        with transaction(sessions) as session:
            assert session.get(Stage, claimed.stage_id).stopped_early
            assert repository.find_reusable(session, account_id=account, reuse_key="key") is None


def stored(sessions, account):
    with transaction(sessions) as session:
        return session.get(Account, account).stored_bytes


PAST = datetime.now(UTC) - timedelta(seconds=1)


class TestDeadline:
    def test_a_job_that_never_started_expires(self, sessions, account):
        job_id = make_job(sessions, account, deadline_at=PAST)
        assert [expire(sessions), expire(sessions)] == [1, 0]
        assert job_state(sessions, job_id) is JobState.EXPIRED
        assert set(stage_states(sessions, job_id).values()) == {"canceled"}
        assert events(sessions, job_id)[-1] == "job.expired"

    def test_one_that_runs_fails_and_its_worker_learns_it(self, sessions, account):
        job_id = make_job(sessions, account, deadline_at=datetime.now(UTC) + timedelta(hours=1))
        claimed = claim(sessions)
        assert expire(sessions) == 0
        assert expire(sessions, now=datetime.now(UTC) + timedelta(hours=2)) == 1
        with transaction(sessions) as session:
            job = session.get(Job, job_id)
            assert (job.state, job.error["code"]) == (JobState.FAILED, "deadline_exceeded")
            assert session.get(StageAttempt, (claimed.stage_id, 1)).outcome == "canceled"
        with pytest.raises(LeaseLost):
            finish(sessions, claimed)
        assert events(sessions, job_id)[-1] == "job.failed"

    def test_what_its_owner_cancels_is_canceled(self, sessions, account):
        job_id = make_job(sessions, account, deadline_at=datetime.now(UTC) + timedelta(hours=1))
        claim(sessions)
        cancel(sessions, account, job_id)
        assert expire(sessions, now=datetime.now(UTC) + timedelta(hours=2)) == 0

    def test_two_dispatchers_at_once_end_it_once(self, sessions, account):
        jobs = [make_job(sessions, account, deadline_at=PAST) for _ in range(5)]
        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(lambda _: expire(sessions), range(2))) == 5
        for job_id in jobs:
            assert events(sessions, job_id).count("job.expired") == 1
