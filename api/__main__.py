"""`python -m api`: serve on HOST and PORT until SIGTERM."""

from __future__ import annotations

import uvicorn

from api.main import create_app
from api.settings import ApiSettings
from api.telemetry import configure_logging


def main() -> None:
    """Serve."""
    settings = ApiSettings()
    configure_logging(settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,  # ours is set
        access_log=False,  # the middleware writes it
        server_header=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
