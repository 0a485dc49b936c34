"""The loss series of a short training and a short merge, compared with the committed one.

A change of the mathematics that no other test describes shows here. Weights, pictures and random numbers come from
seeds, so only the arithmetic of another torch or processor may differ: relative tolerance 2e-3.
`pytest tests/duolora --update-goldens` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duolora.config import LoraTrainConfig, MergeConfig
from duolora.lora_task import LoraTask
from duolora.merge import MergeSide, merge_loras
from duolora.train import train_loras
from tests.duolora.watch import Watcher

if TYPE_CHECKING:
    from duolora.models.base import DiffusionBase

GOLDEN = Path(__file__).parents[1] / "golden" / "train_loss.json"
RTOL = 2e-3


def loss_series(base: DiffusionBase, content: list[Path], style: list[Path]) -> dict[str, list[float]]:
    settings = LoraTrainConfig(
        steps=6, rank=4, learning_rate=1e-2, batch_size=2, resolution_px=64, snr_gamma=5.0, warmup_steps=2, seed=11
    )
    captions = {
        "content": ["a sbu disc"] * len(content),
        "style": [f"a disc number {index} in szn style" for index in range(len(style))],
    }
    pictures = {"content": content, "style": style}
    training = Watcher()
    loras = train_loras(base, [LoraTask(side, pictures[side], captions[side], settings) for side in pictures], training)
    merge = merge_loras(
        base,
        {side: MergeSide(loras[side], pictures[side], captions[side]) for side in pictures},
        "a sbu disc in szn style",
        MergeConfig(steps=4, learning_rate=0.05, batch_size=2, bank_size=4, constyle_every=2, seed=12),
        resolution_px=64,
    )
    return {
        "train": training.losses,
        **{
            f"merge {term}": [losses[term] for losses in merge.report["losses"] if term in losses]
            for term in ("total", "distillation", "prior", "constyle")
        },
    }


def test_losses_are_those_of_the_golden_file(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path], request: pytest.FixtureRequest
) -> None:
    found = loss_series(base, content_pictures, style_pictures)

    if request.config.getoption("--update-goldens", default=False):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found.keys() == golden.keys()
    for name, series in golden.items():
        assert found[name] == pytest.approx(series, rel=RTOL), name
