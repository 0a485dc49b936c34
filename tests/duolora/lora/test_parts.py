from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.errors import InvalidLora
from duolora.lora.canonical import canonicalise
from duolora.lora.parts import PARTS_KEY, Parts, concatenate, join_sides, sides_of
from duolora.lora.weights import LoraLayer, LoraWeights
from tests.duolora.pico import random_layer

if TYPE_CHECKING:
    from collections.abc import Mapping


def convolution(outputs: int, channels: int, rank: int, seed: int, alpha: float | None = None) -> LoraLayer:
    layer = random_layer(outputs, 9 * channels, rank, seed=seed, alpha=alpha)
    return LoraLayer(layer.down_RI, layer.up_OR, layer.alpha, (3, 3))


SIDES = {
    "content": LoraWeights({"unet.a": random_layer(6, 5, 2, seed=1, alpha=3.0), "unet.c": convolution(4, 2, 2, 2)}),
    "style": LoraWeights(
        {
            "unet.a": random_layer(6, 5, 3, seed=3),
            "unet.b": random_layer(4, 4, 1),
            "unet.c": convolution(4, 2, 1, 4, 5.0),
        }
    ),
}


def sum_of(sides: Mapping[str, LoraWeights | None], name: str) -> torch.Tensor:
    layers = [lora.layers[name] for lora in sides.values() if lora is not None and name in lora.layers]
    return torch.stack([layer.delta_weight() for layer in layers]).sum(0)


def test_joined_sides_are_the_sum() -> None:
    joined = join_sides(SIDES)

    assert {name: layer.rank for name, layer in joined.layers.items()} == {"unet.a": 5, "unet.b": 1, "unet.c": 3}
    assert joined.layers["unet.c"].kernel == (3, 3)
    for name, layer in joined.layers.items():
        torch.testing.assert_close(layer.delta_weight(), sum_of(SIDES, name))


def test_joined_sides_come_apart_again() -> None:
    apart = sides_of(join_sides(SIDES))

    assert list(apart) == ["content", "style"]
    for side, lora in SIDES.items():
        found = apart[side]
        assert found is not None
        assert found.layers.keys() == lora.layers.keys()
        for name, layer in lora.layers.items():
            assert found.layers[name].rank == layer.rank
            torch.testing.assert_close(found.layers[name].delta_weight(), layer.delta_weight())


def test_side_of_which_nothing_is_left_keeps_its_place() -> None:
    joined = join_sides({"content": None, "style": SIDES["style"]})

    assert Parts.of(joined).sides == ("content", "style")
    assert sides_of(joined)["content"] is None


def test_nothing_left_of_any_side_is_refused() -> None:
    with pytest.raises(InvalidLora, match="changes nothing"):
        join_sides({"content": None, "style": None})


def test_sides_of_different_bases_are_refused_by_layer() -> None:
    sides = {
        "content": LoraWeights({"unet.a": random_layer(6, 5, 2)}),
        "style": LoraWeights({"unet.a": random_layer(6, 7, 2)}),
    }

    with pytest.raises(InvalidLora, match=r"unet\.a.*\(6, 5\).*\(6, 7\)"):
        join_sides(sides)


def test_linear_layer_and_convolution_of_equal_numbers_are_not_added() -> None:
    with pytest.raises(InvalidLora, match="cannot be added"):
        concatenate([convolution(4, 2, 1, 0), random_layer(4, 18, 1)])


@pytest.mark.parametrize("widest", [0, 1, 2])
def test_the_widest_part_decides_the_precision_wherever_it_stands(widest: int) -> None:
    parts = [random_layer(5, 6, 2, seed=seed) for seed in range(3)]
    given = [
        part if index == widest else part.with_factors(part.down_RI.half(), part.up_OR.half())
        for index, part in enumerate(parts)
    ]

    joined = concatenate(given)

    assert {joined.down_RI.dtype, joined.up_OR.dtype} == {torch.float32}
    place = slice(2 * widest, 2 * widest + 2)
    assert torch.equal(joined.down_RI[place], parts[widest].down_RI)
    assert torch.equal(joined.up_OR[:, place], parts[widest].up_OR)


@given(counts=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_counts_survive_the_header(counts: list[list[int]]) -> None:
    written = Parts(("content", "style"), {f"unet.{index}": tuple(pair) for index, pair in enumerate(counts)})
    layers = {f"unet.{index}": random_layer(3, 3, sum(pair)) for index, pair in enumerate(counts) if sum(pair)}
    if not layers:
        return

    read = Parts.of(LoraWeights(layers, {PARTS_KEY: written.words()}))

    assert read.sides == written.sides
    assert dict(read.counts) == {name: pair for name, pair in written.counts.items() if name in layers}


def test_header_is_short_where_layers_are_alike() -> None:
    parts = Parts(("content", "style"), {f"unet.layer.{index}": (64, 64) for index in range(700)})

    assert json.loads(parts.words()) == {"sides": ["content", "style"], "ranks": [64, 64], "layers": {}}


@pytest.mark.parametrize(
    "words",
    [
        "",
        "[]",
        "1",
        "{}",
        '{"sides": [], "ranks": [], "layers": {}}',
        '{"sides": ["a", "a"], "ranks": [1, 1], "layers": {}}',
        '{"sides": ["a", "b"], "ranks": [3], "layers": {}}',
        '{"sides": ["a", "b"], "ranks": [4, -1], "layers": {}}',
        '{"sides": ["a", "b"], "ranks": [1, 1], "layers": {}}',  # the layer has three ranks
        '{"sides": ["a", "b"], "ranks": [2, 1], "layers": {"unet.a": [1, 1]}}',
        '{"sides": ["a", "b"], "ranks": ["x", 1], "layers": {}}',
        '{"sides": ["a", "b"], "ranks": [1, 2], "layers": 5}',
        "[" * 100_000,
    ],
)
def test_header_that_does_not_fit_is_refused(words: str) -> None:
    with pytest.raises(InvalidLora, match=r"duolora\.parts"):
        Parts.of(LoraWeights({"unet.a": random_layer(4, 4, 3)}, {PARTS_KEY: words}))


def test_lora_that_was_not_merged_has_no_parts() -> None:
    with pytest.raises(InvalidLora, match="only a file merged by DuoLoRA"):
        Parts.of(SIDES["content"])


def test_canonical_form_of_a_merged_lora_does_not_claim_its_parts() -> None:
    assert PARTS_KEY not in canonicalise(join_sides(SIDES)).metadata
