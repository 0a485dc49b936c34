"""What endpoints are given: the parts of the process, the caller, and the submitted form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.accounts.rates import RateLimiter
from api.accounts.service import Caller, KeyRing
from api.errors import Unauthenticated
from api.jobs.erasure import Eraser
from api.jobs.hub import EventHub
from api.jobs.logs import JobHistory
from api.jobs.reading import JobReader
from api.jobs.service import JobService
from api.loras.service import LoraService
from api.settings import ApiSettings
from api.storage import ObjectStore
from api.uploads.service import UploadService
from api.webhooks.service import WebhookService

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

_bearer = HTTPBearer(
    auto_error=False, scheme_name="api_key", description="An API key, as `duolora keys create` prints it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of one API process, put together by `api.main.create_app`."""

    settings: ApiSettings
    engine: Engine
    sessions: sessionmaker[Session]
    store: ObjectStore
    keys: KeyRing
    rates: RateLimiter
    jobs: JobService
    reader: JobReader
    history: JobHistory
    eraser: Eraser
    hub: EventHub
    loras: LoraService
    uploads: UploadService
    webhooks: WebhookService


async def _services(request: Request) -> Services:  # nothing to wait for: a thread would cost more
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _caller(
    request: Request,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Authenticate and count. Runs before a body is read: of a stranger, or once too often, it is not even received."""
    if credentials is None:
        raise Unauthenticated("Send the API key as `Authorization: Bearer duo_...`.")
    token = credentials.credentials
    caller = services.keys.remembered(token)
    if caller is None:
        caller = await run_in_threadpool(services.keys.authenticate, token)
    request.state.key_id = caller.key_id
    standing, granted = await services.rates.take(caller.key_id)
    if standing is not None:
        request.state.rate_limit = standing.headers()  # for the middleware, whatever the answer will be
        if not granted:
            raise standing.refusal()
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]
