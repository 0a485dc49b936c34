"""How much an account may have of what it shares with others; counted under the lock of its row. Never commits.

Order of locks: stages, job, account. Whoever holds an account's lock waits for no lock of a stage or a job, so that a
submission, which only inserts after it, can hold nobody up for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from api.accounts.models import Account
from api.db import transaction
from api.errors import QuotaExceeded
from api.jobs.models import Job
from api.jobs.states import JobState

if TYPE_CHECKING:
    import uuid

    from sqlalchemy import Update
    from sqlalchemy.orm import Session, sessionmaker

RETRY_AFTER_S = 30
"""When to look again for a free place: nobody can say when a job of the account will start."""
_BOUNDS = (Account.max_queued_jobs, Account.stored_bytes, Account.max_stored_bytes)
QUEUED, STORED = "queued-jobs", "stored-bytes"


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of its quotas an account uses; a quota of None has no bound."""

    queued_jobs: int
    max_queued_jobs: int | None
    stored_bytes: int
    max_stored_bytes: int | None

    def with_more(self, stored_bytes: int, jobs: int = 1) -> Usage:
        """Return what is used once so many bytes and jobs are taken."""
        return Usage(
            self.queued_jobs + jobs, self.max_queued_jobs, self.stored_bytes + stored_bytes, self.max_stored_bytes
        )

    def headers(self) -> dict[str, str]:
        """Return the fields `RateLimit-Policy` and `RateLimit` (IETF httpapi draft); none without a quota."""
        bounded = [
            (name, most, max(most - used, 0), unit)
            for name, used, most, unit in (
                (QUEUED, self.queued_jobs, self.max_queued_jobs, "concurrent-requests"),
                (STORED, self.stored_bytes, self.max_stored_bytes, "content-bytes"),
            )
            if most is not None
        ]
        if not bounded:
            return {}
        return {
            "RateLimit-Policy": ", ".join(f'"{name}";q={most};qu="{unit}"' for name, most, _, unit in bounded),
            "RateLimit": ", ".join(f'"{name}";r={left}' for name, _, left, _ in bounded),
        }

    def check(self, stored_bytes: int, jobs: int = 1) -> None:
        """Refuse so many bytes and jobs more if a quota forbids it.

        Raises:
            QuotaExceeded: it names the quotas in the way.
        """
        violated, details = [], []
        if jobs and self.max_queued_jobs is not None and self.queued_jobs >= self.max_queued_jobs:
            violated.append(QUEUED)
            details.append(f"{self.queued_jobs} jobs wait, and {self.max_queued_jobs} may")
        if self.max_stored_bytes is not None and self.stored_bytes + stored_bytes > self.max_stored_bytes:
            violated.append(STORED)
            details.append(
                f"{self.stored_bytes} bytes are stored, {stored_bytes} more came, and {self.max_stored_bytes} may be"
            )
        if violated:
            raise QuotaExceeded(
                "; ".join(details) + ".",
                headers={"Retry-After": str(RETRY_AFTER_S), **self.headers()},
                extensions={"violated_policies": violated},
            )


def precheck(sessions: sessionmaker[Session], account_id: uuid.UUID, *, jobs: int = 1) -> None:
    """Refuse what is refused in any case, before work is spent on it: a job, or an upload, of 0 jobs. Nothing is taken.

    Raises:
        QuotaExceeded: there is no place left.
    """
    with transaction(sessions) as session:
        row = session.execute(select(*_BOUNDS).where(Account.id == account_id)).one()
        Usage(
            _queued(session, account_id, row.max_queued_jobs),
            row.max_queued_jobs,
            row.stored_bytes,
            row.max_stored_bytes,
        ).check(1, jobs)


def usage(session: Session, account_id: uuid.UUID) -> Usage:
    """Return what an account uses now, also of quotas that have no bound."""
    row = session.execute(select(*_BOUNDS).where(Account.id == account_id)).one()
    return Usage(_queued(session, account_id, 0), row.max_queued_jobs, row.stored_bytes, row.max_stored_bytes)


def reserve(session: Session, account_id: uuid.UUID, *, stored_bytes: int, jobs: int = 1) -> Usage:
    """Take a place in the queue and so many bytes for a job that this transaction writes; returns what is used then.

    What is no job, an upload say, takes 0 places.

    Locks the account, so that of two submissions that want its last place one is refused.

    Raises:
        QuotaExceeded: there is no place left; the transaction must be rolled back, so that nothing is taken.
    """
    row = session.execute(_adding(account_id, stored_bytes).returning(*_BOUNDS)).one()
    before = row.stored_bytes - stored_bytes
    used = Usage(_queued(session, account_id, row.max_queued_jobs), row.max_queued_jobs, before, row.max_stored_bytes)
    used.check(stored_bytes, jobs)
    return used.with_more(stored_bytes, jobs)


def add_stored(session: Session, account_id: uuid.UUID, delta: int) -> None:
    """Count bytes that were stored for an account, or fewer than none that were deleted."""
    session.execute(_adding(account_id, delta))


def _adding(account_id: uuid.UUID, delta: int) -> Update:
    return (
        update(Account)
        .where(Account.id == account_id)
        .values(stored_bytes=func.greatest(Account.stored_bytes + delta, 0))
        .execution_options(synchronize_session=False)
    )


def _queued(session: Session, account_id: uuid.UUID, most: int | None) -> int:
    """Count the jobs that wait; 0 where nobody asks."""
    if most is None:
        return 0
    return session.execute(
        select(func.count())
        .select_from(Job)
        .where(Job.account_id == account_id, Job.state == JobState.QUEUED, Job.finished_at.is_(None))
    ).scalar_one()
