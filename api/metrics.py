"""What a process tells Prometheus, on a port of its own: never on the one that callers reach."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, start_http_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.settings import MetricsSettings

log = logging.getLogger(__name__)


def process_registry() -> CollectorRegistry:
    """Return a registry that has what every process tells: memory, processor time, open files, garbage collection."""
    registry = CollectorRegistry()
    for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    return registry


@contextmanager
def exposed(settings: MetricsSettings, registry: CollectorRegistry) -> Iterator[int | None]:
    """Answer Prometheus inside the `with`; gives the port, or None where none was asked for.

    Raises:
        OSError: the port is taken, or the host is none of this machine's.
    """
    if settings.port is None:
        yield None
        return
    server, thread = start_http_server(settings.port, settings.host, registry)
    port: int = server.server_port
    log.info("metrics are told", extra={"host": settings.host, "port": port})
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
