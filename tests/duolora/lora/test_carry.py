from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from duolora.errors import InvalidLora
from duolora.lora.carry import merge_carried, split, split_sides, unite
from duolora.lora.parts import Parts, join_sides
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from tests.duolora.pico import random_lora_on

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

BY_MASKS = ["attn1.to_q", "ff.net.2"]
CARRIED = ["conv1", "time_emb_proj", "q_proj", "mlp.fc1", "samplers.0.conv"]


def whole_lora(base: DiffusionBase, seed: int, ends: list[str]) -> LoraWeights:
    names = [name for name in base.layers().shapes if name.endswith(tuple(ends))]
    return random_lora_on(base, names, seed=seed, ranks=(2, 3))


def test_split_gives_masks_the_linear_layers_of_the_transformers(base: DiffusionBase) -> None:
    lora = whole_lora(base, 1, BY_MASKS + CARRIED).with_metadata(**{"modelspec.title": "t"})

    parts = split(lora)

    assert parts.by_masks is not None
    assert parts.carried is not None
    assert all(name.endswith(tuple(BY_MASKS)) for name in parts.by_masks.layers)
    assert all(name.endswith(tuple(CARRIED)) for name in parts.carried.layers)
    assert parts.by_masks.layers.keys() | parts.carried.layers.keys() == lora.layers.keys()
    assert parts.by_masks.metadata == parts.carried.metadata == lora.metadata
    base.layer_resolutions(list(parts.by_masks.layers), 64)  # each has a resolution, so priors can hold


@pytest.mark.parametrize(("ends", "absent"), [(BY_MASKS, "carried"), (CARRIED, "by_masks")])
def test_half_of_which_there_is_nothing_is_none(base: DiffusionBase, ends: list[str], absent: str) -> None:
    assert getattr(split(whole_lora(base, 1, ends)), absent) is None


def test_sides_of_a_merge_are_split_by_name(base: DiffusionBase) -> None:
    whole, lean = whole_lora(base, 1, BY_MASKS + CARRIED), whole_lora(base, 2, BY_MASKS)

    by_masks, carried = split_sides({"content": whole, "style": lean})

    assert by_masks["content"].layers.keys() == by_masks["style"].layers.keys() == lean.layers.keys()
    assert carried["content"] is not None
    assert carried["style"] is None


def test_side_without_transformer_layers_cannot_be_merged(base: DiffusionBase) -> None:
    loras = {"content": whole_lora(base, 1, BY_MASKS), "style": whole_lora(base, 2, CARRIED)}

    with pytest.raises(InvalidLora, match="the style LoRA changes no linear layer"):
        split_sides(loras)


def test_one_by_one_convolution_inside_a_transformer_is_carried(sd15_base: DiffusionBase) -> None:
    """SD 1.5's proj_in: linear in effect, but no linear layer that the adapter could take the place of."""
    assert split(whole_lora(sd15_base, 1, ["proj_in"])).by_masks is None


def test_carried_layers_are_added_by_plain_strengths(base: DiffusionBase, tmp_path: Path) -> None:
    sides = {"content": whole_lora(base, 1, CARRIED), "style": whole_lora(base, 2, [*CARRIED[1:], "conv_out"])}
    strengths = {"content": 0.5, "style": -2.0}

    merged = merge_carried(sides, strengths)

    assert merged is not None
    assert merged.layers.keys() == sides["content"].layers.keys() | sides["style"].layers.keys()
    for write in (write_diffusers, write_kohya):
        write(merged, tmp_path / "l.safetensors", torch.float32, family=base.family)
        read = read_lora(tmp_path / "l.safetensors", base.layers())
        for name, layer in read.layers.items():
            expected = sum(
                strengths[side] * lora.layers[name].delta_weight()
                for side, lora in sides.items()
                if name in lora.layers
            )
            torch.testing.assert_close(layer.delta_weight(), expected, rtol=1e-5, atol=1e-6)


def test_side_of_strength_0_leaves_no_ranks(base: DiffusionBase) -> None:
    sides = {"content": whole_lora(base, 1, CARRIED), "style": whole_lora(base, 2, CARRIED)}

    merged = merge_carried(sides, {"style": 0.0})

    assert merged is not None
    assert {counts[1] for counts in Parts.of(merged).counts.values()} == {0}
    assert merge_carried(sides, {"content": 0.0, "style": 0.0}) is None
    assert merge_carried({"content": None, "style": None}) is None


def test_merged_and_carried_layers_unite_with_their_parts(base: DiffusionBase) -> None:
    whole = {side: whole_lora(base, seed, BY_MASKS + CARRIED) for seed, side in enumerate(("content", "style"))}
    halves = {side: split(lora) for side, lora in whole.items()}

    united = unite(
        join_sides({side: half.by_masks for side, half in halves.items()}),
        merge_carried({side: half.carried for side, half in halves.items()}),
    )

    joined = join_sides(whole)
    assert Parts.of(united) == Parts.of(joined)
    for name, layer in joined.layers.items():
        assert torch.equal(united.layers[name].delta_OI(), layer.delta_OI())


def test_nothing_carried_changes_nothing(base: DiffusionBase) -> None:
    merged = join_sides({"content": whole_lora(base, 1, BY_MASKS), "style": whole_lora(base, 2, BY_MASKS)})

    assert unite(merged, None) is merged


def test_halves_of_different_sides_do_not_unite(base: DiffusionBase) -> None:
    merged = join_sides({"content": whole_lora(base, 1, BY_MASKS)})
    carried = merge_carried({"style": whole_lora(base, 1, CARRIED)})

    with pytest.raises(ValueError, match="same sides"):
        unite(merged, carried)
