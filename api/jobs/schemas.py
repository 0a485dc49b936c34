"""Wire shapes of jobs. Bounds of parameters are not here: they are declared once, in `duolora.config`."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from api.jobs.engines import EngineName, MockOutcome
from api.jobs.event_types import EventType
from api.jobs.plan import JobKind
from api.jobs.states import JobState, StageState
from api.schemas import Problem, Wire
from duolora.config import MAX_IMAGES_PER_SIDE
from duolora.job_configs import MAX_LORAS


class StepWishes(Wire):
    """Training steps, by stage; what is left out takes the recipe's value."""

    content: int | None = Field(None, description="Steps of the content LoRA.")
    style: int | None = Field(None, description="Steps of the style LoRA.")
    merge: int | None = Field(None, description="Steps of the merge.")
    sampling: int | None = Field(None, description="Sampling steps of each picture that a `generate` job draws.")


class LoraWish(Wire):
    """A LoRA of the library that pictures are to be drawn with."""

    lora_id: uuid.UUID
    strength: float = Field(1.0, description="It is multiplied by this.")


class JobParams(Wire):
    """The JSON part `params` of a submission. Everything has a default, unless a kind needs it.

    Unknown keys are refused, and so is what jobs of the kind have no use for.
    """

    kind: JobKind = JobKind.PERSONALIZE
    name: str | None = Field(
        None, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f]+$", description="What you call it.", examples=["Rex"]
    )
    recipe: str | None = Field(None, description="Name of a complete configuration; see GET /recipes.")
    base_model: str | None = Field(None, description="Name of a base model of this installation; see GET /recipes.")
    merge_recipe: str | None = Field(
        None, description="How to merge, by name, if not as the recipe does; see GET /recipes.", examples=["paper"]
    )
    subject_class: str | None = Field(None, description="What the subject is, in a word or two.", examples=["dog"])
    content_trigger: str | None = Field(None, description="Word that will call the subject.", examples=["sbu"])
    style_trigger: str | None = Field(None, description="Word that will call the style.", examples=["szn"])
    style_captions: list[str] | None = Field(
        None,
        max_length=MAX_IMAGES_PER_SIDE,
        description="What each style picture shows, without its style, in the order of the files.",
    )
    content_captions: list[str] | None = Field(
        None,
        max_length=MAX_IMAGES_PER_SIDE,
        description="What each content picture shows, content_trigger included, in the order of the files. "
        "Left out or empty, a picture has the usual caption, 'a sbu dog'.",
        examples=[["a sbu dog on a beach", ""]],
    )
    steps: StepWishes = StepWishes()
    content_lora_id: uuid.UUID | None = Field(None, description="`merge` needs it: the LoRA of the subject.")
    style_lora_id: uuid.UUID | None = Field(None, description="`merge` needs it: the LoRA of the style.")
    slider: int | None = Field(
        None, description="So many pictures of the merge, from all content to all style. 0 to 9.", examples=[5]
    )
    preview_every: int | None = Field(
        None,
        description="Steps after which pictures are drawn with what a training has learnt by then: `previews` of the "
        "job. 0 for none.",
        examples=[100],
    )
    loras: list[LoraWish] | None = Field(
        None, max_length=MAX_LORAS, description="For `generate`: draw with these together. None: the base."
    )
    prompts: list[str] | None = Field(
        None, description="`generate` needs it: what to draw.", examples=[["a sbu dog in szn style"]]
    )
    images_per_prompt: int | None = Field(None, description="For `generate`.", examples=[4])
    guidance_scale: float | None = Field(None, description="For `generate`: how closely to follow the prompt.")
    rank: int | None = Field(None, description="Rank of both LoRAs; the merge has the sum of both.")
    resolution_px: int | None = Field(None, description="Side of the training pictures, and of drawn ones, in pixels.")
    seed: int | None = None
    deadline_seconds: int | None = Field(
        None,
        ge=60,
        le=2_592_000,
        description="So long after the submission the job ends: `expired` if it has not started, else `failed` with "
        "`deadline_exceeded`.",
    )
    retention_days: int | None = Field(
        None,
        ge=1,
        le=3650,
        description="So long after its end the job is deleted with everything it has, within the installation's bound. "
        "Left out, it is kept as long as this installation keeps jobs.",
    )
    webhook_url: str | None = Field(None, description="Told when the job ends, by a signed Standard Webhook.")
    webhook_events: list[str] | None = Field(
        None,
        max_length=len(EventType),
        description="Events it is told of, if not of the end alone.",
        examples=[["job.started", "job.succeeded", "job.failed"]],
    )
    webhook_secret: str | None = Field(
        None,
        description="Signs them in place of the account's secret: `whsec_` and the base64 of 24 to 64 random bytes. "
        "Never shown again.",
    )
    engine: EngineName = Field(
        EngineName.DUOLORA,
        description="`mock`: nothing is learnt. The job goes the whole way in a second or two, with events, progress, "
        "webhooks and small files that say that they are none; for the tests of whoever uses this interface.",
    )
    mock_outcome: MockOutcome | None = Field(
        None,
        description="Of a mock job: `succeed` if left out; `fail` ends it with `mock_failure`; `slow` takes some "
        "seconds for each stage.",
    )
    priority: int = Field(0, ge=-100, le=100, description="Higher goes first, up to what the account may ask for.")


