"""What came is looked at, by what it is for: a picture is written anew, a LoRA is kept as it came."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from api.errors import FieldError, InvalidParameters
from api.jobs import images
from api.jobs.resemblance import dhash
from api.loras.inspection import inspect
from api.uploads.models import UploadKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.jobs.darkroom import Darkroom
    from api.jobs.sources import ReceivedFile
    from api.places import Places

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
        loras: the places for files of LoRAs.
    """

    def __init__(self, max_bytes: dict[UploadKind, int], darkroom: Darkroom, loras: Places) -> None:
        self._max_bytes = max_bytes
        self._darkroom = darkroom
        self._loras = loras

    @contextmanager
    def room(self, kind: UploadKind) -> Iterator[Path]:
        """Lend a temporary folder in which to look at a file; few at a time for large ones.

        Raises:
            Unavailable: too many LoRAs are being read.
        """
        place = self._loras.taken() if kind is UploadKind.LORA else nullcontext()
        with place, tempfile.TemporaryDirectory(prefix="duolora-upload-") as folder:
            yield Path(folder)

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
        path = folder / "lora.safetensors"
        if file.path is not None:
            file.path.rename(path)
        else:
            with path.open("wb") as target:
                shutil.copyfileobj(file.file, target, _CHUNK_BYTES)
        inspect(path)
        with path.open("rb") as kept:
            sha256 = hashlib.file_digest(kept, "sha256").hexdigest()
        return Examined(path=path, content_type=LORA_CONTENT_TYPE, sha256=sha256, bytes=file.size)


def _refused(file: ReceivedFile, detail: str, code: str) -> InvalidParameters:
    entry = FieldError(pointer=file.pointer, detail=detail, code=code)
    return InvalidParameters("The file cannot be used.", errors=[entry])
