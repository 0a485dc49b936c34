"""Wire shapes of the library."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from api.loras.models import LoraFormat, LoraRole, LoraSource
from api.schemas import Wire

MAX_NAME_LENGTH = 80
MAX_TAGS = 16
MAX_TAG_LENGTH = 40


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be shown; leave out line breaks and control characters")
    return text


def _distinct(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))


Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME_LENGTH),
    AfterValidator(_printable),
]
Tag = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TAG_LENGTH),
    AfterValidator(_printable),
]
Tags = Annotated[
    list[Tag],
    Field(max_length=MAX_TAGS, description="Of your choice, to find it by; one that comes twice counts once."),
    AfterValidator(_distinct),
]
Trigger = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(_printable),
]


class LoraUpload(Wire):
    """What may be said of a LoRA that is sent in."""

    name: Name | None = Field(None, description="Left out, that of the file.")
    tags: Tags = Field(default_factory=list)
    role: LoraRole = Field(LoraRole.OTHER, description="What it holds.")
    base_model: str | None = Field(None, max_length=200, description="What it was trained on, as jobs name it.")
    trigger: Trigger | None = Field(None, description="Words that call it.")


class LoraPatch(Wire):
    """What is to change; what is left out stays."""

    name: Name = ""
    tags: Tags = Field(default_factory=list)
    kept: bool = Field(
        False,
        description="`true` gives a job's LoRA files of its own, which count as stored bytes; it then stays when the "
        "job goes. It cannot be taken back: delete the LoRA instead.",
    )


class LoraFileRead(Wire):
    """A safetensors file of a LoRA."""

    format: LoraFormat = Field(description="How its keys are named.")
    filename: str
    sha256: str
    bytes: int


class LoraFileLink(LoraFileRead):
    """A safetensors file of a LoRA, and where it is."""

    url: str = Field(description="Works for GET without a key until `expires_at`; reading the LoRA gives a fresh one.")
    expires_at: datetime


class LoraUrls(Wire):
    """Where to go from here."""

    self: str
    file: str
    job: str | None = Field(description="The job that made it, if that was one. It may be gone by now.")


class _LoraRead(Wire):
    id: uuid.UUID
    name: str
    tags: list[str]
    role: LoraRole
    base_model: str | None = Field(description="What it was trained on, as jobs name it. Null: nobody said.")
    rank: int | None = Field(description="Highest rank of its layers. Null: not known.")
    trigger: str | None = Field(description="Words that call what it was trained on.")
    source: LoraSource
    job_id: uuid.UUID | None = Field(description="The job that made it, which may be gone by now.")
    kept: bool = Field(description="Whether it stays when its job goes; what was sent in always does.")
    created_at: datetime
    urls: LoraUrls


class LoraSummary(_LoraRead):
    """A LoRA in a list; read it for links to its files."""

    files: list[LoraFileRead]


class LoraRead(_LoraRead):
    """A LoRA of the library with links to its files: both formats of what a job made, what was sent in as it came."""

    files: list[LoraFileLink]


class LoraPage(Wire):
    """A page of LoRAs, newest first."""

    items: list[LoraSummary]
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page. Null at the end.")
    limit: int
    role: list[LoraRole] = Field(description="The filter that was applied, as the next three.")
    tag: list[str]
    job_id: uuid.UUID | None
    base_model: str | None