class JobSubmission(JobParams):
    """A submission as a JSON document: the parameters, and pictures that were uploaded before."""

    content_upload_ids: list[uuid.UUID] = Field([], description="Pictures of one subject, 1 to 20; see POST /uploads.")
    style_upload_ids: list[uuid.UUID] = Field([], description="Pictures in one style, 1 to 20.")


class ImageRead(Wire):
    """A picture as it was stored."""

    side: str
    ordinal: int
    sha256: str
    bytes: int
    width: int
    height: int


class JobLoraRead(Wire):
    """A LoRA of the library that a job works with: it has its own copy."""

    role: Literal["content", "style", "drawing"]
    ordinal: int
    lora_id: uuid.UUID = Field(description="Of the library, where it may be gone by now.")
    name: str = Field(description="What it was called there.")
    sha256: str
    bytes: int
    strength: float


class StageProgress(Wire):
    """How far a stage is."""

    step: int
    total: int
    fraction: float = Field(ge=0, le=1)
    loss: float | None = None
    note: str = ""
    steps_per_second: float | None = Field(None, description="Null until the rate is known.")
    eta_seconds: float | None = Field(None, description="Null until the rate is known.")


class StageRead(Wire):
    """One stage of a job."""

    name: str
    state: StageState
    attempt: int = Field(description="Times it was begun.")
    progress: StageProgress | None = Field(description="One that goes on from a checkpoint keeps its step.")
    reused_from: uuid.UUID | None = Field(description="The job whose identical result was taken instead of working.")
    stopped_early: bool = Field(description="It ended on request, with what it had.")
    started_at: datetime | None
    finished_at: datetime | None
    error: Problem | None = Field(description="Of the last attempt that failed.")


class JobProgress(Wire):
    """How far a job is, over all its stages."""

    fraction: float = Field(ge=0, le=1)
    stage: str | None = Field(description="The stage that runs now; the first, if two do.")
    step: int | None
    total: int | None
    eta_seconds: float | None = Field(
        description="Until the job ends, its wait in the queue included. An estimate; null while nothing is known."
    )
    loss: float | None
    note: str | None
    steps_per_second: float | None = Field(description="Of that stage. Null until the rate is known.")
    queue_position: int | None = Field(
        description="1 is next, by priority and age; accounts take turns, so it may change. Null unless queued."
    )
    queue_eta_seconds: float | None = Field(description="Until it starts. Null unless queued, and while unknown.")


class JobTimings(Wire):
    """Where the time went, in seconds."""

    queued_seconds: float = Field(description="From the submission to the first stage's start.")
    running_seconds: float | None
    worker_seconds: float = Field(
        description="What workers, and so their GPUs, have spent on it: on all attempts at all stages, failed ones "
        "too; one that runs counts up to now. Both trainings of a job in one run count once, and a run that several "
        "jobs share is divided by their number."
    )
    stages: dict[str, dict[str, Any]] = Field(
        description="By stage: `seconds`, the phases the worker measured, and `peak_bytes`: the most memory it took, "
        "of a GPU, or of the engine process where there is none."
    )


class ArtifactRead(Wire):
    """A file of the result."""

    name: str = Field(examples=["merged_diffusers"])
    filename: str
    content_type: str
    bytes: int
    sha256: str
    url: str = Field(description="Works without a key until `expires_at`. Read the job again for a fresh one.")
    expires_at: datetime


class SliderPosition(Wire):
    """A picture of the merge with so much of each side."""

    artifact: str = Field(description="Its name among the artifacts.", examples=["slider_0"])
    content: float = Field(ge=0, le=1, description="Strength of the content LoRA's part; 1 is as merged.")
    style: float = Field(ge=0, le=1, description="Strength of the style LoRA's part.")


class JobResult(Wire):
    """What a succeeded job made."""

    artifacts: list[ArtifactRead]
    slider: list[SliderPosition] = Field(description="From all content to all style; empty if none was asked for.")


