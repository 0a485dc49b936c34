"""Jobs as the API writes them, without its HTTP side."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from api.accounts.models import Account
from api.db import transaction
from api.identifiers import uuid7
from api.jobs.models import Job, JobImage, Side, Stage
from api.jobs.plan import PLANS, JobKind
from api.jobs.repository import insert_job
from api.jobs.states import StageState
from api.storage import input_key
from api.webhooks.signing import make_secret
from duolora.config import SCHEMA_VERSION, Prompts
from duolora.recipes import tiny
from tests.worker.bench import sha256

if TYPE_CHECKING:
    from tests.worker.bench import Bench

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def submit(bench: Bench, *, webhook_url: str | None = None) -> Job:
    """Insert a `personalize` job with one picture a side, for an account of its own."""
    with transaction(bench.sessions) as session:
        account = Account(id=uuid7(), name=f"tests {uuid7()}", webhook_secret=make_secret())
        session.add(account)
        session.flush()
        job = Job(
            id=uuid7(),
            account_id=account.id,
            kind=JobKind.PERSONALIZE,
            params=tiny("tiny", Prompts(subject_class="dog")).model_dump(mode="json"),
            params_version=SCHEMA_VERSION,
            request={},
            webhook_url=webhook_url,
            self_url="http://127.0.0.1/jobs/x",
            traceparent=TRACEPARENT,
        )
        job.images = [_image(bench, job, side, shade) for shade, side in enumerate(Side)]
        job.stages = [
            Stage(
                name=plan.name,
                ordinal=ordinal,
                depends_on=list(plan.depends_on),
                max_attempts=plan.max_attempts,
                state=StageState.WAITING if plan.depends_on else StageState.RUNNABLE,
            )
            for ordinal, plan in enumerate(PLANS[JobKind.PERSONALIZE])
        ]
        insert_job(session, job)
    return job


def webhook_secret(bench: Bench, job: Job) -> str:
    with bench.sessions() as session:
        return session.get_one(Account, job.account_id).webhook_secret


def _image(bench: Bench, job: Job, side: Side, shade: int) -> JobImage:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    data = buffer.getvalue()
    key = input_key(job.account_id, job.id, side, 0, sha256(data))
    bench.store.put_bytes(key, data, "image/png")
    return JobImage(
        side=side,
        ordinal=0,
        key=key,
        sha256=sha256(data),
        bytes=len(data),
        width=8,
        height=8,
        content_type="image/png",
    )
