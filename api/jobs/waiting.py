"""Answers that wait for a job: `Prefer: wait=n` (RFC 7240) and `?wait=n`. A waiting request holds no thread."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from api.jobs.event_types import TERMINAL_EVENTS, EventType
from api.jobs.hub import Missed, Subscription

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Sequence

    from api.jobs.hub import EventHub
    from api.jobs.reading import Glance

MAX_WAIT_S = 60
"""Longest that an answer is held back: proxies give up on silent requests soon after."""
STATE_EVENTS = TERMINAL_EVENTS | {EventType.STARTED}
"""Events with which a job's state changes."""
_WAIT = re.compile(r'\s*wait\s*=\s*(?:"(\d{1,9})"|(\d{1,9}))\s*(?:;.*)?', re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a caller will wait."""

    seconds: int
    is_preference: bool = False
    """It was asked for by the header, so the answer says that it was heeded."""

    def headers(self) -> dict[str, str]:
        """Return the fields of the answer."""
        return {"Preference-Applied": f"wait={self.seconds}"} if self.is_preference else {}


def read_wait(preferences: Iterable[str], query: int | None = None) -> Wait:
    """Return the wait of a request: the query, else the first such preference, else none.

    A preference is no demand: one that cannot be read is passed over, and a longer one than `MAX_WAIT_S` is shortened.
    """
    if query is not None:
        return Wait(query)
    for preference in ",".join(preferences).split(","):
        found = _WAIT.fullmatch(preference)
        if found:
            return Wait(min(int(found[1] or found[2]), MAX_WAIT_S), is_preference=True)
    return Wait(0)


def is_known(etag: str, if_none_match: Sequence[str]) -> bool:
    """Tell whether If-None-Match names a tag; weak ones are the same as strong ones there (RFC 9110)."""
    text = ",".join(if_none_match)
    return text.strip() == "*" or etag.removeprefix("W/") in _TAG.findall(text)


async def watch(
    look: Callable[[], Glance],
    *,
    hub: EventHub,
    job_id: uuid.UUID,
    seconds: float,
    is_enough: Callable[[Glance], bool] | None = None,
) -> Glance:
    """Wait for a job to end or to be as wanted, for some time or until the process stops; returns how it was seen last.

    Args:
        look: how it is; called in a thread.
        hub: of the process. It is what is waited on: the database is asked again only after an event that matters.
        job_id: the job.
        seconds: longest wait; 0 for a look.
        is_enough: whether it is as wanted; None for another state than at first.

    Raises:
        NotFound: there is no such job.
    """
    seen = first = await run_in_threadpool(look)
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    with Subscription(hub, job_id, first.last_event) as heard:
        while not (seen.has_ended or (seen.state is not first.state if is_enough is None else is_enough(seen))):
            left = end - clock()
            if left <= 0 or hub.is_closed:
                break
            mail = await heard.take(left)
            if any(isinstance(item, Missed) or is_enough is not None or item.type in STATE_EVENTS for item in mail):
                seen = await run_in_threadpool(look)
    return seen
