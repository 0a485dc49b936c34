"""What a job makes for the library, in the transactions of the job itself. Never commits.

Order of locks: stages, job, LoRAs by id, account. Whoever holds a LoRA's lock waits for no lock of a stage or a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, update

from api.loras.models import Lora, LoraFile, LoraFormat, LoraRole, LoraSource, LoraState
from duolora.config import Prompts

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from api.jobs.claimed import StoredArtifact
    from api.jobs.models import Job

_MADE: Mapping[str, tuple[LoraRole, LoraFormat]] = {
    "content_lora": (LoraRole.CONTENT, LoraFormat.DIFFUSERS),
    "content_lora_kohya": (LoraRole.CONTENT, LoraFormat.KOHYA),
    "style_lora": (LoraRole.STYLE, LoraFormat.DIFFUSERS),
    "style_lora_kohya": (LoraRole.STYLE, LoraFormat.KOHYA),
    "merged_diffusers": (LoraRole.MERGED, LoraFormat.DIFFUSERS),
    "merged_kohya": (LoraRole.MERGED, LoraFormat.KOHYA),
}
"""Artifacts that are LoRAs."""
MOCK_TAG = "mock"
"""On what a job of the mock engine made, for its owner to see and to take away; `Lora.mock` is what counts."""


def add_made(session: Session, job: Job, artifacts: Iterable[StoredArtifact]) -> None:
    """Put the LoRAs that a stage has made into the library of the job's account, standing on the artifacts' own files.

    Args:
        session: the transaction that publishes the artifacts; it holds the job.
        job: whose stage it was.
        artifacts: of that stage; those that are no LoRA are passed over.
    """
    found: dict[LoraRole, list[LoraFile]] = {}
    for artifact in artifacts:
        if artifact.name not in _MADE:
            continue
        role, form = _MADE[artifact.name]
        file = LoraFile(
            format=form, key=artifact.key, filename=artifact.filename, sha256=artifact.sha256, bytes=artifact.bytes
        )
        found.setdefault(role, []).append(file)
    session.add_all(_row(job, role, files) for role, files in found.items())


def withdraw_made(session: Session, job_id: uuid.UUID) -> None:
    """Take what stands on a job's files out of the library, before those files are deleted. What was kept stays.

    One that is being kept at this moment loses: its place in the store is looked at later.
    """
    of_job = (Lora.job_id == job_id, Lora.kept.is_(False), Lora.source == LoraSource.JOB)
    found = session.scalars(select(Lora.id).where(*of_job).order_by(Lora.id).with_for_update()).all()
    if not found:
        return
    # Judged anew, now that nobody else decides about them: one may have been kept while this waited.
    quietly = {"synchronize_session": False}
    session.execute(delete(Lora).where(*of_job, Lora.settle_at.is_(None)).execution_options(**quietly))
    session.execute(
        update(Lora)
        .where(*of_job)
        .values(state=LoraState.DELETING, settle_at=func.greatest(Lora.settle_at, func.now()))
        .execution_options(**quietly)
    )


def _row(job: Job, role: LoraRole, files: list[LoraFile]) -> Lora:
    prompts = Prompts.model_validate(job.params.get("prompts") or {})
    names = {
        LoraRole.CONTENT: prompts.subject_class,
        LoraRole.STYLE: f"{prompts.style_trigger} style",
        LoraRole.MERGED: f"{prompts.subject_class} in {prompts.style_trigger} style",
    }
    triggers = {
        LoraRole.CONTENT: prompts.content.removeprefix("a "),
        LoraRole.STYLE: f"{prompts.style_trigger} style",
        LoraRole.MERGED: prompts.joint.removeprefix("a "),
    }
    is_mock = job.mock_outcome is not None
    lora = Lora(
        account_id=job.account_id,
        name=names[role] if job.name is None else f"{job.name} ({role})",
        tags=[MOCK_TAG] if is_mock else [],
        mock=is_mock,
        role=role,
        base_model=job.params.get("base_model"),
        rank=(job.params.get(role) or {}).get("rank") if role is not LoraRole.MERGED else None,
        trigger=triggers[role],
        source=LoraSource.JOB,
        job_id=job.id,
    )
    lora.point_to(files)
    return lora
