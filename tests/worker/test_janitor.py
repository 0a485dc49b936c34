"""What the janitor deletes from the real store and the real database, and what it leaves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, text, update

from api.accounts.models import Account, IdempotencyKey
from api.accounts.quotas import add_stored
from api.accounts.repository import ensure_account
from api.db import transaction
from api.jobs.models import Job, Worker, WorkerState
from api.jobs.repository import beat_worker
from api.object_keys import received_key
from api.storage import StoreError
from api.uploads.models import Upload, UploadKind
from api.uploads.repository import key_of
from tests.worker.bench import eventually
from tests.worker.jobs import submit
from worker.dispatcher.duty import ServerAway
from worker.dispatcher.janitor import Janitor
from worker.settings import DispatcherSettings

if TYPE_CHECKING:
    import uuid

    from tests.worker.bench import Bench

LONG_AGO = {"DISPATCHER_RETENTION_DAYS": "1", "DISPATCHER_CHECKPOINT_KEEP_H": "1"}


def janitor(bench: Bench, **environment: str) -> Janitor:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (bench.environment | environment).items():
            patch.setenv(name, value)
        settings = DispatcherSettings()
    return Janitor(settings, sessions=bench.sessions, store=bench.store, stop=threading.Event())


def let_pass(bench: Bench, **time: float) -> None:
    """Move the ends of all jobs into the past."""
    with transaction(bench.sessions) as session:
        session.execute(update(Job).values(finished_at=Job.finished_at - timedelta(**time)))


def kept(bench: Bench, job: Job) -> list[str]:
    return bench.store.keys(f"accounts/{job.account_id}/jobs/{job.id}/")


def canceled_with_checkpoint(bench: Bench) -> Job:
    job = submit(bench)
    with bench.worker({"content_lora": ["train:500"]}):
        eventually(lambda: bench.stage(job.id, "content_lora").checkpoint)
        bench.cancel(job)
        bench.wait_for(job.id, "canceled")
    return job


def test_the_checkpoints_of_an_ended_job_go_first_and_the_job_later(bench: Bench):
    job = canceled_with_checkpoint(bench)
    sweep = janitor(bench, **LONG_AGO)
    sweep.tidy()
    assert [key for key in kept(bench, job) if "/checkpoints/" in key]
    let_pass(bench, hours=2)
    sweep.tidy()
    assert kept(bench, job)
    assert not [key for key in kept(bench, job) if "/checkpoints/" in key]
    assert bench.stage(job.id, "content_lora").checkpoint is None
    let_pass(bench, days=2)
    sweep.tidy()
    assert kept(bench, job) == []
    with bench.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
        assert session.scalar(select(Account.stored_bytes)) == 0


def test_a_job_that_runs_or_ended_just_now_is_left_alone(bench: Bench):
    waiting, ended = submit(bench), submit(bench)
    bench.cancel(ended)
    before = kept(bench, waiting) + kept(bench, ended)
    janitor(bench, **LONG_AGO).tidy()
    assert kept(bench, waiting) + kept(bench, ended) == before


def test_a_job_of_which_only_objects_were_deleted_is_deleted_the_next_time(bench: Bench, monkeypatch):
    job = submit(bench)
    bench.cancel(job)
    let_pass(bench, days=2)
    bench.store.delete(kept(bench, job))  # as far as a janitor came that was killed
    with ThreadPoolExecutor(2) as pool:  # and two that do the same at once
        list(pool.map(lambda sweep: sweep.tidy(), [janitor(bench, **LONG_AGO) for _ in range(2)]))
    with bench.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_while_the_store_is_away_no_row_goes(bench: Bench, monkeypatch):
    job = submit(bench)
    bench.cancel(job)
    let_pass(bench, days=2)
    sweep = janitor(bench, **LONG_AGO)

    def away(_prefix: str) -> list[str]:
        raise StoreError("away")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "keys", away)
        with pytest.raises(ServerAway):
            sweep(None)
    assert bench.read(job.id).state == "canceled"
    sweep.tidy()
    assert kept(bench, job) == []


def test_rows_that_nobody_needs_go(bench: Bench):
    job = submit(bench)
    with transaction(bench.sessions) as session:
        for worker_id in ("dead", "alive"):
            beat_worker(session, worker_id=worker_id, state=WorkerState.IDLE, device=None, engine_version=None)
        session.flush()
        session.execute(update(Worker).where(Worker.id == "dead").values(heartbeat_at=text("now() - interval '2 d'")))
        for key, interval in (("old", "-1 h"), ("new", "1 h")):
            session.add(
                IdempotencyKey(
                    account_id=job.account_id,
                    key=key,
                    fingerprint="f",
                    token=job.id,
                    locked_until=func.now(),
                    expires_at=func.now() + text(f"interval '{interval}'"),
                )
            )
    janitor(bench).tidy()
    with bench.sessions() as session:
        assert session.scalars(select(Worker.id)).all() == ["alive"]
        assert session.scalars(select(IdempotencyKey.key)).all() == ["new"]


def test_uploads_go_when_their_time_is_over(bench: Bench):
    kept, over, written_to = (make_upload(bench) for _ in range(3))
    with transaction(bench.sessions) as session:
        past = func.now() - timedelta(minutes=1)
        session.execute(update(Upload).where(Upload.id.in_([over.id, written_to.id])).values(expires_at=past))
        session.execute(update(Upload).where(Upload.id == written_to.id).values(link_expires_at=past))
    janitor(bench).tidy()
    assert uploads_left(bench) == {kept.id, written_to.id}  # something may still arrive by the link of the latter
    assert stored_bytes(bench, kept) == 14
    with transaction(bench.sessions) as session:
        session.execute(update(Upload).values(link_expires_at=func.now() - timedelta(hours=2)))
    janitor(bench).tidy()
    assert uploads_left(bench) == {kept.id}
    assert bench.store.keys(f"accounts/{kept.account_id}/uploads/") == [key_of(kept)]
    assert stored_bytes(bench, kept) == 7


def test_what_came_by_the_link_of_a_ready_upload_goes_when_the_link_ends(bench: Bench):
    upload = make_upload(bench)
    received = received_key(upload.account_id, upload.id)
    bench.store.put_bytes(received, b"again", "image/png")
    with transaction(bench.sessions) as session:
        add_stored(session, upload.account_id, 5)
        ends = func.now() - timedelta(minutes=1)
        session.execute(update(Upload).values(link_bytes=5, link_expires_at=ends))
    janitor(bench).tidy()
    kept = key_of(upload)
    assert set(bench.store.keys(f"accounts/{upload.account_id}/")) == {kept, received}
    assert stored_bytes(bench, upload) == 12
    with transaction(bench.sessions) as session:
        session.execute(update(Upload).values(link_expires_at=func.now() - timedelta(hours=2)))
    for _ in range(2):
        janitor(bench).tidy()
        assert uploads_left(bench) == {upload.id}
        assert bench.store.keys(f"accounts/{upload.account_id}/") == [kept]
        assert stored_bytes(bench, upload) == 7


def test_what_a_link_might_have_brought_is_given_back_with_its_upload(bench: Bench):
    upload = make_upload(bench)
    with transaction(bench.sessions) as session:
        add_stored(session, upload.account_id, 5)
        past = func.now() - timedelta(hours=2)
        session.execute(update(Upload).values(link_bytes=5, link_expires_at=past, expires_at=past))
    janitor(bench).tidy()
    assert uploads_left(bench) == set()
    assert stored_bytes(bench, upload) == 0


def make_upload(bench: Bench) -> Upload:
    with transaction(bench.sessions) as session:
        account = ensure_account(session, name="uploads", webhook_secret="s")
        add_stored(session, account.id, 7)
        upload = Upload(
            account_id=account.id,
            kind=UploadKind.IMAGE,
            content_type="image/png",
            bytes=7,
            expires_at=func.now() + timedelta(hours=1),
        )
        session.add(upload)
    bench.store.put_bytes(key_of(upload), b"picture", "image/png")
    return upload


def uploads_left(bench: Bench) -> set[uuid.UUID]:
    with transaction(bench.sessions) as session:
        return set(session.scalars(select(Upload.id)))


def stored_bytes(bench: Bench, upload: Upload) -> int:
    with transaction(bench.sessions) as session:
        return session.get_one(Account, upload.account_id).stored_bytes
