"""Many accounts with long queues on few workers: everybody's work goes on, and what is done is done once."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from api.accounts.repository import ensure_account
from api.db import transaction
from api.jobs.models import Event, Job, Stage, StageAttempt
from api.jobs.plan import JobKind, StagePlan
from api.jobs.repository import insert_job
from api.webhooks.signing import make_secret
from duolora.config import SCHEMA_VERSION, Prompts
from tests.support.company import alone
from tests.worker.bench import eventually

if TYPE_CHECKING:
    from tests.worker.bench import Bench

ACCOUNTS, JOBS, WORKERS = 10, 100, 4
ENOUGH = 120
"""Jobs after which the shares are compared; all thousand would only take longer."""


def submit_all(bench: Bench) -> None:
    """A hundred jobs of one stage for the first account, then for the second..., so that age favours the first."""
    params = alone("tiny", Prompts()).model_dump(mode="json")
    for number in range(ACCOUNTS):
        with transaction(bench.sessions) as session:
            account = ensure_account(session, name=f"account {number}", webhook_secret=make_secret()).id
            for _ in range(JOBS):
                job = Job(
                    account_id=account,
                    kind=JobKind.PERSONALIZE,
                    params=params,
                    params_version=SCHEMA_VERSION,
                    request={},
                    self_url="http://service/jobs/x",
                )
                insert_job(session, job, [StagePlan(name="package", weight=1.0)])


def done_by_account(bench: Bench) -> Counter[str]:
    with bench.sessions() as session:
        rows = session.execute(
            select(Job.account_id, func.count()).where(Job.state == "succeeded").group_by(Job.account_id)
        )
        return Counter({str(account): count for account, count in rows})


@pytest.mark.timeout(480)
def test_ten_accounts_with_a_hundred_jobs_each_take_turns_on_four_workers(bench: Bench):
    submit_all(bench)
    with ExitStack() as workers:
        for number in range(WORKERS):
            workers.enter_context(bench.worker(WORKER_ID=f"worker {number}", WORKER_PAIRS="true"))
        eventually(lambda: done_by_account(bench).total() >= ENOUGH, within_s=400)
    done = done_by_account(bench)
    assert len(done) == ACCOUNTS
    assert max(done.values()) - min(done.values()) <= WORKERS, done
    with bench.sessions() as session:
        attempts = select(func.count()).select_from(StageAttempt).group_by(StageAttempt.stage_id)
        assert set(session.scalars(attempts)) == {1}
        ends = session.scalar(select(func.count()).select_from(Event).where(Event.type == "job.succeeded"))
        assert ends == done.total()
        assert session.scalar(select(func.max(Stage.failures))) == 0
