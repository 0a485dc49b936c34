"""Makers of rows, pictures and requests."""

import io
import json
import struct
import zlib
from contextlib import contextmanager, suppress
from datetime import timedelta

from PIL import Image
from sqlalchemy import func, select

from api.accounts import repository as accounts
from api.accounts.service import IssuedKey
from api.db import transaction
from api.jobs import repository
from api.jobs.models import Artifact, Event, Job, JobImage, OutboxRow, Side, Stage, StageAttempt
from api.jobs.plan import JobKind, plan
from api.jobs.repository import StoredArtifact
from api.loras.models import Lora, LoraFile, LoraFormat, LoraRole, LoraSource, LoraState
from api.webhooks.models import WebhookDelivery
from api.webhooks.signing import make_secret
from duolora.config import SCHEMA_VERSION, Prompts
from tests.support.company import alone

LEASE = timedelta(seconds=30)
PROBLEM = {"type": "urn:duolora:problem:x", "title": "x", "status": 500, "code": "x", "retryable": True}


class Caller:
    """A client that brings its key."""

    def __init__(self, http, key: IssuedKey) -> None:
        self._http = http
        self.key = key

    def get(self, path, **options):
        return self._http.get(path, headers=self._headers(options), **options)

    def post(self, path, **options):
        return self._http.post(path, headers=self._headers(options), **options)

    def request(self, method, path, **options):
        return self._http.request(method, path, headers=self._headers(options), **options)

    def submit(self, content=None, style=None, params=None, **options):
        """Send a job; pictures are bytes."""
        content, style = [png()] if content is None else content, [png()] if style is None else style
        files = [("content_images", (f"c{i}.png", data)) for i, data in enumerate(content)]
        files += [("style_images", (f"s{i}.png", data)) for i, data in enumerate(style)]
        if params is not None:
            text = params if isinstance(params, str) else json.dumps(params)
            files.append(("params", (None, text, "application/json")))
        return self.post("/jobs", files=files, **options)

    def _headers(self, options):
        return {"Authorization": f"Bearer {self.key.text}", **options.pop("headers", {})}


def png(size=(64, 48), color=(200, 30, 30)):
    """An encoded picture."""
    return encode(Image.new("RGB", size, color), "PNG")


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A well-formed PNG that claims a size and holds next to nothing: decoding it would be a bomb."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class Undone(Exception):
    """Ends a transaction that is to leave nothing."""


@contextmanager
def rolled_back(sessions):
    """A transaction that reaches the database and is then undone."""
    with suppress(Undone), transaction(sessions) as session:
        yield session
        session.flush()
        raise Undone


def make_account(sessions, name="mine"):
    with transaction(sessions) as session:
        return accounts.ensure_account(session, name=name, webhook_secret=make_secret()).id


def make_job(sessions, account_id, *, recipe=alone, checkpoints=None, **fields):
    """Write a job as a submission would; returns its id."""
    config = recipe("tiny", Prompts())
    job = Job(
        **{
            "account_id": account_id,
            "kind": JobKind.PERSONALIZE,
            "params": config.model_dump(mode="json"),
            "params_version": SCHEMA_VERSION,
            "request": {},
            "self_url": "http://service/jobs/x",
            **fields,
        }
    )
    job.images = [
        JobImage(
            side=side, ordinal=0, key=f"{side}/0", sha256="0" * 64, bytes=1, width=1, height=1, content_type="image/png"
        )
        for side in Side
    ]
    with transaction(sessions) as session:
        repository.insert_job(session, job, plan(config), checkpoints=checkpoints)
    return job.id


def make_lora(sessions, account_id, *, formats=("kohya", "diffusers"), state=LoraState.READY, **fields):
    """Write a row of the library; returns its id."""
    files = [
        LoraFile(format=LoraFormat(form), key=f"{form}/0", filename=f"{form}.safetensors", sha256="0" * 64, bytes=1)
        for form in formats
    ]
    lora = Lora(
        **{
            "account_id": account_id,
            "name": "lora",
            "role": LoraRole.OTHER,
            "source": LoraSource.UPLOAD,
            "kept": True,
            "state": state,
            "settle_at": None if state is LoraState.READY else func.now(),
            "files": [file.to_json() for file in files],
            **fields,
        }
    )
    with transaction(sessions) as session:
        session.add(lora)
    return lora.id


def claim(sessions, worker_id="w1", **options):
    with transaction(sessions) as session:
        return repository.claim_stage(session, repository.Claimant(worker_id=worker_id, lease=LEASE, **options))


def held(claimed):
    """The proof that a worker brings to every write."""
    return {"stage_id": claimed.stage_id, "fencing_token": claimed.fencing_token}


def finish(sessions, claimed, timings=None):
    artifact = StoredArtifact(
        name=claimed.name,
        filename=f"{claimed.name}.bin",
        key=f"{claimed.job_id}/{claimed.name}/{claimed.attempt}",
        sha256="ab" * 32,
        bytes=7,
        content_type="application/octet-stream",
    )
    with transaction(sessions) as session:
        repository.finish_stage(
            session, **held(claimed), artifacts=[artifact], timings=timings or {"train_seconds": 1.5}
        )


def fail(sessions, claimed, retry_after=None, error=PROBLEM):
    with transaction(sessions) as session:
        return repository.fail_stage(session, **held(claimed), error=error, retry_after=retry_after)


def cancel(sessions, account_id, job_id):
    with transaction(sessions) as session:
        return repository.request_cancel(session, account_id=account_id, job_id=job_id)


def reap(sessions, **options):
    with transaction(sessions) as session:
        return repository.reap_stale(session, **options)


def make_all_due(sessions):
    """Let every wait of a runnable stage be over."""
    with transaction(sessions) as session:
        for stage in session.scalars(select(Stage).where(Stage.runnable_at.is_not(None))):
            stage.runnable_at = func.now() - timedelta(seconds=1)


def expire_lease(sessions, claimed):
    with transaction(sessions) as session:
        session.get(Stage, claimed.stage_id).lease_expires_at = func.now() - timedelta(seconds=1)


def job_state(sessions, job_id):
    with transaction(sessions) as session:
        return session.get(Job, job_id).state


def stage_states(sessions, job_id):
    with transaction(sessions) as session:
        rows = session.scalars(select(Stage).where(Stage.job_id == job_id).order_by(Stage.ordinal))
        return {row.name: row.state.value for row in rows}


def events(sessions, job_id):
    with transaction(sessions) as session:
        return [row.type for row in session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.id))]


def snapshot(sessions):
    """Everything the tables of jobs hold: to show that something changed nothing."""
    with transaction(sessions) as session:
        return {
            model.__tablename__: sorted(
                repr([getattr(row, column.key) for column in model.__table__.columns])
                for row in session.scalars(select(model))
            )
            for model in (Job, JobImage, Stage, StageAttempt, Artifact, Event, OutboxRow, WebhookDelivery)
        }
