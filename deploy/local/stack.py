"""The embedded stack: Postgres, Valkey, an S3 server, API, dispatcher and workers, started and stopped as one.

Each server gives way to one of the caller's own when its URL is in the environment: DATABASE_URL, REDIS_URL,
S3_ENDPOINT (with S3_BUCKET, S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY).
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import httpx
from pydantic import SecretStr, ValidationError

import migrations
from api.settings import SealSettings
from api.vault import CannotOpen
from deploy.local.cards import cards, worker_environments
from deploy.local.data_folder import FolderLock, Secrets, write_private
from deploy.local.object_store import ObjectStoreServer
from deploy.local.owner import owner_key
from deploy.local.postgres import Postgres
from deploy.local.processes import LOOPBACK, Child, LocalStackError, accepts, free_port, spawn, stop_all
from deploy.local.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from api.vault import Vault
    from deploy.local.data_folder import OwnerKey

API_TIMEOUT_S = 60.0
WATCH_S = 0.2
WORKER_GRACE_S = 30.0
"""The worker stores a checkpoint and gives its stage back before it ends: more than its own grace, `worker_grace_s`."""
ENVIRONMENT_FILE = "environment"
TOLD = ("DATABASE_URL", "REDIS_URL", "S3_", "SECRET_KEYS")
DATABASE = "duolora"
BUCKET = "duolora"


class Stack:
    """All processes of one installation, under one data folder. Use as a context manager.

    Args:
        data: Folder of everything that is kept: database, objects, secrets, logs.
        environment: What the services inherit; a URL in it replaces the embedded server.
        port: Of the API on the loopback interface; 0 for any free one.
        durable: False trades crash safety of the database for speed; for the demo and tests.
        workers: How many; None for one on each GPU, one where there is none.
    """

    def __init__(
        self,
        data: Path,
        *,
        environment: Mapping[str, str],
        port: int = 0,
        durable: bool = True,
        workers: int | None = None,
    ) -> None:
        self.data = data.absolute()
        self.env: dict[str, str] = {
            "PYTHONUNBUFFERED": "1",
            "WORKER_SCRATCH_DIR": str(self.scratch),
            **environment,
        }
        self._port = port
        self._durable = durable
        self._of_workers = worker_environments(self.env, cards(self.env), workers)
        self._children: list[Child] = []
        self._cleanup = ExitStack()
        self._owner: OwnerKey | None = None

    @property
    def api_url(self) -> str:
        """Base URL of the API."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def owner(self) -> OwnerKey:
        """A key that works, made at the first start and remembered."""
        if self._owner is None:
            raise RuntimeError("the stack has not been started")
        return self._owner

    @property
    def logs(self) -> Path:
        """Folder with one log per process."""
        return self.data / "logs"

    @property
    def scratch(self) -> Path:
        """Folder for files of running stages."""
        return self.data / "scratch"

    def __enter__(self) -> Self:
        """Start; see `start`."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; see `stop`."""
        self.stop()

    def start(self) -> None:
        """Start everything in order and wait until the API is ready. Workers may still be loading their model then.

        Raises:
            LocalStackError: the folder is in use, SECRET_KEYS is weak or cannot open what the database has, or a part
                did not start; whatever had started is stopped again.
        """
        try:
            self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._cleanup.enter_context(FolderLock(self.data))
            shutil.rmtree(self.scratch, ignore_errors=True)  # a killed worker's
            kept = Secrets(self.data)
            vault = self._vault(kept)
            self._start_servers(kept)
            self._migrate()
            self._owner = self._owner_key(kept, vault)
            self._start_services()
            self._write_environment()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything in reverse order and let the folder go. A second interruption kills what is left."""
        try:
            stop_all(self._children)
        except BaseException:
            for child in self._children:
                child.kill()
            raise
        finally:
            self._children.clear()
            self._cleanup.close()

    def check(self) -> None:
        """Raise ServiceFailed if a process of the stack has ended."""
        for child in self._children:
            if not child.alive:
                raise child.failure(f"ended unexpectedly with status {child.process.returncode}")

    def watch(self) -> None:
        """Block for as long as every process runs; raises ServiceFailed then, or what a signal handler raises."""
        while True:
            self.check()
            time.sleep(WATCH_S)

    def _start_servers(self, kept: Secrets) -> None:
        if "DATABASE_URL" not in self.env:
            postgres = Postgres(
                self.data / "postgres",
                password=kept.postgres_password,
                log=self.logs / "postgres.log",
                durable=self._durable,
            )
            self._children.append(postgres.start())
            postgres.ensure_database(DATABASE)
            self.env["DATABASE_URL"] = postgres.url(DATABASE)
        if "REDIS_URL" not in self.env:
            valkey = Valkey(self.data / "valkey", password=kept.valkey_password, log=self.logs / "valkey.log")
            self._children.append(valkey.start())
            self.env["REDIS_URL"] = valkey.url
        if "S3_ENDPOINT" not in self.env:
            store = ObjectStoreServer(self.data / "objects", keys=kept.store_keys, log=self.logs / "object-store.log")
            self._children.append(store.start())
            self.env |= store.environment(BUCKET)

    def _migrate(self) -> None:
        try:
            migrations.upgrade(self.env["DATABASE_URL"])
        except (migrations.NewerDatabase, migrations.MigrationBlocked) as error:
            raise LocalStackError(f"{self.data}: {error}") from error

    def _vault(self, kept: Secrets) -> Vault:
        """Return what seals secrets, by the caller's keys or by one of the folder's own, and tell the services."""
        given = self.env.setdefault("SECRET_KEYS", kept.secret_keys)
        try:
            return SealSettings(keys=SecretStr(given)).vault()
        except ValidationError as error:
            raise LocalStackError(f"SECRET_KEYS: {error.errors()[0]['msg']}") from error

    def _owner_key(self, kept: Secrets, vault: Vault) -> OwnerKey:
        try:
            return owner_key(self.env["DATABASE_URL"], kept, vault)
        except CannotOpen as error:
            raise LocalStackError(
                f"the database has secrets of other keys: {error}; or set SECRET_KEYS to those of the installation that"
                " made them"
            ) from error

    def _start_services(self) -> None:
        if self._port == 0:
            self._port = free_port()
        elif accepts(self._port):
            raise LocalStackError(f"port {self._port} is taken; choose another with --port")
        address = {"HOST": LOOPBACK, "PORT": str(self._port)}
        api = self._service("api", "api", env=self.env | address)
        self._service("dispatcher", "worker.dispatcher", env=self.env)
        for index, own in enumerate(self._of_workers):
            name = "worker" if index == 0 else f"worker-{index + 1}"
            self._service(name, "worker", env=self.env | own, grace_s=WORKER_GRACE_S)
        api.wait_ready(self._api_is_ready, API_TIMEOUT_S)

    def _write_environment(self) -> None:
        """Leave the settings of the running servers for other commands, readable by the owner only."""
        told = {name: self.env[name] for name in self.env if name.startswith(TOLD)}
        told |= {"DUOLORA_URL": self.api_url, "DUOLORA_API_KEY": self.owner.api_key}
        path = self.data / ENVIRONMENT_FILE
        write_private(path, "".join(f"{name}='{value}'\n" for name, value in told.items()))
        self._cleanup.callback(path.unlink, missing_ok=True)

    def _service(self, name: str, module: str, *, env: Mapping[str, str], grace_s: float = 10.0) -> Child:
        child = spawn(
            name,
            [sys.executable, "-P", "-m", module],
            log=self.logs / f"{name}.log",
            env=env,
            cwd=self.data,
            grace_s=grace_s,
        )
        self._children.append(child)
        return child

    def _api_is_ready(self) -> bool:
        self.check()
        try:
            return httpx.get(f"{self.api_url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False
