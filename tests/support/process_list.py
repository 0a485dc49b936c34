"""What runs on this machine, as a person would look it up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """All living children, grandchildren and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            found.add(child)
            queue.append(child)
    return found


def naming(text: str) -> list[str]:
    """Command lines of living processes that contain a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line:
            found.append(f"{folder.name} {line}")
    return found


def wait_until_gone(pids: Iterable[int], timeout_s: float = 5.0) -> None:
    """Return once none of the processes lives; AssertionError names those that do after `timeout_s`."""
    left = set(pids)
    deadline = time.monotonic() + timeout_s
    while left := {pid for pid in left if is_running(pid)}:
        assert time.monotonic() < deadline, f"still running: {sorted(left)}"
        time.sleep(0.02)
