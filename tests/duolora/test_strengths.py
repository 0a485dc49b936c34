from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora.errors import InvalidConfig, InvalidLora
from duolora.lora.parts import Parts, join_sides
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.strengths import reweight
from tests.duolora.pico import random_lora_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

ENDS = ("attn1.to_q", "conv1", "q_proj")


@pytest.fixture
def sides(base: DiffusionBase) -> dict[str, LoraWeights]:
    names = [name for name in base.layers().shapes if name.endswith(ENDS)]
    return {
        "content": random_lora_on(base, names, seed=1, ranks=(2, 3)),
        "style": random_lora_on(base, names[1:], seed=2, ranks=(4, 1)),
    }


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
@pytest.mark.parametrize(
    "strengths", [{"content": 0.8, "style": 1.2}, {"style": -3.0}, {"content": 0.0}, {"style": 0.0}, {}]
)
def test_written_merge_is_reweighted_exactly(
    base: DiffusionBase,
    sides: dict[str, LoraWeights],
    tmp_path: Path,
    write: Callable[..., Any],
    strengths: dict[str, float],
) -> None:
    write(join_sides(sides), tmp_path / "merged.safetensors", torch.float32, family=base.family)
    merged = read_lora(tmp_path / "merged.safetensors", base.layers())

    write(reweight(merged, strengths), tmp_path / "again.safetensors", torch.float32, family=base.family)

    found = read_lora(tmp_path / "again.safetensors", base.layers())
    wanted = {
        side: None if strengths.get(side) == 0 else lora.scaled(strengths.get(side, 1.0))
        for side, lora in sides.items()
    }
    expected = join_sides(wanted)
    assert found.layers.keys() == expected.layers.keys()
    for name, layer in expected.layers.items():
        assert found.layers[name].rank == layer.rank
        torch.testing.assert_close(found.layers[name].delta_weight(), layer.delta_weight(), rtol=1e-5, atol=1e-6)
    assert Parts.of(found) == Parts.of(expected)  # so it can be re-weighted again


def test_strengths_multiply(sides: dict[str, LoraWeights]) -> None:
    twice = reweight(reweight(join_sides(sides), {"content": 0.5}), {"content": 3.0, "style": 2.0})

    once = reweight(join_sides(sides), {"content": 1.5, "style": 2.0})
    for name, layer in once.layers.items():
        torch.testing.assert_close(twice.layers[name].delta_OI(), layer.delta_OI())


def test_words_of_the_file_stay(sides: dict[str, LoraWeights]) -> None:
    merged = join_sides(sides).with_metadata(**{"modelspec.title": "t"})

    assert reweight(merged, {"content": 0.5}).metadata["modelspec.title"] == "t"


def test_file_without_parts_is_refused(sides: dict[str, LoraWeights]) -> None:
    with pytest.raises(InvalidLora, match="only a file merged by DuoLoRA"):
        reweight(sides["content"], {"content": 0.5})


def test_unknown_side_is_refused_with_the_known_ones(sides: dict[str, LoraWeights]) -> None:
    with pytest.raises(InvalidLora, match="no side 'subject'; it has content, style"):
        reweight(join_sides(sides), {"subject": 0.5})


def test_nothing_left_is_refused(sides: dict[str, LoraWeights]) -> None:
    with pytest.raises(InvalidLora, match="changes nothing"):
        reweight(join_sides(sides), {"content": 0.0, "style": 0.0})


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_must_be_finite(sides: dict[str, LoraWeights], strength: float) -> None:
    with pytest.raises(InvalidConfig, match="style"):
        reweight(join_sides(sides), {"style": strength})
