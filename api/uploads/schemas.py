"""Wire shapes of uploads."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Literal

from pydantic import Field

from api.schemas import Wire
from api.uploads.models import UploadKind

ContentType = Literal["image/jpeg", "image/png", "image/webp", "application/octet-stream"]
"""The last for LoRAs, the others for pictures."""


class UploadAnnouncement(Wire):
    """A file that is about to be written to the store by its owner."""

    purpose: UploadKind = Field(UploadKind.IMAGE, description="What it is for.")
    bytes: int = Field(ge=1, description="Its size; the link takes no other.", examples=[2481932])
    content_type: ContentType
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="Of the file, hexadecimal; a confirmation then refuses any other."
    )


class UploadRead(Wire):
    """A file that may be named in submissions."""

    id: uuid.UUID
    state: Literal["pending", "ready"]
    kind: UploadKind
    bytes: int = Field(description="Of what is kept, which counts as stored; of a pending one, as announced.")
    sha256: str | None = Field(description="Of what is kept; of a pending one, as announced.")
    width: int | None = Field(
        description="In pixels. Null while pending, and of what is no picture; likewise the height."
    )
    height: int | None
    created_at: datetime
    expires_at: datetime = Field(description="When it is deleted. Jobs that were submitted with it keep their copies.")


class PresignedUpload(UploadRead):
    """A file that its owner is to write to the store."""

    put_url: str = Field(description="PUT the file here, without a key. It works until `put_expires_at`.")
    put_headers: dict[str, str] = Field(
        description="Send these along as they are; clients add `Content-Length` themselves."
    )
    put_expires_at: datetime
