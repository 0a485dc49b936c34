"""A Docker engine to test with: the one that runs, or one of our own that leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from deploy.local.processes import LocalStackError, spawn
from tests.compose.host_network import network_as_it_was

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


class NoEngine(Exception):
    """No Docker engine runs here and none can be started; the message says why."""


@dataclass(frozen=True)
class Docker:
    """The docker command, spoken to one engine."""

    environment: Mapping[str, str]

    def run(self, *arguments: str, timeout_s: float = 120, stdin: IO[bytes] | None = None) -> str:
        """Run `docker ARGUMENTS` and return what it prints; AssertionError shows what it printed when it fails."""
        done = self.attempt(*arguments, timeout_s=timeout_s, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-6000:]}{done.stdout[-2000:]}"
        return done.stdout

    def attempt(
        self, *arguments: str, timeout_s: float = 120, stdin: IO[bytes] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker ARGUMENTS`, however it ends."""
        return subprocess.run(
            ["docker", *arguments],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


@contextmanager
def docker_engine(folder: Path) -> Iterator[Docker]:
    """An engine with Compose.

    Args:
        folder: Empty; what is installed and stored for the test goes there.

    Raises:
        NoEngine: there is none.
    """
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG") if name in os.environ
    }
    with ExitStack() as stack:
        docker = Docker(inherited)
        if shutil.which("docker") is None or docker.attempt("info").returncode != 0:
            docker = Docker(
                {**inherited, "DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_CONFIG": f"{folder}/config"}
            )
            stack.enter_context(_own_engine(docker, folder))
        if docker.attempt("compose", "version").returncode != 0:
            _plug_compose_in(folder)
            docker = Docker({**docker.environment, "DOCKER_CONFIG": f"{folder}/config"})
        yield docker


@contextmanager
def _own_engine(docker: Docker, folder: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine runs, and only root can start one")
    if shutil.which("dockerd") is None:
        _install_engine()
    with network_as_it_was():
        child = spawn(
            "dockerd",
            [
                *("dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
                *("--pidfile", f"{folder}/dockerd.pid", "--host", docker.environment["DOCKER_HOST"]),
            ],
            log=folder / "dockerd.log",
            env=os.environ,
            death_signal=signal.SIGTERM,
            grace_s=STOP_TIMEOUT_S,
        )
        try:
            child.wait_ready(lambda: docker.attempt("info").returncode == 0, START_TIMEOUT_S)
        except LocalStackError as error:
            raise NoEngine(f"a Docker engine cannot be started: {error}") from error
        try:
            yield
        finally:
            child.stop()
            left = _left_by(folder)
            assert left == [], f"the engine has ended and left {left}"


def _left_by(folder: Path) -> list[str]:
    """Mounts under a folder, and command lines of processes that were told of it."""
    found = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            found.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [each for each in found if f"{folder}/" in each]


def _install_engine() -> None:
    """Get the engine by apt, as CI's machines are bare."""
    if shutil.which("apt-get") is None or not os.environ.get("CI"):
        raise NoEngine("no Docker engine is installed (CI=true has it installed by apt)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", "docker.io"]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoEngine(f"no Docker engine can be installed: {done.stderr[-500:]}")


def _plug_compose_in(folder: Path) -> None:
    """Give the docker command the Compose of this environment. The package's own command always exits with 0."""
    package = find_spec("compose")
    if package is None or not package.submodule_search_locations:
        raise NoEngine("the engine has no Compose, and neither has this environment")
    plugin = folder / "config/cli-plugins/docker-compose"
    plugin.parent.mkdir(parents=True)
    plugin.symlink_to(Path(package.submodule_search_locations[0]) / "docker-compose")
