"""What a merge must not depend on, and what it must leave alone; `test_merge` has what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.config import MergeConfig
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.lora.write import write_diffusers, write_kohya
from duolora.merge import MergeResult, MergeSide, merge_loras
from tests.duolora.pico import random_lora

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.models.base import DiffusionBase

ALL_TERMS = {"steps": 2, "bank_size": 4, "learning_rate": 0.05, "constyle_every": 1, "prune_below": 0.0, "seed": 5}


@pytest.fixture
def sides(base: DiffusionBase, pictures: dict[str, list[Path]]) -> dict[str, MergeSide]:
    loras = {
        "content": random_lora(base, seed=1, ranks=(3,), scale=0.15),
        "style": random_lora(base, seed=2, ranks=(2,), scale=0.15),
    }
    return {side: MergeSide(loras[side], pictures[side], [f"a disc, {side}"] * len(pictures[side])) for side in loras}


def merge(base: DiffusionBase, sides: dict[str, MergeSide], **changes: Any) -> MergeResult:
    return merge_loras(base, sides, "a sbu disc in szn style", MergeConfig(**(ALL_TERMS | changes)), resolution_px=64)


def turned(side: MergeSide, seed: int) -> MergeSide:
    """The same change in another gauge: up G, G^-1 down, and another alpha; every layer has a G of its own."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in side.weights.layers.items():
        gauge_RR = torch.randn(layer.rank, layer.rank, generator=generator, dtype=torch.float64)
        gauge_RR = gauge_RR + 3 * torch.eye(layer.rank, dtype=torch.float64)
        down_RI = torch.linalg.inv(gauge_RR) @ layer.down_RI.double()
        up_OR = layer.scale * layer.up_OR.double() @ gauge_RR
        layers[name] = LoraLayer((4 * down_RI).float(), up_OR.float(), layer.rank / 4)
    return MergeSide(LoraWeights(layers), side.pictures, side.captions)


@pytest.mark.parametrize("changes", [{}, {"start": "closed-form", "steps": 0}], ids=["learned", "closed form"])
def test_masks_do_not_depend_on_the_gauge_of_either_lora(
    base: DiffusionBase, sides: dict[str, MergeSide], changes: dict[str, Any]
) -> None:
    """Both merges must agree far better than the masks have moved from the plain sum."""
    again = {side: turned(given, seed) for seed, (side, given) in enumerate(sides.items())}

    plain, gauged = merge(base, sides, **changes), merge(base, again, **changes)

    untouched = merge(base, sides, start="ones", steps=0).weights
    for name, layer in plain.weights.layers.items():
        delta_OI = layer.delta_OI()
        moved = (delta_OI - untouched.layers[name].delta_OI()).norm()
        assert moved > 0.01 * delta_OI.norm(), name
        assert (gauged.weights.layers[name].delta_OI() - delta_OI).norm() < 0.05 * moved, name
    for terms, others in zip(plain.report["losses"], gauged.report["losses"], strict=True):
        assert others == pytest.approx(terms, rel=1e-3, abs=1e-6)


def test_same_seed_gives_the_same_bytes_whatever_the_process_has_drawn(
    base: DiffusionBase, sides: dict[str, MergeSide], tmp_path: Path
) -> None:
    for run in ("one", "other"):
        torch.manual_seed(len(run))
        merged = merge(base, sides).weights
        write_diffusers(merged, tmp_path / f"{run}-diffusers")
        write_kohya(merged, tmp_path / f"{run}-kohya")

    for program in ("diffusers", "kohya"):
        one, other = (tensor_data(tmp_path / f"{run}-{program}") for run in ("one", "other"))
        assert one == other, program
        assert len(one) > 10_000


def tensor_data(path: Path) -> bytes:
    """All that follows a file's header, whose entries the safetensors library writes in no fixed order."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_only_masks_get_gradients_from_all_terms_together(
    base: DiffusionBase, sides: dict[str, MergeSide], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at when the adapter leaves, after steps with distillation, prior and cycles."""
    seen: list[tuple[list[bool], list[str]]] = []
    leave = RankSpaceAdapter.__exit__

    def look_and_leave(adapter: RankSpaceAdapter, *error: Any) -> None:
        masks = [layer.learned_JR for layer in adapter.layers.values()]
        others = {
            f"{part}.{name}": parameter
            for part in ("unet", "vae", "text_encoder", "text_encoder_2")
            for name, parameter in getattr(base.pipeline, part).named_parameters()
            if not any(parameter is mask for mask in masks)
        }
        assert any(".downs." in name for name in others)  # the LoRAs' own factors are among them
        seen.append(
            (
                [mask.grad is not None and bool(mask.grad.abs().max() > 0) for mask in masks],
                [name for name, parameter in others.items() if parameter.grad is not None or parameter.requires_grad],
            )
        )
        leave(adapter, *error)

    monkeypatch.setattr(RankSpaceAdapter, "__exit__", look_and_leave)
    report = merge(base, sides).report

    assert {"distillation", "prior", "constyle"} <= set(report["losses"][-1])
    ((learning, touched),) = seen
    assert len(learning) == 88
    assert all(learning)
    assert not touched
