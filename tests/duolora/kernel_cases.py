"""The project's CUDA kernels against float64: on a GPU where there is one, else in Triton's interpreter.

Run by `test_kernels` in a process of its own: the interpreter must be asked for before anybody imports Triton.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from duolora.kernels.geglu import geglu
from duolora.kernels.group_norm import group_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts bfloat16 off instead of rounding it.
BOTH_KINDS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float32, 3e-6)])


def relative(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    return float((found.detach().double() - expected).norm() / expected.norm())


@BOTH_KINDS
@pytest.mark.parametrize("shape", [(2, 5, 2 * 96), (1, 3, 2 * 1030), (2, 2, 2 * 2048)])
def test_gated_units_and_their_gradients(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]):
    joined = torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)
    grad = torch.randn(*shape[:-1], shape[-1] // 2, device=DEVICE, dtype=dtype)
    exact = joined.detach().double().requires_grad_()
    value, gate = exact.chunk(2, dim=-1)
    expected = value * functional.gelu(gate)
    expected.backward(grad.double())

    found = geglu(joined)
    found.backward(grad)

    assert relative(found, expected.detach()) <= tolerance
    assert relative(joined.grad, exact.grad) <= tolerance


@BOTH_KINDS
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("shape", "groups"), [((2, 64, 9, 8), 32), ((1, 96, 7, 5), 16), ((2, 24, 1, 1), 8)])
def test_normalisations_and_their_gradients(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...], groups: int, *, silu: bool
):
    def pictures() -> torch.Tensor:
        drawn = torch.randn(shape, device=DEVICE) * 3 + torch.randn(shape[1], 1, 1, device=DEVICE)
        return drawn.to(dtype).contiguous(memory_format=torch.channels_last)

    x, grad = pictures().requires_grad_(), pictures()
    weight, bias = (torch.randn(shape[1], device=DEVICE, dtype=dtype) for _ in range(2))
    exact = x.detach().double().requires_grad_()
    expected = functional.group_norm(exact, groups, weight.double(), bias.double(), 1e-5)
    expected = functional.silu(expected) if silu else expected
    expected.backward(grad.double())

    found = group_norm(x, weight, bias, groups=groups, eps=1e-5, silu=silu)
    found.backward(grad)

    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected.detach()) <= tolerance
    assert relative(x.grad, exact.grad) <= 2 * tolerance
