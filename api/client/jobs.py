"""What a client does with jobs, written once for both clients."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from api.client.core import AWAY, Operation, Stream, once, several
from api.client.errors import JobNotSucceeded, ServiceRefused, refusal
from api.client.fetching import Fetching
from api.client.files import Tally
from api.client.records import TERMINAL, Attempt, Deletion, Event, JobRecord, LogLine, Recipes
from api.client.submitting import Submitting, prefer
from api.client.wires import Ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from os import PathLike

    Name = str | PathLike[str]

POLL_S = 0.5
"""Seconds between two looks at a job, where the service does not wait for a change itself."""
WAIT_S = 20
"""Seconds that the service is asked to wait for one."""
PATIENCE_S = 30.0
"""How long `wait` and `events` bear a service that does not answer, before they give up."""
SILENCE_S = 60.0
"""A stream of events that is silent for longer has broken off: the service gives signs of life more often."""


class Jobs(Submitting, Fetching):
    """Submit, follow, decide, fetch."""

    @Operation
    async def job(self, job_id: str, *, wait_s: int = 0) -> JobRecord:
        """Read one job.

        Args:
            job_id: Which job.
            wait_s: Give its state so long to change before it is returned; the service waits for a minute at most.

        Raises:
            ServiceRefused: with code `job_deleted` if it was.
        """
        return await self._read(job_id, wait_s=wait_s)

    async def _read(self, job_id: str, *, wait_s: int = 0, retries: int | None = None) -> JobRecord:
        return JobRecord.model_validate((await self._look(job_id, wait_s=wait_s, retries=retries)).json())

    async def _look(
        self, job_id: str, *, wait_s: int, known: str | None = None, retries: int | None = None
    ) -> httpx.Response:
        """Read one job; 304 if the tag that is known still holds after the wait."""
        headers = prefer(wait_s) if known is None else {**prefer(wait_s), "If-None-Match": known}
        timeout = self._patient(wait_s)
        return await self._request("GET", f"/jobs/{job_id}", headers=headers, timeout=timeout, retries=retries)

    @Stream
    async def jobs(
        self, *, state: str | Sequence[str] = (), kind: str | Sequence[str] = (), page_size: int = 100
    ) -> AsyncIterator[JobRecord]:
        """All jobs of the key's account, newest first, fetched page after page. They come without their results.

        Args:
            state: Only those in one of these states, if any are given.
            kind: Only those of one of these kinds, if any are given.
            page_size: Jobs of one request, 100 at most.
        """
        query = {"limit": page_size, "state": several(state), "kind": several(kind)}
        async for item in self._pages("/jobs", query):
            yield JobRecord.model_validate(item)

    @Operation
    async def cancel(self, job_id: str) -> JobRecord:
        """Ask for a job to be given up; a job that has ended stays as it is."""
        return JobRecord.model_validate(await self._document("POST", f"/jobs/{job_id}/cancel", repeatable=True))

    @Operation
    async def stop(self, job_id: str) -> JobRecord:
        """Ask for a job to end early and to succeed with what it has learnt by then.

        Raises:
            ServiceRefused: with code `nothing_to_keep` while a training has not begun.
        """
        return JobRecord.model_validate(await self._document("POST", f"/jobs/{job_id}/stop", repeatable=True))

    @Operation
    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> JobRecord:
        """Have a failed, canceled or expired job tried again, from its checkpoints; returns the new job.

        Raises:
            ServiceRefused: with code `not_retryable` if it goes on or has succeeded.
        """
        headers = once(idempotency_key)
        document = await self._document("POST", f"/jobs/{job_id}/retry", headers=headers, repeatable=True)
        return JobRecord.model_validate(document)

    @Operation
    async def delete(self, job_id: str) -> Deletion:
        """Delete a job that has ended, with everything it has; asked again, the receipt is the same.

        Raises:
            ServiceRefused: with code `job_not_ended`, or `job_in_use` while a retry goes on from its checkpoints.
        """
        return Deletion.model_validate(await self._document("DELETE", f"/jobs/{job_id}"))

    @Stream
    async def events(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """Follow a job: what has happened to it since the event `after`, then what happens, until its end.

        A stream that breaks off is taken up again where it was.

        Raises:
            httpx.TransportError: the service has not answered for PATIENCE_S.
            ServiceRefused: it refuses; one that says that it cannot answer now is asked again for PATIENCE_S.
        """
        patience = _Patience()
        while True:
            pause_s = POLL_S
            try:
                async for event in self._follow(job_id, after):
                    patience.renew()
                    if event is None:
                        continue
                    after = event.id
                    yield event
                    if event.type.removeprefix("job.") in TERMINAL:
                        return
                if (await self._read(job_id, retries=0)).is_terminal:
                    return  # its last event was known already
            except (httpx.TransportError, ServiceRefused) as error:
                pause_s = patience.bear(error)
            await self._wire.sleep(pause_s)

    async def _follow(self, job_id: str, after: int) -> AsyncIterator[Event | None]:
        """Hear of a job until the stream ends or breaks off; None says that it has begun."""
        timeout = httpx.Timeout(self._usual.connect, read=SILENCE_S)
        options = {"params": {"after": after}, "timeout": timeout}
        answer = await self._wire.open(Ask("GET", f"/jobs/{job_id}/events", options), "lines")
        try:
            if answer.response.is_error:
                raise refusal(answer.response)
            yield None
            reader = _EventReader()
            while (line := await self._wire.read_on(answer)) is not None:
                if (event := reader.take(line)) is not None:
                    yield event
        finally:
            await self._wire.drop(answer)

    @Stream
    async def logs(self, job_id: str, *, stage: str | None = None, after: int = 0) -> AsyncIterator[LogLine]:
        """All lines that a job's stages have written since the line `after`, oldest first."""
        query: dict[str, Any] = {"limit": 1000} if stage is None else {"limit": 1000, "stage": stage}
        following: int | None = after
        while following is not None:
            page = await self._document("GET", f"/jobs/{job_id}/logs", params={**query, "after": following})
            for item in page["items"]:
                yield LogLine.model_validate(item)
            following = page["next_after"]

    @Operation
    async def attempts(self, job_id: str) -> list[Attempt]:
        """Which worker tried which stage when, from where, and how it ended; oldest first."""
        page = await self._document("GET", f"/jobs/{job_id}/attempts")
        return [Attempt.model_validate(item) for item in page["items"]]

    @Operation
    async def recipes(self) -> Recipes:
        """What the installation can run."""
        return Recipes.model_validate(await self._document("GET", "/recipes"))

    @Operation
    async def wait(
        self, job_id: str, *, on_progress: Callable[[Any], object] | None = None, timeout_s: float | None = None
    ) -> JobRecord:
        """Wait until a job has ended and return it. The service is asked to answer when there is something new.

        Args:
            job_id: Which job.
            on_progress: Called with every state that was read: with it the service also tells how a stage gets further.
            timeout_s: Longest wait; None for no limit.

        Raises:
            JobNotSucceeded: it failed, was canceled or expired.
            TimeoutError: it is still going; it goes on.
            httpx.TransportError: the service has not answered for PATIENCE_S.
            ServiceRefused: it refuses; one that says that it cannot answer now is asked again for PATIENCE_S.
        """
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        state, known, patience, wait_s = "unknown", None, _Patience(), 0
        while True:
            answer, pause_s = None, POLL_S
            try:
                answer = await self._look(job_id, wait_s=wait_s, known=known, retries=0)
            except (httpx.TransportError, ServiceRefused) as error:
                pause_s = patience.bear(error)
            else:
                patience.renew()
            if answer is not None and answer.status_code != httpx.codes.NOT_MODIFIED:
                job = self.handle(JobRecord.model_validate(answer.json()))
                state, known = job.state, answer.headers.get("ETag") if on_progress is not None else None
                if on_progress is not None:
                    await self._wire.tell(on_progress, job)
                if job.state == "succeeded":
                    return job
                if job.is_terminal:
                    raise JobNotSucceeded(job)
            left = end - time.monotonic()
            if left < 0:
                raise TimeoutError(f"job {job_id} is still {state} after {timeout_s:.0f} s")
            if answer is None or (wait_s and "Preference-Applied" not in answer.headers):
                await self._wire.sleep(pause_s)
            wait_s = math.ceil(min(WAIT_S, left))

    @Operation
    async def download(
        self, job: str | JobRecord, folder: Name, *, on_download: Callable[[int, int], object] | None = None
    ) -> dict[str, Path]:
        """Fetch all files of a succeeded job into a folder, each checked against its SHA-256.

        Args:
            job: Which job, or its id.
            folder: Made if need be.
            on_download: Called with the bytes fetched so far, and with those of all files.

        Returns:
            Where each artifact is, by its name (`merged_diffusers`, `preview`, ...).

        Raises:
            DamagedDownload: a file is not what the service announced.
            JobNotSucceeded: the job has no result.
        """
        fresh = await self._read(job if isinstance(job, str) else job.id)  # its links are new; others may have expired
        if fresh.result is None:
            raise JobNotSucceeded(fresh)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        tally = Tally(sum(artifact.bytes for artifact in fresh.result.artifacts), on_download)
        return {each.name: await self._fetch(each, target, tally) for each in fresh.result.artifacts}


