"""Sparing memory must not change what is computed, and must spare memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from duolora.config import GenerateConfig
from duolora.errors import InvalidConfig
from duolora.generate import generate, sample_tenants
from duolora.images import load_pictures
from duolora.memory import PROFILES
from duolora.models.eight_bit import EightBitLinear
from duolora.train import train_tenants
from tests.duolora.dense import assert_same_change
from tests.duolora.pico import pico_base, random_lora
from tests.duolora.test_checkpoints import content, loras, pair, pictures, texts
from tests.duolora.test_train import task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duolora.models.base import DiffusionBase
    from tests.duolora.test_checkpoints import Train

__all__ = ["pictures"]

SKETCH = GenerateConfig(steps=2, images=5, resolution_px=64, seed=1)
SPARING_NAMES = [name for name in PROFILES if name != "80gb"]


@pytest.fixture(scope="module", params=SPARING_NAMES)
def sparing(request: pytest.FixtureRequest) -> DiffusionBase:
    """The pico base in every profile that spares memory."""
    return pico_base(memory=PROFILES[request.param])


@pytest.fixture
def equal(base: DiffusionBase, sparing: DiffusionBase) -> DiffusionBase:
    """A base in no such profile that computes the same: from the rounded weights where the sparing one has those."""
    if not sparing.memory.eight_bit_unet:
        return base
    return pico_base(memory=replace(PROFILES["80gb"], eight_bit_unet=True))


@pytest.fixture
def passes(sparing: DiffusionBase) -> Iterator[Counter[str]]:
    """What the U-Net runs: the largest batch, passes, and runs of its residual blocks."""
    seen: Counter[str] = Counter()
    blocks = [block for block in sparing.unet.modules() if isinstance(block, ResnetBlock2D)]

    def note_pass(_module: object, inputs: tuple[object, ...]) -> None:
        seen["samples"] = max(seen["samples"], len(inputs[0]))
        seen["passes"] += 1

    def note_block(*_: object) -> None:
        seen["blocks"] += 1

    hooks = [sparing.unet.register_forward_pre_hook(note_pass)]
    hooks += [block.register_forward_pre_hook(note_block) for block in blocks]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("train", [content, pair, loras, texts])
def test_a_sparing_training_learns_the_same(
    sparing: DiffusionBase, equal: DiffusionBase, pictures: dict[str, list[Path]], train: Train
) -> None:
    """Tolerance 1e-2 of a change's norm: sums round in another order, and Adam makes much of next to nothing."""
    expected = train(equal, pictures)

    found = train(sparing, pictures)

    assert found.keys() == expected.keys()
    for side, lora in expected.items():
        assert_same_change(found[side], lora, 1e-2)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in sparing.unet.modules())


def test_a_training_holds_as_many_samples_a_pass_as_the_profile_says_and_computes_blocks_twice_where_it_does(
    sparing: DiffusionBase, pictures: dict[str, list[Path]], passes: Counter[str]
) -> None:
    blocks = sum(isinstance(block, ResnetBlock2D) for block in sparing.unet.modules())
    batch, at_once = 6, sparing.memory.learns_at_once
    assert at_once is not None

    train_tenants(sparing, [[task(pictures["content"], batch_size=batch, steps=2)]])

    assert passes["samples"] == at_once
    assert passes["passes"] == 2 * -(-batch // at_once)
    runs = passes["blocks"] / (blocks * passes["passes"])
    assert runs > 1.5 if sparing.memory.recomputes_training else runs == 1


def test_a_step_no_larger_than_a_pass_may_be_is_taken_whole_unless_blocks_are_computed_again(
    sparing: DiffusionBase, pictures: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whole steps are recorded on a GPU, and never one whose blocks are computed again."""
    recorded = []
    monkeypatch.setattr(
        "duolora.lesson.RecordedSteps.run",
        lambda _self, _kind, step, inputs: recorded.append(len(inputs[0])) or step(*inputs),
    )

    train_tenants(sparing, [[task(pictures["content"], batch_size=1, steps=2)]])

    assert recorded == ([] if sparing.memory.recomputes_training else [1, 1])


def test_sparing_pictures_are_the_same_and_drawn_a_few_samples_at_a_time(
    sparing: DiffusionBase, equal: DiffusionBase, passes: Counter[str]
) -> None:
    lora = random_lora(equal, seed=3)
    expected = generate(equal, ["a disc", "a ball"], SKETCH, lora)
    passes.clear()

    found = generate(sparing, ["a disc", "a ball"], SKETCH, lora)

    samples = 2 * SKETCH.images  # guided and free
    assert passes["samples"] == min(samples, sparing.memory.predicts_at_once or samples)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_the_vae_sees_as_many_pictures_at_once_as_the_profile_says(
    sparing: DiffusionBase, base: DiffusionBase, pictures: dict[str, list[Path]]
) -> None:
    seen = []
    vae = sparing.vae
    hooks = [
        part.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
        for part in (vae.encoder, vae.decoder)
    ]
    rgb = load_pictures(pictures["content"], 64)
    found, expected = (each.encode_pictures(rgb) for each in (sparing, base))
    drawn, known = (each.decode_latents(expected.mean_BCHW) for each in (sparing, base))
    for hook in hooks:
        hook.remove()

    assert len(rgb) > 1
    assert set(seen) == {1}
    for one, other in ((found.mean_BCHW, expected.mean_BCHW), (found.std_BCHW, expected.std_BCHW), (drawn, known)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_only_the_smallest_profile_changes_weights(sparing: DiffusionBase) -> None:
    rounded = any(isinstance(module, EightBitLinear) for module in sparing.unet.modules())
    assert rounded == (sparing.memory.name == "8gb")


def test_several_tenants_cannot_share_sparing_passes(sparing: DiffusionBase, content_pictures: list[Path]) -> None:
    name = sparing.memory.name
    with pytest.raises(InvalidConfig, match=f"{name} only one tenant is trained"):
        train_tenants(sparing, [[task(content_pictures)]] * 2)
    with pytest.raises(InvalidConfig, match=f"{name} only one tenant is sampled"):
        sample_tenants(sparing, None, [["a disc"] * SKETCH.images] * 2, SKETCH, [0, 1])
