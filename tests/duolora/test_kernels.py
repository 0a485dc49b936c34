"""The project's CUDA kernels against float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-3), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shape", [(2, 5, 2 * 2560), (3, 7, 2 * 96), (1, 4097, 2 * 1030)])
def test_gated_units_and_their_gradients(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]):
    from duolora.kernels import geglu  # noqa: PLC0415 - needs Triton

    joined = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
    grad = torch.randn(*shape[:-1], shape[-1] // 2, device="cuda", dtype=dtype)
    exact = joined.detach().double().requires_grad_()
    value, gate = exact.chunk(2, dim=-1)
    expected = value * functional.gelu(gate)
    expected.backward(grad.double())

    found = geglu(joined)
    found.backward(grad)

    assert joined.grad is not None
    assert exact.grad is not None
    assert relative(found, expected.detach()) <= tolerance
    assert relative(joined.grad, exact.grad) <= tolerance
