"""The project's CUDA kernels; what they are held to is in `kernel_cases`."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.duolora.interpreted import NEEDS_TRITON, assert_all_pass


@NEEDS_TRITON
def test_kernels_and_their_gradients_are_right():
    assert_all_pass(Path(__file__).with_name("kernel_cases.py"), 40, interpreted=not torch.cuda.is_available())
