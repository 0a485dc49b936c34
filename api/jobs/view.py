"""A job's record as its owner sees it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count, takewhile
from typing import TYPE_CHECKING

from api.jobs import listing
from api.jobs.engines import EngineName
from api.jobs.progress import job_progress, stage_progress
from api.jobs.schemas import (
    ArtifactRead,
    ImageRead,
    JobLoraRead,
    JobProgress,
    JobRead,
    JobResult,
    JobSummary,
    JobTimings,
    JobUrls,
    JobWebhook,
    SliderPosition,
    StageRead,
)
from api.jobs.states import JobState
from api.schemas import Problem
from duolora.slider import slider_strengths

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from api.jobs.listing import FullJobRecord, JobRecord, StageRecord
    from api.jobs.queue import Outlook
    from api.storage import ObjectStore


def summarize(job: JobRecord, now: datetime, outlook: Outlook, *, retention: timedelta) -> JobSummary:
    """Describe a job for a list; `retention` is how long a job is kept that has no time of its own."""
    return JobSummary(**_summary(job, now, outlook, retention))


def describe(
    job: FullJobRecord, store: ObjectStore, outlook: Outlook, *, link_lifetime: timedelta, retention: timedelta
) -> JobRead:
    """Describe a job in full. Links are minted here, at reading time."""
    now = datetime.now(UTC)
    succeeded = job.state is JobState.SUCCEEDED
    seen = [each for each in job.artifacts if succeeded or each["name"].startswith(listing.TRAINING)]
    files = _links(seen, store, now, link_lifetime)
    return JobRead(
        **_summary(job, now, outlook, retention),
        stages=[_stage(stage, now) for stage in job.stages],
        timings=_timings(job, now),
        request_id=job.request_id,
        params=job.params,
        images=[ImageRead(**image) for image in job.images],
        loras=[JobLoraRead(**lora) for lora in job.loras],
        webhook_url=job.webhook_url,
        webhook=None if job.webhook is None else JobWebhook(**job.webhook),
        previews=[file for file in files if file.name.startswith(listing.TRAINING)],
        result=JobResult(artifacts=files, slider=_slider(files)) if succeeded else None,
    )


def _summary(job: JobRecord, now: datetime, outlook: Outlook, retention: timedelta) -> dict[str, Any]:
    progress = _progress(job, now, outlook)
    path = listing.path(job.id)
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "engine": EngineName.DUOLORA if job.mock_outcome is None else EngineName.MOCK,
        "state": job.state,
        "stage": progress.stage,
        "progress": progress,
        "priority": job.priority,
        "error": None if job.error is None else Problem.model_validate(job.error),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "deadline_at": job.deadline_at,
        "expires_at": job.expires_at or (None if job.finished_at is None else job.finished_at + retention),
        "cancel_requested_at": job.cancel_requested_at,
        "stop_requested_at": job.stop_requested_at,
        "retry_of": job.retry_of,
        "urls": JobUrls(
            self=path,
            cancel=f"{path}/cancel",
            stop=f"{path}/stop",
            retry=f"{path}/retry",
            events=f"{path}/events",
            logs=f"{path}/logs",
            attempts=f"{path}/attempts",
        ),
    }


def _progress(job: JobRecord, now: datetime, outlook: Outlook) -> JobProgress:
    position = None
    if job.state is JobState.QUEUED:
        position = outlook.position(priority=job.priority, created_at=job.created_at, job_id=job.id)
    return job_progress(job.state, job.stages, _weights(job.stages), now, outlook=outlook, queue_position=position)


def _weights(stages: Sequence[StageRecord]) -> dict[str, float]:
    """Return each stage's share of the work; equal ones for a job from before they were kept."""
    return {stage.name: 1 / len(stages) if stage.weight is None else stage.weight for stage in stages}


def _stage(stage: StageRecord, now: datetime) -> StageRead:
    return StageRead(
        name=stage.name,
        state=stage.state,
        attempt=stage.attempt,
        progress=stage_progress(stage, now),
        reused_from=stage.reused_job_id,
        stopped_early=stage.stopped_early,
        started_at=stage.started_at,
        finished_at=stage.finished_at,
        error=None if stage.error is None else Problem.model_validate(stage.error),
    )


def _timings(job: FullJobRecord, now: datetime) -> JobTimings:
    end = job.finished_at or now
    stages: dict[str, dict[str, Any]] = {}
    for stage in job.stages:
        if stage.started_at is not None and stage.finished_at is not None:
            seconds = round((stage.finished_at - stage.started_at).total_seconds(), 3)
            stages[stage.name] = {"seconds": seconds, **(stage.timings or {})}
    return JobTimings(
        queued_seconds=round(((job.started_at or end) - job.created_at).total_seconds(), 3),
        running_seconds=None if job.started_at is None else round((end - job.started_at).total_seconds(), 3),
        worker_seconds=round(job.worker_seconds, 3),
        stages=stages,
    )


def _slider(files: Sequence[ArtifactRead]) -> list[SliderPosition]:
    """Tell which file is which position of the slider."""
    names = {file.name for file in files}
    pictures = list(takewhile(names.__contains__, (f"{listing.SLIDER}{place}" for place in count())))
    strengths = slider_strengths(len(pictures))
    return [SliderPosition(artifact=name, **each) for name, each in zip(pictures, strengths, strict=True)]


def _links(
    artifacts: Sequence[dict[str, Any]], store: ObjectStore, now: datetime, lifetime: timedelta
) -> list[ArtifactRead]:
    """Describe files, with links that work for a while."""
    described = []
    for artifact in artifacts:
        fields = dict(artifact)
        url = store.presigned_get(
            fields.pop("key"), filename=fields["filename"], content_type=fields["content_type"], expires=lifetime
        )
        described.append(ArtifactRead(**fields, url=url, expires_at=now + lifetime))
    return described
