"""An installation over several hosts: servers, API and dispatcher on one machine, each worker on another.

Workers share the three servers, by their addresses on the network, and nothing else: each has folders of its own.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import httpx
import psycopg
from psycopg.rows import dict_row
from sqlalchemy import make_url

import migrations
from api.accounts.service import issue_key
from api.client import Client
from api.db import make_engine, session_factory
from deploy.local.object_store import ObjectStoreServer, StoreKeys
from deploy.local.postgres import Postgres
from deploy.local.processes import LOOPBACK, Child, free_port, spawn
from deploy.local.valkey import Valkey
from tests.chaos.installation import QUICK, REPOSITORY
from tests.support.vault import SECRET_KEYS, VAULT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hosts.network import Host, Network

DATABASE = "hosts"
BUCKET = "hosts"
READY_S = 150.0
PATIENCE_S = {"east": 120, "west": 6}
"""How long each worker tries to store its results while it cannot."""
LOOK_S = 0.1


class Site:
    """Everything, running. Use as a context manager, in the main thread."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._folder = folder
        self._network = network
        self._cleanup = ExitStack()
        self.workers: dict[str, Child] = {}
        self.hosts: dict[str, Host] = {}
        self.broker, self.store = network.address(2), network.address(3)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.plug()
        self._cleanup.close()

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Ask the database."""
        dsn = make_url(self._environment["DATABASE_URL"]).set(drivername="postgresql")
        with psycopg.connect(dsn.render_as_string(hide_password=False), row_factory=dict_row) as connection:
            return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]

    def wait(self, what: str, condition: Callable[[], Any], within_s: float) -> Any:
        """Wait until something holds, and return it; AssertionError says what did not, and what the workers said."""
        give_up_at = time.monotonic() + within_s
        while not (seen := condition()):
            if time.monotonic() > give_up_at:
                tails = "\n".join(f"{name}:\n{child.tail(8)}" for name, child in self.workers.items())
                raise AssertionError(f"no {what} within {within_s} s\n{tails}")
            time.sleep(LOOK_S)
        return seen

    def is_idle(self, name: str) -> bool:
        """Whether a worker has said lately that it waits for work."""
        found = self.rows(
            "SELECT 1 FROM workers WHERE id = %s AND state = 'idle' AND heartbeat_at > now() - interval '3 seconds'",
            name,
        )
        return bool(found)

    def says(self, name: str, text: str) -> bool:
        """Whether something stands in the log of a worker."""
        return text in self.workers[name].log.read_text()

    def objects(self, job_id: str) -> list[Path]:
        """What the store has of a job; objects are plain files there."""
        return [path for path in (self._folder / "objects").glob(f"*/accounts/*/jobs/{job_id}/**/*") if path.is_file()]

    def _start(self) -> None:
        self._environment = os.environ | QUICK | self._servers()
        migrations.upgrade(self._environment["DATABASE_URL"])
        key = self._key()
        port = free_port()
        address = {"HOST": LOOPBACK, "PORT": str(port)}
        sealing = self._environment | {"SECRET_KEYS": SECRET_KEYS}
        api = self._spawn("api", "tests.chaos.recipes", sealing | address)
        self._spawn("dispatcher", "worker.dispatcher", sealing)
        for name in ("east", "west"):
            self._add_worker(name)
        url = f"http://{LOOPBACK}:{port}"
        api.wait_ready(lambda: _is_ready(url), READY_S)
        self.client = self._cleanup.enter_context(Client(url, key))
        for name in self.workers:
            self.wait(f"idle worker {name}", lambda name=name: self.is_idle(name), READY_S)

    def _key(self) -> str:
        engine = make_engine(self._environment["DATABASE_URL"])
        try:
            return issue_key(session_factory(engine, VAULT), account="mine").text
        finally:
            engine.dispose()

    def _servers(self) -> dict[str, str]:
        """Start them, each at an address of its own."""
        logs = self._folder / "logs"
        keys = StoreKeys(access_key_id=secrets.token_hex(8), secret_access_key=secrets.token_hex(16))
        postgres = Postgres(
            self._folder / "postgres",
            password=secrets.token_hex(8),
            log=logs / "postgres.log",
            durable=False,
            host=self._network.address(1),
        )
        valkey = Valkey(
            self._folder / "valkey", password=secrets.token_hex(8), log=logs / "valkey.log", host=self.broker
        )
        store = ObjectStoreServer(self._folder / "objects", keys=keys, log=logs / "object-store.log", host=self.store)
        for server in (postgres, valkey, store):
            server.start()
            self._cleanup.callback(server.stop)
        postgres.ensure_database(DATABASE)
        return {
            "DATABASE_URL": postgres.url(DATABASE),
            "REDIS_URL": valkey.url,
            **store.environment(BUCKET),
        }

    def _add_worker(self, name: str) -> None:
        host = self.hosts[name] = self._network.add_host(name)
        home = self._folder / name
        own = {
            "WORKER_ID": name,
            "WORKER_PATIENCE_S": str(PATIENCE_S[name]),
            "WORKER_SCRATCH_DIR": str(home / "scratch"),
        }
        for variable, folder in (("HOME", "home"), ("TMPDIR", "tmp"), ("XDG_CACHE_HOME", "cache")):
            own[variable] = str(home / folder)
            (home / folder).mkdir(parents=True)
        self.workers[name] = self._spawn(name, "worker", self._environment | own, prefix=host.prefix)

    def _spawn(self, name: str, module: str, env: dict[str, str], prefix: tuple[str, ...] = ()) -> Child:
        child = spawn(
            name,
            [*prefix, sys.executable, "-m", module],
            log=self._folder / "logs" / f"{name}.log",
            env=env,
            cwd=REPOSITORY,
        )
        self._cleanup.callback(child.stop)
        return child


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).is_success
    except httpx.TransportError:
        return False
