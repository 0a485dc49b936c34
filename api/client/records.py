"""What the service tells of jobs, as the Python client returns it. Needs only pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TERMINAL = frozenset({"succeeded", "failed", "canceled", "expired"})


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Progress(_Record):
    """How far a job is. Fractions count from 0 to 1, times are in seconds; None: not known yet."""

    fraction: float = 0.0
    stage: str | None = None
    step: int | None = None
    total: int | None = None
    eta_seconds: float | None = None
    """Until it ends, its wait in the queue included."""
    loss: float | None = None
    note: str | None = None
    steps_per_second: float | None = None
    queue_position: int | None = None
    """1 is next; None unless queued."""
    queue_eta_seconds: float | None = None


class Download(_Record):
    """A file that the service has. `url` works without a key until `expires_at`; reading again gives a fresh one."""

    filename: str
    bytes: int
    sha256: str
    url: str = ""
    """Empty in a list."""
    expires_at: AwareDatetime | None = None


class Artifact(Download):
    """One result file of a job."""

    name: str
    content_type: str


class LoraFile(Download):
    """A safetensors file of a LoRA."""

    format: str
    """How its keys are named: `diffusers`, `kohya`, `peft` or `other`."""


class Lora(_Record):
    """A LoRA of the library."""

    id: str
    name: str
    tags: tuple[str, ...]
    role: str
    """What it holds: `content`, `style`, `merged` or `other`."""
    base_model: str | None = None
    rank: int | None = None
    trigger: str | None = None
    source: str
    """`job` or `upload`."""
    job_id: str | None = None
    kept: bool
    """It stays when its job is deleted."""
    created_at: AwareDatetime
    files: tuple[LoraFile, ...]


class SliderPosition(_Record):
    """A picture of the merge with so much of each side."""

    artifact: str
    """Its name among the artifacts."""
    content: float
    """Strength of the content LoRA's part; 1 is as merged."""
    style: float


class Result(_Record):
    """What a succeeded job made."""

    artifacts: tuple[Artifact, ...]
    slider: tuple[SliderPosition, ...] = ()
    """From all content to all style."""


class Timings(_Record):
    """Where the time of a job went, in seconds."""

    queued_seconds: float
    running_seconds: float | None = None
    worker_seconds: float | None = None
    """What workers, and so their GPUs, have spent on it so far, all attempts together."""
    stages: dict[str, dict[str, Any]] = {}


class JobRecord(_Record):
    """A job as the service shows it; what a list leaves out is None."""

    id: str
    kind: str
    name: str | None = None
    engine: str = "duolora"
    """`mock`: nothing was learnt."""
    state: str
    progress: Progress
    timings: Timings | None = None
    error: dict[str, Any] | None = None
    previews: tuple[Artifact, ...] = ()
    """Pictures drawn during the trainings so far."""
    result: Result | None = None
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    deadline_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    """When it is deleted; None before its end."""
    stop_requested_at: AwareDatetime | None = None
    retry_of: str | None = None
    request_id: str | None = None
    """`X-Request-Id` of the request that made it."""

    @property
    def is_terminal(self) -> bool:
        """Whether the state will never change again."""
        return self.state in TERMINAL


class Tally(_Record):
    """How much there was of something."""

    count: int
    bytes: int


class Deletion(_Record):
    """The receipt of a job's deletion."""

    id: str
    state: str
    """`deleted`, or `deleting` while the service's store does not answer."""
    cause: str
    """`request` or `expiry`."""
    requested_at: AwareDatetime | None = None
    deleted_at: AwareDatetime | None = None
    erased: dict[str, Tally]
    """By category: `inputs`, `checkpoints`, `previews`, `artifacts`, `logs`."""


class Upload(_Record):
    """A picture that came before its job."""

    id: str
    state: str
    """`pending` until it is confirmed, then `ready`."""
    kind: str
    bytes: int
    sha256: str | None = None
    """Of what is kept, once it is ready."""
    width: int | None = None
    height: int | None = None
    expires_at: AwareDatetime


