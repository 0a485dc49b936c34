"""Paths of API keys: HTTP in, HTTP out."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.accounts.schemas import KeyCreate, KeyPage, KeyRead, KeyRotation, KeyWithSecret
from api.deps import Admin, AdminOrItself, ServicesDep
from api.documents import SmallDocuments
from api.problems import problem_responses

router = APIRouter(tags=["keys"], route_class=SmallDocuments)


@router.get("/keys", operation_id="list_keys", summary="List keys", responses=problem_responses(401, 422, 500, 503))
def list_keys(
    services: ServicesDep,
    caller: Admin,
    *,
    ended: Annotated[bool, Query(description="Also those that are expired or revoked.")] = False,
) -> KeyPage:
    """List the account's keys, newest first."""
    return services.account_keys.list(caller, ended=ended)


@router.post(
    "/keys",
    operation_id="create_key",
    summary="Make a key",
    status_code=HTTPStatus.CREATED,
    responses=problem_responses(401, 409, 413, 415, 422, 500, 503),
)
def create_key(response: Response, services: ServicesDep, caller: Admin, wish: KeyCreate) -> KeyWithSecret:
    """Make a key of the account. The answer holds it, this once."""
    made = services.account_keys.create(caller, wish)
    response.headers["Location"] = f"/keys/{made.id}"
    return made


@router.get(
    "/keys/{key_id}", operation_id="read_key", summary="Read a key", responses=problem_responses(401, 404, 500, 503)
)
def read_key(services: ServicesDep, caller: Admin, key_id: str) -> KeyRead:
    """Read what a key may do, whether it works, and when it was last used."""
    return services.account_keys.read(caller, key_id)


@router.delete(
    "/keys/{key_id}",
    operation_id="revoke_key",
    summary="Revoke a key",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(401, 404, 500, 503),
)
def revoke_key(services: ServicesDep, caller: AdminOrItself, key_id: str) -> None:
    """Make a key useless for good, within seconds. Any key may revoke itself; asking again changes nothing."""
    services.account_keys.revoke(caller, key_id)


@router.post(
    "/keys/{key_id}/rotate",
    operation_id="rotate_key",
    summary="Replace a key",
    status_code=HTTPStatus.CREATED,
    responses=problem_responses(401, 404, 409, 413, 415, 422, 500, 503),
)
def rotate_key(
    response: Response, services: ServicesDep, caller: Admin, key_id: str, wish: KeyRotation | None = None
) -> KeyWithSecret:
    """Make a key with the same label and scopes; the old one works beside it for the overlap, then no more."""
    overlap = timedelta(seconds=(wish or KeyRotation()).overlap_seconds)
    made = services.account_keys.rotate(caller, key_id, overlap)
    response.headers["Location"] = f"/keys/{made.id}"
    return made
