"""Which stage a worker gets: quotas, deadlines, pairs, and a queue of any length."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text

from api.accounts.models import Account
from api.db import transaction
from api.jobs import candidates, repository
from api.jobs.models import Job, MemoryProfile, Stage, StageAttempt, WorkerState
from api.jobs.states import JobState
from tests.api.factories import (
    LEASE,
    claim,
    expire_lease,
    fail,
    finish,
    held,
    job_state,
    make_account,
    make_all_due,
    make_job,
    reap,
    stage_states,
)


@pytest.fixture
def account(sessions):
    return make_account(sessions)


def limit(sessions, account, running):
    with transaction(sessions) as session:
        session.get(Account, account).max_running_jobs = running


def pointer(step=3, total=8, *, paired=False):
    return {"step": step, "total": total, "attempt": 1, "paired": paired, "at": 0.0, "files": []}


def beat(sessions, worker_id, state=WorkerState.IDLE):
    with transaction(sessions) as session:
        repository.beat_worker(session, worker_id=worker_id, state=state, device="cpu", engine_version="1")


class TestQuota:
    def test_no_more_jobs_run_than_the_account_may_have(self, sessions, account):
        limit(sessions, account, 1)
        first, second = make_job(sessions, account), make_job(sessions, account)
        assert [claim(sessions).job_id, claim(sessions).job_id] == [first, first]
        assert claim(sessions) is None
        assert job_state(sessions, second) is JobState.QUEUED

    def test_the_next_starts_when_one_has_ended(self, sessions, account):
        limit(sessions, account, 1)
        first, second = make_job(sessions, account), make_job(sessions, account)
        fail(sessions, claim(sessions))
        assert job_state(sessions, first) is JobState.FAILED
        assert claim(sessions).job_id == second

    def test_others_are_not_held_up(self, sessions, account):
        limit(sessions, account, 0)
        make_job(sessions, account)
        theirs = make_job(sessions, make_account(sessions, "theirs"))
        assert claim(sessions).job_id == theirs

    def test_workers_that_claim_at_once_stay_within_it(self, sessions, account):
        limit(sessions, account, 2)
        for _ in range(6):
            make_job(sessions, account)
        start = threading.Barrier(4)

        def work(name):
            start.wait()
            return [claimed.job_id for _ in range(3) if (claimed := claim(sessions, worker_id=name))]

        with ThreadPoolExecutor(4) as pool:
            started = {job for jobs in pool.map(work, "abcd") for job in jobs}
        assert len(started) == 2


class TestDeadline:
    def test_a_job_past_it_is_not_begun(self, sessions, account):
        make_job(sessions, account, deadline_at=datetime.now(UTC) - timedelta(seconds=1))
        later = make_job(sessions, account, deadline_at=datetime.now(UTC) + timedelta(hours=1))
        assert claim(sessions).job_id == later


class TestPairs:
    def test_both_sides_come_to_a_worker_that_is_alone(self, sessions, account):
        job_id = make_job(sessions, account)
        beat(sessions, "w1")
        claimed = claim(sessions, pairs=True)
        assert (claimed.name, claimed.mates[0].name) == ("content_lora", "style_lora")
        assert claimed.fencing_token != claimed.mates[0].fencing_token
        assert stage_states(sessions, job_id)["style_lora"] == "running"
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(StageAttempt)) == 2
        finish(sessions, claimed)
        finish(sessions, claimed.mates[0])
        assert claim(sessions, pairs=True).name == "merge"

    def test_not_asked_for_it_comes_alone(self, sessions, account):
        make_job(sessions, account)
        assert claim(sessions).mates == ()

    def test_another_free_worker_gets_the_other_side(self, sessions, account):
        make_job(sessions, account)
        beat(sessions, "w2")
        assert claim(sessions, pairs=True).mates == ()
        assert claim(sessions, worker_id="w2", pairs=True).name == "style_lora"

    @pytest.mark.parametrize("state", [WorkerState.BUSY, WorkerState.STOPPING])
    def test_a_worker_that_is_busy_is_not_free(self, sessions, account, state):
        make_job(sessions, account)
        beat(sessions, "w2", state)
        assert claim(sessions, pairs=True).mates

    def test_a_worker_that_fell_silent_is_not_free(self, sessions, account):
        make_job(sessions, account)
        beat(sessions, "w2")
        with transaction(sessions) as session:
            session.execute(text("UPDATE workers SET heartbeat_at = now() - interval '1 minute'"))
        assert claim(sessions, pairs=True).mates

    def test_one_that_ran_out_of_memory_goes_alone(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions, pairs=True)
        with transaction(sessions) as session:
            for each in claimed.all:
                repository.fail_stage(
                    session,
                    **held(each),
                    error={"code": "oom"},
                    retry_after=timedelta(0),
                    kind=repository.FailureClass.MEMORY,
                )
        again = claim(sessions, pairs=True)
        assert (again.mates, again.memory_profile) == ((), MemoryProfile.SMALL)
        assert claim(sessions, pairs=True).memory_profile is MemoryProfile.SMALL

    def test_a_common_pass_goes_on_together_whoever_is_free(self, sessions, account):
        both = {"content_lora": pointer(paired=True), "style_lora": pointer(paired=True)}
        make_job(sessions, account, checkpoints=both)
        beat(sessions, "w2")
        claimed = claim(sessions, pairs=True)
        assert claimed.mates[0].checkpoint == claimed.checkpoint == pointer(paired=True)

    def test_it_does_so_even_when_one_of_them_was_put_off(self, sessions, account):
        both = {"content_lora": pointer(paired=True), "style_lora": pointer(paired=True)}
        make_job(sessions, account, checkpoints=both)
        with transaction(sessions) as session:
            session.execute(text("UPDATE stages SET runnable_at = now() + interval '1 h' WHERE name = 'style_lora'"))
        assert claim(sessions, pairs=True).mates

    @pytest.mark.parametrize(
        "kept",
        [
            {"content_lora": pointer()},
            {"content_lora": pointer(3), "style_lora": pointer(4)},
            {"content_lora": pointer(paired=True), "style_lora": pointer()},
            {"content_lora": pointer(3, paired=True), "style_lora": pointer(4, paired=True)},
        ],
    )
    def test_sides_that_stand_apart_go_alone(self, sessions, account, kept):
        make_job(sessions, account, checkpoints=kept)
        assert claim(sessions, pairs=True).mates == ()

    def test_a_common_pass_is_not_torn_apart_by_those_who_want_it_at_once(self, sessions, account):
        both = {"content_lora": pointer(paired=True), "style_lora": pointer(paired=True)}
        make_job(sessions, account, checkpoints=both)
        with ThreadPoolExecutor(4) as pool:
            claims = list(pool.map(lambda name: claim(sessions, worker_id=name, pairs=True), "abcd"))
        claimed = [each for each in claims if each is not None] or [claim(sessions, pairs=True)]
        assert [each.mates != () for each in claimed] == [True]

    def test_a_silent_worker_gives_both_back_at_once(self, sessions, account):
        make_job(sessions, account)
        claimed = claim(sessions, pairs=True)
        for each in claimed.all:
            expire_lease(sessions, each)
        assert reap(sessions) == 2
        make_all_due(sessions)
        assert claim(sessions, pairs=True).mates[0].attempt == 2


class TestResumed:
    def test_a_claim_says_where_it_goes_on_from(self, sessions, account):
        make_job(sessions, account, checkpoints={"content_lora": pointer(5)})
        claimed = claim(sessions)
        with transaction(sessions) as session:
            stage = session.get(Stage, claimed.stage_id)
            assert (stage.progress["step"], stage.progress["total"]) == (5, 8)
            assert session.get(StageAttempt, (claimed.stage_id, 1)).resumed_step == 5

    def test_it_says_that_the_owner_wants_it_to_end_soon(self, sessions, account):
        job_id = make_job(sessions, account)
        assert not claim(sessions).stop_requested
        with transaction(sessions) as session:
            session.get(Job, job_id).stop_requested_at = func.now()
        assert claim(sessions).stop_requested


def test_a_long_queue_is_never_read_from_end_to_end(sessions, account):
    accounts = [account, *(make_account(sessions, f"a{n}") for n in range(9))]
    for each in accounts:
        make_job(sessions, each)
    with transaction(sessions) as session:
        session.execute(
            text(
                "INSERT INTO jobs (id, account_id, kind, state, params, params_version, request, self_url, created_at)"
                " SELECT gen_random_uuid(), account_id, kind, state, params, params_version, request, self_url, now()"
                " FROM jobs, generate_series(1, 100)"
            )
        )
        session.execute(
            text(
                "INSERT INTO stages (id, job_id, name, ordinal, depends_on, state, max_attempts, runnable_at)"
                " SELECT gen_random_uuid(), jobs.id, 'content_lora', 0, '{}', 'runnable', 3, now() FROM jobs"
                " WHERE NOT EXISTS (SELECT 1 FROM stages WHERE stages.job_id = jobs.id)"
            )
        )
    with transaction(sessions) as session:
        session.execute(text("ANALYZE jobs, stages, accounts"))
    with transaction(sessions) as session:
        plan = session.scalars(text(f"EXPLAIN {candidates.ANY.text}"), {"kinds": ["personalize"], "wanted": 8}).all()
    assert not [line for line in plan if "Seq Scan on jobs" in line or "Seq Scan on stages" in line], "\n".join(plan)
    seen = [claim(sessions).account_id for _ in range(10)]
    assert set(seen) == set(accounts)


def test_a_claim_that_loses_every_race_looks_further(sessions, account):
    for _ in range(12):
        make_job(sessions, account)
    with sessions() as other:
        taken = [
            repository.claim_stage(other, repository.Claimant(worker_id="a", lease=LEASE)).stage_id for _ in range(20)
        ]
        assert claim(sessions).stage_id not in taken
