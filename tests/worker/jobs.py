"""Jobs as callers submit them: through the API's own service."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from api.accounts.models import Account
from api.accounts.service import authenticate, issue_key
from api.db import transaction
from api.jobs.requests import request_stop
from api.jobs.schemas import JobParams
from api.jobs.service import JobService, Submission
from api.jobs.sources import ReceivedFile
from api.settings import ApiSettings
from tests.support.company import alone, offer_as_tiny
from tests.support.vault import VAULT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from api.accounts.service import Caller
    from api.idempotency import Answer
    from api.jobs.models import Job
    from duolora.recipes import Recipe
    from tests.worker.bench import Bench

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

TRACESTATE = "rojo=00f067aa0ba902b7"
REQUEST_ID = "7f3c0d52a9e14b6f"


def submit(
    bench: Bench, *, recipe: Recipe = alone, pictures: Collection[str] = ("content", "style"), **wishes: Any
) -> Job:
    """Submit a job with one picture of each of these sides, by this recipe: a `personalize` job unless told."""
    words = {"subject_class": "dog"} if pictures else {}
    submission = Submission(
        params=JobParams.model_validate(words | wishes),
        content=[_picture(0, "/content_images/0")] if "content" in pictures else [],
        style=[_picture(255, "/style_images/0")] if "style" in pictures else [],
        origin="http://127.0.0.1",
        traceparent=TRACEPARENT,
        tracestate=TRACESTATE,
        request_id=REQUEST_ID,
    )
    return _ask(bench, recipe, lambda service, caller: service.submit(caller, submission))


def retry(bench: Bench, job: Job) -> Job:
    """Have a job tried again."""

    def ask(service: JobService, caller: Caller) -> Answer:
        return service.retry(caller, job.id, origin="http://127.0.0.1", traceparent=TRACEPARENT, key=None)

    return _ask(bench, alone, ask)


def stop(bench: Bench, job: Job) -> None:
    """Ask for an early end."""
    with transaction(bench.sessions) as session:
        request_stop(session, account_id=job.account_id, job_id=job.id)


def _ask(bench: Bench, recipe: Recipe, ask: Callable[[JobService, Caller], Answer]) -> Job:
    key = issue_key(bench.sessions, account="tests")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bench.environment.items():
            patch.setenv(name, value)
        offer_as_tiny(patch, recipe)
        service = JobService(ApiSettings(), bench.sessions, bench.store)
        job = ask(service, authenticate(bench.sessions, key.text))
    return bench.read(job.id)


def webhook_secret(bench: Bench, job: Job) -> str:
    with bench.sessions() as session:
        return VAULT.open(session.get_one(Account, job.account_id).webhook_secret)


def _picture(shade: int, pointer: str) -> ReceivedFile:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(buffer, "PNG")
    size = buffer.tell()
    buffer.seek(0)
    return ReceivedFile(buffer, size, pointer)
