"""How long requests take, by path and answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram

if TYPE_CHECKING:
    from starlette.types import Scope

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
UNKNOWN = "other"
"""Path of requests that no route serves: what strangers try must not grow the series."""


class RequestTimes:
    """Seconds from a request's first byte to its answer's, so that a stream of events counts by its beginning."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "duolora_http_request_seconds",
            "From the beginning of a request to the beginning of its answer.",
            ("method", "path", "status"),
            registry=registry,
            buckets=BUCKETS_S,
        )

    def take(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answer."""
        path = getattr(scope.get("route"), "path", UNKNOWN)
        method = scope["method"] if path != UNKNOWN else UNKNOWN
        self._seconds.labels(method, path, str(status)).observe(seconds)
