"""Measurements in processes of their own: a card of another size, or another card; the last line said is the row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.gpu.workbench import FAILED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPOSITORY = Path(__file__).parents[3]

PATIENCE_S = 300
"""For one process."""


def rows_of(
    module: str, calls: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]] = ({},)
) -> list[dict[str, Any]]:
    """Run a module once for each list of arguments, all at the same time, and return a row for each.

    A row of a process that failed or took too long has only a `result` that says so; what still runs then is ended.
    """
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", module, *words],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=REPOSITORY,
                    env={**os.environ, **environments[index % len(environments)]},
                )
            )
            for index, words in enumerate(calls)
        ]
        for process in running:
            stack.callback(process.kill)
        return [_row(process) for process in running]


def _row(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for one process and read its row."""
    try:
        said, complaints = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return {"result": f"{FAILED} it did not end within {PATIENCE_S} s"}
    lines = said.strip().splitlines()
    if process.returncode != 0 or not lines:
        last = (complaints.strip().splitlines() or [""])[-1]
        return {"result": f"{FAILED} exit {process.returncode}: {last[-300:]}"}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def print_row(row: Mapping[str, Any]) -> None:
    """Say a row, as the last line of such a process."""
    sys.stdout.write(json.dumps(row) + "\n")