class JobWebhook(Wire):
    """The server that is told of a job."""

    url: str
    state: Literal["enabled", "disabled"]
    disabled_reason: str | None = Field(description="`gone` (it answered 410), `exhausted` or `by_owner`.")
    last_status: int | None = Field(description="HTTP status of its last answer.")


class JobUrls(Wire):
    """Where to go from here."""

    self: str
    cancel: str
    stop: str
    retry: str
    events: str
    logs: str
    attempts: str


class JobSummary(Wire):
    """A job, in a list."""

    id: uuid.UUID
    kind: JobKind
    name: str | None = Field(description="What its owner calls it.")
    engine: EngineName = Field(description="`mock`: its results are none.")
    state: JobState
    stage: str | None = Field(description="The stage that runs now; the first, if two do.")
    progress: JobProgress
    priority: int
    error: Problem | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    expires_at: datetime | None = Field(
        description="Once it has ended: when it is deleted with everything it has, if not before on request."
    )
    cancel_requested_at: datetime | None
    stop_requested_at: datetime | None
    retry_of: uuid.UUID | None = Field(description="The ended job that this one tries again, from its checkpoints.")
    urls: JobUrls


class JobRead(JobSummary):
    """A job in full."""

    stages: list[StageRead]
    timings: JobTimings
    request_id: str | None = Field(
        description="`X-Request-Id` of the request that made it; on the log lines of its workers and on its webhooks. "
        "Null of a job older than this field."
    )
    params: dict[str, Any] = Field(description="The complete configuration, resolved from the recipe.")
    images: list[ImageRead]
    loras: list[JobLoraRead]
    webhook_url: str | None
    webhook: JobWebhook | None = Field(description="How the server at `webhook_url` is doing.")
    previews: list[ArtifactRead] = Field(
        description="Pictures drawn during the trainings so far, named `training_<side>_<step>`; of a succeeded job "
        "they are among its results as well."
    )
    result: JobResult | None


class JobPage(Wire):
    """A page of jobs, newest first."""

    items: list[JobSummary]
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page. Null at the end.")
    limit: int
    state: list[JobState] = Field(description="The filter that was applied; empty for none.")
    kind: list[JobKind] = Field(description="Likewise.")


class Tally(Wire):
    """How much there was of something."""

    count: int
    bytes: int


class Erased(Wire):
    """What was deleted with a job, by its records; remains of attempts that came to nothing go uncounted."""

    inputs: Tally = Field(description="Pictures that came with the job.")
    checkpoints: Tally = Field(description="Files of checkpoints that were kept at last.")
    previews: Tally = Field(description="Results that are pictures.")
    artifacts: Tally = Field(description="All other results.")
    logs: Tally = Field(description="Lines, and the bytes of their text.")


class DeletionRead(Wire):
    """The receipt of a job's deletion."""

    id: uuid.UUID
    state: Literal["deleting", "deleted"] = Field(
        description="`deleting`: the object store does not answer; the rest is done later, and nothing need be done."
    )
    cause: Literal["request", "expiry"]
    requested_at: datetime | None
    deleted_at: datetime | None = Field(description="When nothing was left of it. Null until then.")
    erased: Erased = Field(description="What is deleted.")


class LogLineRead(Wire):
    """A line that a stage wrote."""

    id: int = Field(description="Grows; pass the last one as `after` to go on from there.")
    at: datetime
    stage: str
    attempt: int
    level: str = Field(examples=["info"])
    message: str


class LogPage(Wire):
    """Lines of a job's log, oldest first."""

    items: list[LogLineRead]
    next_after: int | None = Field(description="Pass it as `after` for the next page. Null at the end, for now.")
    limit: int


class AttemptRead(Wire):
    """One attempt at a stage and how it ended."""

    stage: str
    attempt: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Literal["succeeded", "retried", "failed", "released", "canceled", "lease_expired"] | None = Field(
        description="Null while it runs. `released`: given back, at a shutdown or because a pass that it shared with "
        "other jobs ended, which does not count."
    )
    failure_class: Literal["caller", "memory", "environment", "death"] | None
    resumed_step: int | None = Field(description="The step of the checkpoint it began from.")
    error: Problem | None


class AttemptPage(Wire):
    """All attempts at a job's stages, oldest first."""

    items: list[AttemptRead]


class RecipeRead(Wire):
    """A recipe and everything it would do if nothing else were asked for."""

    name: str
    description: str
    defaults: dict[str, Any]


class RecipePage(Wire):
    """What this installation can run."""

    recipes: list[RecipeRead]
    merge_recipes: dict[str, dict[str, Any]] = Field(description="Ways to merge by name, with all their defaults.")
    base_models: list[str]
    default_base_model: str
