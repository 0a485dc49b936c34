from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duolora.errors import LayerGroupEmpty
from duolora.method.priors import Role, initial_mask, prior_loss, roles_by_resolution


def test_high_resolution_is_style_and_low_resolution_is_content() -> None:
    roles = roles_by_resolution({"a": 64, "b": 32, "c": 64})

    assert roles == {"a": Role.STYLE, "b": Role.CONTENT, "c": Role.STYLE}


def test_layers_are_split_at_the_geometric_middle() -> None:
    roles = roles_by_resolution({"8": 8, "16": 16, "32": 32, "64": 64})

    assert [role.value for role in roles.values()] == ["content", "content", "style", "style"]


def test_the_middle_resolution_of_three_is_content() -> None:
    assert roles_by_resolution({"16": 16, "32": 32, "64": 64})["32"] is Role.CONTENT


@pytest.mark.parametrize("resolutions", [{}, {"a": 32}, {"a": 32, "b": 32}])
def test_one_resolution_cannot_be_split(resolutions: dict[str, int]) -> None:
    with pytest.raises(LayerGroupEmpty):
        roles_by_resolution(resolutions)


@pytest.mark.parametrize(
    ("rank", "dominant", "share", "mask"),
    [
        (4, True, 0.5, [1, 1, 1, 1]),
        (4, False, 0.5, [1, 1, 0, 0]),
        (4, False, 0.0, [0, 0, 0, 0]),
        (4, False, 1.0, [1, 1, 1, 1]),
        (3, False, 0.9, [1, 1, 1]),
        (1, False, 0.4, [0]),
    ],
)
def test_mask_starts_with_all_ranks_of_the_dominant_side_and_the_leading_of_the_other(
    rank: int, dominant: bool, share: float, mask: list[float]
) -> None:
    assert initial_mask(rank, dominant=dominant, minor_share=share).tolist() == mask


@pytest.mark.parametrize(
    ("dominant", "minor", "hinge", "loss"),
    [
        ([1.0, 1.0], [0.0, 0.0], 1.0, 1.0),  # |m_dom| alone: the hinge is closed
        ([1.0, 1.0], [0.5, 0.5], 5.0, 1.0),
        ([1.0, 1.0], [1.0, 1.0], 5.0, 1.0),  # at the hinge
        ([0.5, 0.5], [1.0, 1.0], 1.0, 1.0),  # 0.5 + 1 * (1 - 0.5)
        ([0.5, 0.5], [1.0, 1.0], 3.0, 2.0),  # 0.5 + 3 * (1 - 0.5)
        ([0.5, 0.5], [1.0, 1.0], 0.0, 0.5),
        ([-0.5, 0.5], [1.0, -1.0], 1.0, 1.0),  # norms: signs do not matter
        ([0.0, 0.0], [0.0, 0.0], 1.0, 0.0),
        ([1.0], [1.0, 1.0, 0.0, 0.0], 1.0, 1.0),  # norms per rank: 1 against 1/2
    ],
)
def test_prior_loss_by_hand(dominant: list[float], minor: list[float], hinge: float, loss: float) -> None:
    assert prior_loss(torch.tensor(dominant), torch.tensor(minor), hinge).item() == pytest.approx(loss)


@given(
    dominant=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    minor=st.lists(st.floats(-2, 2), min_size=1, max_size=6),
    hinge=st.floats(0, 5),
)
def test_prior_loss_is_bounded_below_by_the_dominant_norm(
    dominant: list[float], minor: list[float], hinge: float
) -> None:
    loss = prior_loss(torch.tensor(dominant), torch.tensor(minor), hinge)

    assert loss.item() >= torch.tensor(dominant).abs().mean().item() - 1e-6


@pytest.mark.parametrize(("minor", "moves"), [(0.5, False), (1.5, True)])
def test_the_minor_side_is_pushed_only_when_it_outgrows_the_dominant_one(minor: float, moves: bool) -> None:
    minor_R = torch.full((3,), minor, requires_grad=True)

    prior_loss(torch.ones(3), minor_R, 1.0).backward()

    assert bool(minor_R.grad.abs().max() > 0) is moves
