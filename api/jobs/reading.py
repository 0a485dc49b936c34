"""What owners read of their jobs now: one, page by page, or whether one has changed at all."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import OperationalError

from api.cursors import read_cursor
from api.db import reading, transaction
from api.jobs import listing, view
from api.jobs.queue import Lookout
from api.jobs.schemas import JobPage
from api.jobs.states import TERMINAL_JOBS, JobState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Collection

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.jobs.plan import JobKind
    from api.jobs.queue import Outlook
    from api.jobs.schemas import JobRead
    from api.settings import ApiSettings
    from api.storage import ObjectStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """A job as its owner sees it, and the entity tag of that."""

    job: JobRead
    etag: str


@dataclass(frozen=True, slots=True)
class Glance:
    """As much of a job as tells whether there is anything new to read."""

    state: JobState
    etag: str
    last_event: int
    """Id of the newest thing that had happened by then."""

    @property
    def has_ended(self) -> bool:
        """Whether the state can change no more."""
        return self.state in TERMINAL_JOBS


class JobReader:
    """Shows jobs to their owners; changes nothing."""

    def __init__(self, settings: ApiSettings, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self._sessions = sessions
        self._reading = reading(sessions)
        self._store = store
        self._lookout = Lookout(sessions)
        self._link_lifetime = timedelta(seconds=settings.artifact_url_lifetime_s)
        self._retention = timedelta(days=settings.dispatcher_retention_days)

    def outlook(self) -> Outlook:
        """Return what is known of the queue; ask before a transaction is begun."""
        return self._lookout.outlook()

    def read(self, caller: Caller, job_id: uuid.UUID) -> Reading:
        """Return a job of the caller's.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Gone: it was deleted.
        """
        outlook = self.outlook()
        return self._once_more(lambda connection: self.describe(connection, caller, job_id, outlook))

    def glance(self, caller: Caller, job_id: uuid.UUID) -> Glance:
        """Return whether a job has ended and which tag its document would have; the document is not made.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Gone: it was deleted.
        """
        seen = self._once_more(
            lambda connection: listing.glance_at_job(connection, account_id=caller.account_id, job_id=job_id)
        )
        return Glance(seen.state, self._etag(seen.state, seen.version), seen.last_event)

    def page(
        self,
        caller: Caller,
        *,
        cursor: str | None,
        limit: int,
        states: Collection[JobState] = (),
        kinds: Collection[JobKind] = (),
    ) -> JobPage:
        """Return a page of the caller's jobs, newest first; those in any of the states and of any of the kinds.

        Raises:
            InvalidParameters: the cursor is none of ours.
        """
        after = read_cursor(cursor)
        outlook = self.outlook()
        with transaction(self._sessions) as session:
            jobs, following = listing.list_jobs(
                session, account_id=caller.account_id, after=after, limit=limit, states=states, kinds=kinds
            )
        now = datetime.now(UTC)
        return JobPage(
            items=[view.summarize(job, now, outlook, retention=self._retention) for job in jobs],
            next_cursor=None if following is None else following.encode(),
            limit=limit,
            state=sorted(set(states)),
            kind=sorted(set(kinds)),
        )

    def describe(self, session: Session | Connection, caller: Caller, job_id: uuid.UUID, outlook: Outlook) -> Reading:
        """Return a job as the transaction has left it so far.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Gone: it was deleted.
        """
        job = listing.read_job(session, account_id=caller.account_id, job_id=job_id)
        document = view.describe(
            job, self._store, outlook, link_lifetime=self._link_lifetime, retention=self._retention
        )
        return Reading(document, self._etag(job.state, job.version))

    def _etag(self, state: JobState, version: str) -> str:
        """Return the tag of a document: weak, as what the clock alone changes does not count.

        Links do: those of a job that has any, as a succeeded one, change twice in their lifetime, so that they are good
        for another half of it whenever the tag still holds.
        """
        if state is JobState.SUCCEEDED or version.endswith(listing.SHOWN_MARK):
            version += f"-{int(time.time() / self._link_lifetime.total_seconds() * 2)}"
        return f'W/"{version}"'

    def _once_more(self, read: Callable[[Connection], T]) -> T:
        """Read in one statement; again if the database was restarted a moment ago."""
        try:
            with self._reading.connect() as connection:
                return read(connection)
        except OperationalError as error:
            if not error.connection_invalidated:
                raise
        with self._reading.connect() as connection:
            return read(connection)
