"""Jobs as callers submit them: through the API's own service."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from api.accounts.models import Account
from api.accounts.service import authenticate, issue_key
from api.jobs.schemas import JobParams
from api.jobs.service import JobService, Submission
from api.jobs.sources import ReceivedFile
from api.settings import ApiSettings
from tests.support.company import alone, offer_as_tiny

if TYPE_CHECKING:
    from api.jobs.models import Job
    from duolora.recipes import Recipe
    from tests.worker.bench import Bench

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def submit(bench: Bench, *, recipe: Recipe = alone, **wishes: Any) -> Job:
    """Submit a `personalize` job with one picture a side, by this recipe."""
    key = issue_key(bench.sessions, account="tests")
    submission = Submission(
        params=JobParams.model_validate({"subject_class": "dog"} | wishes),
        content=[_picture(0, "/content_images/0")],
        style=[_picture(255, "/style_images/0")],
        origin="http://127.0.0.1",
        traceparent=TRACEPARENT,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bench.environment.items():
            patch.setenv(name, value)
        offer_as_tiny(patch, recipe)
        service = JobService(ApiSettings(), bench.sessions, bench.store)
        job = service.submit(authenticate(bench.sessions, key.text), submission)
    return bench.read(job.id)


def webhook_secret(bench: Bench, job: Job) -> str:
    with bench.sessions() as session:
        return session.get_one(Account, job.account_id).webhook_secret


def _picture(shade: int, pointer: str) -> ReceivedFile:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(buffer, "PNG")
    size = buffer.tell()
    buffer.seek(0)
    return ReceivedFile(buffer, size, pointer)
