"""How many requests a key may make in a while: counted in Redis for all processes together, in windows that are fixed.

A process takes permits in small shares, so that most requests cost no journey; of a share that it does not use up the
others know nothing until the window ends. Without Redis nobody is refused: a limit is no reason to serve nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.errors import RateLimited
from api.redis_url import client_url

if TYPE_CHECKING:
    from api.settings import RateSettings

logger = logging.getLogger(__name__)

POLICY = "requests"
SHARES = 100
"""A window's permits are taken in so many shares."""
CONNECTIONS = 4
"""Of a process; who finds all of them busy waits."""
TIMEOUT_S = 0.25
"""Longest that a request waits for Redis."""
AWAY_S = 5.0
"""How long Redis is left alone once it did not answer."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key may still do in this window."""

    limit: int
    window_s: int
    remaining: int
    reset_s: int
    """Seconds until the window ends."""

    def headers(self) -> dict[str, str]:
        """Return the fields `RateLimit-Policy` and `RateLimit` (IETF httpapi draft)."""
        return {
            "RateLimit-Policy": f'"{POLICY}";q={self.limit};w={self.window_s}',
            "RateLimit": f'"{POLICY}";r={self.remaining};t={self.reset_s}',
        }

    def refusal(self) -> RateLimited:
        """Return the refusal of one request more."""
        return RateLimited(
            f"A key may make {self.limit} requests in {self.window_s} s; come again in {self.reset_s} s.",
            headers={"Retry-After": str(self.reset_s)},
            extensions={"violated_policies": [POLICY]},
        )


@dataclass(slots=True)
class _Share:
    """What this process knows of a key in the current window."""

    left: int = 0
    """Permits that were taken and not used yet."""
    counted: int = 0
    """Permits that all processes together had taken when this one took its last."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RateLimiter:
    """The limits of all keys, for one process and one event loop.

    Args:
        settings: the limit; of 0 requests there is none.
        redis_url: where it is counted.
    """

    def __init__(self, settings: RateSettings, redis_url: str) -> None:
        self._limit = settings.requests
        self._window_s = settings.window_s
        self._step = max(1, settings.requests // SHARES)
        self._window = 0
        self._shares: dict[str, _Share] = {}
        self._away_until = 0.0
        self._redis = Redis.from_pool(
            BlockingConnectionPool.from_url(
                client_url(redis_url),
                max_connections=CONNECTIONS,
                timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),  # a connection that a restart has cut
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def take(self, key_id: str) -> tuple[Standing | None, bool]:
        """Count one request of a key; returns how it stands, None if nobody knows, and whether it may go on."""
        if self._limit == 0:
            return None, True
        now = time.time()
        window = int(now // self._window_s)
        if window != self._window:
            self._window, self._shares = window, {}
        share = self._shares.setdefault(key_id, _Share())
        if share.left == 0 and share.counted < self._limit and not await self._draw(share, key_id, window):
            return None, True
        granted = share.left > 0
        share.left -= granted
        remaining = max(self._limit - share.counted, 0) + share.left
        reset_s = max(math.ceil((window + 1) * self._window_s - now), 1)
        return Standing(self._limit, self._window_s, remaining, reset_s), granted

    async def _draw(self, share: _Share, key_id: str, window: int) -> bool:
        """Take a share, unless somebody did so meanwhile; False if Redis does not answer."""
        async with share.lock:
            if share.left == 0 and share.counted < self._limit:
                counted = await self._count(f"duolora:rate:{key_id}:{window}")
                if counted is None:
                    return False
                share.left = max(min(self._step, self._limit - counted + self._step), 0)
                share.counted = counted
        return True

    async def _count(self, name: str) -> int | None:
        """Take permits for everybody to see; returns how many are taken then, None if Redis does not answer."""
        if time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(2 * TIMEOUT_S), self._redis.pipeline(transaction=False) as pipe:
                pipe.incrby(name, self._step)
                pipe.expire(name, 2 * self._window_s)
                counted, _ = await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            if self._away_until == 0:
                logger.warning("nobody's requests are limited, as Redis does not answer: %s", error)
            self._away_until = time.monotonic() + AWAY_S
            return None
        if self._away_until:
            logger.info("requests are limited again")
            self._away_until = 0.0
        return int(counted)
