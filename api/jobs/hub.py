"""Tells every listener of one API process what happens to its job, with two connections and one statement for all.

One connection hears the notifications of `events`; the other reads what the listeners of the jobs in question have not
heard yet. A notification only wakes: lost ones are made up for by a look at all jobs every `POLL_S`. A listener that
does not keep up is read nothing more for until it has taken what it was given, so none can fill the memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from api.db import DEAD_PEER_TIMEOUT_MS, LIVENESS, STATEMENT_TIMEOUT_MS
from api.jobs.event_types import TERMINAL_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger(__name__)

CHANNEL = "duolora_events"
POLL_S = 2.0
RECONNECT_S = 1.0
GROUPS = 50
"""Jobs of one statement."""
_OPTIONS: dict[str, Any] = {
    **LIVENESS,
    "tcp_user_timeout": DEAD_PEER_TIMEOUT_MS,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC",
}

_NEWEST = """
    SELECT w.number, e.id, e.type, e.data, e.created_at
    FROM unnest(%s::uuid[], %s::bigint[]) WITH ORDINALITY AS w(job_id, after, number)
    CROSS JOIN LATERAL (
        SELECT id, type, data, created_at FROM events
        WHERE job_id = w.job_id AND id > w.after ORDER BY id DESC LIMIT %s
    ) e
    ORDER BY w.number, e.id
"""
_FIRST = "SELECT min(id) FROM events WHERE job_id = %s AND id > %s"


@dataclass(frozen=True, slots=True)
class Told:
    """An event as listeners hear it, written once for all of them."""

    id: int
    type: str
    frame: bytes
    is_last: bool
    """Nothing can follow it."""


@dataclass(frozen=True, slots=True)
class Missed:
    """Events that are not told because they are too many; ids of the first and the last of them."""

    missed_from: int
    missed_to: int


class Subscription:
    """What one listener has not taken yet. Use as a context manager, in the hub's event loop."""

    def __init__(self, hub: EventHub, job_id: uuid.UUID, after: int) -> None:
        self.job_id = job_id
        self.cursor = after
        """Id of the last event given to it."""
        self.is_behind = False
        """Something happened while its mail lay there."""
        self._hub = hub
        self._mail: list[Told | Missed] = []
        self._bell = asyncio.Event()

    def __enter__(self) -> Self:
        """Begin to listen; what has happened since the cursor comes first."""
        self._hub.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Cease to listen."""
        self._hub.remove(self)

    @property
    def has_mail(self) -> bool:
        """Whether something lies there to be taken."""
        return bool(self._mail)

    def put(self, mail: Iterable[Told | Missed]) -> None:
        """Give it what happened."""
        self._mail.extend(mail)
        self._bell.set()

    def ring(self) -> None:
        """Wake whoever waits, without mail."""
        self._bell.set()

    async def take(self, timeout_s: float) -> list[Told | Missed]:
        """Wait for what happens and return it; nothing after so long, or when the hub has closed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._bell.wait()
        except TimeoutError:
            return []
        self._bell.clear()
        mail, self._mail = self._mail, []
        if self.is_behind:
            self.is_behind = False
            self._hub.wake(self.job_id)
        return mail


