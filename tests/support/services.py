"""API, dispatcher and a worker as processes, on the servers of the tests: of this code or of another version's."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from api.client import Client
from deploy.local.processes import LOOPBACK, Child, free_port, spawn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).parents[2]
READY_S = 60.0
QUICK = {"DISPATCHER_RELAY_POLL_S": "0.2", "DISPATCHER_STANDBY_S": "0.2", "PYTHONUNBUFFERED": "1"}


@dataclass
class Services:
    """Running processes by their modules, and a client of their API."""

    client: Client
    processes: dict[str, Child] = field(default_factory=dict)


@contextmanager
def running_services(
    environment: Mapping[str, str], key: str, logs: Path, *, code: Path = REPOSITORY, api: str = "api"
) -> Iterator[Services]:
    """Start all three and wait for the API. `WORKER_ENGINE=mock` makes a worker that is there at once."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    own = {"PYTHONPATH": str(code), "HOST": LOOPBACK, "PORT": str(port), "WORKER_ID": logs.name}
    with ExitStack() as cleanup:
        services = Services(cleanup.enter_context(Client(url, key)))
        for name, module in {"api": api, "dispatcher": "worker.dispatcher", "worker": "worker"}.items():
            services.processes[name] = spawn(
                name,
                [sys.executable, "-m", module],
                log=logs / f"{name}.log",
                env=os.environ | QUICK | environment | own,
                cwd=code,
            )
            cleanup.callback(services.processes[name].stop)
        services.processes["api"].wait_ready(lambda: _lives(url), READY_S)
        yield services


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=2).is_success
    except httpx.TransportError:
        return False