class JobCheck(_Record):
    """What a submission would become."""

    ok: bool
    config: dict[str, Any]
    stages: tuple[dict[str, Any], ...]
    predicted_seconds: float | None = None
    predicted_peak_bytes: int | None = None
    """Of GPU memory, or of the engine process where there is no GPU; None while nothing alike ran."""
    quota: tuple[dict[str, Any], ...]
    images: tuple[dict[str, Any], ...]
    """Each with `ok`, and `problem` or `hints`."""
    hints: tuple[dict[str, Any], ...]


class Event(_Record):
    """Something that happened to a job."""

    id: int
    type: str
    """`job.queued`, `job.progress`, ..., or `gap` for events that were too many to be told."""
    at: AwareDatetime | None = None
    data: dict[str, Any] = {}


class LogLine(_Record):
    """A line that a stage of a job wrote."""

    id: int
    at: AwareDatetime
    stage: str
    attempt: int
    level: str
    message: str


class Attempt(_Record):
    """One attempt at a stage of a job and how it ended."""

    stage: str
    attempt: int
    worker: str
    started_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    outcome: str | None = None
    """None while it runs."""
    failure_class: str | None = None
    resumed_step: int | None = None
    error: dict[str, Any] | None = None


class Recipes(_Record):
    """What an installation can run."""

    recipes: tuple[dict[str, Any], ...]
    merge_recipes: dict[str, dict[str, Any]]
    base_models: tuple[str, ...]
    default_base_model: str


class Webhook(_Record):
    """A server that is told of what happens to jobs."""

    id: str
    job_id: str | None = None
    """The one job it is told of; None for all of the account's."""
    url: str
    events: tuple[str, ...]
    """Empty: the lifecycle."""
    description: str
    state: str
    disabled_at: AwareDatetime | None = None
    disabled_reason: str | None = None
    previous_secret_expires_at: AwareDatetime | None = None
    created_at: AwareDatetime
    secret: str | None = None
    """Signs what it is sent: told only when it is new."""


class DeliveryAttempt(_Record):
    """One attempt at a delivery."""

    attempt: int
    started_at: AwareDatetime
    duration_ms: int
    status: int | None = None
    error: str | None = None


class Delivery(_Record):
    """One event on its way to one webhook."""

    id: str
    endpoint_id: str | None = None
    job_id: str | None = None
    type: str
    webhook_id: str
    state: str
    attempts: int
    next_attempt_at: AwareDatetime | None = None
    last_status: int | None = None
    last_error: str | None = None
    replay_of: str | None = None
    created_at: AwareDatetime
    delivered_at: AwareDatetime | None = None
    url: str | None = None
    """Where it goes; a list leaves it out, like the next two."""
    body: str | None = None
    log: tuple[DeliveryAttempt, ...] = ()


class Key(_Record):
    """An API key of the account."""

    id: str
    prefix: str
    label: str
    scopes: tuple[str, ...]
    state: str
    """`active`, `rotated` (it works until `expires_at`), `expired` or `revoked`."""
    is_current: bool
    created_at: AwareDatetime
    last_used_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    rotated_to: str | None = None
    key: str | None = Field(None, repr=False)
    """The key itself: told only when it is new."""


class _WishesOfAll(TypedDict, total=False):
    name: str
    recipe: str
    base_model: str
    steps: Mapping[str, int]
    resolution_px: int
    seed: int
    deadline_seconds: int
    retention_days: int
    webhook_url: str
    webhook_events: Sequence[str]
    webhook_secret: str
    engine: str
    mock_outcome: str
    priority: int


class _Words(TypedDict, total=False):
    content_trigger: str
    style_trigger: str
    style_captions: Sequence[str]
    content_captions: Sequence[str]


class Wishes(_WishesOfAll, _Words, total=False):
    """Optional parameters of a personalize job; what is left out takes the recipe's value."""

    merge_recipe: str
    rank: int
    preview_every: int
    slider: int


class TrainWishes(_WishesOfAll, _Words, total=False):
    """Optional parameters of a train job, likewise."""

    subject_class: str
    rank: int
    preview_every: int


class MergeWishes(_WishesOfAll, _Words, total=False):
    """Optional parameters of a merge job. Words that are left out are those that the library knows of its LoRAs."""

    subject_class: str
    merge_recipe: str
    slider: int


class GenerateWishes(_WishesOfAll, total=False):
    """Optional parameters of a generate job; `steps` has `sampling`."""

    images_per_prompt: int
    guidance_scale: float
