"""The project's CUDA kernels against float64: on a GPU where there is one, else in Triton's interpreter.

Run by `test_kernels` in a process of its own: the interpreter must be asked for before anybody imports Triton.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from duolora.kernels.geglu import geglu
from duolora.kernels.group_norm import group_norm
from duolora.kernels.layer_norm import added_norm

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
    torch.manual_seed(0)
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
@pytest.mark.parametrize(("shape", "groups"), [((2, 64, 9, 8), 32), ((1, 96, 7, 5), 16), ((2, 24, 3, 3), 8)])
def test_normalisations_and_their_gradients(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...], groups: int, *, silu: bool
):
    torch.manual_seed(0)

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


def added_norm_errors(dtype: torch.dtype, shape: tuple[int, ...], *, adds: bool, offset: float = 1.0) -> list[float]:
    """Errors of the sum, its normalisation, and the gradients of branch and residual, against float64."""
    torch.manual_seed(0)
    branch, residual = ((torch.randn(shape, device=DEVICE) * 3 + offset).to(dtype).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(shape[-1], device=DEVICE, dtype=dtype) for _ in range(2))
    grads = [torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(2)]
    exact = [tensor.detach().double().requires_grad_() for tensor in (branch, residual)]
    expected_sum = exact[0] + exact[1] if adds else exact[1] * 1
    expected = functional.layer_norm(expected_sum, shape[-1:], weight.double(), bias.double(), 1e-5)
    torch.autograd.backward((expected_sum, expected), [grad.double() for grad in grads])

    summed, found = added_norm(branch if adds else None, residual, weight, bias, eps=1e-5)
    torch.autograd.backward((summed, found), grads)

    errors = [relative(summed, expected_sum.detach()), relative(found, expected.detach())]
    learnt = zip((branch, residual), exact, strict=True) if adds else [(residual, exact[1])]
    return errors + [relative(one.grad, other.grad) for one, other in learnt]


@BOTH_KINDS
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 96), (1, 3, 640), (3, 7, 1280), (1, 2, 2100)])
def test_sums_their_normalisations_and_their_gradients(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...], *, adds: bool
):
    assert max(added_norm_errors(dtype, shape, adds=adds)) <= 1.5 * tolerance


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 70), channels=st.integers(2, 70), adds=st.booleans())
def test_rows_and_channels_may_be_any_number(rows: int, channels: int, *, adds: bool):
    assert max(added_norm_errors(torch.float32, (rows, channels), adds=adds)) <= 1e-5


def test_a_mean_far_from_zero_costs_no_more_than_its_own_digits():
    assert max(added_norm_errors(torch.float32, (4, 96), adds=True, offset=3000.0)) <= 1e-3


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_two_may_go_unused(used: int):
    x = torch.randn(3, 40, device=DEVICE, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    weight, bias = torch.full((40,), 2.0, device=DEVICE), torch.zeros(40, device=DEVICE)
    doubled = exact + exact
    (doubled, functional.layer_norm(doubled, (40,), weight.double(), bias.double()))[used].pow(3).sum().backward()
    added_norm(x, x, weight, bias, eps=1e-5)[used].pow(3).sum().backward()
    assert relative(x.grad, exact.grad) <= 3e-6


def test_inputs_and_gradients_may_lie_in_any_order_in_memory():
    branch, residual = (torch.randn(5, 40, 2, device=DEVICE).transpose(1, 2).requires_grad_() for _ in range(2))
    weight, bias = torch.randn(40, device=DEVICE), torch.randn(40, device=DEVICE)
    grads = [torch.randn(5, 40, 2, device=DEVICE).transpose(1, 2) for _ in range(2)]
    expected_sum = branch.detach() + residual.detach()
    expected_sum.requires_grad_()
    expected = functional.layer_norm(expected_sum, (40,), weight, bias)
    torch.autograd.backward((expected_sum, expected), grads)

    found = added_norm(branch, residual, weight, bias, eps=1e-5)
    torch.autograd.backward(found, grads)

    torch.testing.assert_close(found[1], expected)
    for tensor in (branch, residual):
        torch.testing.assert_close(tensor.grad, expected_sum.grad)


def test_weights_that_learn_are_refused_where_they_would_get_no_gradient():
    x, bias = torch.randn(3, 40, device=DEVICE), torch.zeros(40, device=DEVICE)
    weight = torch.ones(40, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="frozen weights"):
        added_norm(x, x, weight, bias, eps=1e-5)
    with torch.no_grad():
        assert torch.isfinite(added_norm(x, x, weight, bias, eps=1e-5)[1]).all()
