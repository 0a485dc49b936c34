"""Python client of the service: submit, wait, download. Needs only `duolora[client]` (httpx and pydantic).

from api.client import Client

with Client("http://127.0.0.1:8000", api_key="duo_...") as client:
    job = client.personalize(content=["cat1.jpg", "cat2.jpg"], style=["ink.png"], subject_class="cat")
    job = client.wait(job.id, on_progress=print)
    files = client.download(job, "out")
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx

from api.client_errors import ClientError, DamagedDownload, JobNotSucceeded, ServiceRefused, refusal
from api.client_records import (
    TERMINAL,
    Artifact,
    Deletion,
    Event,
    Job,
    JobCheck,
    LogLine,
    Progress,
    Result,
    Tally,
    Timings,
    Upload,
    Wishes,
)
from api.client_uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from os import PathLike

    Name = str | PathLike[str]

__all__ = [
    "Artifact",
    "Client",
    "ClientError",
    "DamagedDownload",
    "Deletion",
    "Event",
    "Job",
    "JobCheck",
    "JobNotSucceeded",
    "LogLine",
    "Progress",
    "Result",
    "ServiceRefused",
    "Tally",
    "Timings",
    "Upload",
    "Wishes",
]

POLL_S = 0.5
"""Seconds between two looks at a job, where the service does not wait for a change itself."""
WAIT_S = 20
"""Seconds that the service is asked to wait for one."""
PATIENCE_S = 30.0
"""How long `wait` bears a service that does not answer, before it gives up."""
SILENCE_S = 60.0
"""A stream of events that is silent for longer has broken off: the service gives signs of life more often."""
AWAY = frozenset({502, 503, 504})
"""Statuses by which the service, or a proxy in front of it, says that it cannot answer now."""


class Client(Uploads):
    """A connection to one service.

    Args:
        base_url: Where the service is, as `duolora up` prints it.
        api_key: A key of that service.
        timeout_s: Longest wait for one answer.
    """

    def __init__(self, base_url: str, api_key: str, *, timeout_s: float = 60) -> None:
        transport = httpx.HTTPTransport(retries=2)
        headers = {"Authorization": f"Bearer {api_key}"}
        self._api = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)
        # Files come from the store by signed links: it must not see the key.
        self._store = httpx.Client(timeout=timeout_s, transport=httpx.HTTPTransport(retries=2))

    def __enter__(self) -> Self:
        """Use as a context manager to close the connections."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._api.close()
        self._store.close()

    def personalize(
        self,
        *,
        content: Sequence[Name],
        style: Sequence[Name],
        subject_class: str,
        idempotency_key: str | None = None,
        wait_s: int = 0,
        **wishes: Unpack[Wishes],
    ) -> Job:
        """Submit a job: learn a subject and a style, and merge them.

        Args:
            content: Pictures of one subject, 1 to 20 files.
            style: Pictures in one style, 1 to 20 files.
            subject_class: What the subject is, in a word or two: dog, backpack, teapot.
            idempotency_key: Of your choice, new for each job: the same call with the same key again, after an error of
                the network say, returns the first job in place of a second one.
            wait_s: Give the job so long to end before it is returned; the service waits for a minute at most.
            wishes: See `Wishes`.

        Raises:
            ServiceRefused: the request is at fault; `problem["errors"]` names the fields.
            OSError: a file cannot be read.
        """
        params = {"subject_class": subject_class, **wishes}
        with ExitStack() as stack:
            files: list[tuple[str, Any]] = [("params", (None, json.dumps(params), "application/json"))]
            for field, names in (("content_images", content), ("style_images", style)):
                for path in map(Path, names):
                    files.append((field, (path.name, stack.enter_context(path.open("rb")))))  # noqa: PERF401
            headers = {**_once(idempotency_key), **_prefer(wait_s)}
            answer = self._send("POST", "/jobs", files=files, headers=headers, timeout=self._patient(wait_s))
            return Job.model_validate(answer.json())

    def job(self, job_id: str, *, wait_s: int = 0) -> Job:
        """Read one job.

        Args:
            job_id: Which job.
            wait_s: Give its state so long to change before it is returned; the service waits for a minute at most.

        Raises:
            ServiceRefused: with code `job_deleted` if it was.
        """
        return Job.model_validate(self._look(job_id, wait_s=wait_s).json())

    def _look(self, job_id: str, *, wait_s: int, known: str | None = None) -> httpx.Response:
        """Read one job; 304 if the tag that is known still holds after the wait."""
        headers = _prefer(wait_s) if known is None else {**_prefer(wait_s), "If-None-Match": known}
        return self._send("GET", f"/jobs/{job_id}", headers=headers, timeout=self._patient(wait_s))

    def jobs(
        self, *, state: str | Sequence[str] = (), kind: str | Sequence[str] = (), page_size: int = 100
    ) -> Iterator[Job]:
        """All jobs of the key's account, newest first, fetched page after page. They come without their results.

        Args:
            state: Only those in one of these states, if any are given.
            kind: Only those of one of these kinds, if any are given.
            page_size: Jobs of one request, 100 at most.
        """
        cursor: dict[str, str] = {}
        filters = {"state": _several(state), "kind": _several(kind)}
        while True:
            page = self._call("GET", "/jobs", params={"limit": page_size, **filters, **cursor})
            yield from map(Job.model_validate, page["items"])
            if not page.get("next_cursor"):
                return
            cursor = {"cursor": page["next_cursor"]}

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be given up; a job that has ended stays as it is."""
        return Job.model_validate(self._call("POST", f"/jobs/{job_id}/cancel"))

    def stop(self, job_id: str) -> Job:
        """Ask for a job to end early and to succeed with what it has learnt by then.

        Raises:
            ServiceRefused: with code `nothing_to_keep` while a training has not begun.
        """
        return Job.model_validate(self._call("POST", f"/jobs/{job_id}/stop"))

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Have a failed, canceled or expired job tried again, from its checkpoints; returns the new job.

        Raises:
            ServiceRefused: with code `not_retryable` if it goes on or has succeeded.
        """
        return Job.model_validate(self._call("POST", f"/jobs/{job_id}/retry", headers=_once(idempotency_key)))

    def delete(self, job_id: str) -> Deletion:
        """Delete a job that has ended, with everything it has; asked again, the receipt is the same.

        Raises:
            ServiceRefused: with code `job_not_ended`, or `job_in_use` while a retry goes on from its checkpoints.
        """
        return Deletion.model_validate(self._call("DELETE", f"/jobs/{job_id}"))

    def events(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """Follow a job: what has happened to it since the event `after`, then what happens, until its end.

        A stream that breaks off is taken up again where it was.

        Raises:
            httpx.TransportError: the service has not answered for PATIENCE_S.
            ServiceRefused: it refuses; one that says that it cannot answer now is asked again for PATIENCE_S.
        """
        patience = _Patience()
        while True:
            try:
                for event in self._follow(job_id, after):
                    patience.renew()
                    if event is None:
                        continue
                    after = event.id
                    yield event
                    if event.type.removeprefix("job.") in TERMINAL:
                        return
                if self.job(job_id).is_terminal:
                    return  # its last event was known already
            except (httpx.TransportError, ServiceRefused) as error:
                patience.bear(error)
            time.sleep(POLL_S)

    def _follow(self, job_id: str, after: int) -> Iterator[Event | None]:
        """Hear of a job until the stream ends or breaks off; None says that it has begun."""
        timeout = httpx.Timeout(self._api.timeout.connect, read=SILENCE_S)
        query = {"after": after}
        with self._api.stream("GET", f"/jobs/{job_id}/events", params=query, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise refusal(response)
            yield None
            yield from _events(response.iter_lines())

    def logs(self, job_id: str, *, stage: str | None = None, after: int = 0) -> Iterator[LogLine]:
        """All lines that a job's stages have written since the line `after`, oldest first."""
        query: dict[str, Any] = {} if stage is None else {"stage": stage}
        following: int | None = after
        while following is not None:
            page = self._call("GET", f"/jobs/{job_id}/logs", params={**query, "after": following, "limit": 1000})
            yield from map(LogLine.model_validate, page["items"])
            following = page["next_after"]

    def wait(
        self, job_id: str, *, on_progress: Callable[[Job], object] | None = None, timeout_s: float | None = None
    ) -> Job:
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
            answer = None
            try:
                answer = self._look(job_id, wait_s=wait_s, known=known)
            except (httpx.TransportError, ServiceRefused) as error:
                patience.bear(error)
            else:
                patience.renew()
            if answer is not None and answer.status_code != httpx.codes.NOT_MODIFIED:
                job = Job.model_validate(answer.json())
                state, known = job.state, answer.headers.get("ETag") if on_progress is not None else None
                if on_progress is not None:
                    on_progress(job)
                if job.state == "succeeded":
                    return job
                if job.is_terminal:
                    raise JobNotSucceeded(job)
            left = end - time.monotonic()
            if left < 0:
                raise TimeoutError(f"job {job_id} is still {state} after {timeout_s:.0f} s")
            if answer is None or (wait_s and "Preference-Applied" not in answer.headers):
                time.sleep(POLL_S)
            wait_s = math.ceil(min(WAIT_S, left))

    def download(self, job: Job, folder: Name) -> dict[str, Path]:
        """Fetch all files of a succeeded job into a folder, each checked against its SHA-256.

        Returns:
            Where each artifact is, by its name (`merged_diffusers`, `preview`, ...).

        Raises:
            DamagedDownload: a file is not what the service announced.
            JobNotSucceeded: the job has no result.
        """
        fresh = self.job(job.id)  # its links are new; those of the argument may have expired
        if fresh.result is None:
            raise JobNotSucceeded(fresh)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return {artifact.name: self._fetch(artifact, target) for artifact in fresh.result.artifacts}

    def _fetch(self, artifact: Artifact, folder: Path) -> Path:
        path = folder / Path(artifact.filename).name  # a name from outside must not lead out of the folder
        partial = path.with_name(path.name + ".part")
        digest = hashlib.sha256()
        with self._store.stream("GET", artifact.url) as response:
            if response.is_error:
                raise ServiceRefused(response.status_code, {"title": f"the store refused {artifact.filename}"})
            with partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != artifact.sha256:
            partial.unlink()
            raise DamagedDownload(f"{artifact.filename} has SHA-256 {digest.hexdigest()}, not {artifact.sha256}")
        return partial.replace(path)

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's own words
        document: dict[str, Any] = self._send(method, path, **options).json()
        return document

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401
        response = self._api.request(method, path, **options)
        if response.is_error:
            raise refusal(response)
        return response

    def _patient(self, wait_s: int) -> httpx.Timeout:
        """Give an answer its usual time beside that for which it was asked to wait."""
        usual = self._api.timeout
        read = None if usual.read is None else usual.read + wait_s
        return httpx.Timeout(connect=usual.connect, read=read, write=usual.write, pool=usual.pool)


class _Patience:
    """How long a service is borne that does not answer, or says that it cannot."""

    def __init__(self) -> None:
        self._away_since: float | None = None

    def renew(self) -> None:
        """Note that it has answered."""
        self._away_since = None

    def bear(self, error: httpx.TransportError | ServiceRefused) -> None:
        """Raise the error if it is of another kind, or has lasted for PATIENCE_S; too many requests are waited out."""
        if isinstance(error, ServiceRefused) and error.status == httpx.codes.TOO_MANY_REQUESTS:
            self.renew()
            time.sleep(error.retry_after_s or POLL_S)
            return
        self._away_since = self._away_since or time.monotonic()
        is_away = not isinstance(error, ServiceRefused) or error.status in AWAY
        if not is_away or time.monotonic() - self._away_since > PATIENCE_S:
            raise error


def _prefer(wait_s: int) -> dict[str, str]:
    return {"Prefer": f"wait={wait_s}"} if wait_s > 0 else {}


def _several(values: str | Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


def _once(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _events(lines: Iterable[str]) -> Iterator[Event]:
    """Read server-sent events; a gap gets the id of the last event that was missed."""
    kind = data = ""
    for line in lines:
        name, _, value = line.partition(":")
        if name == "event":
            kind = value.strip()
        elif name == "data":
            data = value
        elif not line and data:
            document = json.loads(data)
            if kind == "gap":
                yield Event(id=document["missed_to"], type=kind, data=document)
            else:
                yield Event.model_validate(document)
            kind = data = ""
