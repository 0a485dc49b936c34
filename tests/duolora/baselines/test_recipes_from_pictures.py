from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duolora.adapters import RankSpaceLinear
from duolora.baselines import b_lora, joint_training
from duolora.baselines.recipe_case import RecipeCase
from duolora.config import LoraTrainConfig
from duolora.errors import LayerGroupEmpty
from duolora.lora_task import LoraTask
from duolora.train import train_loras
from tests.duolora.dense import assert_same_change, dense

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

CONFIG = LoraTrainConfig(steps=3, rank=2, learning_rate=0.01, resolution_px=64, batch_size=2)


@pytest.fixture
def pictured(content_pictures: list[Path], style_pictures: list[Path]) -> RecipeCase:
    return RecipeCase(
        {"content": content_pictures, "style": style_pictures},
        {
            "content": ["a sbu disc"] * len(content_pictures),
            "style": [f"a {name} in szn style" for name in ("disc", "ramp", "dot")],
        },
        seed=5,
    )


def test_joint_training_sees_all_pictures_under_their_own_captions(base: DiffusionBase, pictured: RecipeCase) -> None:
    found = joint_training.train(base, [pictured], CONFIG)[0]

    task = LoraTask(
        joint_training._JOINT,
        [*pictured.pictures["content"], *pictured.pictures["style"]],
        [*pictured.captions["content"], *pictured.captions["style"]],
        CONFIG.model_copy(update={"seed": 5}),
    )
    assert_same_change(found, train_loras(base, [task])[task.side], tolerance=1e-5)
    assert set(found.layers) == {f"unet.{path}" for path in base.target_layers(CONFIG.targets)}


def test_b_lora_takes_each_block_from_its_sides_training(base: DiffusionBase, pictured: RecipeCase) -> None:
    found = b_lora.train(base, [pictured], CONFIG)[0]

    blocks = {"content": "unet.up_blocks.0.attentions.0.", "style": "unet.up_blocks.0.attentions.1."}
    assert set(found.layers) == {
        f"unet.{path}"
        for path in base.target_layers(CONFIG.targets)
        if f"unet.{path}".startswith(tuple(blocks.values()))
    }
    assert all(any(name.startswith(block) for name in found.layers) for block in blocks.values())
    # Pictures of one side decide that side's block alone.
    swapped = RecipeCase(
        {**pictured.pictures, "style": pictured.pictures["content"]},
        {**pictured.captions, "style": pictured.captions["content"]},
        pictured.seed,
    )
    other = b_lora.train(base, [swapped], CONFIG)[0]
    for name, layer in found.layers.items():
        same = (dense(layer) - dense(other.layers[name])).norm() <= 1e-5 * dense(layer).norm()
        assert same == name.startswith(blocks["content"]), name


def test_b_lora_trains_nothing_but_its_two_blocks(
    base: DiffusionBase, pictured: RecipeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as a plain training on a base whose only layers are the blocks'."""
    found = b_lora.train(base, [pictured], CONFIG)[0]

    blocks = [
        path
        for path in base.target_layers(CONFIG.targets)
        if path.startswith(("up_blocks.0.attentions.0.", "up_blocks.0.attentions.1."))
    ]
    monkeypatch.setattr(base, "target_layers", lambda _targets: blocks, raising=True)
    tasks = [
        LoraTask(side, pictured.pictures[side], pictured.captions[side], CONFIG.model_copy(update={"seed": 5}))
        for side in ("content", "style")
    ]
    plain = train_loras(base, tasks)
    for name, layer in found.layers.items():
        expected = dense(plain["content" if ".attentions.0." in name else "style"].layers[name])
        assert (dense(layer) - expected).norm() <= 1e-4 * expected.norm(), name


def test_b_lora_trains_both_blocks_together_on_either_side(base: DiffusionBase, pictured: RecipeCase) -> None:
    """Which half of a training is kept must not change what the training finds."""
    one, other = "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"
    usual = b_lora.train(base, [pictured], CONFIG)[0]
    crossed = b_lora.train(base, [pictured], CONFIG, content_block=other, style_block=one)[0]
    narrowed = b_lora._OnlyBlocks(base, (one, other))
    content = LoraTask(
        "content",
        pictured.pictures["content"],
        pictured.captions["content"],
        CONFIG.model_copy(update={"seed": pictured.seed}),
    )
    whole = train_loras(narrowed, [content])["content"]

    for name, layer in whole.layers.items():
        kept = usual if name.startswith(f"unet.{one}.") else crossed
        assert (dense(layer) - dense(kept.layers[name])).norm() <= 1e-3 * dense(layer).norm(), name


@pytest.mark.parametrize("train", [b_lora.train, joint_training.train])
def test_cases_together_learn_what_each_learns_alone(base: DiffusionBase, pictured: RecipeCase, train: object) -> None:
    reseeded = RecipeCase(pictured.pictures, pictured.captions, seed=6)

    together = train(base, [pictured, reseeded], CONFIG)  # type: ignore[operator]

    # Some gradients are near Adam's epsilon, where rounding shows; over the whole LoRA it does not.
    for case, found in zip((pictured, reseeded), together, strict=True):
        assert distance(found, train(base, [case], CONFIG)[0]) < 1e-3  # type: ignore[operator]
    assert distance(*together) > 0.5


def distance(left: LoraWeights, right: LoraWeights) -> float:
    """Relative distance of two LoRAs over all their layers."""
    apart = sum(float((dense(layer) - dense(right.layers[name])).square().sum()) for name, layer in left.layers.items())
    size = sum(float(dense(layer).square().sum()) for layer in right.layers.values())
    return (apart / size) ** 0.5


def test_block_that_the_base_lacks_is_refused_by_name(base: DiffusionBase, pictured: RecipeCase) -> None:
    with pytest.raises(LayerGroupEmpty, match=r"up_blocks\.7"):
        b_lora.train(base, [pictured], CONFIG, style_block="up_blocks.7.attentions.0")

    assert not any(isinstance(module, RankSpaceLinear) for module in base.unet.modules())


def test_base_offers_all_its_layers_again_afterwards(base: DiffusionBase, pictured: RecipeCase) -> None:
    before = base.target_layers(CONFIG.targets)

    b_lora.train(base, [pictured], CONFIG)

    assert base.target_layers(CONFIG.targets) == before
    assert len(before) == 88
