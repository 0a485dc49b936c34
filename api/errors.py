"""What can go wrong with a request. Each class states its HTTP status and its stable machine code.

    ServiceError
    ├── InvalidRequest       400  the request cannot be read
    ├── Unauthenticated      401  no usable API key
    ├── Forbidden            403  the key lacks a scope
    ├── NotFound             404  nothing of that name belongs to the caller
    ├── Conflict             409  the state of the thing forbids it
    ├── Gone                 410  it was there, and was deleted
    ├── TooLarge             413  more bytes than are accepted
    ├── UnsupportedMedia     415  the body has a type that is not read here
    ├── InvalidParameters    422  a field's value is refused
    ├── RateLimited          429  the key makes too many requests
    ├── QuotaExceeded        429  the account has as much of something as it may have
    └── Unavailable          503  a part of the service does not answer

    LeaseLost                     a worker speaks for a stage that is no longer its own (never reaches HTTP)

FastAPI-free: services and repositories raise these, `api.problems` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROBLEM_TYPE_PREFIX = "urn:duolora:problem:"
"""A problem's `type` is this and its code: an identifier, stable for ever, that needs no host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One refused field: `pointer` is a JSON pointer into the request (`/params/rank`, `/content_images/3`)."""

    pointer: str
    detail: str
    code: str

    def to_json(self) -> dict[str, str]:
        """Return the entry of a problem's `errors`."""
        return {"pointer": self.pointer, "detail": self.detail, "code": self.code}


class ServiceError(Exception):
    """The service could not do what was asked."""

    status = 500
    code = "internal_error"
    title = "Something failed on our side"
    retryable = True

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.errors = tuple(errors)
        self.code = code or type(self).code
        self.headers = dict(headers or {})
        """Fields of the answer, such as Retry-After."""
        self.extensions = dict(extensions or {})
        """Further members of the problem document."""


class InvalidRequest(ServiceError):
    """The request cannot be read."""

    status = 400
    code = "invalid_request"
    title = "The request cannot be read"
    retryable = False


class Unauthenticated(ServiceError):
    """No usable API key came with the request."""

    status = 401
    code = "unauthenticated"
    title = "A valid API key is needed"
    retryable = False


class Forbidden(ServiceError):
    """The key is good, but not for this."""

    status = 403
    code = "insufficient_scope"
    title = "The key may not do that"
    retryable = False


class NotFound(ServiceError):
    """Nothing of that name belongs to the caller; another account's ids answer the same."""

    status = 404
    code = "not_found"
    title = "There is no such thing"
    retryable = False


class Conflict(ServiceError):
    """The state of the thing forbids what was asked."""

    status = 409
    code = "conflict"
    title = "Its state forbids that"
    retryable = False


class Gone(ServiceError):
    """It was the caller's, and was deleted."""

    status = 410
    code = "job_deleted"
    title = "It has been deleted"
    retryable = False


class TooLarge(ServiceError):
    """More bytes came than are accepted."""

    status = 413
    code = "too_large"
    title = "The request is too large"
    retryable = False


class UnsupportedMedia(ServiceError):
    """The body has a type that is not read here."""

    status = 415
    code = "unsupported_media_type"
    title = "The body's type is not accepted here"
    retryable = False


class InvalidParameters(ServiceError):
    """One or more fields have values that are refused; `errors` names each."""

    status = 422
    code = "invalid_parameters"
    title = "Some fields are not acceptable"
    retryable = False


class RateLimited(ServiceError):
    """The key has made as many requests as it may for now."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"
    retryable = True


class QuotaExceeded(ServiceError):
    """The account has as many jobs waiting, or as many bytes stored, as it may have."""

    status = 429
    code = "quota_exceeded"
    title = "A quota of the account is used up"
    retryable = True


class Unavailable(ServiceError):
    """A part of the service does not answer now."""

    status = 503
    code = "unavailable"
    title = "A part of the service does not answer"
    retryable = True


class LeaseLost(Exception):
    """The fencing token no longer holds the stage: somebody else decided about it. Stop, and write nothing more."""


def problem(
    *, code: str, title: str, status: int, retryable: bool, detail: str | None = None, **extensions: object
) -> dict[str, Any]:
    """Build a problem document (RFC 9457); extensions that are None are left out.

    Args:
        code: stable machine code.
        title: one sentence, the same for every occurrence.
        status: HTTP status; for a failed job, the status a request with the same fault would have.
        retryable: whether the same request can succeed later.
        detail: what happened this time.
        extensions: further members: errors, request_id, stage, attempt...
    """
    document: dict[str, Any] = {
        "type": PROBLEM_TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "code": code,
        "retryable": retryable,
    }
    if detail is not None:
        document["detail"] = detail
    return document | {key: value for key, value in extensions.items() if value is not None}
