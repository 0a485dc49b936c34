"""`python -m api`: serve on HOST and PORT until SIGTERM."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import uvicorn

from api.main import create_app
from api.metrics import exposed
from api.settings import ApiSettings
from api.telemetry import configure_logging
from api.tracing import exported

if TYPE_CHECKING:
    from types import FrameType

    from api.jobs.hub import EventHub


class _Server(uvicorn.Server):
    """Ends the streams of events as soon as it is told to stop: they would otherwise use up the grace of all others."""

    def __init__(self, config: uvicorn.Config, hub: EventHub) -> None:
        super().__init__(config)
        self._hub = hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after a signal."""
        with suppress(RuntimeError):  # no loop runs yet, so nobody listens
            asyncio.get_running_loop().call_soon_threadsafe(self._hub.close)
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve."""
    settings = ApiSettings()
    configure_logging(settings.log_level)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # ours is set
        access_log=False,  # the middleware writes it
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    with exported(settings.tracing, "duolora-api"), exposed(settings.metrics, app.state.metrics):
        _Server(config, app.state.services.hub).run()


if __name__ == "__main__":
    main()
