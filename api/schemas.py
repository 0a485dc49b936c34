"""What all wire shapes share, and the shape of every error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Wire(BaseModel):
    """Base of all documents that are sent or received; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProblemField(Wire):
    """One refused field."""

    pointer: str = Field(examples=["/params/rank"], description="JSON pointer into the request.")
    detail: str
    code: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it: the body of every 4xx and 5xx answer, and the `error` of a failed job."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:duolora:problem:invalid_parameters"])
    title: str
    status: int
    code: str = Field(description="Stable; decide by it.")
    retryable: bool = Field(description="Whether the same request can succeed later.")
    detail: str | None = None
    instance: str | None = None
    request_id: str | None = None
    errors: list[ProblemField] | None = None
    stage: str | None = Field(None, description="Of a failed job: the stage that failed.")
    attempt: int | None = Field(None, description="Of a failed job: the attempt that failed.")
