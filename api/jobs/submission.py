"""A submission: what a caller sends with a job, how it is checked, and how its pictures are made ours."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from api.errors import FieldError, InvalidParameters, Unavailable
from api.jobs import images, wishes
from api.jobs.models import JobImage, Side
from api.storage import input_key
from duolora.config import MAX_IMAGES_PER_SIDE

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from api.accounts.service import Caller
    from api.jobs.images import CleanImage
    from api.jobs.schemas import JobParams
    from api.settings import ApiSettings, ImageLimits


_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of the request."""

    file: BinaryIO
    size: int

    def digest(self) -> str:
        """Return its SHA-256; afterwards it is at its beginning again."""
        digest = hashlib.sha256()
        self.file.seek(0)
        while chunk := self.file.read(_CHUNK_BYTES):
            digest.update(chunk)
        self.file.seek(0)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Everything a caller sent with a job."""

    params: str
    """The JSON part, unread."""
    content: Sequence[Upload]
    style: Sequence[Upload]
    origin: str
    """Origin by which the caller reached us; the job's own URL is made of it."""
    traceparent: str | None
    idempotency_key: str | None = None

    @property
    def sides(self) -> tuple[tuple[Side, Sequence[Upload]], ...]:
        """Both sides with their files."""
        return (Side.CONTENT, self.content), (Side.STYLE, self.style)

    def digests(self) -> list[tuple[str, int, str]]:
        """Return side, place and SHA-256 of each file as it came."""
        return [
            (side.value, ordinal, upload.digest())
            for side, uploads in self.sides
            for ordinal, upload in enumerate(uploads)
        ]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture made ours, and the row that says where it goes."""

    row: JobImage
    path: Path


class Darkroom:
    """Where strangers' pictures are decoded, a few submissions at a time."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._places = threading.BoundedSemaphore(limits.parallel)

    def develop(
        self, submission: Submission, folder: Path, *, account_id: uuid.UUID, job_id: uuid.UUID
    ) -> list[Picture]:
        """Write every picture anew into a folder.

        Raises:
            InvalidParameters: some cannot be used; all are named at once.
            Unavailable: too many submissions are being read.
        """
        with self._place():
            cleaned = self._clean(submission, folder)
        return [
            Picture(
                JobImage(
                    side=side,
                    ordinal=ordinal,
                    key=input_key(account_id, job_id, side, ordinal, image.sha256),
                    sha256=image.sha256,
                    bytes=image.bytes,
                    width=image.width,
                    height=image.height,
                    content_type=images.CONTENT_TYPE,
                ),
                image.path,
            )
            for side, ordinal, image in cleaned
        ]

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Take a turn at decoding. Whoever waits occupies a thread that other requests need, so nobody waits long."""
        if not self._places.acquire(timeout=self._limits.wait_s):
            raise Unavailable("Too many pictures are being read at the moment; send the job again.", code="busy")
        try:
            yield
        finally:
            self._places.release()

    def _clean(self, submission: Submission, folder: Path) -> list[tuple[Side, int, CleanImage]]:
        cleaned, errors = [], []
        for side, uploads in submission.sides:
            for ordinal, upload in enumerate(uploads):
                path = folder / f"{side}-{ordinal}.png"
                try:
                    image = images.clean(upload.file, upload.size, path, self._limits)
                except images.ImageRefused as refusal:
                    pointer = f"/{side}_images/{ordinal}"
                    errors.append(FieldError(pointer=pointer, detail=refusal.detail, code=refusal.code))
                else:
                    cleaned.append((side, ordinal, image))
        if errors:
            raise InvalidParameters("Some pictures cannot be used.", errors=errors)
        return cleaned


def check(submission: Submission, params: JobParams, caller: Caller, settings: ApiSettings) -> None:
    """Refuse what the configuration does not know of: numbers of files, captions, priority, retention, webhook.

    Raises:
        InvalidParameters: all of it at once.
    """
    errors = [
        *wishes.check_webhook(params, settings.webhooks.allow_cidrs),
        *wishes.check_engine(params),
        *wishes.check_priority(params.priority, caller.max_priority),
        *wishes.check_retention(params.retention_days, settings.retention_max_days),
        *wishes.check_captions("content", params.content_captions, len(submission.content)),
        *wishes.check_captions("style", params.style_captions, len(submission.style)),
    ]
    for side, uploads in submission.sides:
        if not 1 <= len(uploads) <= MAX_IMAGES_PER_SIDE:
            code = "too_many" if uploads else "missing"
            detail = f"{len(uploads)} pictures came; send 1 to {MAX_IMAGES_PER_SIDE} files in {side}_images"
            errors.append(FieldError(pointer=f"/{side}_images", detail=detail, code=code))
    if errors:
        raise InvalidParameters(errors=errors)
