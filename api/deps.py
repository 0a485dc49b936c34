"""What endpoints are given: the parts of the process, the caller, and the submitted form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.concurrency import run_in_threadpool

from api import idempotency
from api.accounts.key_service import KeyService
from api.accounts.rates import RateLimiter
from api.accounts.scopes import Scope
from api.accounts.service import Caller, KeyRing
from api.documents import described
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

DESCRIPTION = f"""\
An API key, as `duolora keys create` or `POST /keys` prints it. An operation names the scope that its key needs:
{", ".join(f"`{scope}`" for scope in Scope)}. A scope to write includes the one to read, and `admin` includes all.
"""
_bearer = HTTPBearer(auto_error=False, scheme_name="api_key", description=DESCRIPTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of one API process, put together by `api.main`."""

    settings: ApiSettings
    engine: Engine
    sessions: sessionmaker[Session]
    store: ObjectStore
    keys: KeyRing
    account_keys: KeyService
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


_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _caller(request: Request, services: ServicesDep, wanted: SecurityScopes, credentials: _Credentials) -> Caller:
    """Authenticate, count, and check scopes. Runs before a body is read: of a stranger it is not even received."""
    caller = await _authenticated(request, services, credentials)
    caller.require(wanted.scopes)
    return caller


async def _caller_or_key(
    request: Request, services: ServicesDep, wanted: SecurityScopes, credentials: _Credentials, key_id: str
) -> Caller:
    """Do the same, but check no scopes of the key that the path names: about itself a key may decide."""
    caller = await _authenticated(request, services, credentials)
    if caller.key_id != key_id:
        caller.require(wanted.scopes)
    return caller


async def _authenticated(
    request: Request, services: Services, credentials: HTTPAuthorizationCredentials | None
) -> Caller:
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


async def _idempotency_key(
    request: Request,
    _: Annotated[
        str | None,
        Header(
            alias=idempotency.HEADER,
            description="Of the caller's choice, new for each request: sent again with the same key, the request is "
            "answered as the first time and nothing is done twice.",
        ),
    ] = None,
) -> str | None:
    """Read the key of a request; FastAPI would take the last of several."""
    return idempotency.read_key(request.headers.getlist(idempotency.HEADER))


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
REPLAYED = described(
    {
        "Idempotency-Expires": "Until when the key is known.",
        "Idempotency-Replayed": "`true` if the answer is that of an earlier request with the key.",
    }
)
"""Fields of the answer to a request that may have one."""

ReadsJobs = Annotated[Caller, Security(_caller, scopes=[Scope.JOBS_READ])]
WritesJobs = Annotated[Caller, Security(_caller, scopes=[Scope.JOBS_WRITE])]
ReadsLoras = Annotated[Caller, Security(_caller, scopes=[Scope.LORAS_READ])]
WritesLoras = Annotated[Caller, Security(_caller, scopes=[Scope.LORAS_WRITE])]
ReadsUploads = Annotated[Caller, Security(_caller, scopes=[Scope.UPLOADS_READ])]
WritesUploads = Annotated[Caller, Security(_caller, scopes=[Scope.UPLOADS_WRITE])]
ReadsWebhooks = Annotated[Caller, Security(_caller, scopes=[Scope.WEBHOOKS_READ])]
WritesWebhooks = Annotated[Caller, Security(_caller, scopes=[Scope.WEBHOOKS_WRITE])]
Admin = Annotated[Caller, Security(_caller, scopes=[Scope.ADMIN])]
AdminOrItself = Annotated[Caller, Security(_caller_or_key, scopes=[Scope.ADMIN])]
