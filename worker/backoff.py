"""How long to wait before trying something again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Delays that double from `first_s` to `most_s`, each shortened at random by up to a half.

    The jitter keeps many workers from coming back to a restarted server in one step.
    """

    first_s: float = 0.2
    most_s: float = 5.0
    _failures: int = field(default=0, init=False)

    def next_s(self) -> float:
        """Return the delay after one more failure."""
        delay_s = min(self.most_s, self.first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return delay_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Forget the failures after a success."""
        self._failures = 0
