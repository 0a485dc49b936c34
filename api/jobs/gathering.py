"""The pictures of a submission are made ours, wherever they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.db import transaction
from api.errors import FieldError, InvalidParameters
from api.jobs import images
from api.jobs.sources import EarlierUpload, Picture, ReceivedFile
from api.uploads import repository as uploads
from api.uploads.models import UploadKind, UploadState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.jobs.darkroom import Darkroom
    from api.jobs.images import CleanImage
    from api.jobs.models import Side
    from api.jobs.submission import Submission
    from api.uploads.models import Upload


class Gatherer:
    """Makes the pictures of submissions ours, wherever they come from."""

    def __init__(self, sessions: sessionmaker[Session], darkroom: Darkroom) -> None:
        self._sessions = sessions
        self._darkroom = darkroom

    def gather(self, caller: Caller, submission: Submission, folder: Path) -> list[tuple[Side, int, Picture]]:
        """Return all pictures in order; those that came with the request are written into a folder.

        Raises:
            InvalidParameters: some cannot be used; all are named at once.
            Unavailable: too many requests are having pictures read.
        """
        found = self.look(caller, submission, folder)
        errors = [outcome for _, _, outcome in found if isinstance(outcome, FieldError)]
        if errors:
            raise InvalidParameters("Some pictures cannot be used.", errors=errors)
        return [(side, ordinal, outcome) for side, ordinal, outcome in found if isinstance(outcome, Picture)]

    def look(
        self, caller: Caller, submission: Submission, folder: Path
    ) -> list[tuple[Side, int, Picture | FieldError]]:
        """Return all pictures in order; one that cannot be used has the complaint in place of it.

        Raises:
            Unavailable: too many requests are having pictures read.
        """
        sources = [source for _, sources in submission.sides for source in sources]
        received = [source for source in sources if isinstance(source, ReceivedFile)]
        named = [source for source in sources if isinstance(source, EarlierUpload)]
        outcomes = self._look_up(caller, named)  # first: it costs nothing
        for source, outcome in zip(received, self._darkroom.develop(received, folder), strict=True):
            outcomes[source.pointer] = _developed(source.pointer, outcome)
        return [
            (side, ordinal, outcomes[source.pointer])
            for side, sources in submission.sides
            for ordinal, source in enumerate(sources)
        ]

    def _look_up(self, caller: Caller, named: Sequence[EarlierUpload]) -> dict[str, Picture | FieldError]:
        if not named:
            return {}
        with transaction(self._sessions) as session:
            ids = {source.upload_id for source in named}
            found = uploads.find_several(session, account_id=caller.account_id, ids=ids)
        return {source.pointer: _uploaded(source, found.get(source.upload_id)) for source in named}


def _developed(pointer: str, outcome: CleanImage | images.ImageRefused) -> Picture | FieldError:
    if isinstance(outcome, images.ImageRefused):
        return FieldError(pointer=pointer, detail=outcome.detail, code=outcome.code)
    return Picture(
        pointer=pointer,
        place=outcome.path,
        sha256=outcome.sha256,
        bytes=outcome.bytes,
        width=outcome.width,
        height=outcome.height,
    )


def _uploaded(source: EarlierUpload, upload: Upload | None) -> Picture | FieldError:
    if upload is None:
        detail = f"there is no upload {source.upload_id}; it may have expired: upload the picture again"
        return FieldError(pointer=source.pointer, detail=detail, code="unknown")
    if upload.kind is not UploadKind.IMAGE:
        detail = f"upload {upload.id} is for {upload.kind}; name pictures here"
        return FieldError(pointer=source.pointer, detail=detail, code="not_an_image")
    if upload.state is not UploadState.READY:
        detail = f"upload {upload.id} is not confirmed: POST /uploads/{upload.id}/confirm once the file is there"
        return FieldError(pointer=source.pointer, detail=detail, code="pending")
    return Picture(
        pointer=source.pointer,
        place=uploads.key_of(upload),
        sha256=upload.sha256 or "",
        bytes=upload.bytes,
        width=upload.width or 0,
        height=upload.height or 0,
        dhash=upload.dhash,
    )
