"""What the service tells of jobs, as the Python client returns it. Needs only pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import AwareDatetime, BaseModel, ConfigDict

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


class Artifact(_Record):
    """One result file. `url` works without a key until `expires_at`; reading the job again gives a fresh one."""

    name: str
    filename: str
    content_type: str
    bytes: int
    sha256: str
    url: str
    expires_at: AwareDatetime


class Result(_Record):
    """What a succeeded job made."""

    artifacts: tuple[Artifact, ...]


class Timings(_Record):
    """Where the time of a job went, in seconds."""

    queued_seconds: float
    running_seconds: float | None = None
    stages: dict[str, dict[str, Any]] = {}


class Job(_Record):
    """A job as the service shows it; what a list leaves out is None."""

    id: str
    kind: str
    state: str
    progress: Progress
    timings: Timings | None = None
    error: dict[str, Any] | None = None
    result: Result | None = None
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    deadline_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    """When it is deleted; None before its end."""
    stop_requested_at: AwareDatetime | None = None
    retry_of: str | None = None

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


class Wishes(TypedDict, total=False):
    """Optional parameters of a personalize job; what is left out takes the recipe's value."""

    recipe: str
    base_model: str
    merge_recipe: str
    content_trigger: str
    style_trigger: str
    style_captions: Sequence[str]
    content_captions: Sequence[str]
    steps: Mapping[str, int]
    rank: int
    resolution_px: int
    seed: int
    deadline_seconds: int
    retention_days: int
    webhook_url: str
    webhook_events: Sequence[str]
    webhook_secret: str
    priority: int
