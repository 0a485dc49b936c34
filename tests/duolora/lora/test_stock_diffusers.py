"""Our files in stock diffusers: its own loader and its own kohya conversion, nothing of ours in between.

Tolerances. Deltas of the diffusers file equal ours bit for bit, and so do those of a kohya file whose ranks are all
equal. Where ranks differ the kohya file rounds its up factors to float16 at another place: 2^-11 of each delta's norm.
Pictures, 8 bits a channel, of a LoRA that changes the picture by tens of levels: at most 1 level off, 2 for that file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from duolora.generate import generate, starting_noise
from duolora.lora.canonical import canonicalise
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.method.ziprank import merge_by_masks
from duolora.models.registry import load_base
from tests.duolora.lora.stock import CONFIG, PROMPTS, draw_stock, open_stock, pixels, stock_deltas
from tests.duolora.pico import CPU, random_lora

if TYPE_CHECKING:
    from duolora.config import GenerateConfig
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase


@dataclass(frozen=True)
class Stock:
    """What stock diffusers makes of a file."""

    deltas: dict[str, torch.Tensor]
    pixels: np.ndarray


def stock(base: DiffusionBase, folder: Path, file: Path | None, config: GenerateConfig = CONFIG) -> Stock:
    pipeline = open_stock(folder, file)
    return Stock(stock_deltas(pipeline, base), draw_stock(pipeline, starting_noise(base, config), config))


def pruned_merge(base: DiffusionBase) -> LoraWeights:
    """A merge whose layers keep different numbers of ranks, one of them none."""
    sides = {
        "content": canonicalise(random_lora(base, seed=1, ranks=(4,))),
        "style": canonicalise(random_lora(base, seed=2, ranks=(6,))),
    }
    masks = {
        side: {
            name: (torch.arange(layer.rank) < (3 * index + offset) % (layer.rank + 1)) * 0.8
            for index, (name, layer) in enumerate(weights.layers.items())
        }
        for offset, (side, weights) in enumerate(sides.items())
    }
    merged = merge_by_masks(sides, masks)
    assert not merged.has_one_rank
    assert len(merged.layers) < len(sides["content"].layers)
    return merged


def assert_stock_agrees(found: Stock, lora: LoraWeights, ours: np.ndarray, *, rtol: float, levels: int) -> None:
    assert found.deltas.keys() == lora.layers.keys()
    for name, layer in lora.layers.items():
        delta_OI = layer.delta_OI()
        error = (found.deltas[name] - delta_OI).norm() / delta_OI.norm()
        assert error <= rtol, f"{name}: relative error {error:.2e}"
    assert np.abs(found.pixels - ours).max() <= levels


@pytest.mark.parametrize("kind", ["equal ranks", "other targets", "pruned merge"])
def test_stock_diffusers_draws_the_same_pictures_from_both_files(
    base: DiffusionBase, base_folder: Path, tmp_path: Path, kind: str
) -> None:
    lora = {
        "equal ranks": lambda: random_lora(base, ranks=(4,), alpha=2.0),
        "other targets": lambda: random_lora(base, ranks=(2, 3, 4), alpha=2.0, paths=base.target_layers("transformer")),
        "pruned merge": lambda: pruned_merge(base),
    }[kind]()
    write_diffusers(lora, tmp_path / "diffusers.safetensors")
    write_kohya(lora, tmp_path / "kohya.safetensors")
    as_written = read_lora(tmp_path / "diffusers.safetensors")

    ours = pixels(generate(base, PROMPTS, CONFIG, as_written))

    without = stock(base, base_folder, None)
    assert np.abs(without.pixels - ours).mean() > 10, "the LoRA must matter, or agreeing means nothing"
    by_diffusers = stock(base, base_folder, tmp_path / "diffusers.safetensors")
    assert_stock_agrees(by_diffusers, as_written, ours, rtol=0, levels=1)
    by_kohya = stock(base, base_folder, tmp_path / "kohya.safetensors")
    even = lora.has_one_rank
    assert_stock_agrees(by_kohya, as_written, ours, rtol=0 if even else 2**-11, levels=1 if even else 2)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
def test_pictures_without_a_lora_are_those_of_stock_diffusers_at_any_guidance(
    base: DiffusionBase, base_folder: Path, guidance_scale: float
) -> None:
    config = CONFIG.model_copy(update={"guidance_scale": guidance_scale})

    ours = pixels(generate(base, PROMPTS, config))

    assert np.abs(stock(base, base_folder, None, config).pixels - ours).max() <= 1


def test_the_shipped_base_agrees_with_stock_diffusers_as_well(tmp_path: Path) -> None:
    base = load_base("tiny", CPU)
    lora = random_lora(base, ranks=(2, 4), scale=0.05)
    write_diffusers(lora, tmp_path / "lora.safetensors")
    as_written = read_lora(tmp_path / "lora.safetensors")

    ours = pixels(generate(base, PROMPTS, CONFIG, as_written))

    found = stock(base, Path(base.location), tmp_path / "lora.safetensors")
    assert_stock_agrees(found, as_written, ours, rtol=0, levels=1)
