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
    expire_lease,
    finish,
    held,
    job_state,
    make_account,
    make_job,
    reap,
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


class TestCompany:
    """Trainings of several jobs in one pass: nobody knows because of whom it ends."""

    @pytest.fixture
    def claimed(self, sessions):
        for name in ("mine", "theirs"):
            make_job(sessions, make_account(sessions, name))
        claimed = claim(sessions, pairs=True, jobs_at_once=2)
        assert len(claimed.by_job) == 2
        return claimed

    def stages(self, sessions, claimed):
        with transaction(sessions) as session:
            return [session.get(Stage, each.stage_id) for each in claimed.all]

    def outcomes(self, sessions, claimed):
        with transaction(sessions) as session:
            return [session.get(StageAttempt, (each.stage_id, each.attempt)).outcome.value for each in claimed.all]

    @pytest.mark.parametrize("kind", FailureClass)
    def test_none_is_blamed_and_each_goes_on_alone(self, sessions, claimed, kind):
        retry_after = None if kind is FailureClass.CALLER else timedelta(0)
        for each in claimed.all:
            assert fail_as(sessions, each, kind, retry_after) == "runnable"
        for stage in self.stages(sessions, claimed):
            assert (stage.failures, stage.failure_counts, stage.error) == (0, {}, None)
            assert (stage.alone, stage.memory_profile) == (True, "full")
        assert self.outcomes(sessions, claimed) == ["released"] * 4
        again = [claim(sessions, pairs=True, jobs_at_once=2) for _ in range(2)]
        assert [len(each.by_job) for each in again] == [1, 1]

    def test_what_was_said_may_be_about_somebody_else(self, sessions, claimed):
        with transaction(sessions) as session:
            error = PROBLEM | {"detail": "picture 3 of the other job is empty"}
            for each in claimed.by_job[0]:
                repository.fail_stage(session, **held(each), error=error, retry_after=None)
        with transaction(sessions) as session:
            first = claimed.by_job[0][0]
            said = session.get(StageAttempt, (first.stage_id, first.attempt)).error
        assert "other jobs" in said["detail"]
        assert "picture" not in str(said)

    def test_whoever_fails_alone_afterwards_has_failed(self, sessions, claimed):
        for each in claimed.all:
            fail_as(sessions, each, FailureClass.CALLER, None)
        again = claim(sessions)
        assert fail_as(sessions, again, FailureClass.CALLER, None) == "failed"
        assert job_state(sessions, again.job_id) is JobState.FAILED

    def test_a_silent_worker_is_nobodys_fault_either(self, sessions, claimed):
        for each in claimed.all:
            expire_lease(sessions, each)
        assert reap(sessions) == 4
        assert {(stage.failures, stage.alone) for stage in self.stages(sessions, claimed)} == {(0, True)}
        assert self.outcomes(sessions, claimed) == ["lease_expired"] * 4

    def test_whose_job_is_to_be_canceled_is_canceled_and_the_others_are_given_back(self, sessions, claimed):
        gone, stays = claimed.by_job
        cancel(sessions, gone[0].account_id, gone[0].job_id)
        for each in claimed.all:
            with transaction(sessions) as session:
                repository.release_stage(session, **held(each))
        assert self.outcomes(sessions, claimed) == ["canceled", "canceled", "released", "released"]
        assert job_state(sessions, gone[0].job_id) is JobState.CANCELED
        assert {(stage.state.value, stage.alone) for stage in self.stages(sessions, claimed)[2:]} == {
            ("runnable", False)
        }
        assert claim(sessions).job_id == stays[0].job_id


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
