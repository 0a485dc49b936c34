"""Whether an engine process holds more memory than its work needs, and whether a dead one's came back."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

MOST_TRIES = 20
"""So many engines in a row find less memory than the first did before the rest counts as somebody else's for good."""


class EngineMemory:
    """Compares what a process holds after each stage with what it held when it had just loaded that base."""

    def __init__(self, *, slack_bytes: int) -> None:
        self._slack_bytes = slack_bytes
        self._level: tuple[str, int] | None = None
        self._free_bytes: int | None = None
        self._tries = 0
        self.held_bytes: int | None = None
        """What the process held when it last said so."""
        self.is_swollen = False
        """It holds so much more than it should that it must be replaced."""

    def see(self, base: str, held_bytes: int | None) -> None:
        """Take what a process holds now that nothing runs; the first word after loading a base is its level."""
        if held_bytes is None:
            return
        self.held_bytes = held_bytes
        if self._level is None or self._level[0] != base:
            self._level = (base, held_bytes)
            return
        grown = held_bytes - self._level[1]
        if grown > self._slack_bytes:
            log.warning("the engine keeps memory, it will be replaced", extra={"grown_bytes": grown})
            self.is_swollen = True

    def came_back(self, free_bytes: int | None) -> bool:
        """Say whether a fresh process finds as much free memory as the first one did, but for the slack."""
        if free_bytes is None:
            return True
        if self._free_bytes is None or free_bytes >= self._free_bytes - self._slack_bytes:
            self._free_bytes = max(free_bytes, self._free_bytes or 0)
            self._tries = 0
            return True
        self._tries += 1
        if self._tries < MOST_TRIES:
            return False
        log.warning("the device has less memory than it had", extra={"free_bytes": free_bytes})
        self._free_bytes, self._tries = free_bytes, 0
        return True

    def forget(self) -> None:
        """The process is gone; what the device had free stays known."""
        self._level, self.held_bytes, self.is_swollen = None, None, False
