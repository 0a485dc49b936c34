"""The processes of one version of the code, on servers that other versions use as well."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from api.client import Client
from deploy.local.processes import LOOPBACK, free_port, spawn
from tests.migrations.revisions import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).parents[2]
PARTS = ("api", "worker", "duolora", "migrations", "pyproject.toml")
READY_S = 60.0
QUICK = {"DISPATCHER_RELAY_POLL_S": "0.2", "DISPATCHER_STANDBY_S": "0.2", "PYTHONUNBUFFERED": "1"}


class NoHistory(Exception):
    """This copy of the repository does not have the version before."""


def version_before(folder: Path) -> Path:
    """Put the code of the newest release into a folder; without one, that of just before the newest revision.

    Raises:
        NoHistory: this is no clone, or a shallow one.
    """
    commit = _git("describe", "--tags", "--abbrev=0").decode().strip() or _before_the_newest_revision()
    packed = _git("archive", commit, *PARTS)
    if not packed:
        raise NoHistory("the version before is not in this copy of the repository")
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _before_the_newest_revision() -> str:
    newest = Path(in_order()[-1].path).relative_to(REPOSITORY)
    added = _git("log", "--diff-filter=A", "--format=%H", "-1", "--", str(newest)).decode().strip()
    return f"{added}^" if added else ""


def _git(*arguments: str) -> bytes:
    """Its output, nothing if it fails."""
    try:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, check=False).stdout  # noqa: S607
    except FileNotFoundError:
        return b""


@contextmanager
def deployed(code: Path, environment: Mapping[str, str], key: str, logs: Path) -> Iterator[Client]:
    """API, dispatcher and a worker with the mock engine; yields a client of that API."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    own = {"PYTHONPATH": str(code), "HOST": LOOPBACK, "PORT": str(port), "WORKER_ENGINE": "mock"}
    with ExitStack() as cleanup:
        for module in ("api", "worker.dispatcher", "worker"):
            child = spawn(
                module,
                [sys.executable, "-m", module],
                log=logs / f"{module}.log",
                env=os.environ | QUICK | environment | own | {"WORKER_ID": str(logs)},
                cwd=code,
            )
            cleanup.callback(child.stop)
            if module == "api":
                child.wait_ready(lambda: _lives(url), READY_S)
        yield cleanup.enter_context(Client(url, key))


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=2).is_success
    except httpx.TransportError:
        return False
