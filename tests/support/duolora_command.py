"""The `duolora` command as a person at a terminal runs it: started, read line by line, stopped by a signal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from tests.support.process_list import descendants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RunningCommand:
    """One `duolora ...` process."""

    def __init__(self, process: subprocess.Popen[str], output: IO[str]) -> None:
        self.process = process
        self._output = output

    def text(self) -> str:
        """All it has printed."""
        self._output.seek(0)
        return self._output.read()

    def wait_for(self, word: str, timeout_s: float = 60) -> str:
        """All it has printed, once `word` is in it."""
        deadline = time.monotonic() + timeout_s
        while word not in (text := self.text()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"no {word!r} after {timeout_s} s:\n{text}"
            time.sleep(0.05)
        return text

    def family(self) -> set[int]:
        """The process and all it has started."""
        return {self.process.pid} | descendants(self.process.pid)


@contextmanager
def duolora(*arguments: str, output: Path, **environment: str) -> Iterator[RunningCommand]:
    """Run `duolora ARGUMENTS` in the background; killed at the end if it still runs."""
    with output.open("w+") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "duolora.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )
        try:
            yield RunningCommand(process, file)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
