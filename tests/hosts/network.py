"""Several machines on one: network namespaces, each with a cable of its own to a switch, and cables can be pulled.

The machine that runs the tests is on the switch too, with an address for each server. Needs root, and `ip` of iproute2.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Self

from tests.support.process_list import is_running

PREFIX = "duohost-"
"""Of all namespaces; the next part of a name is the process that made them."""
NOWHERE = "02:00:00:00:00:99"
"""A link address that nobody on the switch has."""


class NoNetwork(Exception):
    """This machine or this user cannot make namespaces."""


class Host:
    """A machine of its own: nothing but its cable leads out of it."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self._network = network
        self.name = name
        self.address = address
        self.namespace = f"{network.prefix}{name}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command that is to run on it."""
        return ("ip", "netns", "exec", self.namespace)

    def pull(self) -> None:
        """Pull its cable: whatever is sent, either way, is lost without a word."""
        _ip("-n", self._network.switch, "link", "set", self.name, "down")

    def plug(self) -> None:
        """Plug it in again."""
        _ip("-n", self._network.switch, "link", "set", self.name, "up")

    def lose(self, server: str) -> None:
        """Lose the way to one server only: what is sent there goes nowhere."""
        _ip("-n", self.namespace, "neigh", "replace", server, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent")

    def find(self, server: str) -> None:
        """Find the way again."""
        _ip("-n", self.namespace, "neigh", "del", server, "dev", "eth0")


class Network:
    """A switch, this machine on it, and hosts. Use as a context manager; leaves nothing behind."""

    def __init__(self) -> None:
        self.prefix = f"{PREFIX}{os.getpid()}-"
        self.switch = f"{self.prefix}switch"
        self._cable = f"duo{secrets.token_hex(4)}"
        # 198.18.0.0/15 is set aside for benchmarks of networks (RFC 2544), so that nobody's routes lead there.
        self._subnet = f"198.18.{secrets.randbelow(254) + 1}"
        self._hosts = 0

    def address(self, number: int) -> str:
        """One of this machine's addresses, 1 to 9."""
        return f"{self._subnet}.{number}"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise NoNetwork("network namespaces need root")
        if shutil.which("ip") is None:
            raise NoNetwork("there is no `ip` here (Debian: iproute2)")
        _sweep()
        try:
            self._lay()
        except subprocess.CalledProcessError as error:
            self.__exit__()
            raise NoNetwork(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self.prefix)

    def add_host(self, name: str) -> Host:
        """Connect one machine more."""
        self._hosts += 1
        host = Host(self, name, f"{self._subnet}.{9 + self._hosts}")
        _ip("netns", "add", host.namespace)
        _ip("-n", self.switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self.switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", device, "up")
        return host

    def _lay(self) -> None:
        """Make the switch and this machine's cable. The switch has a namespace too: no packet filter of ours counts."""
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "middle", "netns", self.switch)
        _ip("-n", self.switch, "link", "set", "middle", "master", "bridge", "up")
        for number in range(1, 10):
            _ip("address", "add", f"{self.address(number)}/24", "dev", self._cable)
        _ip("link", "set", self._cable, "up")


def _sweep() -> None:
    """Remove what a killed run has left."""
    for place in Path("/run/netns").glob(f"{PREFIX}*"):
        owner = place.name.removeprefix(PREFIX).partition("-")[0]
        if not is_running(int(owner)):
            _remove(place.name)


def _remove(prefix: str) -> None:
    """Remove namespaces; the cables go with their ends."""
    for place in Path("/run/netns").glob(f"{prefix}*"):
        _ip("netns", "delete", place.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)  # noqa: S607 - on the path
