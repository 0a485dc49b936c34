"""The order of the queue, and what it costs: a queue of any length."""

import random
from datetime import UTC, datetime, timedelta
from itertools import groupby

import pytest
from sqlalchemy import select, text

from api.accounts.models import Account
from api.db import transaction
from api.identifiers import uuid7
from api.jobs import candidates
from api.jobs.models import Job, Stage
from api.jobs.plan import JobKind
from tests.api.factories import claim, make_account, make_job


@pytest.fixture
def account(sessions):
    return make_account(sessions)


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
                "INSERT INTO stages (id, job_id, name, ordinal, depends_on, state, max_attempts, runnable_at, likeness)"
                " SELECT gen_random_uuid(), jobs.id, 'content_lora', 0, '{}', 'runnable', 3, now(),"
                " (ARRAY['x', gen_random_uuid()::text])[1 + (random() < 0.97)::int] FROM jobs"
                " WHERE NOT EXISTS (SELECT 1 FROM stages WHERE stages.job_id = jobs.id)"
            )
        )
    with transaction(sessions) as session:
        session.execute(text("ANALYZE jobs, stages, accounts"))
    values = {"kinds": ["personalize"], "wanted": 8, "mocks_only": False}
    like = {"likeness": "x", "job_id": uuid7(), "step": "", "look": 64}
    with transaction(sessions) as session:
        for statement, more in ((candidates.ANY, {}), (candidates.LIKE, like)):
            plan = session.scalars(text(f"EXPLAIN {statement.text}"), values | more).all()
            read = [line for line in plan if "Seq Scan on jobs" in line or "Seq Scan on stages" in line]
            assert not read, "\n".join(plan)
    assert any("ix_stages_alike" in line for line in plan), "\n".join(plan)
    seen = [claim(sessions).account_id for _ in range(10)]
    assert set(seen) == set(accounts)


def in_order(sessions, served):
    """All runnable stages as the docstring of `claim_stage` orders them, worked out row by row."""
    with transaction(sessions) as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        quotas = dict(session.execute(select(Account.id, Account.max_running_jobs)).all())
        stages = session.scalars(select(Stage)).all()
    running = {account: sum(s.account_id == account and s.state == "running" for s in stages) for account in quotas}
    begun = {
        account: sum(j.account_id == account and j.state == "running" for j in jobs.values()) for account in quotas
    }

    def own_order(stage):
        return -stage.priority, stage.queued_at, stage.job_id, stage.ordinal

    def may_run(stage):
        quota = quotas[stage.account_id]
        full = quota is not None and begun[stage.account_id] >= quota
        return stage.state == "runnable" and not (full and jobs[stage.job_id].state == "queued")

    queue = sorted(filter(may_run, stages), key=lambda stage: (stage.account_id, *own_order(stage)))
    ranked = []
    for account, own in groupby(queue, key=lambda stage: stage.account_id):
        for nth, stage in enumerate(own, 1):
            ranked.append(
                ((-stage.priority, running[account] + nth, served.get(account, 0), *own_order(stage)[1:]), stage)
            )
    return [stage.id for _, stage in sorted(ranked, key=lambda pair: pair[0])]


@pytest.mark.parametrize("seed", range(6))
def test_the_best_are_the_same_however_many_are_asked_for(sessions, seed):
    chance = random.Random(seed)
    accounts = [make_account(sessions, f"a{number}") for number in range(chance.choice([1, 3, 8]))]
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(24):
        at = began + timedelta(seconds=second)
        make_job(sessions, chance.choice(accounts), priority=chance.choice([0, 0, 0, 5]), created_at=at)
    for _ in range(chance.randrange(12)):
        claim(sessions)
    served = {}
    with transaction(sessions) as session:
        for account in session.scalars(select(Account)):
            account.max_running_jobs = chance.choice([None, None, 1, 3])
        for nth, job in enumerate(session.scalars(select(Job).where(Job.state == "queued").limit(3)), 1):
            session.execute(text("UPDATE stages SET state = 'canceled' WHERE job_id = :id"), {"id": job.id})
            job.state, job.finished_at = "canceled", began + timedelta(hours=nth)
            served[job.account_id] = nth
    expected = in_order(sessions, served)
    for wanted in (1, 2, 5, 16, 100):
        with transaction(sessions) as session:
            found = candidates.find_any(session, kinds=list(JobKind), wanted=wanted)
        assert [row.id for row in found] == expected[:wanted]


def test_the_queue_of_an_account_that_runs_all_it_may_is_not_read(sessions, account):
    for _ in range(3):
        make_job(sessions, account)
    first = claim(sessions)
    with transaction(sessions) as session:
        session.get(Account, account).max_running_jobs = 1
        session.execute(text("ANALYZE jobs, stages, accounts"))
    values = {"kinds": ["personalize"], "wanted": 8, "mocks_only": False}
    with transaction(sessions) as session:
        plan = session.scalars(text(f"EXPLAIN (ANALYZE, COSTS OFF) {candidates.ANY.text}"), values).all()
        found = candidates.find_any(session, **values)
    assert len(found) == 1
    assert any("never executed" in line and "ix_stages_ready" in line for line in plan), "\n".join(plan)
    assert claim(sessions).job_id == first.job_id
    assert claim(sessions) is None
