"""Puts the API together. The only place that knows all of its parts."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from api import health, openapi, problems
from api.accounts import routes as accounts
from api.accounts.key_service import KeyService
from api.accounts.rates import RateLimiter
from api.accounts.service import KeyRing
from api.console import routes as console
from api.db import make_engine, session_factory
from api.deps import Services
from api.jobs import images
from api.jobs import routes as jobs
from api.jobs.darkroom import Darkroom
from api.jobs.erasure import Eraser
from api.jobs.hub import EventHub
from api.jobs.logs import JobHistory
from api.jobs.service import JobService
from api.loras import routes as loras
from api.loras.service import LoraService
from api.metrics import process_registry
from api.middleware import BodyLimit, RequestContext
from api.places import lora_places
from api.request_times import RequestTimes
from api.storage import ObjectStore, StoreError, StoreMisconfigured
from api.uploads import routes as uploads
from api.uploads.examining import Examiner
from api.uploads.models import UploadKind
from api.uploads.service import UploadService
from api.webhooks import outgoing
from api.webhooks import routes as webhooks
from api.webhooks.service import WebhookService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.settings import ApiSettings

logger = logging.getLogger(__name__)

TRUSTED_FOR_S = 1.0
"""A connection idle for longer is checked before use. One that died in between costs its request a 503."""
DESCRIPTION = "Trains a content LoRA and a style LoRA from a few pictures each, and merges them with DuoLoRA."


def create_app(settings: ApiSettings) -> FastAPI:
    """Make the application of one process."""
    services = _services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tempfile.gettempdir()  # is looked for by writing: when it is full, it could not be found any more
        images.get_ready()
        await run_in_threadpool(prove_store, services.store)
        hub = asyncio.create_task(services.hub.run())
        try:
            yield
        finally:
            hub.cancel()
            await asyncio.wait([hub])
            await services.rates.close()
            services.engine.dispose()

    app = FastAPI(
        title="DuoLoRA",
        version=version("duolora"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from a third party
        redoc_url=None,
    )
    app.state.services = services
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(loras.router)
    app.include_router(uploads.router)
    app.include_router(webhooks.router)
    app.include_router(accounts.router)
    app.include_router(health.router)
    app.webhooks.include_router(outgoing.router)
    console.install(app, settings)
    openapi.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes)
    registry = process_registry()
    app.state.metrics = registry
    app.add_middleware(
        RequestContext, times=RequestTimes(registry)
    )  # added last, so outermost: it sees refusals of the other too
    return app


def _services(settings: ApiSettings) -> Services:
    """Make the parts of one process."""
    engine = make_engine(
        settings.database.url.get_secret_value(),
        pool_size=settings.database.pool_size,
        application_name="duolora-api",
        trusted_for_s=TRUSTED_FOR_S,
    )
    sessions = session_factory(engine, settings.seals.vault())
    store = ObjectStore(settings.store)
    darkroom, places = Darkroom(settings.images), lora_places(settings.lora_parallel)
    ring = KeyRing(sessions, keep_s=settings.key_cache_s)
    decider = JobService(settings, sessions, store, darkroom=darkroom)
    return Services(
        settings=settings,
        engine=engine,
        sessions=sessions,
        store=store,
        keys=ring,
        account_keys=KeyService(sessions, ring),
        rates=RateLimiter(settings.rates, settings.redis.url.get_secret_value()),
        jobs=decider,
        reader=decider.reader,
        history=JobHistory(sessions),
        eraser=Eraser(sessions, store),
        hub=EventHub(_dsn(settings), replay_limit=settings.sse_replay_limit),
        loras=LoraService(settings, sessions, store, places=places),
        uploads=UploadService(settings.uploads, sessions, store, Examiner(_upload_sizes(settings), darkroom, places)),
        webhooks=WebhookService(settings.webhooks, sessions),
    )


def _upload_sizes(settings: ApiSettings) -> dict[UploadKind, int]:
    """Return the most bytes of an upload of each kind."""
    return {UploadKind.IMAGE: settings.images.max_bytes, UploadKind.LORA: settings.lora_max_bytes}


def _dsn(settings: ApiSettings) -> str:
    """Return the database's URL as libpq reads it."""
    url = make_url(settings.database.url.get_secret_value())
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def prove_store(store: ObjectStore) -> None:
    """Test the store before the first request.

    A store that is not usable yet is only noted, /readyz says so; one that serves anybody ends the start.

    Raises:
        StoreMisconfigured: its promises do not hold.
    """
    try:
        store.ensure_bucket()
        store.self_test()
    except StoreMisconfigured:
        raise
    except StoreError as error:
        logger.warning("the object store is not usable yet: %s", error)
