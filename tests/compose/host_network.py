"""What a Docker engine changes of its machine's network and leaves changed: packet filters, forwarding, its bridge."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGE = Path("/sys/class/net/docker0")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
EMPTY_TABLES = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}


@contextmanager
def network_as_it_was() -> Iterator[None]:
    """Put back afterwards what an engine that starts and stops inside the `with` has changed."""
    had_bridge = BRIDGE.exists()
    forwarding = FORWARDING.read_text()
    programs = [program for program in ("iptables", "ip6tables") if shutil.which(program)]
    rules = {program: _rules(program) for program in programs}
    try:
        yield
    finally:
        for program in programs:
            if _rules(program) != rules[program]:
                subprocess.run([f"{program}-restore"], input=rules[program], text=True, check=True)
        if BRIDGE.exists() and not had_bridge:
            subprocess.run(["ip", "link", "delete", BRIDGE.name], check=True)
        FORWARDING.write_text(forwarding)


def _rules(program: str) -> str:
    """All rules as `restore` takes them. A table that is not there yet counts as an empty one: so it is put back."""
    tables = []
    for table, chains in EMPTY_TABLES.items():
        saved = subprocess.run([f"{program}-save", "-t", table], capture_output=True, text=True, check=False).stdout
        lines = [line for line in saved.splitlines() if not line.startswith("#")]
        tables += lines or [f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains), "COMMIT"]
    return "\n".join(tables) + "\n"
