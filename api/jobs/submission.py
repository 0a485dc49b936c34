"""A submission: what a caller sends with a job, in whatever form it came, and what is refused of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from api.accounts.scopes import Scope
from api.errors import InvalidParameters
from api.jobs import kinds, wishes
from api.jobs.models import Side
from api.jobs.sources import EarlierUpload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.accounts.service import Caller
    from api.jobs.schemas import JobParams
    from api.jobs.sources import Source
    from api.settings import ApiSettings
    from duolora.job_configs import JobConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the body of a request said."""

    params: JobParams
    content: Sequence[Source]
    style: Sequence[Source]
    root: str = wishes.ROOT
    """Where the parameters are in the request; complaints point there."""
    fields: str = "{side}_images"
    """The field of the request that has a side's pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(Contents):
    """Everything a caller sent with a job."""

    origin: str
    """Origin by which the caller reached us; the job's own URL is made of it."""
    traceparent: str | None
    tracestate: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None

    @property
    def sides(self) -> tuple[tuple[Side, Sequence[Source]], ...]:
        """Both sides with their pictures."""
        return (Side.CONTENT, self.content), (Side.STYLE, self.style)

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures there are of each side."""
        return {side.value: len(sources) for side, sources in self.sides}

    def marks(self) -> list[tuple[str, int, str]]:
        """Return side, place and mark of each picture, by which the request is known again."""
        return [
            (side.value, ordinal, source.mark())
            for side, sources in self.sides
            for ordinal, source in enumerate(sources)
        ]


def check_scopes(submission: Submission, caller: Caller) -> None:
    """Refuse a key that may not read what is named by id: a job has copies of it, and its owner reads those.

    Raises:
        Forbidden: it names the scopes that the key lacks.
    """
    params, wanted = submission.params, []
    if params.content_lora_id or params.style_lora_id or params.loras:
        wanted.append(Scope.LORAS_READ)
    if any(isinstance(source, EarlierUpload) for _, sources in submission.sides for source in sources):
        wanted.append(Scope.UPLOADS_READ)
    if wanted:
        caller.require(wanted)


def check(submission: Submission, config: JobConfig, caller: Caller, settings: ApiSettings) -> None:
    """Refuse what the configuration does not know of: numbers of files, captions, priority, retention, webhook.

    Raises:
        InvalidParameters: all of it at once.
    """
    params = submission.params
    errors = [
        *wishes.check_webhook(params, settings.webhooks.allow_cidrs),
        *wishes.check_engine(params),
        *wishes.check_priority(params.priority, caller.max_priority),
        *wishes.check_retention(params.retention_days, settings.retention_max_days),
        *wishes.check_captions("content", params.content_captions, len(submission.content)),
        *wishes.check_captions("style", params.style_captions, len(submission.style)),
        *kinds.check_pictures(params, config, submission.counts, submission.fields),
    ]
    if errors:
        raise InvalidParameters(errors=errors)
