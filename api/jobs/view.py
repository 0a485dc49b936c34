"""A job's row as its owner sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from api.jobs.plan import stage_weights
from api.jobs.progress import job_progress, stage_progress
from api.jobs.schemas import (
    ArtifactRead,
    ImageRead,
    JobProgress,
    JobRead,
    JobResult,
    JobSummary,
    JobTimings,
    JobUrls,
    StageRead,
)
from api.jobs.states import JobState
from api.schemas import Problem
from duolora.config import PersonalizeConfig

if TYPE_CHECKING:
    from typing import Any

    from api.jobs.models import Job, Stage
    from api.storage import ObjectStore


def self_path(job_id: object) -> str:
    """Return the path of a job."""
    return f"/jobs/{job_id}"


def summarize(job: Job, now: datetime) -> JobSummary:
    """Describe a job for a list; needs its stages."""
    return JobSummary(**_summary(job, now))


def describe(job: Job, store: ObjectStore, *, link_lifetime: timedelta) -> JobRead:
    """Describe a job in full; needs its stages, images and artifacts. Links are minted here, at reading time."""
    now = datetime.now(UTC)
    return JobRead(
        **_summary(job, now),
        stages=[_stage(stage, now) for stage in job.stages],
        timings=_timings(job, now),
        params=job.params,
        images=[
            ImageRead(
                side=image.side,
                ordinal=image.ordinal,
                sha256=image.sha256,
                bytes=image.bytes,
                width=image.width,
                height=image.height,
            )
            for image in job.images
        ],
        webhook_url=job.webhook_url,
        result=_result(job, store, now, link_lifetime) if job.state is JobState.SUCCEEDED else None,
    )


def _summary(job: Job, now: datetime) -> dict[str, Any]:
    progress = _progress(job, now)
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "stage": progress.stage,
        "progress": progress,
        "priority": job.priority,
        "error": None if job.error is None else Problem.model_validate(job.error),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "cancel_requested_at": job.cancel_requested_at,
        "urls": JobUrls(self=self_path(job.id), cancel=f"{self_path(job.id)}/cancel"),
    }


def _progress(job: Job, now: datetime) -> JobProgress:
    weights = stage_weights(PersonalizeConfig.model_validate(job.params), [stage.name for stage in job.stages])
    return job_progress(job.state, job.stages, weights, now)


def _stage(stage: Stage, now: datetime) -> StageRead:
    return StageRead(
        name=stage.name,
        state=stage.state,
        attempt=stage.attempt,
        progress=stage_progress(stage, now),
        started_at=stage.started_at,
        finished_at=stage.finished_at,
        error=None if stage.error is None else Problem.model_validate(stage.error),
    )


def _timings(job: Job, now: datetime) -> JobTimings:
    end = job.finished_at or now
    stages: dict[str, dict[str, Any]] = {}
    for stage in job.stages:
        if stage.started_at is not None and stage.finished_at is not None:
            seconds = round((stage.finished_at - stage.started_at).total_seconds(), 3)
            stages[stage.name] = {"seconds": seconds, **(stage.timings or {})}
    return JobTimings(
        queued_seconds=round(((job.started_at or end) - job.created_at).total_seconds(), 3),
        running_seconds=None if job.started_at is None else round((end - job.started_at).total_seconds(), 3),
        stages=stages,
    )


def _result(job: Job, store: ObjectStore, now: datetime, lifetime: timedelta) -> JobResult:
    return JobResult(
        artifacts=[
            ArtifactRead(
                name=artifact.name,
                filename=artifact.filename,
                content_type=artifact.content_type,
                bytes=artifact.bytes,
                sha256=artifact.sha256,
                url=store.presigned_get(
                    artifact.key,
                    filename=artifact.filename,
                    content_type=artifact.content_type,
                    expires=lifetime,
                ),
                expires_at=now + lifetime,
            )
            for artifact in job.artifacts
        ]
    )
