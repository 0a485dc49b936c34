"""Tables of jobs: jobs, their pictures, stages, attempts, artifacts, events, logs, the outbox; and of workers."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.types import Text

from api.db import Base, Document
from api.identifiers import uuid7
from api.jobs.engines import MockOutcome
from api.jobs.failures import FailureClass
from api.jobs.plan import JobKind
from api.jobs.states import AttemptOutcome, JobState, StageState


class Side(StrEnum):
    """What a picture shows: the subject or the style."""

    CONTENT = "content"
    STYLE = "style"


class LoraUse(StrEnum):
    """What a LoRA that came with a job is for: one side of its merge, or to draw with."""

    CONTENT = "content"
    STYLE = "style"
    DRAWING = "drawing"


class MemoryProfile(StrEnum):
    """How much device memory an attempt may take."""

    FULL = "full"
    SMALL = "small"
    """Slower; what remains after one attempt ran out of memory."""


class WorkerState(StrEnum):
    """What a worker does."""

    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"


class Job(Base):
    """One order of work."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')", name="state"),
        CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'canceled', 'expired'))", name="finished"
        ),
        UniqueConstraint("account_id", "idempotency_key"),
        CheckConstraint("mock_outcome IN ('succeed', 'fail', 'slow')", name="mock_outcome"),
        Index("ix_jobs_newest", "account_id", text("created_at DESC"), text("id DESC")),
        Index("ix_jobs_unfinished", "account_id", "state", postgresql_where=text("finished_at IS NULL")),
        Index("ix_jobs_queue", text("priority DESC"), "created_at", "id", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_deadline", "deadline_at", postgresql_where=text("finished_at IS NULL")),
        Index("ix_jobs_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("ix_jobs_retry_of", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
        Index("ix_jobs_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
        Index("ix_jobs_deletion", "deletion_requested_at", postgresql_where=text("deletion_requested_at IS NOT NULL")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    kind: Mapped[JobKind]
    name: Mapped[str | None]
    """What its owner calls it."""
    state: Mapped[JobState] = mapped_column(default=JobState.QUEUED)
    params: Mapped[Document]
    """The resolved configuration: `duolora.job_configs.JobConfig` as JSON, so the job can be run again as it was."""
    params_version: Mapped[int]
    """`duolora.config.SCHEMA_VERSION` of `params`."""
    request: Mapped[Document]
    """What the caller wrote, before a recipe filled it."""
    mock_outcome: Mapped[MockOutcome | None]
    """How the mock engine ends it; null for a job of the real engine."""
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """Higher goes first; bounded by the account."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]
    """If no stage was claimed by then, the job expires; if it still runs then, it fails."""
    deadline_passed_at: Mapped[datetime | None]
    """When the deadline ended the job."""
    cancel_requested_at: Mapped[datetime | None]
    stop_requested_at: Mapped[datetime | None]
    """Since when its stages are to finish early, with what they have."""
    retry_of: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    """The ended job that this one tries once more, from its checkpoints."""
    retention_days: Mapped[int | None]
    """How long it is kept after its end; null for as long as the installation keeps jobs."""
    expires_at: Mapped[datetime | None]
    """When it is deleted, of an ended job with a time of its own."""
    deletion_requested_at: Mapped[datetime | None]
    """Since when it is gone for its owner. It is deleted as soon as that is possible."""
    error: Mapped[Document | None]
    """A problem document, the same shape as an HTTP error."""
    webhook_url: Mapped[str | None]
    self_url: Mapped[str]
    """Where the caller reads the job; put into webhooks."""
    traceparent: Mapped[str | None]
    tracestate: Mapped[str | None]
    request_id: Mapped[str | None]
    """Of the request that made it; null in jobs older than this column."""
    idempotency_key: Mapped[str | None]
    """Not written any more, like the fingerprint: see `api.idempotency`."""
    idempotency_fingerprint: Mapped[str | None]

    images: Mapped[list[JobImage]] = relationship(
        lazy="raise", order_by="(JobImage.side, JobImage.ordinal)", cascade="all, delete-orphan", passive_deletes=True
    )
    loras: Mapped[list[JobLora]] = relationship(
        lazy="raise", order_by="(JobLora.role, JobLora.ordinal)", cascade="all, delete-orphan", passive_deletes=True
    )
    stages: Mapped[list[Stage]] = relationship(
        lazy="raise", order_by="Stage.ordinal", cascade="all, delete-orphan", passive_deletes=True
    )
    artifacts: Mapped[list[Artifact]] = relationship(
        lazy="raise", order_by="Artifact.created_at, Artifact.name", viewonly=True
    )


class JobImage(Base):
    """One picture of a job, as it was stored: an sRGB PNG without metadata."""

    __tablename__ = "job_images"
    __table_args__ = (
        CheckConstraint("side IN ('content', 'style')", name="side"),
        CheckConstraint("bytes > 0 AND width > 0 AND height > 0", name="size"),
    )

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    side: Mapped[Side] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    """Place in the request, from 0."""
    key: Mapped[str]
    sha256: Mapped[str]
    """Of the stored PNG, hexadecimal."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    content_type: Mapped[str]


class JobLora(Base):
    """A LoRA that a job works with: its own copy of a file of the library, whatever becomes of that."""

    __tablename__ = "job_loras"
    __table_args__ = (
        CheckConstraint("role IN ('content', 'style', 'drawing')", name="role"),
        CheckConstraint("bytes > 0", name="size"),
    )

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[LoraUse] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    """Place among those of its role, from 0."""
    lora_id: Mapped[uuid.UUID]
    """Of the library's row, which may be gone by now."""
    name: Mapped[str]
    """What it was called there."""
    key: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    strength: Mapped[float]


class Stage(Base):
    """One step of a job: the unit that a worker claims."""

    __tablename__ = "stages"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'runnable', 'running', 'succeeded', 'failed', 'canceled')", name="state"),
        CheckConstraint(
            "(state = 'running') = (fencing_token IS NOT NULL AND lease_expires_at IS NOT NULL)", name="lease"
        ),
        CheckConstraint("state <> 'runnable' OR runnable_at IS NOT NULL", name="runnable"),
        UniqueConstraint("job_id", "name"),
        CheckConstraint("memory_profile IN ('full', 'small')", name="memory_profile"),
        Index("ix_stages_claim", "runnable_at", postgresql_where=text("state = 'runnable'")),
        Index(
            "ix_stages_ready",
            "account_id",
            text("priority DESC"),
            "queued_at",
            "job_id",
            "ordinal",
            postgresql_where=text("state = 'runnable'"),
        ),
        Index(
            "ix_stages_alike",
            "account_id",
            "likeness",
            text("priority DESC"),
            "queued_at",
            "job_id",
            "ordinal",
            postgresql_where=text("state = 'runnable'"),
        ),
        Index("ix_stages_busy", "account_id", postgresql_where=text("state = 'running'")),
        Index("ix_stages_reuse", "account_id", "reuse_key", postgresql_where=text("state = 'succeeded'")),
        Index("ix_stages_lease", "lease_expires_at", postgresql_where=text("state = 'running'")),
    )
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012 - as SQLAlchemy declares it
    """All that an insert writes is known. Asking for it would make one statement of all the stages of a job, too long
    for psycopg to remember how it reads."""

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    ordinal: Mapped[int]
    """Place in the plan, from 0."""
    depends_on: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """Names of the stages of the same job that must succeed first."""
    state: Mapped[StageState]
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    """The job's, as the next two: a claim finds the best stage by an index of this table alone."""
    priority: Mapped[int]
    queued_at: Mapped[datetime]
    """When the job was created."""
    weight: Mapped[float | None]
    """Its share of the job's whole work; null in jobs older than this column."""
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")
    """Times it was claimed. Only ever grows, because artifact keys contain it."""
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    """Attempts that count: a shutdown does not."""
    failure_counts: Mapped[Document] = mapped_column(default=dict, server_default=text("'{}'::jsonb"))
    """Failures since the stage last got further, by `api.jobs.failures.FailureClass`."""
    max_attempts: Mapped[int]
    """With so many deaths of its workers or engines in a row the stage fails for good."""
    memory_profile: Mapped[MemoryProfile] = mapped_column(default=MemoryProfile.FULL, server_default="full")
    worker_id: Mapped[str | None]
    """Who claimed it last."""
    fencing_token: Mapped[uuid.UUID | None]
    """Random at every claim; every write of the worker must bring it. Null unless running."""
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    runnable_at: Mapped[datetime | None]
    """Not to be claimed before."""
    announced_at: Mapped[datetime | None]
    """When its last hint was written to the outbox."""
    started_at: Mapped[datetime | None]
    """Of the current attempt."""
    finished_at: Mapped[datetime | None]
    progress: Mapped[Document | None]
    timings: Mapped[Document | None]
    """Seconds by phase, as the worker measured them."""
    error: Mapped[Document | None]
    """Problem of the last attempt that failed."""
    checkpoint: Mapped[Document | None]
    """Pointer to what a later attempt can resume from: `step`, `total`, `attempt`, `paired`, `at`, and `files`."""
    likeness: Mapped[str | None]
    """Trainings of which this is the same may share passes (`api.jobs.sharing`); null for what shares none."""
    alone: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """It shares no pass with other jobs any more: one that it shared failed, and nobody knows because of whom."""
    stopped_early: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """It succeeded with what it had when the caller asked to stop."""
    reuse_key: Mapped[str | None]
    """Hash of all that made its result; an identical stage of the account may take it. Set by the finish."""
    reused_job_id: Mapped[uuid.UUID | None]
    """The job whose result was taken instead of working. That job may be gone by now."""


class StageAttempt(Base):
    """History: one claim of a stage and how it ended."""

    __tablename__ = "stage_attempts"
    __table_args__ = (
        CheckConstraint(
            "outcome IN ('succeeded', 'retried', 'failed', 'released', 'canceled', 'lease_expired')", name="outcome"
        ),
        CheckConstraint("failure_class IN ('caller', 'memory', 'environment', 'death')", name="failure_class"),
    )

    stage_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[str]
    fencing_token: Mapped[uuid.UUID]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    outcome: Mapped[AttemptOutcome | None]
    """Null while it runs."""
    failure_class: Mapped[FailureClass | None]
    """Null unless it failed."""
    resumed_step: Mapped[int | None]
    """Step of the checkpoint it began from; null for a start from the beginning."""
    jobs: Mapped[int] = mapped_column(default=1, server_default="1")
    """How many jobs shared its passes, its own included. Of more than one, none is blamed for a failure."""
    error: Mapped[Document | None]


class Artifact(Base):
    """A published file of a job. Only the fenced finish of a stage writes one."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"), CheckConstraint("bytes >= 0", name="size"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    stage_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("stages.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    name: Mapped[str]
    filename: Mapped[str]
    key: Mapped[str]
    content_type: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Event(Base):
    """Something that happened to a job, in order: they are written under the job's lock.

    An insert notifies `duolora_events` of the job.
    """

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    type: Mapped[str]
    data: Mapped[Document]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OutboxRow(Base):
    """A hint to be published, written in the transaction it speaks of and dropped in the one that publishes it.

    An insert notifies `duolora_outbox`.
    """

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_due", "due_at", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    topic: Mapped[str]
    payload: Mapped[Document]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Not to be published before: a retry's hint waits as long as the retry."""


class LogLine(Base):
    """A line that an attempt at a stage wrote for the job's owner."""

    __tablename__ = "job_logs"
    __table_args__ = (Index("ix_job_logs_job", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    stage: Mapped[str]
    attempt: Mapped[int]
    at: Mapped[datetime]
    """By the worker's clock."""
    level: Mapped[str]
    message: Mapped[str]


class DeletedJob(Base):
    """What remains of a job: the receipt of its deletion."""

    __tablename__ = "deleted_jobs"
    __table_args__ = (Index("ix_deleted_jobs_unswept", "deleted_at", postgresql_where=text("swept_at IS NULL")),)

    job_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    requested_at: Mapped[datetime | None]
    """Null if its time was over."""
    deleted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased: Mapped[Document]
    """By category: `count` and `bytes`."""
    swept_at: Mapped[datetime | None]
    """When its place in the store was looked at once more, for what a worker wrote that had not heard of its end."""


class Worker(Base):
    """A worker process that lives, as far as anybody knows. Nothing depends on it but estimates and company."""

    __tablename__ = "workers"
    __table_args__ = (CheckConstraint("state IN ('idle', 'busy', 'stopping')", name="state"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[WorkerState]
    device: Mapped[str | None]
    """None until its engine process has said so; likewise the version."""
    engine_version: Mapped[str | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
