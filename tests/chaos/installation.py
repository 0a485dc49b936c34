"""The real stack, every part a process of its own behind proxies: started, killed, revived, watched, stopped."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
from sqlalchemy import make_url

import migrations
from deploy.local.object_store import ObjectStoreServer, StoreKeys
from deploy.local.postgres import Postgres
from deploy.local.processes import LOOPBACK, Child, ServiceFailed, free_port, spawn
from deploy.local.valkey import Valkey
from tests.chaos.proxies import Switchboard
from tests.support.process_list import descendants, is_running
from tests.support.vault import SECRET_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REPOSITORY = Path(__file__).parents[2]
MARKER = "DUOLORA_CHAOS"
"""Variable that every process of a run inherits, so that none can hide."""
DATABASE = "chaos"
BUCKET = "chaos"
REVIVE_S = 0.5
"""How long a dead process stays dead, as under any supervisor."""
READY_S = 90.0
GRACE_S = 12.0
WORKERS = 2
DISPATCHERS = 2
LEASE_S = 4.0

QUICK = {
    "OMP_NUM_THREADS": "1",
    "WORKER_LEASE_S": str(LEASE_S),
    "WORKER_HEARTBEAT_S": "1",
    "WORKER_PROGRESS_S": "0.2",
    "WORKER_EVENT_S": "0.5",
    "WORKER_CHECKPOINT_S": "0.5",
    "WORKER_GRACE_S": "10",
    "WORKER_POLL_S": "1",
    "WORKER_PATIENCE_S": "20",
    "ENGINE_STALL_S": "15",
    "ENGINE_CANCEL_GRACE_S": "4",
    "ENGINE_TERM_GRACE_S": "2",
    "DISPATCHER_RELAY_POLL_S": "0.5",
    "DISPATCHER_REAP_S": "0.5",
    "DISPATCHER_REPUBLISH_S": "2",
    "DISPATCHER_REPUBLISH_AFTER_S": "3",
    "DISPATCHER_DELIVER_S": "0.2",
    "DISPATCHER_STANDBY_S": "0.5",
    "DISPATCHER_JANITOR_S": "5",
    "IDEMPOTENCY_LOCK_S": "5",
    "WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
    "WEBHOOK_TIMEOUT_S": "1",
    "WEBHOOK_TIME_SCALE": "0.001",
}
"""Settings that make every wait of the service short; an hour of the webhooks' schedule is 3.6 s."""


@dataclass
class Slot:
    """A place for one process, which a new one takes when the old one is gone."""

    name: str
    module: str
    environment: Callable[[int], dict[str, str]]
    """Of the process of a generation."""
    generation: int = 0
    child: Child | None = None
    stopped: bool = False
    """By SIGSTOP."""
    leaving: bool = False
    """Whoever ended it meant to; an exit without this is a crash."""
    wanted: bool = True
    died_at: float | None = None

    @property
    def pid(self) -> int | None:
        return self.child.process.pid if self.child is not None and self.child.alive else None

    @property
    def worker_id(self) -> str:
        return f"{self.name}.{self.generation}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, not to its children."""
        if self.child is not None and self.child.alive:
            self.leaving = self.leaving or number in {signal.SIGKILL, signal.SIGTERM}
            self.stopped = number is signal.SIGSTOP or (self.stopped and number is not signal.SIGCONT)
            self.child.process.send_signal(number)


@dataclass
class Crash:
    """A process that ended although nobody ended it."""

    name: str
    status: int
    tail: str


