"""The project's CUDA kernels; what they are held to is in `kernel_cases`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("kernel_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is made for Linux only")
def test_kernels_and_their_gradients_are_right():
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(CASES),
    ]
    ended = subprocess.run(
        command, env=os.environ | interpreted, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "18 passed" in ended.stdout
