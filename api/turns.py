"""Turns at what costs a process much memory or holds up its other threads: a few requests at a time have one."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from api.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


class Turns:
    """Turns that all requests of a process share.

    Args:
        parallel: how many have one at once.
        wait_s: how long another waits. It occupies a thread that other requests need, so this is not long.
        refusal: what is said then.
    """

    def __init__(self, parallel: int, wait_s: float, refusal: str) -> None:
        self._places = threading.BoundedSemaphore(parallel)
        self._wait_s = wait_s
        self._refusal = refusal

    @contextmanager
    def take(self) -> Iterator[None]:
        """Have a turn.

        Raises:
            Unavailable: none came in time.
        """
        if not self._places.acquire(timeout=self._wait_s):
            raise Unavailable(self._refusal, code="busy")
        try:
            yield
        finally:
            self._places.release()
