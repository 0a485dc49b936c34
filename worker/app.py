"""The Celery application. It carries hints and nothing else, so every setting here makes a message cheap to lose.

No result backend, no late acknowledgement, no countdowns: what a stage is and where it stands is in Postgres.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from celery import Celery

TASK = "worker.run_stage"
"""Name of the only task; senders use the name and never import it."""
QUEUE = "stages"

CONNECT_TIMEOUT_S = 2
SOCKET_TIMEOUT_S = 10


def make_app(redis_url: str) -> Celery:
    """Make the application for a broker."""
    app = Celery("duolora", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # A sender hears at once that the broker is away; the consumer retries for ever by the settings above.
            "max_retries": 0,
            "interval_start": 0,
        },
    )
    return app


def broker_url(redis_url: str) -> str:
    """Return Celery's spelling of a Redis URL: a Unix socket has another scheme there."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    userinfo = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{userinfo}{parts.path}?virtual_host={database}"
