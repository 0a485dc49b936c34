"""Runs tests of the project's CUDA kernels in a process of their own.

Triton's interpreter, which needs no GPU, must be asked for before anybody imports Triton.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is made for Linux only")


def assert_all_pass(cases: Path, count: int, *, interpreted: bool) -> None:
    """Run a file of tests and look that so many passed."""
    asked = {"TRITON_INTERPRET": "1"} if interpreted else {}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=--import-mode=importlib",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(cases),
    ]
    ended = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f" {count} passed" in ended.stdout
