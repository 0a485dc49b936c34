"""What the order of the queue costs: a queue of any length."""

import pytest
from sqlalchemy import text

from api.db import transaction
from api.identifiers import uuid7
from api.jobs import candidates
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
