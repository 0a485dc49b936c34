"""Sparing memory must not change what is computed, and must spare memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from diffusers.models.resnet import ResnetBlock2D

from duolora.config import GenerateConfig
from duolora.errors import InvalidConfig
from duolora.generate import generate, sample_tenants
from duolora.train import train_tenants
from tests.duolora.dense import assert_same_change
from tests.duolora.pico import random_lora
from tests.duolora.test_checkpoints import content, loras, pair, pictures, texts
from tests.duolora.test_train import task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duolora.models.base import DiffusionBase
    from tests.duolora.test_checkpoints import Train

__all__ = ["pictures"]

SKETCH = GenerateConfig(steps=2, images=3, resolution_px=64, seed=1)


@pytest.fixture
def passes(base: DiffusionBase) -> Iterator[Counter[str]]:
    """What the U-Net runs: the largest batch, passes, and runs of its residual blocks."""
    seen: Counter[str] = Counter()
    blocks = [block for block in base.unet.modules() if isinstance(block, ResnetBlock2D)]

    def note_pass(_module: object, inputs: tuple[object, ...]) -> None:
        seen["samples"] = max(seen["samples"], len(inputs[0]))
        seen["passes"] += 1

    def note_block(*_: object) -> None:
        seen["blocks"] += 1

    hooks = [base.unet.register_forward_pre_hook(note_pass)]
    hooks += [block.register_forward_pre_hook(note_block) for block in blocks]
    yield seen
    seen["of a pass"] = len(blocks)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("train", [content, pair, loras, texts])
def test_a_thrifty_training_learns_the_same(base: DiffusionBase, pictures: dict[str, list[Path]], train: Train) -> None:
    """Tolerance 1e-2 of a change's norm: sums round in another order, and Adam makes much of next to nothing."""
    expected = train(base, pictures)

    found = train(base, pictures, thrifty=True)

    assert found.keys() == expected.keys()
    for side, lora in expected.items():
        assert_same_change(found[side], lora, 1e-2)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in base.unet.modules())


def test_a_thrifty_training_runs_one_sample_a_pass_and_blocks_twice(
    base: DiffusionBase, pictures: dict[str, list[Path]], passes: Counter[str]
) -> None:
    blocks = sum(isinstance(block, ResnetBlock2D) for block in base.unet.modules())

    train_tenants(base, [[task(pictures["content"], batch_size=3, steps=2)]], thrifty=True)

    assert passes["samples"] == 1
    assert passes["passes"] == 2 * 3
    assert passes["blocks"] > 1.5 * blocks * passes["passes"]


def test_thrifty_pictures_are_the_same_and_drawn_a_sample_at_a_time(base: DiffusionBase, passes: Counter[str]) -> None:
    lora = random_lora(base, seed=3)
    expected = generate(base, ["a disc", "a ball"], SKETCH, lora)
    passes.clear()

    found = generate(base, ["a disc", "a ball"], SKETCH, lora, thrifty=True)

    assert passes["samples"] == 1
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_several_tenants_cannot_be_thrifty(base: DiffusionBase, content_pictures: list[Path]) -> None:
    with pytest.raises(InvalidConfig, match="one tenant"):
        train_tenants(base, [[task(content_pictures)]] * 2, thrifty=True)
    with pytest.raises(InvalidConfig, match="one tenant"):
        sample_tenants(base, None, [["a disc"] * 3] * 2, SKETCH, [0, 1], thrifty=True)
