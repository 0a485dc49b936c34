"""What the Python client raises. Needs only httpx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from api.client.records import JobRecord


class ClientError(Exception):
    """Base of what this client raises besides httpx's transport errors."""


class ServiceRefused(ClientError):
    """The service answered with an error; `problem` is its problem+json document (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any], *, retry_after_s: float | None = None) -> None:
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s
        """When to come again, if the service says so."""
        lines = [str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")]
        lines += [f"{error.get('pointer', '')}: {error.get('detail', '')}" for error in problem.get("errors", [])]
        super().__init__("\n  ".join(lines))


class JobNotSucceeded(ClientError):
    """A job ended in another way; `job` is its last state, `job.error` says why."""

    def __init__(self, job: JobRecord) -> None:
        self.job = job
        reason = (job.error or {}).get("detail") or (job.error or {}).get("title")
        super().__init__(f"job {job.id} {job.state}" + (f": {reason}" if reason else ""))


class DamagedDownload(ClientError):
    """A file does not have the SHA-256 that the service announced; nothing was kept."""


class MissingFormat(ClientError):
    """A LoRA has no file in a format that was asked for; nothing was fetched."""


def refusal(response: httpx.Response) -> ServiceRefused:
    """Read what a service answers with an error."""
    after = response.headers.get("Retry-After", "")
    return ServiceRefused(
        response.status_code, _problem(response), retry_after_s=float(after) if after.isdecimal() else None
    )


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document; something shaped like one when a proxy answered instead of the service."""
    try:
        document = response.json()
    except ValueError:
        document = None
    return document if isinstance(document, dict) else {"title": f"HTTP status {response.status_code}"}
