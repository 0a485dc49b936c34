from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duolora.errors import InvalidConfig, InvalidLora
from duolora.lora.parts import PARTS_KEY, Parts, join_sides, sides_of
from duolora.lora.read import read_lora
from duolora.lora.weights import LoraWeights
from duolora.lora.write import write_diffusers, write_kohya
from duolora.pruning import prune
from duolora.strengths import reweight
from tests.duolora.pico import random_layer, random_lora_on

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.models.base import DiffusionBase


def merged_lora(seed: int = 0) -> LoraWeights:
    """Layers of unequal shape, rank and size of change."""
    sides = {
        side: LoraWeights(
            {
                f"unet.{name}": random_layer(outputs, inputs, rank, seed=seed + 10 * index + 100 * place, scale=scale)
                for index, (name, outputs, inputs, rank, scale) in enumerate(
                    [("a", 12, 8, 4, 1.0), ("b", 6, 20, 3, 0.3), ("c", 10, 10, 5, 0.1)]
                )
            }
        )
        for place, side in enumerate(("content", "style"))
    }
    return join_sides(sides)


def relative_error(before: LoraWeights, after: LoraWeights) -> float:
    """Over all layers, computed on the dense changes."""
    lost = whole = 0.0
    for name, layer in before.layers.items():
        delta_OI = layer.delta_OI().double()
        left = after.layers.get(name)
        lost += float((delta_OI - (0 if left is None else left.delta_OI().double())).square().sum())
        whole += float(delta_OI.square().sum())
    return (lost / whole) ** 0.5


def total_rank(lora: LoraWeights) -> int:
    return sum(layer.rank for layer in lora.layers.values())


@pytest.mark.parametrize("keep_parts", [True, False])
@pytest.mark.parametrize("target", [0.5, 1.0, 2.5, 5.0])
def test_average_rank_is_reached_and_the_loss_is_told(target: float, *, keep_parts: bool) -> None:
    lora = merged_lora()

    pruned = prune(lora, target_rank=target, keep_parts=keep_parts)

    assert total_rank(pruned.weights) == pruned.ranks_after == int(target * 3)
    assert pruned.ranks_before == total_rank(lora)
    assert pruned.relative_error == pytest.approx(relative_error(lora, pruned.weights), rel=1e-4)
    shares = {name: relative_error(*(single(which, name) for which in (lora, pruned.weights))) for name in lora.layers}
    assert pruned.worst_error == pytest.approx(max(shares.values()), rel=1e-4)
    assert shares[pruned.worst_layer] == pytest.approx(max(shares.values()), rel=1e-4)


def single(lora: LoraWeights, name: str) -> LoraWeights:
    return LoraWeights({name: lora.layers[name]} if name in lora.layers else {"unet.other": random_layer(1, 1, 1)})


def test_layers_lose_the_ranks_that_change_least() -> None:
    pruned = prune(merged_lora(), target_rank=2.0)

    ranks = {name: layer.rank for name, layer in pruned.weights.layers.items()}
    assert ranks == {"unet.a": 6}  # its change is the largest by far; the smaller ones leave the file


@given(seed=st.integers(0, 10_000), kept=st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_mixed_pruning_is_the_best_of_its_rank(seed: int, kept: int) -> None:
    """Eckart-Young over all layers: the squared loss is the sum of the smallest squared singular values."""
    lora = merged_lora(seed)
    values = torch.cat([torch.linalg.svdvals(layer.delta_OI().double()) for layer in lora.layers.values()])
    best = values.sort().values[: values.numel() - kept].square().sum() / values.square().sum()

    pruned = prune(lora, target_rank=kept / 3 + 1e-9, keep_parts=False)

    assert pruned.relative_error == pytest.approx(best.sqrt().item(), rel=1e-3, abs=1e-5)
    assert pruned.relative_error <= prune(lora, target_rank=kept / 3 + 1e-9, keep_parts=True).relative_error + 1e-6


def test_target_above_all_ranks_loses_nothing() -> None:
    pruned = prune(merged_lora(), target_rank=100.0)

    assert pruned.relative_error < 1e-5


def test_ranks_that_change_nothing_leave_first() -> None:
    layer = random_layer(6, 6, 3)
    idle = LoraWeights({"unet.a": layer.with_factors(layer.down_RI, layer.up_OR * torch.tensor([1.0, 0.0, 1.0]))})

    pruned = prune(idle, target_rank=2.0)

    assert pruned.weights.layers["unet.a"].rank == 2
    assert pruned.relative_error < 1e-6


def test_parts_are_kept_and_can_still_be_reweighted() -> None:
    lora = merged_lora()

    pruned = prune(lora, target_rank=4.0)

    assert Parts.of(pruned.weights).sides == ("content", "style")
    for side, part in sides_of(pruned.weights).items():
        whole = sides_of(lora)[side]
        assert whole is not None
        assert part is not None
        for name, layer in part.layers.items():
            values = torch.linalg.svdvals(whole.layers[name].delta_OI())
            kept = torch.linalg.svdvals(layer.delta_OI())[: layer.rank]
            torch.testing.assert_close(kept, values[: layer.rank], rtol=1e-4, atol=1e-5)
    half = reweight(pruned.weights, {"style": 0.5})
    assert total_rank(half) == total_rank(pruned.weights)


def test_mixed_parts_are_not_claimed() -> None:
    lora = merged_lora().with_metadata(**{"modelspec.title": "t"})

    mixed = prune(lora, target_rank=2.0, keep_parts=False).weights

    assert PARTS_KEY not in mixed.metadata
    assert mixed.metadata["modelspec.title"] == "t"
    with pytest.raises(InvalidLora, match="only a file merged by DuoLoRA"):
        prune(mixed, target_rank=1.0, keep_parts=True)
    assert PARTS_KEY not in prune(mixed, target_rank=1.0).weights.metadata  # by default as the LoRA says


@pytest.mark.parametrize("keep_parts", [True, False])
@pytest.mark.parametrize("target_bytes", [30_000, 60_000, 120_000])
def test_both_files_fit_into_the_size_asked_for(
    base: DiffusionBase, tmp_path: Path, target_bytes: int, *, keep_parts: bool
) -> None:
    names = [name for name in base.layers().shapes if name.endswith(("to_q", "ff.net.2", "conv1", "q_proj"))]
    sides = {side: random_lora_on(base, names, seed=place, ranks=(8, 5, 7)) for place, side in enumerate("ab")}
    lora = join_sides(sides).with_metadata(**{"duolora.config": '{"a": "b"}' * 50})

    pruned = prune(lora, target_bytes=target_bytes, keep_parts=keep_parts)

    sizes = []
    for write in (write_diffusers, write_kohya):
        write(pruned.weights, tmp_path / "l.safetensors", family=base.family)
        sizes.append((tmp_path / "l.safetensors").stat().st_size)
        read_lora(tmp_path / "l.safetensors", base.layers())
    assert max(sizes) <= target_bytes
    assert max(sizes) > 0.6 * target_bytes  # the header is guessed from above, the numbers fill the rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either"),
        ({"target_rank": 1.0, "target_bytes": 10_000}, "either"),
        ({"target_rank": 0.0}, "positive"),
        ({"target_rank": float("nan")}, "positive"),
        ({"target_rank": 0.1}, "nothing is left"),
        ({"target_bytes": 100}, "nothing is left at a target of 100 bytes"),
    ],
)
def test_target_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        prune(merged_lora(), **options)
