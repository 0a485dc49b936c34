"""What came is looked at, by what it is for: a picture is written anew, a LoRA is kept as it came."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from api.errors import FieldError, InvalidParameters
from api.jobs import images
from api.jobs.resemblance import dhash
from api.loras.inspection import inspect
from api.uploads.models import UploadKind

if TYPE_CHECKING:
    from pathlib import Path

    from api.jobs.darkroom import Darkroom
    from api.jobs.sources import ReceivedFile

LORA_CONTENT_TYPE = "application/octet-stream"
_CONTENT_TYPES = {
    UploadKind.IMAGE: frozenset({"image/jpeg", "image/png", "image/webp"}),
    UploadKind.LORA: frozenset({LORA_CONTENT_TYPE}),
}
"""By which a file may be announced."""
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What is to be kept."""

    path: Path
    content_type: str
    sha256: str
    bytes: int
    width: int | None = None
    """In pixels, of a picture; None otherwise, as the next two."""
    height: int | None = None
    dhash: str | None = None


class Examiner:
    """Looks at files.

    Args:
        max_bytes: the largest that may be sent, by kind.
        darkroom: where pictures are decoded.
    """

    def __init__(self, max_bytes: dict[UploadKind, int], darkroom: Darkroom) -> None:
        self._max_bytes = max_bytes
        self._darkroom = darkroom

    def check_announced(self, kind: UploadKind, stored_bytes: int, content_type: str) -> None:
        """Refuse what would be refused in any case.

        Raises:
            InvalidParameters: naming the field.
        """
        errors = []
        if stored_bytes > self._max_bytes[kind]:
            detail = f"at most {self._max_bytes[kind]} are accepted; send a smaller file"
            errors.append(FieldError(pointer="/bytes", detail=detail, code="too_large"))
        if content_type not in _CONTENT_TYPES[kind]:
            detail = f"of an upload for {kind} it is one of: {', '.join(sorted(_CONTENT_TYPES[kind]))}"
            errors.append(FieldError(pointer="/content_type", detail=detail, code="unknown"))
        if errors:
            raise InvalidParameters(errors=errors)

    def examine(self, kind: UploadKind, file: ReceivedFile, folder: Path) -> Examined:
        """Return what is to be kept of a file, written into a folder.

        Raises:
            InvalidParameters: it cannot be used.
            Unavailable: too many pictures are being read.
        """
        return self._lora(file, folder) if kind is UploadKind.LORA else self._image(file, folder)

    def _image(self, file: ReceivedFile, folder: Path) -> Examined:
        [outcome] = self._darkroom.develop([file], folder)
        if isinstance(outcome, images.ImageRefused):
            raise _refused(file, outcome.detail, outcome.code)
        return Examined(
            path=outcome.path,
            content_type=images.CONTENT_TYPE,
            sha256=outcome.sha256,
            bytes=outcome.bytes,
            width=outcome.width,
            height=outcome.height,
            dhash=dhash(outcome.path),
        )

    def _lora(self, file: ReceivedFile, folder: Path) -> Examined:
        most = self._max_bytes[UploadKind.LORA]
        if file.size > most:
            raise _refused(file, f"The file has {file.size} bytes; at most {most} are accepted.", "too_large")
        path, digest = folder / "lora.safetensors", hashlib.sha256()
        with path.open("wb") as target:
            while chunk := file.file.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        inspect(path)
        return Examined(path=path, content_type=LORA_CONTENT_TYPE, sha256=digest.hexdigest(), bytes=file.size)


def _refused(file: ReceivedFile, detail: str, code: str) -> InvalidParameters:
    entry = FieldError(pointer=file.pointer, detail=detail, code=code)
    return InvalidParameters("The file cannot be used.", errors=[entry])
