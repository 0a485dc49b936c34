"""Prints every error as application/problem+json: ours, FastAPI's, Starlette's, the database's and the store's."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.errors import FieldError, InvalidParameters, ServiceError, Unauthenticated, Unavailable, problem
from api.spooling import is_full, no_room
from api.storage import StoreError
from api.telemetry import current_request_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI, Request

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request", 413: "too_large"}
"""Codes for errors that the framework raises itself."""


UNSTORABLE = "a text holds U+0000, or a number is larger than can be kept; send it without"
_LATER = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_RETRY_LATER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "string"}}}


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = MEDIA_TYPE


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries that document these statuses in OpenAPI.

    Whoever needs a key may have one that may not do this, or make too many requests.
    """
    of_keys = {HTTPStatus.FORBIDDEN.value, HTTPStatus.TOO_MANY_REQUESTS.value}
    implied = of_keys if HTTPStatus.UNAUTHORIZED in statuses else set()
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": _RETRY_LATER} if status in _LATER else {}),
        }
        for status in sorted({*statuses, *implied})
    }


def service_problem(error: ServiceError, instance: str) -> ProblemResponse:
    """Print one of our own errors."""
    document = problem(
        code=error.code,
        title=error.title,
        status=error.status,
        retryable=error.retryable,
        detail=error.detail,
        instance=instance,
        request_id=current_request_id(),
        errors=[entry.to_json() for entry in error.errors] or None,
        **error.extensions,
    )
    headers = dict(error.headers)
    if isinstance(error, Unauthenticated):
        challenge = ', error="invalid_token"' if error.code != Unauthenticated.code else ""
        headers["WWW-Authenticate"] = f'Bearer realm="duolora"{challenge}'
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", "5")
    return ProblemResponse(document, status_code=error.status, headers=headers)


def install(app: FastAPI) -> None:
    """Make an application answer with problems only."""

    @app.exception_handler(ServiceError)
    def service_error(request: Request, error: ServiceError) -> ProblemResponse:
        return service_problem(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> ProblemResponse:
        return service_problem(InvalidParameters(errors=validation_fields(error.errors())), request.url.path)

    @app.exception_handler(StoreError)
    def store_error(request: Request, error: StoreError) -> ProblemResponse:
        logger.error("the object store failed: %s", error)
        return service_problem(
            Unavailable("The object store does not answer.", code="store_unavailable"), request.url.path
        )

    @app.exception_handler(OSError)
    def no_room_left(request: Request, error: OSError) -> ProblemResponse:
        if not is_full(error):
            raise error
        logger.error("the temporary folder is full: %s", error)
        return service_problem(no_room(), request.url.path)

    @app.exception_handler(DataError)
    def unstorable(request: Request, error: DataError) -> ProblemResponse:
        logger.warning("the database cannot hold a value: %s", type(error.orig).__name__)
        entry = FieldError(pointer="/", detail=UNSTORABLE, code="unstorable")
        return service_problem(InvalidParameters(errors=[entry]), request.url.path)

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(PoolTimeout)
    def database_error(request: Request, error: Exception) -> ProblemResponse:
        logger.error("the database failed: %s", error)
        return service_problem(
            Unavailable("The database does not answer.", code="database_unavailable"), request.url.path
        )

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> ProblemResponse:
        phrase = HTTPStatus(error.status_code).phrase
        document = problem(
            code=_HTTP_CODES.get(error.status_code, f"http_{error.status_code}"),
            title=phrase,
            status=error.status_code,
            retryable=error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR,
            detail=error.detail if error.detail != phrase else None,
            instance=request.url.path,
            request_id=current_request_id(),
        )
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods(request))
        return ProblemResponse(document, status_code=error.status_code, headers=headers)


def _methods(request: Request) -> list[str]:
    """Return the methods that a path has; the framework names only those of the first of its routes."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches(dict(request.scope) | {"method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def validation_fields(errors: Sequence[Any]) -> list[FieldError]:
    """Turn FastAPI's own complaints (query, path) into field errors."""
    return [
        FieldError(
            pointer="".join(f"/{part}" for part in error["loc"] if part not in {"query", "path", "body"}) or "/",
            detail=str(error["msg"]),
            code=str(error["type"]),
        )
        for error in errors
    ]
