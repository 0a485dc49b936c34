"""Taking a backup, and restoring one.

Rows first, then objects: an object that a row names was in the store before the row was, so it is found unless its
owner has deleted it since. Back the other way round: no row is there before its objects.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

import migrations
from api.db import make_engine, session_factory, transaction
from api.jobs import repository
from api.jobs.models import Job, Stage
from api.jobs.states import StageState
from api.webhooks.endpoints import BY_OWNER
from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint
from deploy.backup import objects, rows
from deploy.backup.folder import FORMAT, BackupError, Manifest

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from api.storage import ObjectStore
    from api.vault import Vault
    from deploy.backup.folder import BackupFolder

ATTEMPTS_SKIPPED = 1000
"""By so much the attempts at unfinished stages go on: keys of objects contain the attempt, and what was tried after the
backup may have left some in the store, or be about to."""
HELD_BACK = "held back by a restore"


@dataclass(frozen=True)
class Taken:
    """What came of a backup."""

    manifest: Manifest
    rows: int
    bytes: int
    lost: tuple[str, ...]
    """Objects that rows name, then and now, and the store does not have: it had lost them before."""


def back_up(url: str, store: ObjectStore, folder: BackupFolder) -> Taken:
    """Write all rows and all objects into a new folder, while the service goes on.

    Raises:
        BackupError: the folder is not empty, or there is nothing to back up.
        StoreError, psycopg.Error: the store or the database failed; the folder has no manifest then.
    """
    folder.create()
    found = rows.dump(url, folder)
    copied = objects.copy_out(store, folder)
    lacking = found.named - {each.key for each in copied}
    lost = lacking & rows.named_now(url) if lacking else frozenset()
    manifest = Manifest(
        format=FORMAT,
        version=version("duolora"),
        revision=found.revision,
        taken_at=found.taken_at,
        tables=found.tables,
        sequences=found.sequences,
        objects=len(copied),
        objects_sha256=folder.write_objects(copied),
        deleted_meanwhile=tuple(sorted({job for key in lacking - lost if (job := _job_of(key)) is not None})),
        sealed_with=found.sealed_with,
    )
    folder.write_manifest(manifest)
    return Taken(
        manifest=manifest,
        rows=sum(table.rows for table in found.tables),
        bytes=sum(each.bytes for each in copied),
        lost=tuple(sorted(lost)),
    )


def restore(
    url: str, store: ObjectStore, folder: BackupFolder, *, vault: Vault | None = None, hold_webhooks: bool = False
) -> Manifest:
    """Bring back what a backup holds, into a database without jobs and a bucket that may hold objects already.

    Stages that ran are given back to go on from their checkpoints. With `hold_webhooks` nobody is told of anything:
    endpoints are disabled, and what was due counts as exhausted, so that it can be replayed. Without a vault it is not
    asked whether the secrets can be opened.

    Raises:
        BackupError: the backup is damaged or of a newer version, its secrets are sealed with keys that the vault lacks,
            or the database is in use or not empty.
        StoreError, psycopg.Error: the store or the database failed; try again.
    """
    manifest = folder.read_manifest()
    if not migrations.knows(manifest.revision):
        raise BackupError(
            f"the backup is of revision {manifest.revision}, which this version does not know: restore it with"
            f" DuoLoRA {manifest.version} or a newer one"
        )
    if vault is not None:
        _check_keys(manifest, vault)
    rows.check_empty(url)
    objects.copy_in(store, folder, folder.objects())
    migrations.downgrade(url)
    migrations.upgrade(url, manifest.revision)
    rows.load(url, folder, manifest)
    migrations.upgrade(url)
    _settle(url, manifest, hold_webhooks=hold_webhooks)
    return manifest


def _check_keys(manifest: Manifest, vault: Vault) -> None:
    if lacking := sorted(set(manifest.sealed_with) - vault.names):
        raise BackupError(
            f"secrets in the backup are sealed with the key {', '.join(lacking)}, which SECRET_KEYS lacks: add those of"
            " the installation that was backed up, as the last ones; or restore --without-keys, and no webhook of"
            " before can be signed, nor a key be made for its accounts"
        )


def _settle(url: str, manifest: Manifest, *, hold_webhooks: bool) -> None:
    """Make of the state of an instant one that can go on."""
    engine = make_engine(url, application_name="duolora restore")
    try:
        with transaction(session_factory(engine)) as session:
            _give_back(session)
            _delete(session, [uuid.UUID(job) for job in manifest.deleted_meanwhile])
            if hold_webhooks:
                _hold_webhooks(session)
    finally:
        engine.dispose()


def _give_back(session: Session) -> None:
    """Release the stages that ran, and begin attempts at all unfinished ones with new numbers."""
    held = session.execute(select(Stage.id, Stage.fencing_token).where(Stage.state == StageState.RUNNING)).all()
    for stage_id, token in held:
        if token is not None:
            repository.release_stage(session, stage_id=stage_id, fencing_token=token)
    session.flush()
    session.execute(
        update(Stage)
        .where(Stage.state.in_([StageState.WAITING, StageState.RUNNABLE]))
        .values(attempt=Stage.attempt + ATTEMPTS_SKIPPED)
        .execution_options(synchronize_session=False)
    )


def _delete(session: Session, gone: list[uuid.UUID]) -> None:
    """Ask for jobs to be deleted, and end those first that ended only after the instant: their pictures are gone."""
    unfinished = select(Job.id, Job.account_id).where(Job.id.in_(gone), Job.finished_at.is_(None)).order_by(Job.id)
    for job_id, account_id in session.execute(unfinished).all():
        repository.request_cancel(session, account_id=account_id, job_id=job_id)
    session.flush()
    session.execute(
        update(Job)
        .where(Job.id.in_(gone), Job.finished_at.is_not(None))
        .values(deletion_requested_at=func.coalesce(Job.deletion_requested_at, func.now()))
    )


def _hold_webhooks(session: Session) -> None:
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.state == EndpointState.ENABLED)
        .values(state=EndpointState.DISABLED, disabled_at=func.now(), disabled_reason=BY_OWNER)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.state == DeliveryState.PENDING)
        .values(state=DeliveryState.EXHAUSTED, last_error=HELD_BACK)
        .execution_options(synchronize_session=False)
    )


def _job_of(key: str) -> str | None:
    """Return the job that an object belongs to, None for one of the library or of an upload."""
    parts = key.split("/")
    return parts[3] if len(parts) > 4 and parts[2] == "jobs" else None
