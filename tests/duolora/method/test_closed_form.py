"""The closed form against the same least squares solved densely, in float64, on the stacked outputs of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.method.closed_form import rank_gram, solve_masks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SIDES = ("content", "style")
seeds = st.integers(0, 2**31 - 1)
side_ranks = st.integers(1, 4)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of one tenant: joined factors, where the sides' ranks stand, and the inputs that each side brings."""

    up_OR: Tensor
    down_RI: Tensor
    spans: Mapping[str, slice]
    inputs_XI: Mapping[str, Tensor]

    def outputs(self, side: str) -> Tensor:
        """What every rank adds to the layer's output, (X, O, R)."""
        return torch.einsum("or,xr->xor", self.up_OR, self.inputs_XI[side] @ self.down_RI.mT)

    def own(self, side: str) -> Tensor:
        """The mask of a side alone, (R,)."""
        own_R = self.up_OR.new_zeros(self.up_OR.shape[1])
        own_R[self.spans[side]] = 1
        return own_R

    def grams(self) -> dict[str, Tensor]:
        """What the closed form is given."""
        hidden = {side: inputs_XI @ self.down_RI.mT for side, inputs_XI in self.inputs_XI.items()}
        return {
            side: rank_gram(self.up_OR[None], (hidden_XR.mT @ hidden_XR / len(hidden_XR))[None])
            for side, hidden_XR in hidden.items()
        }


def random_layer(
    seed: int, ranks: tuple[int, int], *, outputs: int = 7, inputs: int = 9, samples: tuple[int, int] = (20, 13)
) -> Layer:
    """Standard normal factors and inputs, in float64; the sides see other inputs, and other numbers of them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    total = sum(ranks)
    return Layer(
        normal(outputs, total),
        normal(total, inputs),
        {"content": slice(0, ranks[0]), "style": slice(ranks[0], total)},
        {side: normal(count, inputs) for side, count in zip(SIDES, samples, strict=True)},
    )


def solved(layer: Layer, *, ridge: float, toward: float) -> Tensor:
    """The closed form of one tenant, (R,)."""
    return solve_masks(layer.grams(), layer.spans, ridge=ridge, toward=toward)[0]


def solved_densely(layer: Layer, *, ridge: float, toward: float) -> Tensor:
    """A row for every output of every input, then a row for every mask's pull; (R,) by a general solver."""
    rows, wanted = [], []
    for side in layer.spans:
        outputs_XOR = layer.outputs(side)
        target_XO = outputs_XOR @ layer.own(side)
        size = target_XO.square().sum(dim=1).mean().sqrt() * len(outputs_XOR) ** 0.5
        rows.append(outputs_XOR.flatten(0, 1) / size)
        wanted.append(target_XO.flatten() / size)
    data_MR = torch.cat(rows)
    pull = (ridge * data_MR.square().sum(dim=0).mean()).sqrt()
    ranks = data_MR.shape[1]
    system = torch.cat([data_MR, pull * torch.eye(ranks, dtype=torch.float64)])
    goal = torch.cat([*wanted, pull * torch.full((ranks,), toward, dtype=torch.float64)])
    return torch.linalg.lstsq(system, goal[:, None], driver="gelsd").solution[:, 0].float()


