from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.errors import InvalidLora
from duolora.lora.canonical import canonical_layer, canonicalise
from duolora.lora.weights import LoraLayer, LoraWeights
from tests.duolora.pico import random_layer

sizes = st.integers(1, 12)
ranks = st.integers(1, 9)
seeds = st.integers(0, 2**31 - 1)
alphas = st.sampled_from([0.5, 1.0, 4.0, 32.0])


def unit_vectors(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular values and unit left (O, R) and right (R, I) vectors of a canonical layer."""
    values_R = layer.up_OR.norm(dim=0) * layer.down_RI.norm(dim=1)
    return values_R, layer.up_OR / layer.up_OR.norm(dim=0), layer.down_RI / layer.down_RI.norm(dim=1)[:, None]


@given(outputs=sizes, inputs=sizes, rank=ranks, seed=seeds, alpha=alphas)
@settings(deadline=None, max_examples=60)
def test_canonical_form_keeps_the_delta(outputs: int, inputs: int, rank: int, seed: int, alpha: float) -> None:
    layer = random_layer(outputs, inputs, rank, seed=seed, alpha=alpha)

    canonical = canonical_layer(layer)

    size = layer.delta_OI().norm().item()
    torch.testing.assert_close(canonical.delta_OI(), layer.delta_OI(), rtol=0, atol=1e-5 * size)
    assert canonical.alpha == canonical.rank == min(outputs, inputs, rank)


@given(outputs=sizes, inputs=sizes, rank=ranks, seed=seeds)
@settings(deadline=None, max_examples=60)
def test_singular_values_fall_and_are_those_of_the_delta(outputs: int, inputs: int, rank: int, seed: int) -> None:
    layer = random_layer(outputs, inputs, rank, seed=seed)

    canonical = canonical_layer(layer)

    values_R, _, _ = unit_vectors(canonical)
    true_R = torch.linalg.svdvals(layer.delta_OI().double())[: canonical.rank].float()
    size = true_R[0].item()
    assert bool((values_R[1:] <= values_R[:-1] + 1e-5 * size).all())
    torch.testing.assert_close(values_R, true_R, rtol=1e-4, atol=1e-5 * size)


def test_singular_vectors_are_orthogonal_and_share_the_singular_value_evenly() -> None:
    canonical = canonical_layer(random_layer(20, 30, 6, alpha=3.0))

    _, left_OR, right_RI = unit_vectors(canonical)
    torch.testing.assert_close(left_OR.mT @ left_OR, torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(right_RI @ right_RI.mT, torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(canonical.up_OR.norm(dim=0), canonical.down_RI.norm(dim=1))


@given(seed=seeds, alpha=alphas)
@settings(deadline=None, max_examples=40)
def test_any_invertible_rotation_of_the_factors_has_the_same_canonical_form(seed: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Singular values 5, 4, 3, 2, 1: well apart, so that the form is unique and the comparison well conditioned.
    left_OR = torch.linalg.qr(torch.randn(15, 5, generator=generator, dtype=torch.float64))[0]
    right_IR = torch.linalg.qr(torch.randn(12, 5, generator=generator, dtype=torch.float64))[0]
    values_R = torch.arange(5.0, 0.0, -1.0, dtype=torch.float64)
    turn_RR = torch.randn(5, 5, generator=generator, dtype=torch.float64) + 3 * torch.eye(5, dtype=torch.float64)
    plain = LoraLayer(right_IR.mT, left_OR * values_R, alpha)
    turned = LoraLayer(torch.linalg.inv(turn_RR) @ right_IR.mT, (left_OR * values_R) @ turn_RR, alpha)

    one, other = canonical_layer(plain), canonical_layer(turned)

    torch.testing.assert_close(one.up_OR, other.up_OR, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.down_RI, other.down_RI, rtol=0, atol=1e-4)


def test_canonical_form_of_a_canonical_layer_is_itself() -> None:
    once = canonical_layer(random_layer(9, 8, 4, alpha=2.0))

    twice = canonical_layer(once)

    torch.testing.assert_close(twice.up_OR, once.up_OR, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice.down_RI, once.down_RI, rtol=1e-4, atol=1e-5)


@given(
    seed=seeds,
    alpha=st.sampled_from([-2.0, 0.5, 8.0]),
    last_share=st.sampled_from([1.0, 1e-2, 1e-4, 1e-6]),
    closeness=st.sampled_from([0.0, 1.0, 1e2]),
)
@settings(deadline=None, max_examples=80)
def test_form_is_canonical_however_far_apart_singular_values_and_however_close_ranks_are(
    seed: int, alpha: float, last_share: float, closeness: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    common_1I = torch.randn(1, 40, generator=generator, dtype=torch.float64)
    down_RI = torch.randn(6, 40, generator=generator, dtype=torch.float64) + closeness * common_1I
    shares_R = torch.logspace(0, math.log10(last_share), 6, dtype=torch.float64)
    left_OR = torch.linalg.qr(torch.randn(30, 6, generator=generator, dtype=torch.float64))[0]
    turn_RR = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    layer = LoraLayer(down_RI, (left_OR * shares_R) @ turn_RR, alpha)

    canonical = canonical_layer(layer)

    true_OI = layer.scale * layer.up_OR @ layer.down_RI
    found_OI = canonical.up_OR.double() @ canonical.down_RI.double()
    assert (found_OI - true_OI).norm() <= 1e-6 * true_OI.norm()
    values_R, left_OR, right_RI = unit_vectors(canonical)
    torch.testing.assert_close(left_OR.mT @ left_OR, torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(right_RI @ right_RI.mT, torch.eye(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(values_R.double(), torch.linalg.svdvals(true_OI)[:6], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("rank", "step"), [(4, 0.003), (12, 0.2), (16, 0.3)])
def test_ranks_that_depend_on_each_other_in_a_chain_are_not_taken_by_their_gram_matrices(
    rank: int, step: float
) -> None:
    """Every row stands well apart from the one before it, and yet all of them together hardly do."""
    generator = torch.Generator().manual_seed(rank)
    basis_KI = torch.linalg.qr(torch.randn(40, rank, generator=generator, dtype=torch.float64))[0].mT
    down_RI = step * basis_KI
    down_RI[1:] += basis_KI[:-1]
    left_OR = torch.linalg.qr(torch.randn(30, rank, generator=generator, dtype=torch.float64))[0]
    layer = LoraLayer(down_RI.float(), (left_OR @ torch.linalg.inv(down_RI @ basis_KI.mT)).float(), float(rank))

    canonical = canonical_layer(layer)

    values_R, left_OR, _ = unit_vectors(canonical)
    torch.testing.assert_close(left_OR.mT @ left_OR, torch.eye(rank), rtol=0, atol=1e-5)
    true_R = torch.linalg.svdvals(layer.up_OR.double() @ layer.down_RI.double())[:rank]
    torch.testing.assert_close(values_R.double(), true_R, rtol=1e-4, atol=0)


def test_factors_that_hold_no_numbers_are_refused() -> None:
    layer = random_layer(6, 6, 2)
    with pytest.raises(InvalidLora, match="infinite"):
        canonical_layer(LoraLayer(layer.down_RI * torch.inf, layer.up_OR, 2.0))


def test_signs_are_fixed_by_the_largest_entry_of_each_left_vector() -> None:
    canonical = canonical_layer(random_layer(20, 30, 6))

    assert bool((canonical.up_OR.amax(dim=0) == canonical.up_OR.abs().amax(dim=0)).all())


def test_rank_deficient_layer_keeps_its_delta_and_ends_in_zeros() -> None:
    down_RI = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    layer = LoraLayer(torch.cat([down_RI[:2], down_RI[:2]]), random_layer(8, 10, 4).up_OR, 4.0)  # rank 2 of 4

    canonical = canonical_layer(layer)

    values_R, _, _ = unit_vectors(canonical)
    assert canonical.rank == 4
    assert values_R[1] > 0.1
    assert values_R[2:].max() < 1e-5 * values_R[0]
    torch.testing.assert_close(canonical.delta_OI(), layer.delta_OI(), rtol=0, atol=1e-5)


def test_layer_that_changes_nothing_stays_so() -> None:
    canonical = canonical_layer(LoraLayer(torch.randn(3, 5), torch.zeros(4, 3), 3.0))

    assert torch.equal(canonical.delta_OI(), torch.zeros(4, 5))


def test_canonicalise_keeps_names_and_metadata() -> None:
    weights = LoraWeights({"unet.a": random_layer(4, 4, 2), "unet.b": random_layer(4, 6, 3)}, {"modelspec.title": "t"})

    canonical = canonicalise(weights)

    assert list(canonical.layers) == ["unet.a", "unet.b"]
    assert canonical.metadata == {"modelspec.title": "t"}
