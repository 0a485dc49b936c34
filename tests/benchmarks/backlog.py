"""A queue of any length, written by a few statements: jobs with two runnable stages each, spread over accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from api.accounts.repository import ensure_account
from api.db import transaction
from api.jobs.models import Job, JobImage, Stage
from api.webhooks.signing import make_secret
from tests.api.factories import make_job

if TYPE_CHECKING:
    import uuid

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

    from api.db import Base

STAGES_A_JOB = 2
"""Of a new job so many are runnable: both its trainings."""


def fill(engine: Engine, sessions: sessionmaker[Session], *, stages: int, accounts: int, quota: int | None) -> None:
    """Write `stages` runnable stages, as many for each account; `quota` is the most jobs of one that may run.

    One job is made as the service makes one, the others are its copies: an account's are a second apart.
    """
    with transaction(sessions) as session:
        owners = [
            ensure_account(session, name=f"account {number}", webhook_secret=make_secret()).id
            for number in range(accounts)
        ]
    model = make_job(sessions, owners[0])
    with engine.begin() as connection:
        connection.execute(text("UPDATE accounts SET max_running_jobs = :quota"), {"quota": quota})
        connection.execute(
            text(
                "CREATE TEMPORARY TABLE copies ON COMMIT DROP AS SELECT owner, gen_random_uuid() AS copy,"
                " nth * interval '1 second' AS later FROM unnest(:owners) AS owner, generate_series(1, :each) AS nth"
            ),
            {"each": stages // STAGES_A_JOB // accounts, "owners": owners},
        )
        for table, fresh in _FRESH.items():
            connection.execute(text(_copy(table, fresh)), {"model": model})
        connection.execute(text("DELETE FROM jobs WHERE id = :model"), {"model": model})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) accounts, jobs, job_images, stages"))


def held_by_account(engine: Engine) -> dict[uuid.UUID, int]:
    """Running stages of each account that has or had any waiting."""
    with engine.connect() as connection:
        counted = connection.execute(
            text("SELECT account_id, count(*) FILTER (WHERE state = 'running') FROM stages GROUP BY account_id")
        )
        return dict(counted.all())


_FRESH: dict[type[Base], dict[str, str]] = {
    Job: {"id": "copies.copy", "account_id": "copies.owner", "created_at": "made.created_at + copies.later"},
    JobImage: {"job_id": "copies.copy"},
    Stage: {
        "id": "gen_random_uuid()",
        "job_id": "copies.copy",
        "account_id": "copies.owner",
        "queued_at": "made.queued_at + copies.later",
    },
}
"""What is not copied of a row."""


def _copy(table: type[Base], fresh: dict[str, str]) -> str:
    columns = [column.name for column in table.__table__.columns]
    values = ", ".join(fresh.get(column, f'made."{column}"') for column in columns)
    names = ", ".join(f'"{column}"' for column in columns)
    of_job = "id" if table is Job else "job_id"
    return (
        f"INSERT INTO {table.__tablename__} ({names}) SELECT {values}"  # noqa: S608 - names of our own tables
        f" FROM {table.__tablename__} made, copies WHERE made.{of_job} = :model"
    )
