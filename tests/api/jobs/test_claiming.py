"""Which stages a worker gets: quotas, deadlines, pairs, company of other jobs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text

from api.accounts.models import Account
from api.db import transaction
from api.jobs import repository
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
from tests.support.company import alone


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


def alike(sessions, account, *, seed, rank=4, **fields):
    """A job that differs from others of this kind in its seed."""

    def recipe(base_model, prompts):
        config = alone(base_model, prompts)
        side = {"seed": seed, "rank": rank}
        sides = {name: getattr(config, name).model_copy(update=side) for name in ("content", "style")}
        return config.model_copy(update=sides)

    return make_job(sessions, account, recipe=recipe, **fields)


def together(sessions, jobs=4, **options):
    """Claim for several jobs, and return what came of each: job -> names of stages."""
    claimed = claim(sessions, pairs=True, jobs_at_once=jobs, **options)
    return {stages[0].job_id: {stage.name for stage in stages} for stages in claimed.by_job}


def change(sessions, statement, **values):
    with transaction(sessions) as session:
        session.execute(text(statement), values)


BOTH = {"content_lora", "style_lora"}


class TestCompany:
    def test_alike_trainings_of_other_jobs_come_along_as_many_as_may(self, sessions, account):
        jobs = [alike(sessions, account, seed=seed) for seed in range(4)]
        claimed = claim(sessions, pairs=True, jobs_at_once=3)
        assert {stages[0].job_id: {stage.name for stage in stages} for stages in claimed.by_job} == dict.fromkeys(
            jobs[:3], BOTH
        )
        assert claimed.job_id == jobs[0]
        assert len({stage.fencing_token for stage in claimed.all}) == 6
        assert [job_state(sessions, job) for job in jobs] == [JobState.RUNNING] * 3 + [JobState.QUEUED]
        with transaction(sessions) as session:
            assert session.scalars(select(StageAttempt.jobs)).all() == [3] * 6
        for stage in claimed.all:
            finish(sessions, stage)
        assert claim(sessions, pairs=True, jobs_at_once=3).name == "merge"

    def test_by_itself_an_attempt_says_so(self, sessions, account):
        alike(sessions, account, seed=1)
        together(sessions)
        with transaction(sessions) as session:
            assert session.scalars(select(StageAttempt.jobs)).all() == [1, 1]

    def test_without_pairs_the_same_side_of_each_comes(self, sessions, account):
        jobs = [alike(sessions, account, seed=seed) for seed in range(2)]
        claimed = claim(sessions, jobs_at_once=4)
        assert {(stage.job_id, stage.name) for stage in claimed.all} == {(job, "content_lora") for job in jobs}

    def test_one_that_is_trained_in_another_way_does_not(self, sessions, account):
        first = alike(sessions, account, seed=1)
        alike(sessions, account, seed=2, rank=8)
        assert set(together(sessions)) == {first}

    @pytest.mark.parametrize(
        ("one", "two"), [(None, 3), (3, None), (3, 4)], ids=["only the second", "only the first", "another"]
    )
    def test_one_that_stands_at_another_step_does_not(self, sessions, account, one, two):
        def kept(step):
            return None if step is None else {name: pointer(step, paired=True) for name in BOTH}

        first = alike(sessions, account, seed=1, checkpoints=kept(one))
        alike(sessions, account, seed=2, checkpoints=kept(two))
        assert set(together(sessions)) == {first}

    def test_those_that_stand_at_one_step_go_on_together(self, sessions, account):
        kept = {name: pointer(7, paired=True) for name in BOTH}
        jobs = [alike(sessions, account, seed=seed, checkpoints=kept) for seed in range(3)]
        assert together(sessions) == dict.fromkeys(jobs, BOTH)

    def test_one_that_has_only_one_side_left_does_not_join_two(self, sessions, account):
        first, second = alike(sessions, account, seed=1), alike(sessions, account, seed=2)
        change(
            sessions, "UPDATE stages SET state = 'succeeded' WHERE name = 'style_lora' AND job_id = :job", job=second
        )
        assert set(together(sessions)) == {first}

    def test_a_pair_with_a_common_past_is_not_torn_apart(self, sessions, account):
        first = alike(sessions, account, seed=1, checkpoints={"content_lora": pointer(3)})
        alike(sessions, account, seed=2, checkpoints={name: pointer(3, paired=True) for name in BOTH})
        assert together(sessions) == {first: {"content_lora"}}

    @pytest.mark.parametrize(
        "reason",
        [
            "UPDATE stages SET alone = true WHERE job_id = :job",
            "UPDATE stages SET memory_profile = 'small' WHERE job_id = :job",
            "UPDATE stages SET likeness = NULL WHERE job_id = :job",
            "UPDATE jobs SET stop_requested_at = now() WHERE id = :job",
            "UPDATE jobs SET cancel_requested_at = now() WHERE id = :job",
            "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE id = :job",
            "UPDATE stages SET runnable_at = now() + interval '1 h' WHERE job_id = :job",
        ],
    )
    def test_one_that_must_not_does_not(self, sessions, account, reason):
        first, second = alike(sessions, account, seed=1), alike(sessions, account, seed=2)
        change(sessions, reason, job=second)
        assert set(together(sessions)) == {first}

    @pytest.mark.parametrize(
        "reason",
        [
            "UPDATE stages SET alone = true WHERE job_id = :job",
            "UPDATE jobs SET stop_requested_at = now() WHERE id = :job",
        ],
    )
    def test_none_joins_one_that_must_be_alone(self, sessions, account, reason):
        first = alike(sessions, account, seed=1)
        alike(sessions, account, seed=2)
        change(sessions, reason, job=first)
        assert set(together(sessions)) == {first}

    def test_accounts_take_turns(self, sessions, account):
        mine = [alike(sessions, account, seed=seed) for seed in range(3)]
        theirs = alike(sessions, make_account(sessions, "theirs"), seed=1)
        assert set(together(sessions, jobs=2)) == {mine[0], theirs}

    def test_priority_goes_first(self, sessions, account):
        alike(sessions, account, seed=1)
        urgent = [alike(sessions, account, seed=seed, priority=1) for seed in (2, 3)]
        assert set(together(sessions, jobs=2)) == set(urgent)

    def test_no_more_jobs_run_than_the_account_may_have(self, sessions, account):
        limit(sessions, account, 2)
        jobs = [alike(sessions, account, seed=seed) for seed in range(4)]
        assert set(together(sessions)) == set(jobs[:2])

    def test_workers_that_are_free_are_left_something_to_do(self, sessions, account):
        jobs = [alike(sessions, account, seed=seed) for seed in range(4)]
        for name in ("w2", "w3"):
            beat(sessions, name)
        assert together(sessions) == {jobs[0]: {"content_lora"}, jobs[3]: {"content_lora"}}

    def test_workers_that_are_busy_are_left_nothing(self, sessions, account):
        jobs = [alike(sessions, account, seed=seed) for seed in range(3)]
        beat(sessions, "w2", WorkerState.BUSY)
        assert set(together(sessions)) == set(jobs)

    def test_twins_wait_for_each_other(self, sessions, account):
        first = alike(sessions, account, seed=1)
        alike(sessions, account, seed=1)
        other = alike(sessions, account, seed=2)
        theirs = alike(sessions, make_account(sessions, "theirs"), seed=1)
        assert set(together(sessions)) == {first, other, theirs}

    def test_workers_that_claim_at_once_get_everything_once(self, sessions, account):
        accounts = [account, make_account(sessions, "theirs")]
        for each in accounts:
            limit(sessions, each, 100)
        jobs = {alike(sessions, each, seed=seed) for seed in range(8) for each in accounts}
        start = threading.Barrier(4)

        def work(name):
            start.wait()
            options = {"worker_id": name, "pairs": True, "jobs_at_once": 3}
            return [stage for _ in range(12) if (claimed := claim(sessions, **options)) for stage in claimed.all]

        with ThreadPoolExecutor(4) as pool:
            held = [stage for stages in pool.map(work, "abcd") for stage in stages]
        assert len({stage.stage_id for stage in held}) == len(held) == 2 * len(jobs)
        assert {stage.job_id for stage in held} == jobs


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


def test_a_claim_that_loses_every_race_looks_further(sessions, account):
    for _ in range(12):
        make_job(sessions, account)
    with sessions() as other:
        taken = [
            repository.claim_stage(other, repository.Claimant(worker_id="a", lease=LEASE)).stage_id for _ in range(20)
        ]
        assert claim(sessions).stage_id not in taken
