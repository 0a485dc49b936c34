"""One zip with the pictures of a job: folders `content/` and `style/`, and perhaps `params.json`. Nothing is trusted.

The directory, the number of entries, their names, sizes and ratios are bounded before anything is inflated; nothing is
ever written under a name that the archive gives.
"""

from __future__ import annotations

import re
import stat
import tempfile
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from api.errors import FieldError, InvalidParameters
from api.forms import MAX_TEXT_BYTES
from api.jobs import wishes
from api.jobs.models import Side
from api.jobs.sources import ReceivedFile
from api.jobs.submission import Contents
from api.spooling import is_full

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

POINTER = "/archive"
PARAMS = "params.json"
MAX_ENTRIES = 100
MAX_DIRECTORY_BYTES = 128 * 1024
"""Of the list of entries, which is read at once."""
MAX_NAME_LENGTH = 200
MAX_RATIO = 100
"""Pictures are compressed already: what shrinks more is none."""
RATIO_FREE_BYTES = 1024 * 1024
"""Of what inflates to less the ratio is not asked: a drawing of few colours may well shrink."""

_CHUNK_BYTES = 64 * 1024
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` raises for damaged archives and for what it does not support."""
_CLUTTER = re.compile(r"__MACOSX/.*|(.*/)?(\.DS_Store|Thumbs\.db|desktop\.ini)")
"""What desktops put into archives by themselves."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_KINDS = {0, stat.S_IFREG, stat.S_IFDIR}
_ENCRYPTED = 0x1

_Complaint = tuple[str, str] | None
"""Detail and code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """How much may be inflated, in bytes."""

    entry_bytes: int
    all_bytes: int


@contextmanager
def unpacked(file: BinaryIO, limits: ArchiveLimits, *, params: str | None = None) -> Iterator[Contents]:
    """Return what an archive holds, inflated to temporary files that are gone when the block ends.

    Pictures come in the order of their names, in which numbers count as numbers.

    Args:
        file: the zip.
        limits: how much may be inflated.
        params: parameters that came beside it; then there may be none inside.

    Raises:
        InvalidParameters: it is no zip, or an entry is refused; all are named at once.
    """
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(_Sparing(file)))
        except _UNREADABLE as error:
            raise _refused("is no zip archive that can be read; make it anew", "damaged") from error
        entries = _checked(archive.infolist(), limits)
        sides = {side: [_inflated(archive, entry, stack) for entry in _of(side, entries)] for side in Side}
        inside = [entry for entry in entries if entry.filename == PARAMS]
        if inside and params is not None:
            raise InvalidParameters(errors=[_error(inside[0], "came also as the part params; send one", "too_many")])
        root = f"{POINTER}/{PARAMS}" if inside else wishes.ROOT
        with wishes.pointing(root):
            wished = wishes.parse(_text(archive, inside[0]) if inside else params or "{}")
        yield Contents(
            params=wished, content=sides[Side.CONTENT], style=sides[Side.STYLE], root=root, fields="archive/{side}"
        )


class _Sparing:
    """An archive's file, of which little is read at once: so a directory of millions of entries is not read at all."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("the directory is too large")
        data = self._file.read(MAX_DIRECTORY_BYTES + 1 if size < 0 else size)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("the end is too far away")
        return data


def _checked(entries: Sequence[zipfile.ZipInfo], limits: ArchiveLimits) -> list[zipfile.ZipInfo]:
    """Return the entries that are files of the job.

    Raises:
        InvalidParameters: an entry is refused, or all together are too many or too large.
    """
    if len(entries) > MAX_ENTRIES:
        raise _refused(f"has {len(entries)} entries; at most {MAX_ENTRIES} are read", "too_many")
    errors, names, files = [], set(), []
    for entry in entries:
        complaint = _complaint(entry, limits, is_known=entry.filename in names)
        names.add(entry.filename)
        if complaint is not None:
            errors.append(_error(entry, *complaint))
        elif not entry.is_dir() and not _CLUTTER.fullmatch(entry.filename):
            files.append(entry)
    if errors:
        raise InvalidParameters("Some entries of the archive are not accepted.", errors=errors)
    total = sum(entry.file_size for entry in files)
    if total > limits.all_bytes:
        raise _refused(f"inflates to {total} bytes; at most {limits.all_bytes} are read", "too_large")
    return sorted(files, key=_natural)


def _complaint(entry: zipfile.ZipInfo, limits: ArchiveLimits, *, is_known: bool) -> _Complaint:
    """Return why an entry is refused; None if it is not."""
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    if _UNSAFE.search(name) or {"", ".", ".."} & set(parts) or len(name) > MAX_NAME_LENGTH:
        return "the name is unsafe; use short names of visible characters, such as content/1.jpg", "unsafe_name"
    if stat.S_IFMT(entry.external_attr >> 16) not in _KINDS:
        return "is a link or a device; put the file itself into the archive", "not_a_file"
    if is_known:
        return "there are two of this name; rename one", "duplicate"
    if entry.is_dir() or _CLUTTER.fullmatch(name):
        return None
    if name != PARAMS and (len(parts) != 2 or parts[0] not in set(Side)):
        return f"is out of place; put pictures into content/ and style/, beside nothing but {PARAMS}", "out_of_place"
    return _data_complaint(entry, MAX_TEXT_BYTES if name == PARAMS else limits.entry_bytes)


def _data_complaint(entry: zipfile.ZipInfo, most: int) -> _Complaint:
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted; send it without a password", "encrypted"
    if entry.compress_type not in _COMPRESSIONS:
        return "is compressed in a way that is not read here; store or deflate it", "unsupported"
    if entry.file_size > most:
        return f"has {entry.file_size} bytes; at most {most} are accepted", "too_large"
    if entry.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * entry.compress_size):
        return f"inflates to more than {MAX_RATIO} times its size, as no picture does", "too_compressed"
    return None


def _of(side: Side, entries: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    return [entry for entry in entries if entry.filename.startswith(f"{side}/")]


def _inflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, stack: ExitStack) -> ReceivedFile:
    """Inflate an entry into a temporary file; `zipfile` gives no more bytes than the entry announced."""
    target = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    try:
        with archive.open(entry) as source:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
    except _UNREADABLE as error:
        if is_full(error):
            raise
        raise _damaged(entry) from error
    size = target.tell()
    target.seek(0)
    return ReceivedFile(target, size, _pointer(entry))


def _text(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(entry) as source:
            return source.read(MAX_TEXT_BYTES)
    except _UNREADABLE as error:
        raise _damaged(entry) from error


def _damaged(entry: zipfile.ZipInfo) -> InvalidParameters:
    return InvalidParameters(errors=[_error(entry, "is damaged; make the archive anew", "damaged")])


def _error(entry: zipfile.ZipInfo, detail: str, code: str) -> FieldError:
    return FieldError(pointer=_pointer(entry), detail=detail, code=code)


def _refused(detail: str, code: str) -> InvalidParameters:
    return InvalidParameters(errors=[FieldError(pointer=POINTER, detail=detail, code=code)])


def _pointer(entry: zipfile.ZipInfo) -> str:
    """Point at an entry; its name is shown as what it is, a path, but for what could be mistaken."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in entry.orig_filename[:MAX_NAME_LENGTH])
    return f"{POINTER}/{name.replace('~', '~0')}"


def _natural(entry: zipfile.ZipInfo) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", entry.filename.casefold())
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], entry.filename