@dataclass
class Installation:
    """Servers, proxies and services under one folder. Use as a context manager, in the main thread."""

    folder: Path
    run: str = field(default_factory=lambda: secrets.token_hex(6))
    environment: dict[str, str] = field(default_factory=dict)
    slots: dict[str, Slot] = field(default_factory=dict)
    crashes: list[Crash] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.folder.absolute()
        self.logs = self.folder / "logs"
        self.proxies = Switchboard()
        self.api_port = free_port()
        keys = StoreKeys(access_key_id=secrets.token_hex(8), secret_access_key=secrets.token_hex(16))
        self.postgres = Postgres(
            self.folder / "postgres", password=secrets.token_hex(8), log=self.logs / "postgres.log", durable=True
        )
        self.valkey = Valkey(self.folder / "valkey", password=secrets.token_hex(8), log=self.logs / "valkey.log")
        self.store = ObjectStoreServer(self.folder / "objects", keys=keys, log=self.logs / "object-store.log")
        self._servers: dict[str, Child] = {}

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def database_url(self) -> str:
        """Of the database itself, past every proxy; another one after each restart."""
        return self.postgres.url(DATABASE)

    @property
    def objects(self) -> Path:
        """Where the store keeps the objects of the bucket as plain files."""
        return self.folder / "objects" / BUCKET

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots.values():
            slot.signal(signal.SIGCONT)
        self.proxies.open_all()
        for slot in reversed(self.slots.values()):
            slot.leaving = True
            if slot.child is not None and slot.child.alive:
                slot.child.process.terminate()
        for slot in self.slots.values():
            if slot.child is not None:
                slot.child.stop()
        for child in reversed(self._servers.values()):
            child.stop()
        self.proxies.__exit__()

    def _start(self) -> None:
        self.proxies.__enter__()
        self._servers["postgres"] = self.postgres.start()
        self.postgres.ensure_database(DATABASE)
        migrations.upgrade(self.database_url)
        self._servers["valkey"] = self.valkey.start()
        self._servers["object-store"] = self.store.start()
        for user in ("api", "dispatcher", *(f"worker-{number}" for number in range(WORKERS + 1))):
            self.proxies.add(f"postgres {user}", _port(self.database_url))
            self.proxies.add(f"valkey {user}", _port(self.valkey.url))
            self.proxies.add(f"store {user}", _port(self.store.endpoint))
        api = {"HOST": LOOPBACK, "PORT": str(self.api_port)}
        self._add("api", "tests.chaos.recipes", lambda _: self._environment("api") | api)
        for number in range(DISPATCHERS):
            self._add(f"dispatcher-{number}", "worker.dispatcher", lambda _: self._environment("dispatcher"))
        for number in range(WORKERS):
            self.add_worker(number)
        self._await_api()

    def add_worker(self, number: int) -> Slot:
        """Start one worker more."""
        name = f"worker-{number}"

        def environment(generation: int) -> dict[str, str]:
            return self._environment(name) | {"WORKER_ID": f"{name}.{generation}"}

        return self._add(name, "worker", environment)

    def workers(self) -> list[Slot]:
        """The workers that run and are not held."""
        return [
            slot
            for slot in self.slots.values()
            if slot.module == "worker" and slot.pid is not None and not slot.stopped
        ]

    def engine_pid(self, slot: Slot) -> int | None:
        """The engine process of a worker."""
        for pid in descendants(slot.pid) if slot.pid else ():
            try:
                if b"worker.engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def tend(self) -> None:
        """Do what a supervisor does: start again what has died."""
        for slot in self.slots.values():
            if slot.child is None or slot.child.alive:
                continue
            if slot.died_at is None:
                slot.died_at = time.monotonic()
                if not slot.leaving:
                    self.crashes.append(Crash(slot.worker_id, slot.child.process.returncode, slot.child.tail(12)))
            elif slot.wanted and time.monotonic() > slot.died_at + REVIVE_S:
                self._spawn(slot)

    def restart_postgres(self, how: signal.Signals) -> None:
        """End the database, by SIGINT in good order or by SIGQUIT as a crash, and start it anew."""
        child = self._servers["postgres"]
        child.process.send_signal(how)
        child.process.wait(20)
        self._servers["postgres"] = self.postgres.start()
        self._redirect("postgres", _port(self.database_url))

    def restart_valkey(self) -> None:
        """Kill the broker; the new one knows nothing."""
        child = self._servers["valkey"]
        child.process.kill()
        child.process.wait(20)
        self._servers["valkey"] = self.valkey.start()
        self._redirect("valkey", _port(self.valkey.url))

    def is_ready(self) -> bool:
        """Whether the API can serve."""
        try:
            return httpx.get(f"{self.api_url}/readyz", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _redirect(self, server: str, port: int) -> None:
        for proxy in self.proxies.named(f"{server} "):
            proxy.upstream = port
            proxy.drop()

    def _add(self, name: str, module: str, environment: Callable[[int], dict[str, str]]) -> Slot:
        generation = self.slots[name].generation if name in self.slots else 0
        slot = self.slots[name] = Slot(name, module, environment, generation)
        self._spawn(slot)
        return slot

    def _spawn(self, slot: Slot) -> None:
        slot.generation += 1
        slot.stopped = slot.leaving = False
        slot.died_at = None
        slot.child = spawn(
            slot.name,
            [sys.executable, "-m", slot.module],
            log=self.logs / f"{slot.worker_id}.log",
            env=slot.environment(slot.generation),
            cwd=REPOSITORY,
            grace_s=GRACE_S,
        )

    def _environment(self, user: str) -> dict[str, str]:
        """What a service inherits: its own way to each server."""
        ports = {server: self.proxies.proxies[f"{server} {user}"].port for server in ("postgres", "valkey", "store")}
        endpoint = f"http://{LOOPBACK}:{ports['store']}"
        return (
            os.environ
            | QUICK
            | self.environment
            | self.store.environment(BUCKET)
            | {
                MARKER: self.run,
                "PYTHONUNBUFFERED": "1",
                "WORKER_SCRATCH_DIR": str(self.folder / "scratch"),
                "DATABASE_URL": _elsewhere(self.database_url, ports["postgres"]),
                "REDIS_URL": _elsewhere(self.valkey.url, ports["valkey"]),
                "S3_ENDPOINT": endpoint,
                "S3_PUBLIC_ENDPOINT": endpoint,
                "SECRET_KEYS": SECRET_KEYS,
                "BASE_MODELS": json.dumps({"tiny": "tiny"}),
            }
        )

    def _await_api(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self.is_ready():
            self.tend()
            if self.crashes or time.monotonic() > deadline:
                child = self.slots["api"].child
                raise ServiceFailed(f"the API is not ready: {self.crashes or (child and child.tail())}")
            time.sleep(0.1)


def stragglers(run: str, folder: Path) -> list[str]:
    """Command lines of living processes that carry the marker of a run, or work in its folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
            line = (place / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        ours = f"{MARKER}={run}".encode() in environment or str(folder).encode() in line
        if ours and int(place.name) not in _forebears() and is_running(int(place.name)):
            found.append(f"{place.name} {line.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def _forebears() -> Iterable[int]:
    """This process and those that started it: their command line may name the folder too."""
    pid, found = os.getpid(), []
    while pid > 1:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def _port(url: str) -> int:
    port = make_url(url).port
    if port is None:
        raise ValueError("a server without a port")
    return port


def _elsewhere(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)
