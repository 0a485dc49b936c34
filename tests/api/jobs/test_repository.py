"""The life of stages against a real database: claims, leases, fencing, retries, cancels, the reaper."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.models import Artifact, Event, Job, Stage, StageAttempt
from api.jobs.states import JobState
from api.webhooks.models import WebhookDelivery
from tests.api.factories import (
    LEASE,
    cancel,
    claim,
    events,
    expire_lease,
    fail,
    finish,
    held,
    job_state,
    make_account,
    make_all_due,
    make_job,
    reap,
    rolled_back,
    snapshot,
    stage_states,
)
from tests.support.company import together


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def attempts(sessions, stage_id):
    with transaction(sessions) as session:
        rows = session.scalars(
            select(StageAttempt).where(StageAttempt.stage_id == stage_id).order_by(StageAttempt.attempt)
        )
        return [(row.attempt, row.worker_id, row.outcome and row.outcome.value) for row in rows]


class TestWholeLife:
    def test_a_job_runs_from_first_claim_to_success(self, sessions, account):
        job_id = make_job(sessions, account, webhook_url="https://receiver/")
        assert job_state(sessions, job_id) is JobState.QUEUED
        seen = []
        while claimed := claim(sessions):
            seen.append((claimed.name, sorted(file.name for file in claimed.upstream)))
            assert job_state(sessions, job_id) is JobState.RUNNING
            finish(sessions, claimed)
        assert seen == [
            ("content_lora", []),
            ("style_lora", []),
            ("merge", ["content_lora", "style_lora"]),
            ("package", ["content_lora", "merge", "style_lora"]),
        ]
        assert job_state(sessions, job_id) is JobState.SUCCEEDED
        assert events(sessions, job_id).count("job.started") == 1
        assert events(sessions, job_id)[-1] == "job.succeeded"
        with transaction(sessions) as session:
            job = session.get(Job, job_id)
            assert job.created_at <= job.started_at <= job.finished_at
            assert session.scalar(select(func.count()).select_from(Artifact)) == 4
            assert session.scalar(select(WebhookDelivery.type)) == "job.succeeded"

    def test_a_job_that_trains_both_sides_at_once_runs_to_success(self, sessions, account):
        job_id = make_job(sessions, account, recipe=together)
        seen = []
        while claimed := claim(sessions):
            seen.append((claimed.name, sorted(file.name for file in claimed.upstream)))
            finish(sessions, claimed)
        assert seen == [("loras", []), ("merge", ["loras"]), ("package", ["loras", "merge"])]
        assert job_state(sessions, job_id) is JobState.SUCCEEDED

    def test_what_a_worker_gets_to_know(self, sessions, account):
        job_id = make_job(sessions, account, traceparent="00-aa-bb-01")
        claimed = claim(sessions, worker_id="gpu-7")
        assert (claimed.job_id, claimed.account_id, claimed.kind) == (job_id, account, "personalize")
        assert (claimed.attempt, claimed.checkpoint, claimed.traceparent) == (1, None, "00-aa-bb-01")
        assert claimed.params["recipe"] == "tiny"
        assert [(image.side, image.ordinal, image.key) for image in claimed.images] == [
            ("content", 0, "content/0"),
            ("style", 0, "style/0"),
        ]
        assert attempts(sessions, claimed.stage_id) == [(1, "gpu-7", None)]

    def test_a_stage_may_be_born_with_a_checkpoint(self, sessions, account):
        pointer = {"step": 3, "total": 6, "files": []}
        job_id = make_job(sessions, account, checkpoints={"style_lora": pointer})
        claims = [claim(sessions), claim(sessions)]
        assert {claimed.name: claimed.checkpoint for claimed in claims} == {"content_lora": None, "style_lora": pointer}
        with transaction(sessions) as session:
            stages = session.scalars(select(Stage).where(Stage.job_id == job_id)).all()
            assert sum(stage.weight for stage in stages) == pytest.approx(1)
            job = session.get(Job, job_id)
            assert {(stage.account_id, stage.priority, stage.queued_at) for stage in stages} == {
                (account, 0, job.created_at)
            }

    def test_a_merge_waits_for_both_sides(self, sessions, account):
        job_id = make_job(sessions, account)
        first, second = claim(sessions), claim(sessions)
        finish(sessions, second)
        assert claim(sessions) is None
        assert stage_states(sessions, job_id)["merge"] == "waiting"
        finish(sessions, first)
        assert stage_states(sessions, job_id)["merge"] == "runnable"

    def test_a_style_stage_does_not_see_the_content_lora_that_came_before(self, sessions, account):
        make_job(sessions, account)
        finish(sessions, claim(sessions))
        style = claim(sessions)
        assert (style.name, style.upstream) == ("style_lora", ())


class TestClaim:
    def test_nothing_runnable_is_none(self, sessions):
        assert claim(sessions) is None

    def test_other_kinds_are_left_alone(self, sessions, account):
        make_job(sessions, account)
        assert claim(sessions, kinds=["generate"]) is None
        assert claim(sessions, kinds=["personalize"]) is not None

    def test_an_open_claim_is_passed_over_not_waited_for(self, sessions, account):
        jobs = [make_job(sessions, account), make_job(sessions, account)]
        for content in [claim(sessions) for _ in range(4)]:
            if content.name == "content_lora":
                finish(sessions, content)
            else:
                with transaction(sessions) as session:
                    repository.release_stage(session, **held(content))
        with sessions.begin() as one, sessions.begin() as two, sessions.begin() as three:
            first = repository.claim_stage(one, repository.Claimant(worker_id="a", lease=LEASE))
            second = repository.claim_stage(two, repository.Claimant(worker_id="b", lease=LEASE))
            assert [first.job_id, second.job_id] == jobs
            assert repository.claim_stage(three, repository.Claimant(worker_id="c", lease=LEASE)) is None

    def test_a_rolled_back_claim_was_none(self, sessions, account):
        make_job(sessions, account)
        before = snapshot(sessions)
        with rolled_back(sessions) as session:
            assert repository.claim_stage(session, repository.Claimant(worker_id="a", lease=LEASE)) is not None
        assert snapshot(sessions) == before

    def test_many_workers_get_every_stage_exactly_once(self, sessions, account):
        for _ in range(6):
            make_job(sessions, account)
        start = threading.Barrier(4)

        def work(name):
            start.wait()
            mine = []
            while claimed := claim(sessions, worker_id=name):
                mine.append(claimed.stage_id)
            return mine

        with ThreadPoolExecutor(4) as pool:
            claimed = [stage for mine in pool.map(work, "abcd") for stage in mine]
        assert len(claimed) == len(set(claimed)) == 12

    def test_two_workers_finishing_both_sides_at_once_wake_the_merge_once(self, sessions, account):
        jobs = [make_job(sessions, account) for _ in range(5)]
        claims = [claim(sessions) for _ in range(10)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda claimed: finish(sessions, claimed), claims))
        for job_id in jobs:
            assert stage_states(sessions, job_id)["merge"] == "runnable"
        merges = [claim(sessions).name for _ in range(5)]
        assert merges == ["merge"] * 5
        assert claim(sessions) is None

    def test_not_before_its_time(self, sessions, account):
        make_job(sessions, account)
        finish(sessions, claim(sessions))
        fail(sessions, claim(sessions), retry_after=timedelta(hours=1))
        assert claim(sessions) is None
        make_all_due(sessions)
        assert claim(sessions).name == "style_lora"


class TestFairChoice:
    def test_the_oldest_job_first(self, sessions, account):
        first, _ = make_job(sessions, account), make_job(sessions, account)
        assert claim(sessions).job_id == first

    def test_priority_before_age(self, sessions, account):
        make_job(sessions, account)
        urgent = make_job(sessions, account, priority=5)
        assert claim(sessions).job_id == urgent

    def test_the_account_with_the_fewest_running_stages_before_age(self, sessions, account):
        for _ in range(3):
            make_job(sessions, account)
        theirs = make_job(sessions, make_account(sessions, "theirs"))
        assert claim(sessions).account_id == account
        assert claim(sessions).job_id == theirs
        order = [claim(sessions).account_id == account for _ in range(2)]
        assert order == [True, False]

    def test_priority_before_fairness(self, sessions, account):
        make_job(sessions, account, priority=1)
        make_job(sessions, make_account(sessions, "theirs"))
        assert [claim(sessions).account_id == account for _ in range(3)] == [True, True, False]


WRITES = {
    "heartbeat": lambda session, proof: repository.heartbeat(session, **proof, lease=LEASE),
    "progress": lambda session, proof: repository.record_progress(session, **proof, progress={"step": 1, "total": 2}),
    "finish": lambda session, proof: repository.finish_stage(
        session,
        **proof,
        artifacts=[
            repository.StoredArtifact(name="zombie", filename="z", key="z", sha256="00", bytes=1, content_type="x/y")
        ],
        timings={},
    ),
    "fail": lambda session, proof: repository.fail_stage(session, **proof, error={"code": "x"}, retry_after=None),
    "release": lambda session, proof: repository.release_stage(session, **proof),
    "settle_cancel": lambda session, proof: repository.settle_cancel(session, **proof),
}


class TestFencing:
    @pytest.mark.parametrize("write", list(WRITES))
    @pytest.mark.parametrize("reclaimed", [False, True])
    def test_a_zombie_changes_nothing(self, sessions, account, write, reclaimed):
        make_job(sessions, account, webhook_url="https://receiver/")
        zombie = claim(sessions)
        expire_lease(sessions, zombie)
        assert reap(sessions) == 1
        if reclaimed:
            make_all_due(sessions)
            while (current := claim(sessions, worker_id="w2")).stage_id != zombie.stage_id:
                pass
            assert current.attempt == 2
        before = snapshot(sessions)
        with pytest.raises(LeaseLost), transaction(sessions) as session:
            WRITES[write](session, held(zombie))
        assert snapshot(sessions) == before

    @pytest.mark.parametrize("write", list(WRITES))
    def test_nothing_is_written_after_the_end(self, sessions, account, write):
        make_job(sessions, account)
        claimed = claim(sessions)
        finish(sessions, claimed)
        before = snapshot(sessions)
        with pytest.raises(LeaseLost), transaction(sessions) as session:
            WRITES[write](session, held(claimed))
        assert snapshot(sessions) == before

    def test_an_old_lease_that_nobody_reaped_still_holds(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions)
        expire_lease(sessions, claimed)
        with transaction(sessions) as session:
            repository.heartbeat(session, **held(claimed), lease=LEASE)
        assert reap(sessions) == 0
        finish(sessions, claimed)


class TestProgress:
    def test_the_rate_is_taken_from_the_first_step_of_the_same_count(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions)

        def report(step, total):
            with transaction(sessions) as session:
                repository.record_progress(session, **held(claimed), progress={"step": step, "total": total})
            with transaction(sessions) as session:
                return session.get(Stage, claimed.stage_id).progress

        assert report(0, 8)["since"] is None
        assert report(2, 8)["since"]["step"] == 2
        assert report(8, 8)["since"]["step"] == 2
        assert report(0, 150)["since"] is None  # counting anew
        first = report(1, 150)
        later = report(40, 150)
        assert later["since"] == {"step": 1, "at": first["at"]}
        assert later["at"] > first["at"]


class TestFailure:
    def test_a_final_fault_fails_the_job_and_takes_running_siblings_away(self, sessions, account):
        job_id = make_job(sessions, account, webhook_url="https://receiver/")
        content, style = claim(sessions), claim(sessions)
        assert fail(sessions, content) == "failed"
        assert stage_states(sessions, job_id) == {
            "content_lora": "failed",
            "style_lora": "canceled",
            "merge": "canceled",
            "package": "canceled",
        }
        with transaction(sessions) as session:
            job = session.get(Job, job_id)
            assert job.state is JobState.FAILED
            assert (job.error["code"], job.error["stage"], job.error["attempt"]) == ("x", "content_lora", 1)
            assert session.scalar(select(WebhookDelivery.type)) == "job.failed"
        with pytest.raises(LeaseLost):
            finish(sessions, style)
        assert attempts(sessions, style.stage_id) == [(1, "w1", "canceled")]
        assert claim(sessions) is None

    def test_attempts_are_capped_by_the_database(self, sessions, account):
        job_id = make_job(sessions, account)
        finish(sessions, claim(sessions))
        for expected in ("runnable", "runnable", "failed"):
            claimed = claim(sessions)
            assert fail(sessions, claimed, retry_after=timedelta(0)) == expected
        assert claimed.attempt == 3
        assert job_state(sessions, job_id) is JobState.FAILED
        assert [outcome for _, _, outcome in attempts(sessions, claimed.stage_id)] == ["retried", "retried", "failed"]

    def test_a_retry_may_succeed_and_leaves_no_error(self, sessions, account):
        make_job(sessions, account)
        fail(sessions, claim(sessions), retry_after=timedelta(0))
        again = claim(sessions)
        assert (again.name, again.attempt) == ("content_lora", 2)
        finish(sessions, again)
        with transaction(sessions) as session:
            assert session.get(Stage, again.stage_id).error is None

    def test_a_shutdown_does_not_count(self, sessions, account):
        make_job(sessions, account)
        for attempt in range(1, 6):
            claimed = claim(sessions)
            assert (claimed.name, claimed.attempt) == ("content_lora", attempt)
            with transaction(sessions) as session:
                repository.release_stage(session, **held(claimed))
        with transaction(sessions) as session:
            stage = session.get(Stage, claimed.stage_id)
            assert (stage.state, stage.failures) == ("runnable", 0)
        assert {outcome for _, _, outcome in attempts(sessions, claimed.stage_id)} == {"released"}


class TestCancel:
    def test_a_queued_job_ends_at_once(self, sessions, account):
        job_id = make_job(sessions, account, webhook_url="https://receiver/")
        assert cancel(sessions, account, job_id)
        assert job_state(sessions, job_id) is JobState.CANCELED
        assert set(stage_states(sessions, job_id).values()) == {"canceled"}
        changes = ["job.stage_changed"] * 4
        assert events(sessions, job_id) == ["job.queued", "job.cancel_requested", *changes, "job.canceled"]
        with transaction(sessions) as session:
            assert session.scalar(select(WebhookDelivery.type)) == "job.canceled"
        assert claim(sessions) is None

    def test_a_running_job_ends_when_its_workers_have_stopped(self, sessions, account):
        job_id = make_job(sessions, account)
        content, style = claim(sessions), claim(sessions)
        cancel(sessions, account, job_id)
        assert job_state(sessions, job_id) is JobState.RUNNING
        for claimed in (content, style):
            with transaction(sessions) as session:
                assert repository.heartbeat(session, **held(claimed), lease=LEASE).cancel_requested
            assert job_state(sessions, job_id) is JobState.RUNNING
            with transaction(sessions) as session:
                repository.settle_cancel(session, **held(claimed))
        assert job_state(sessions, job_id) is JobState.CANCELED

    @pytest.mark.parametrize("how", ["fail", "retry", "release", "reap"])
    def test_whatever_ends_the_attempt_ends_a_canceled_job(self, sessions, account, how):
        job_id = make_job(sessions, account)
        claimed = claim(sessions)
        cancel(sessions, account, job_id)
        if how == "reap":
            expire_lease(sessions, claimed)
            assert reap(sessions) == 1
        elif how == "release":
            with transaction(sessions) as session:
                repository.release_stage(session, **held(claimed))
        else:
            fail(sessions, claimed, retry_after=timedelta(0) if how == "retry" else None)
        assert job_state(sessions, job_id) is JobState.CANCELED
        assert claim(sessions) is None

    def test_a_stage_that_finishes_all_the_same_wakes_nothing(self, sessions, account):
        job_id = make_job(sessions, account)
        finish(sessions, claim(sessions))
        last_side = claim(sessions)
        cancel(sessions, account, job_id)
        finish(sessions, last_side)
        assert job_state(sessions, job_id) is JobState.CANCELED
        assert claim(sessions) is None

    def test_the_last_stage_wins_the_race(self, sessions, account):
        job_id = make_job(sessions, account)
        for _ in range(3):
            finish(sessions, claim(sessions))
        package = claim(sessions)
        cancel(sessions, account, job_id)
        finish(sessions, package)
        assert job_state(sessions, job_id) is JobState.SUCCEEDED

    def test_between_two_attempts_it_ends_at_once(self, sessions, account):
        job_id = make_job(sessions, account)
        fail(sessions, claim(sessions), retry_after=timedelta(hours=1))
        cancel(sessions, account, job_id)
        assert job_state(sessions, job_id) is JobState.CANCELED

    def test_asking_again_or_too_late_changes_nothing(self, sessions, account):
        job_id = make_job(sessions, account)
        cancel(sessions, account, job_id)
        before = snapshot(sessions)
        assert cancel(sessions, account, job_id)
        assert snapshot(sessions) == before

    def test_nobody_cancels_somebody_elses_job(self, sessions, account):
        job_id = make_job(sessions, account)
        before = snapshot(sessions)
        assert not cancel(sessions, make_account(sessions, "theirs"), job_id)
        assert snapshot(sessions) == before

    def test_settling_what_nobody_asked_for_is_a_mistake(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions)
        with pytest.raises(ValueError, match="nobody asked"), transaction(sessions) as session:
            repository.settle_cancel(session, **held(claimed))

    def test_cancels_racing_with_claims_and_finishes_settle(self, sessions, account):
        """Everybody at once: no deadlock, no lost request, at most one terminal event for each job."""
        jobs = [make_job(sessions, account) for _ in range(8)]

        def work(_):
            while claimed := claim(sessions):
                try:
                    with transaction(sessions) as session:
                        canceled = repository.heartbeat(session, **held(claimed), lease=LEASE).cancel_requested
                    if canceled:
                        with transaction(sessions) as session:
                            repository.settle_cancel(session, **held(claimed))
                    else:
                        finish(sessions, claimed)
                except LeaseLost:
                    pass

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work, n) for n in range(2)]
            for job_id in jobs:
                pool.submit(cancel, sessions, account, job_id).result()
            for worker in workers:
                worker.result()
        work(0)
        for job_id in jobs:
            assert job_state(sessions, job_id) in {JobState.CANCELED, JobState.SUCCEEDED}
            terminal = {"job.canceled", "job.succeeded", "job.failed"}
            assert len([kind for kind in events(sessions, job_id) if kind in terminal]) == 1


class TestReaper:
    def test_a_living_worker_is_left_alone(self, sessions, account):
        make_job(sessions, account)
        claim(sessions)
        assert reap(sessions) == 0
        assert reap(sessions, now=datetime.now(UTC) + LEASE + timedelta(seconds=5)) == 1

    def test_a_dead_workers_stage_is_tried_again_after_growing_waits_then_fails(self, sessions, account):
        job_id = make_job(sessions, account)
        finish(sessions, claim(sessions))
        waits = []
        for _ in range(3):
            claimed = claim(sessions)
            assert claimed.name == "style_lora"
            expire_lease(sessions, claimed)
            assert reap(sessions) == 1
            with transaction(sessions) as session:
                stage = session.get(Stage, claimed.stage_id)
                ended_at = session.get(StageAttempt, (claimed.stage_id, claimed.attempt)).finished_at
                waits.append(stage.runnable_at - ended_at)
            make_all_due(sessions)
        assert waits[:2] == [timedelta(seconds=5), timedelta(seconds=10)]
        with transaction(sessions) as session:
            job = session.get(Job, job_id)
            assert (job.state, job.error["code"]) == (JobState.FAILED, "worker_lost")
            assert job.error["attempt"] == 3

    def test_the_limit_bounds_one_sweep(self, sessions, account):
        for _ in range(2):
            make_job(sessions, account)
        for _ in range(3):
            expire_lease(sessions, claim(sessions))
        assert [reap(sessions, limit=2), reap(sessions, limit=2), reap(sessions)] == [2, 1, 0]

    def test_two_reapers_at_once_count_a_failure_once(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions)
        expire_lease(sessions, claimed)
        with ThreadPoolExecutor(2) as pool:
            counts = list(pool.map(lambda _: reap(sessions), range(2)))
        assert sorted(counts) == [0, 1]
        with transaction(sessions) as session:
            assert session.get(Stage, claimed.stage_id).failures == 1


def test_one_instant_marks_everything_a_transaction_writes(sessions, account):
    job_id = make_job(sessions, account)
    with transaction(sessions) as session:
        created = session.get(Job, job_id).created_at
        assert session.scalar(select(Event.created_at).where(Event.job_id == job_id)) == created