class _Patience:
    """How long a service is borne that does not answer, or says that it cannot."""

    def __init__(self) -> None:
        self._away_since: float | None = None

    def renew(self) -> None:
        """Note that it has answered."""
        self._away_since = None

    def bear(self, error: httpx.TransportError | ServiceRefused) -> float:
        """Return after how long to ask again; too many requests are waited out.

        Raises the error if it is of another kind, or has lasted for PATIENCE_S.
        """
        if isinstance(error, ServiceRefused) and error.status == httpx.codes.TOO_MANY_REQUESTS:
            self.renew()
            return error.retry_after_s or POLL_S
        self._away_since = self._away_since or time.monotonic()
        is_away = not isinstance(error, ServiceRefused) or error.status in AWAY
        if not is_away or time.monotonic() - self._away_since > PATIENCE_S:
            raise error
        return POLL_S


class _EventReader:
    """Reads server-sent events line by line; a gap gets the id of the last event that was missed."""

    def __init__(self) -> None:
        self._kind = self._data = ""

    def take(self, line: str) -> Event | None:
        """Take a line; return the event that it ends, if it ends one."""
        name, _, value = line.partition(":")
        if name == "event":
            self._kind = value.strip()
        elif name == "data":
            self._data = value
        elif not line and self._data:
            document, kind = json.loads(self._data), self._kind
            self._kind = self._data = ""
            if kind == "gap":
                return Event(id=document["missed_to"], type=kind, data=document)
            return Event.model_validate(document)
        return None
