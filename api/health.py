"""Liveness and readiness."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

import redis
from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

import migrations
from api.deps import ServicesDep
from api.redis_url import client_url
from api.schemas import Wire
from api.storage import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

router = APIRouter(tags=["health"])
logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 2.0

Verdict = Literal["ok", "down"]


class Liveness(Wire):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(Wire):
    """Whether requests can be served, and what each part says."""

    status: Literal["ok", "degraded", "down"]
    database: Verdict
    migrations: Verdict
    store: Verdict
    broker: Verdict


@router.get("/livez", operation_id="livez", summary="Is the process alive?")
async def livez() -> Liveness:  # on the event loop: alive also while every thread is busy
    """Answer; nothing else is asked."""
    return Liveness()


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Can requests be served?",
    responses={503: {"model": Readiness, "description": "Not now."}},
)
def readyz(response: Response, services: ServicesDep) -> Readiness:
    """Ask every part. Without the broker jobs are taken all the same, only later begun: degraded, but ready."""

    def revision() -> None:
        with services.engine.connect() as connection:
            if not migrations.serves(found := migrations.current(connection)):
                raise _Behind(f"the database is at revision {found}, the code at {migrations.head()}")

    def connect() -> None:
        services.engine.connect().close()

    database = _verdict("database", connect)
    at_head = _verdict("migrations", revision) if database == "ok" else "down"
    store = _verdict("store", services.store.ensure_bucket)
    broker = _verdict("broker", lambda: ping_redis(services.settings.redis.url.get_secret_value()))
    ready = database == at_head == store == "ok"
    if not ready:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    status: Literal["ok", "degraded", "down"] = "down" if not ready else "ok" if broker == "ok" else "degraded"
    return Readiness(status=status, database=database, migrations=at_head, store=store, broker=broker)


class _Behind(Exception):
    """The database lacks what the code needs."""


def ping_redis(url: str) -> None:
    """Ask the broker for a sign of life; understands Celery's `redis+socket://` too.

    Raises:
        redis.RedisError: it does not answer.
    """
    with redis.Redis.from_url(
        client_url(url), socket_timeout=PING_TIMEOUT_S, socket_connect_timeout=PING_TIMEOUT_S, retry=None
    ) as client:
        client.ping()


def _verdict(part: str, ask: Callable[[], None]) -> Verdict:
    try:
        ask()
    except (SQLAlchemyError, StoreError, redis.RedisError, OSError, _Behind) as error:
        logger.warning("%s is not ready: %s", part, error)
        return "down"
    return "ok"
