"""How fast the front is: `python -m tests.benchmarks.front [start] [read] [plans] [streams]`.

Every figure that a machine's speed would decide comes as a ratio to something measured in the same run.

    start    POST /jobs until its job runs, with an idle worker; the stub stands in for the engine
    read     GET /jobs/{id} against a bare FastAPI handler that reads the same row
    plans    the statements that list and claim among 1,000 queued jobs, and how Postgres does them
    streams  500 listeners to events on one API process
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.local.processes import interrupted_by_signals
from deploy.local.stack import Stack
from tests.benchmarks import plans, reading, starting, streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STUB = Path(__file__).parents[1] / "worker" / "stub_engine.py"


def main() -> None:
    """Measure what was asked for and print it, a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*MEASUREMENTS, []], help="all, if none is named")
    wanted = parser.parse_args().what or list(MEASUREMENTS)
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="duolora-front-") as name:
        for what in wanted:
            folder = Path(name) / what
            figures = MEASUREMENTS[what](folder)
            sys.stdout.write(json.dumps({what: figures}) + "\n")
            sys.stdout.flush()


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """The whole service, durable, with the stub behind the engine's pipe."""
    runs = folder / "runs"
    runs.mkdir(parents=True)
    command = json.dumps([sys.executable, "-ES", str(STUB), str(runs), "{}"])
    with Stack(folder / "data", environment=os.environ | {"ENGINE_COMMAND": command}) as stack:
        yield stack


def _start(folder: Path) -> dict[str, Any]:
    with running_stack(folder) as stack:
        return starting.measure(stack)


def _read(folder: Path) -> dict[str, Any]:
    with running_stack(folder) as stack:
        return reading.measure(stack)


def _streams(folder: Path) -> dict[str, Any]:
    with running_stack(folder) as stack:
        return streams.measure(stack)


MEASUREMENTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "start": _start,
    "read": _read,
    "plans": plans.measure,
    "streams": _streams,
}


if __name__ == "__main__":
    main()
