"""Sees to it that a worker which is told to exit does so within its grace period, whatever holds it up."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.mailbox import Mailbox

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""How late the end of the grace period may be noticed."""
LAST_WORDS_S = 1.5
"""Of the grace period, what remains for giving back the stage by force."""


class ExitInTime:
    """A thread that ends the process shortly before whoever asked it to exit would kill it.

    Killed, the worker would hold its stage until the lease ends, and the attempt would count; so the stage is given
    back from here. The engine process dies with this one.
    """

    def __init__(self, mailbox: Mailbox, grace_s: float, *, give_back: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._grace_s = max(grace_s - LAST_WORDS_S, grace_s / 2)
        self._give_back = give_back
        self._thread = threading.Thread(target=self._watch, name="exit in time", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not self._mailbox.shutting_down or self._mailbox.grace_left_s(self._grace_s) > 0:
            pause.wait(LOOK_S)
        log.error("the grace period is over, exiting by force", extra={"grace_s": self._grace_s})
        last_words = threading.Thread(target=self._give_back, daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_S / 2)
        os._exit(1)
