"""The project's CUDA kernels against float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(False, reason="needs a GPU"),
    pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-3), (torch.float32, 3e-6)]),
]


def relative(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    return float((found.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(2, 5, 2 * 2560), (3, 7, 2 * 96), (1, 4097, 2 * 1030)])
def test_gated_units_and_their_gradients(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]):
    from duolora.kernels.geglu import geglu  # noqa: PLC0415 - needs Triton

    joined = torch.randn(shape, device="cpu", dtype=dtype, requires_grad=True)
    grad = torch.randn(*shape[:-1], shape[-1] // 2, device="cpu", dtype=dtype)
    exact = joined.detach().double().requires_grad_()
    value, gate = exact.chunk(2, dim=-1)
    expected = value * functional.gelu(gate)
    expected.backward(grad.double())

    found = geglu(joined)
    found.backward(grad)

    assert relative(found, expected.detach()) <= tolerance
    assert relative(joined.grad, exact.grad) <= tolerance


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 320, 32, 32), 32), ((1, 96, 7, 5), 16), ((3, 1920, 8, 8), 32), ((2, 64, 1, 1), 8)]
)
def test_normalisations_and_their_gradients(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...], groups: int, *, silu: bool
):
    from duolora.kernels.group_norm import group_norm  # noqa: PLC0415 - needs Triton

    def pictures() -> torch.Tensor:
        drawn = torch.randn(shape, device="cpu") * 3 + torch.randn(shape[1], 1, 1, device="cpu")
        return drawn.to(dtype).contiguous(memory_format=torch.channels_last)

    x, grad = pictures().requires_grad_(), pictures()
    weight, bias = (torch.randn(shape[1], device="cpu", dtype=dtype) for _ in range(2))
    exact = x.detach().double().requires_grad_()
    expected = functional.group_norm(exact, groups, weight.double(), bias.double(), 1e-5)
    expected = functional.silu(expected) if silu else expected
    expected.backward(grad.double())

    found = group_norm(x, weight, bias, groups=groups, eps=1e-5, silu=silu)
    found.backward(grad)

    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, expected.detach()) <= tolerance
    assert relative(x.grad, exact.grad) <= 2 * tolerance
