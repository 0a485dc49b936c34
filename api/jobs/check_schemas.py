"""Wire shapes of what is told of a submission that is only looked at."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from api.jobs.models import Side
from api.schemas import ProblemField, Wire


class Hint(Wire):
    """Something that is allowed, but worth a look before the job runs."""

    code: Literal["small", "duplicate", "near_duplicate", "too_few", "sides_alike"]
    detail: str
    pointer: str = Field(description="JSON pointer into the request.", examples=["/content_images/2"])


class CheckedImage(Wire):
    """A picture that was looked at."""

    side: Side
    ordinal: int
    ok: bool
    width: int | None = Field(description="In pixels, of what would be kept. Null if it is refused, as the next two.")
    height: int | None
    sha256: str | None
    problem: ProblemField | None = Field(None, description="Why it is refused.")
    hints: list[Hint]


class CheckedStage(Wire):
    """A stage that the job would have."""

    name: str
    depends_on: list[str]
    steps: int | None = Field(description="Null for what does not count in steps.")
    predicted_seconds: float | None = Field(
        description="By how long such stages took here lately, for this base model. Null while none did."
    )
    predicted_peak_bytes: int | None = Field(
        None,
        description="The most that stages of this base model and these sizes took here. Null while none did.",
    )


class CheckedQuota(Wire):
    """What the job would take of a quota."""

    policy: str = Field(examples=["stored-bytes"])
    used: int
    limit: int | None = Field(description="Null for no bound.")
    after: int = Field(description="What would be used then. More than `limit`: the job would be refused.")


class JobCheck(Wire):
    """What a submission would become. Nothing of it was stored."""

    ok: bool = Field(description="Whether it would be taken now.")
    config: dict[str, Any] = Field(description="The complete configuration, resolved from the recipe.")
    stages: list[CheckedStage]
    predicted_seconds: float | None = Field(
        description="Of all stages one after another, without the wait in the queue. Null while one is unknown."
    )
    predicted_peak_bytes: int | None = Field(
        description="Of the stage that takes most: of GPU memory, or of the engine process where there is no GPU. "
        "Null while one is unknown."
    )
    quota: list[CheckedQuota]
    images: list[CheckedImage]
    hints: list[Hint] = Field(description="Of the pictures of a side, or of both, together.")
