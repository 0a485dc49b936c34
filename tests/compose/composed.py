"""The project's own compose file, unchanged, brought up under a name, tags and ports of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.environment_file import EXAMPLE, write
from deploy.local.processes import LOOPBACK, free_port
from tests.compose.docker import Docker
from tests.support.installation import Installation

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PROJECT = "duolora-e2e"
PRIVATE = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
"""Where engines put the machine that they run on, as containers see it."""
BUILD_TIMEOUT_S = 1800
UP_TIMEOUT_S = 600


class Composed:
    """One project of Compose. `folder` gets its .env."""

    def __init__(self, docker: Docker, folder: Path) -> None:
        self._env_file = folder / ".env"
        write(self._env_file, EXAMPLE.read_text())
        self.url = f"http://{LOOPBACK}:{(port := free_port())}"
        settings = {
            "DUOLORA_TAG": PROJECT,
            "API_PORT": str(port),
            "S3_PORT": str(free_port()),
            "WEBHOOK_ALLOW_CIDRS": PRIVATE,
            "WORKER_CHECKPOINT_S": "3",
        }
        self.docker = Docker({**docker.environment, **settings})
        self._others = self._volumes()

    def compose(self, *arguments: str, timeout_s: float = 120, **variables: str) -> str:
        """Run `docker compose ARGUMENTS` and return what it prints."""
        docker = Docker({**self.docker.environment, **variables})
        file = ("--file", str(ROOT / "docker-compose.yml"), "--env-file", str(self._env_file))
        return docker.run("compose", "--project-name", PROJECT, *file, *arguments, timeout_s=timeout_s)

    def build(self, *services: str) -> None:
        """Build the images of some services; without names, of all that run."""
        with served_wheels(self.docker) as arguments:
            self.compose("build", *services, timeout_s=BUILD_TIMEOUT_S, **arguments)

    def up(self, *services: str) -> None:
        """Start all services or some, and wait until they are well; AssertionError shows the logs if they are not."""
        try:
            self.compose("up", "--detach", "--wait", *services, timeout_s=UP_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(self.compose("logs", "--no-color", "--tail=30")) from error

    def remove(self) -> None:
        """Take everything down, with the volumes and the images that were built."""
        self.compose("down", "--volumes")
        ours = ("--filter", f"reference=duolora-*:{PROJECT}", "--format", "{{.Repository}}:{{.Tag}}")
        if built := self.docker.run("image", "ls", *ours).split():
            self.docker.run("image", "rm", *built)

    def containers(self) -> dict[str, Any]:
        """What the engine knows of the project's containers, by service."""
        ids = self.docker.run(
            "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"
        ).split()
        found = json.loads(self.docker.run("inspect", *ids)) if ids else []
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def left(self) -> dict[str, str]:
        """Containers and networks of the project that there are, and volumes that were not there before it, by kind."""
        label = ("--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
        return {
            "containers": self.docker.run("ps", "--all", *label),
            "volumes": " ".join(self._volumes() - self._others),
            "networks": self.docker.run("network", "ls", *label),
        }

    def _volumes(self) -> set[str]:
        """Of all projects and of none: one without a name has no project's label."""
        return set(self.docker.run("volume", "ls", "--quiet").split())

    def installation(self) -> Installation:
        """The running service with a key that is made for it, and one of another account."""
        key, secret = self._new_key("default")
        return Installation(
            url=self.url,
            api_key=key,
            webhook_host=self._gateway(),
            webhook_secret=secret,
            other_api_key=self._new_key("stranger")[0],
        )

    def _new_key(self, account: str) -> tuple[str, str]:
        """A key and the secret that signs its account's webhooks, as an operator makes them."""
        said = self.compose("exec", "-T", "api", "sh", "-c", f"duolora keys create --account {account} 2>&1")
        key, secret = re.search(r"^duo_\S+$", said, re.MULTILINE), re.search(r"whsec_\S+", said)
        assert key is not None, said
        assert secret is not None, said
        return key[0], secret[0]

    def _gateway(self) -> str:
        """This machine's address in the network by which the dispatcher reaches the world."""
        return gateway(self.docker, f"{PROJECT}_outside")


def gateway(docker: Docker, network: str) -> str:
    """This machine's address in a network of containers."""
    config = json.loads(docker.run("network", "inspect", network))[0]["IPAM"]["Config"][0]
    return str(config.get("Gateway") or ip_network(config["Subnet"])[1])  # the default network may tell no gateway


@contextmanager
def served_wheels(docker: Docker) -> Iterator[dict[str, str]]:
    """Offer a build the folders in which this machine's pip looks for wheels; yields the build arguments."""
    host = gateway(docker, "bridge")
    with ExitStack() as servers:
        links = []
        for folder in _folders_of_pip():
            handler = partial(_Quiet, directory=str(folder))
            server = servers.enter_context(ThreadingHTTPServer((host, 0), handler))
            servers.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            links.append(f"http://{host}:{server.server_address[1]}/")
        yield {"PIP_FIND_LINKS": " ".join(links), "PIP_TRUSTED_HOST": host} if links else {}


def _folders_of_pip() -> list[Path]:
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    places = f"{configured} {os.environ.get('PIP_FIND_LINKS', '')}".split()
    return [folder for place in dict.fromkeys(places) if (folder := Path(place)).is_dir()]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
