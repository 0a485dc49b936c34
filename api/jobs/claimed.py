"""What a worker gets to know about a stage that it has claimed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable

    from api.jobs.engines import MockOutcome
    from api.jobs.models import Artifact, Job, MemoryProfile, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class InputImage:
    """A picture of the job as the store has it."""

    side: str
    ordinal: int
    key: str
    sha256: str
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLora:
    """A LoRA that came with the job, as the store has it."""

    role: str
    ordinal: int
    key: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """A file of a stage, whole in the store: published, or about to be."""

    name: str
    filename: str
    key: str
    sha256: str
    bytes: int
    content_type: str

    @classmethod
    def of(cls, row: Artifact) -> StoredArtifact:
        """Describe a published one."""
        return cls(
            name=row.name,
            filename=row.filename,
            key=row.key,
            sha256=row.sha256,
            bytes=row.bytes,
            content_type=row.content_type,
        )


class Proof(TypedDict):
    """What proves that a stage is held; every write of a running stage takes it."""

    stage_id: uuid.UUID
    fencing_token: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedStage:
    """A stage and the proof that it is held."""

    stage_id: uuid.UUID
    job_id: uuid.UUID
    account_id: uuid.UUID
    kind: str
    name: str
    attempt: int
    failures: int
    """Attempts before this one that failed since the stage last got further."""
    last_error: dict[str, Any] | None
    """Problem of the last of these."""
    failure_counts: dict[str, int] = field(default_factory=dict)
    """The same failures by `api.jobs.failures.FailureClass`."""
    fencing_token: uuid.UUID
    params: dict[str, Any]
    """`duolora.job_configs.JobConfig` as JSON."""
    images: tuple[InputImage, ...]
    loras: tuple[InputLora, ...] = ()
    upstream: tuple[StoredArtifact, ...]
    """Artifacts of all stages that this one depends on, also indirectly."""
    checkpoint: dict[str, Any] | None
    """Pointer to what it can go on from."""
    memory_profile: MemoryProfile
    stop_requested: bool = False
    """It is to end as soon as it has anything to show."""
    mock_outcome: MockOutcome | None = None
    """How the mock engine ends it; None for work of the real engine. Mates have the same."""
    mates: tuple[ClaimedStage, ...] = ()
    """Claimed along with it to share every pass of the U-Net: the job's other LoRA, LoRAs of other jobs."""
    traceparent: str | None
    tracestate: str | None = None
    request_id: str | None = None

    @property
    def proof(self) -> Proof:
        """What proves that it is held."""
        return {"stage_id": self.stage_id, "fencing_token": self.fencing_token}

    @property
    def all(self) -> tuple[ClaimedStage, ...]:
        """This stage and its mates, job by job, those of a job in the order of locks."""
        return tuple(sorted((self, *self.mates), key=lambda stage: (stage.job_id, stage.stage_id)))

    @property
    def by_job(self) -> tuple[tuple[ClaimedStage, ...], ...]:
        """`all`, those of each job together."""
        return tuple(tuple(of_job) for _, of_job in groupby(self.all, key=lambda stage: stage.job_id))

    def without(self, stages: Iterable[ClaimedStage]) -> ClaimedStage | None:
        """Return what is left without some of the stages, None if nothing is."""
        gone = {stage.stage_id for stage in stages}
        left = [replace(stage, mates=()) for stage in (self, *self.mates) if stage.stage_id not in gone]
        return replace(left[0], mates=tuple(left[1:])) if left else None


def describe(job: Job, stage: Stage) -> ClaimedStage:
    """Describe a stage that was just claimed.

    The job has its pictures loaded, its LoRAs if it is of a kind that takes some, and for a stage that depends on
    others its stages and artifacts as well.
    """
    ancestors = _ancestors(stage, job.stages) if stage.depends_on else set()
    token = stage.fencing_token
    assert token is not None  # noqa: S101 - it was just claimed
    return ClaimedStage(
        stage_id=stage.id,
        job_id=job.id,
        account_id=job.account_id,
        kind=job.kind,
        name=stage.name,
        attempt=stage.attempt,
        failures=stage.failures,
        last_error=stage.error,
        failure_counts=dict(stage.failure_counts),
        fencing_token=token,
        params=job.params,
        images=tuple(
            InputImage(
                side=image.side,
                ordinal=image.ordinal,
                key=image.key,
                sha256=image.sha256,
                content_type=image.content_type,
            )
            for image in job.images
        ),
        loras=tuple(
            InputLora(role=lora.role, ordinal=lora.ordinal, key=lora.key, sha256=lora.sha256)
            for lora in (job.loras if job.kind.takes_loras else ())
        ),
        upstream=tuple(
            StoredArtifact.of(artifact)
            for artifact in (job.artifacts if ancestors else ())
            if artifact.stage_id in ancestors
        ),
        checkpoint=stage.checkpoint,
        memory_profile=stage.memory_profile,
        stop_requested=job.stop_requested_at is not None,
        mock_outcome=job.mock_outcome,
        traceparent=job.traceparent,
        tracestate=job.tracestate,
        request_id=job.request_id,
    )


def _ancestors(stage: Stage, stages: Iterable[Stage]) -> set[uuid.UUID]:
    """Return the ids of all stages that one depends on, also indirectly."""
    by_name = {other.name: other for other in stages}
    found: set[uuid.UUID] = set()
    pending = list(stage.depends_on)
    while pending:
        other = by_name[pending.pop()]
        if other.id not in found:
            found.add(other.id)
            pending.extend(other.depends_on)
    return found
