"""Where a picture of a submission comes from, and the picture once it is ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from api.idempotency import sha256_of

if TYPE_CHECKING:
    import uuid
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A picture whose bytes came with the request."""

    file: BinaryIO
    size: int
    pointer: str
    """JSON pointer to it in the request, for complaints: every source has one."""
    path: Path | None = None
    """Where it lies, if whoever reads it may move it away from there."""

    def mark(self) -> str:
        """Return what it is known by when the request is sent again: its SHA-256. It is at its beginning afterwards."""
        return sha256_of(self.file)


@dataclass(frozen=True, slots=True)
class EarlierUpload:
    """A picture that was uploaded before."""

    upload_id: uuid.UUID
    pointer: str

    def mark(self) -> str:
        """Return what it is known by when the request is sent again: its id, also once the upload is gone."""
        return f"upload:{self.upload_id}"


Source = ReceivedFile | EarlierUpload


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture made ours: an sRGB PNG without metadata."""

    pointer: str
    place: Path | str
    """A file of this process, or the key of an object that the job is to have a copy of."""
    sha256: str
    bytes: int
    width: int
    height: int
    dhash: str | None = None
    """`api.jobs.resemblance`, where it is known already."""