class EventHub:
    """All listeners of a process.

    Args:
        dsn: of the database, for libpq.
        replay_limit: most events that are given at once; of more the newest, and a `Missed` before them.
    """

    def __init__(self, dsn: str, *, replay_limit: int) -> None:
        self._dsn = dsn
        self._limit = replay_limit
        self._listeners: defaultdict[uuid.UUID, set[Subscription]] = defaultdict(set)
        self._woken: set[uuid.UUID] = set()
        self._bell = asyncio.Event()
        self.is_closed = False

    def add(self, subscription: Subscription) -> None:
        """Tell a subscription of its job from now on."""
        self._listeners[subscription.job_id].add(subscription)
        self.wake(subscription.job_id)

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        others = self._listeners[subscription.job_id]
        others.discard(subscription)
        if not others:
            del self._listeners[subscription.job_id]

    def wake(self, job_id: uuid.UUID) -> None:
        """Look for events of a job soon, if anybody listens to it."""
        if job_id in self._listeners:
            self._woken.add(job_id)
            self._bell.set()

    def close(self) -> None:
        """End all streams: the process is to stop."""
        self.is_closed = True
        for subscription in self._all(self._listeners):
            subscription.ring()

    async def run(self) -> None:
        """Work until canceled; a database that is away is waited for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._for_ever("hearing", self._hear))
            tasks.create_task(self._for_ever("reading", self._read))

    async def _for_ever(self, what: str, work: Any) -> None:  # noqa: ANN401 - a coroutine function of a connection
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    make_conninfo(self._dsn, application_name=f"duolora-{what}-events", **_OPTIONS), autocommit=True
                ) as connection:
                    await work(connection)
            except (psycopg.Error, OSError) as error:
                logger.warning("%s events is interrupted: %s", what, error)
            except Exception:
                logger.exception("%s events failed for a reason nobody foresaw", what)
            await asyncio.sleep(RECONNECT_S)

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(f"LISTEN {CHANNEL}")
        self._wake_all()  # of what happened before nobody has told
        async for notice in connection.notifies():
            self.wake(uuid.UUID(notice.payload))

    async def _read(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._bell.wait()
            except TimeoutError:
                self._wake_all()
            self._bell.clear()
            woken, self._woken = self._woken, set()
            try:
                await self._tell(connection, woken)
            except BaseException:
                self._woken |= woken  # for the next connection
                self._bell.set()
                raise

    def _wake_all(self) -> None:
        self._woken.update(self._listeners)
        self._bell.set()

    def _all(self, jobs: Iterable[uuid.UUID]) -> Iterator[Subscription]:
        for job_id in tuple(jobs):
            yield from tuple(self._listeners.get(job_id, ()))

    async def _tell(self, connection: psycopg.AsyncConnection[Any], jobs: set[uuid.UUID]) -> None:
        """Give the listeners of these jobs what they have not heard; those that heard as much share a read."""
        groups: defaultdict[tuple[uuid.UUID, int], list[Subscription]] = defaultdict(list)
        for subscription in self._all(jobs):
            if subscription.has_mail:
                subscription.is_behind = True
            else:
                groups[subscription.job_id, subscription.cursor].append(subscription)
        waiting = iter(groups.items())
        while part := list(islice(waiting, GROUPS)):
            await self._tell_some(connection, part)

    async def _tell_some(
        self,
        connection: psycopg.AsyncConnection[Any],
        groups: list[tuple[tuple[uuid.UUID, int], list[Subscription]]],
    ) -> None:
        jobs, cursors = [job_id for (job_id, _), _ in groups], [after for (_, after), _ in groups]
        found: defaultdict[int, list[Told | Missed]] = defaultdict(list)
        newest: dict[int, int] = {}
        rows = await connection.execute(_NEWEST, (jobs, cursors, self._limit + 1))
        for number, event_id, kind, data, at in await rows.fetchall():
            place = number - 1
            frame = _frame(jobs[place], event_id, kind, data, at)
            found[place].append(Told(event_id, kind, frame, kind in TERMINAL_EVENTS))
            newest[place] = event_id
        for place, mail in found.items():
            if len(mail) > self._limit:
                mail[0] = await self._missed(connection, jobs[place], cursors[place], mail[0])
            for subscription in groups[place][1]:
                subscription.cursor = newest[place]
                subscription.put(mail)

    async def _missed(
        self, connection: psycopg.AsyncConnection[Any], job_id: uuid.UUID, after: int, last: Told | Missed
    ) -> Missed:
        """Return the gap that ends with the newest event that is not told."""
        missed_to = last.id if isinstance(last, Told) else last.missed_to
        row = await (await connection.execute(_FIRST, (job_id, after))).fetchone()
        return Missed(missed_to if row is None or row[0] is None else row[0], missed_to)


def _frame(job_id: uuid.UUID, event_id: int, kind: str, data: dict[str, Any], at: Any) -> bytes:  # noqa: ANN401
    """Write an event as server-sent events have it."""
    document = {"id": event_id, "type": kind, "job_id": str(job_id), "at": at.isoformat(), "data": data}
    return f"id: {event_id}\nevent: {kind}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n".encode()
