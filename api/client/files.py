"""Files on their way: how much of them is through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Files = list[tuple[str, tuple[str, BinaryIO | "CountedFile"]]]


class Tally:
    """Counts bytes, and says so to whoever wants to know.

    Args:
        total: of all files.
        tell: called with the bytes so far and with the total.
    """

    def __init__(self, total: int, tell: Callable[[int, int], object] | None) -> None:
        self._total = total
        self._tell = tell
        self._done = 0

    def add(self, count: int) -> None:
        """Count; a negative number takes back what is sent again."""
        self._done += count
        if self._tell is not None and count:
            self._tell(self._done, self._total)


class CountedFile:
    """A file that counts what is read of it. Reading it from its beginning again takes back what was counted."""

    def __init__(self, file: BinaryIO, tally: Tally) -> None:
        self._file = file
        self._tally = tally

    def read(self, size: int = -1) -> bytes:
        """Read, and count."""
        data = self._file.read(size)
        self._tally.add(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go elsewhere."""
        before = self._file.tell()
        after = self._file.seek(offset, whence)
        if after < before and whence != os.SEEK_END:
            self._tally.add(after - before)
        return after

    def tell(self) -> int:
        """Say where it is."""
        return self._file.tell()

    def fileno(self) -> int:
        """Return its descriptor, by which its length is known."""
        return self._file.fileno()


def counted(files: Iterable[tuple[str, str, BinaryIO]], tell: Callable[[int, int], object] | None) -> Files:
    """Return parts of a form that say how much of them has been sent.

    Args:
        files: field, name and open file.
        tell: see `Tally`.
    """
    parts = list(files)
    if tell is None:
        return [(field, (name, file)) for field, name, file in parts]
    tally = Tally(sum(os.fstat(file.fileno()).st_size for *_, file in parts), tell)
    return [(field, (name, CountedFile(file, tally))) for field, name, file in parts]
