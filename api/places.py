"""Work that only a few requests of a process may do at a time."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from api.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


class Places:
    """The places for such work; all requests of a process share them.

    Args:
        number: how many there are.
        wait_s: seconds that a request waits for one. It occupies a thread that others need, so not long.
        refusal: what it is told then.
    """

    def __init__(self, number: int, *, wait_s: float, refusal: str) -> None:
        self._free = threading.BoundedSemaphore(number)
        self._wait_s = wait_s
        self._refusal = refusal

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have one of the places.

        Raises:
            Unavailable: none became free.
        """
        if not self._free.acquire(timeout=self._wait_s):
            raise Unavailable(self._refusal, code="busy")
        try:
            yield
        finally:
            self._free.release()


def lora_places(number: int) -> Places:
    """Return the places for files of LoRAs, each of which takes as much of the temporary folder as it is large."""
    return Places(number, wait_s=10, refusal="Too many LoRA files are being read at the moment; send it again.")