@given(
    seed=seeds,
    ranks=st.tuples(side_ranks, side_ranks),
    ridge=st.sampled_from([1e-3, 0.05, 1.0]),
    toward=st.floats(0, 1),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_masks_are_those_of_the_dense_least_squares(
    seed: int, ranks: tuple[int, int], ridge: float, toward: float
) -> None:
    layer = random_layer(seed, ranks)

    found_R = solved(layer, ridge=ridge, toward=toward)

    torch.testing.assert_close(found_R, solved_densely(layer, ridge=ridge, toward=toward), rtol=1e-5, atol=1e-5)


@given(seed=seeds, ranks=st.tuples(st.integers(4, 6), st.integers(4, 6)))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_more_ranks_than_the_inputs_can_tell_apart_are_settled_by_the_ridge(seed: int, ranks: tuple[int, int]) -> None:
    """One input a side gives each Gram matrix at most O independent rows: without the ridge nothing is unique."""
    layer = random_layer(seed, ranks, outputs=2, samples=(1, 1))

    found_R = solved(layer, ridge=0.05, toward=0.5)

    torch.testing.assert_close(found_R, solved_densely(layer, ridge=0.05, toward=0.5), rtol=1e-5, atol=1e-5)


def test_gram_is_the_mean_product_of_the_ranks_outputs() -> None:
    layer = random_layer(3, (2, 3))
    outputs_XOR = layer.outputs("style")

    expected = torch.einsum("xoi,xoj->ij", outputs_XOR, outputs_XOR) / len(outputs_XOR)

    torch.testing.assert_close(layer.grams()["style"][0], expected)


@given(seeds=st.lists(seeds, min_size=2, max_size=4), ranks=st.tuples(side_ranks, side_ranks))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_tenants_solved_together_get_what_each_gets_alone(seeds: list[int], ranks: tuple[int, int]) -> None:
    """Their LoRAs and inputs differ a lot in size, which the ridge of one must not feel in another."""
    layers = [random_layer(seed, ranks) for seed in seeds]
    grams = [{side: 10.0**index * gram for side, gram in layer.grams().items()} for index, layer in enumerate(layers)]
    together_JR = solve_masks(
        {side: torch.cat([of[side] for of in grams]) for side in SIDES}, layers[0].spans, ridge=0.05, toward=0.3
    )

    for mask_R, layer in zip(together_JR, layers, strict=True):
        torch.testing.assert_close(mask_R, solved(layer, ridge=0.05, toward=0.3), rtol=1e-5, atol=1e-6)


@given(seed=seeds, ranks=st.tuples(side_ranks, side_ranks), content=st.floats(1e-2, 1e2), style=st.floats(1e-2, 1e2))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_both_sides_weigh_the_same_however_large_their_inputs(
    seed: int, ranks: tuple[int, int], content: float, style: float
) -> None:
    layer = random_layer(seed, ranks)
    scaled = Layer(
        layer.up_OR,
        layer.down_RI,
        layer.spans,
        {side: factor * layer.inputs_XI[side] for side, factor in (("content", content), ("style", style))},
    )

    torch.testing.assert_close(
        solved(scaled, ridge=0.05, toward=0.5), solved(layer, ridge=0.05, toward=0.5), rtol=1e-4, atol=1e-5
    )


@given(seed=seeds, ranks=st.tuples(side_ranks, side_ranks))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_sides_whose_inputs_do_not_meet_keep_every_rank(seed: int, ranks: tuple[int, int]) -> None:
    """Each side's ranks answer to its own inputs only, so that nothing has to be given up: all ones."""
    layer = apart(
        random_layer(seed, ranks), answering_to={"content": ("content",) * ranks[0], "style": ("style",) * ranks[1]}
    )

    torch.testing.assert_close(solved(layer, ridge=1e-9, toward=0.5), torch.ones(sum(ranks)), rtol=0, atol=1e-4)


@given(seed=seeds, good=st.integers(1, 3), bad=st.integers(1, 2), style=side_ranks)
@settings(deadline=None, derandomize=True, max_examples=30)
def test_ranks_that_answer_to_the_other_sides_inputs_only_are_switched_off(
    seed: int, good: int, bad: int, style: int
) -> None:
    """The content LoRA has ranks that only style pictures wake: 0. All others are needed whole: 1."""
    layer = apart(
        random_layer(seed, (good + bad, style)),
        answering_to={"content": ("content",) * good + ("style",) * bad, "style": ("style",) * style},
    )

    expected = torch.tensor([1.0] * good + [0.0] * bad + [1.0] * style)
    torch.testing.assert_close(solved(layer, ridge=1e-9, toward=0.5), expected, rtol=0, atol=1e-3)


def apart(layer: Layer, answering_to: Mapping[str, tuple[str, ...]]) -> Layer:
    """The same layer with content inputs in the first half of the dimensions, style inputs in the second, and every
    rank blind to the half that it does not answer to."""
    inputs = layer.down_RI.shape[1]
    halves = {"content": slice(0, inputs // 2), "style": slice(inputs // 2, inputs)}

    def only(rows_XI: Tensor, side: str) -> Tensor:
        kept_XI = torch.zeros_like(rows_XI)
        kept_XI[:, halves[side]] = rows_XI[:, halves[side]]
        return kept_XI

    owners = [owner for side in SIDES for owner in answering_to[side]]
    down_RI = torch.cat([only(layer.down_RI[rank : rank + 1], owner) for rank, owner in enumerate(owners)])
    return Layer(layer.up_OR, down_RI, layer.spans, {side: only(layer.inputs_XI[side], side) for side in SIDES})


@pytest.mark.parametrize(("strength", "content", "style"), [(1.0, 0.5, 0.5), (3.0, 0.9, 0.1), (0.5, 0.2, 0.8)])
def test_two_ranks_that_every_input_wakes_by_hand(strength: float, content: float, style: float) -> None:
    """Outputs at right angles; the style rank is `strength` times as strong. For the content mask m the loss is
    (1 - m)^2 on content inputs and m^2 / strength^2 on style inputs; for the style mask strength^2 m^2, (1 - m)^2."""
    layer = Layer(
        torch.tensor([[1.0, 0.0], [0.0, strength]], dtype=torch.float64),
        torch.ones(2, 1, dtype=torch.float64),
        {"content": slice(0, 1), "style": slice(1, 2)},
        {side: torch.ones(4, 1, dtype=torch.float64) for side in SIDES},
    )

    assert solved(layer, ridge=1e-9, toward=0.0).tolist() == pytest.approx([content, style], abs=1e-5)


@given(seed=seeds, ranks=st.tuples(side_ranks, side_ranks))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_side_whose_inputs_are_nothing_has_no_say(seed: int, ranks: tuple[int, int]) -> None:
    layer = random_layer(seed, ranks)
    silent = Layer(
        layer.up_OR,
        layer.down_RI,
        layer.spans,
        {"content": layer.inputs_XI["content"], "style": torch.zeros_like(layer.inputs_XI["style"])},
    )

    without_R = solve_masks(layer.grams(), {"content": layer.spans["content"]}, ridge=0.05, toward=0.5)[0]

    torch.testing.assert_close(solved(silent, ridge=0.05, toward=0.5), without_R)


@given(seed=seeds, ranks=st.tuples(side_ranks, side_ranks))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_side_that_changes_nothing_has_no_say(seed: int, ranks: tuple[int, int]) -> None:
    """Its up factor is zero, as that of a LoRA that never learned the layer, but its inputs wake the other's ranks."""
    layer = random_layer(seed, ranks)
    up_OR = layer.up_OR.clone()
    up_OR[:, layer.spans["style"]] = 0
    idle = Layer(up_OR, layer.down_RI, layer.spans, layer.inputs_XI)

    without_R = solve_masks(idle.grams(), {"content": layer.spans["content"]}, ridge=0.05, toward=0.5)[0]

    torch.testing.assert_close(solved(idle, ridge=0.05, toward=0.5), without_R)


@pytest.mark.parametrize("toward", [0.0, 0.5, 1.0])
def test_where_nothing_is_known_masks_stay_where_they_are_held(toward: float) -> None:
    layer = random_layer(0, (2, 2))
    nothing = {side: torch.zeros_like(gram) for side, gram in layer.grams().items()}

    assert solve_masks(nothing, layer.spans, ridge=0.05, toward=toward)[0].tolist() == pytest.approx([toward] * 4)


def test_a_strong_ridge_holds_the_masks() -> None:
    layer = random_layer(1, (3, 2))

    assert solved(layer, ridge=1e6, toward=0.7).tolist() == pytest.approx([0.7] * 5, abs=1e-4)
