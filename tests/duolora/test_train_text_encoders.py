"""Training the text encoders' attention beside the U-Net's: what is learned is what sampling uses, in every company."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from duolora.adapters import RankSpaceLinear
from duolora.config import GenerateConfig, PersonalizeConfig, Preservation, Prompts
from duolora.generate import generate
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.lora_task import Batch, CachedTask, LoraTask
from duolora.models.carried import applied
from duolora.personalize import merge_sides, train_sides
from duolora.recipes import resolve
from duolora.train import train_loras, train_tenants
from tests.duolora.dense import assert_same_change
from tests.duolora.test_train import assert_same_lora, preserving, task

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

NAMES = {f"self_attn.{name}_proj" for name in "qkv"} | {"self_attn.out_proj"}


def text_task(pictures: list[Path], side: str = "content", **changes: Any) -> LoraTask:
    return task(pictures, side, text_encoder=True, **changes)


def text_part(lora: LoraWeights) -> LoraWeights | None:
    return lora.only({name for name in lora.layers if name.startswith("text_encoder")})


def denoising_error(base: DiffusionBase, unseen: LoraTask, lora: LoraWeights) -> float:
    """Error as sampling would have it: the LoRA added to the weights, the captions encoded with it."""
    with applied(base, lora), torch.no_grad():
        batch = Batch.gather(base, [CachedTask(base, unseen)])
        prediction = base.predict_noise(batch.noisy_BCHW, batch.timesteps_B, batch.prompts)
    return (prediction - batch.noise_BCHW).square().mean().item()


@pytest.mark.parametrize(("kind", "encoders"), [("sdxl", 2), ("sd15", 1)])
def test_attention_of_all_text_encoders_is_adapted_and_restored(
    *, base: DiffusionBase, sd15_base: DiffusionBase, content_pictures: list[Path], kind: str, encoders: int
) -> None:
    model = base if kind == "sdxl" else sd15_base
    plain = train_loras(model, [task(content_pictures)])["content"]
    before = model.encode_prompts(["a sbu disc"]).hidden_BTD

    lora = train_loras(model, [text_task(content_pictures)])["content"]

    text = lora.layers.keys() - plain.layers.keys()
    assert {name.split(".", 5)[-1] for name in text} == NAMES
    assert len(text) == encoders * 2 * 4  # encoders of two blocks
    assert all(lora.layers[name].rank == 2 for name in text)
    # The U-Net is shown what comes before the last block of SDXL's encoders (and, of the second one, the pooled end).
    idle = {name for name in text if kind == "sdxl" and name.startswith("text_encoder.") and ".layers.1." in name}
    assert {name for name in text if lora.layers[name].up_OR.abs().max() == 0} == idle
    assert torch.equal(model.encode_prompts(["a sbu disc"]).hidden_BTD, before)
    assert not any(
        isinstance(module, RankSpaceLinear)
        for part in model.family.components
        for module in model.component(part).modules()
    )


def test_text_encoders_that_do_not_learn_leave_the_training_as_it_was(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]
) -> None:
    """The other side's text encoders may learn: tolerance for prompts encoded in another batch."""
    content, style = task(content_pictures, "content"), text_task(style_pictures, "style")

    alone = train_loras(base, [content])["content"]
    beside = train_loras(base, [content, style])

    assert_same_change(beside["content"], alone, 1e-2)
    assert text_part(beside["style"]) is not None


def test_what_the_text_encoders_learn_helps_as_sampling_uses_it(
    base: DiffusionBase, content_pictures: list[Path]
) -> None:
    learned = text_task(content_pictures[:1], steps=40, batch_size=4, rank=4)
    unseen = task(content_pictures[:1], batch_size=16, seed=999)

    whole = train_loras(base, [learned])["content"]

    unet_only = whole.only({name for name in whole.layers if name.startswith("unet.")})
    text_only = text_part(whole)
    assert unet_only is not None
    assert text_only is not None
    errors = [denoising_error(base, unseen, lora) for lora in (whole, unet_only, text_only, whole.scaled(1e-6))]
    assert errors[0] < errors[1] < errors[3], "the U-Net's part does worse without the text encoders' part"
    assert errors[2] < errors[3], "the text encoders' part alone does not help"


def test_a_first_step_is_taken_down_the_slope_of_the_loss(base: DiffusionBase, content_pictures: list[Path]) -> None:
    """By the loss itself, as sampling computes it, at the samples that the training drew.

    AdamW's first step moves every up factor by the learning rate against the sign of its gradient.
    """
    rate = 1e-3
    learned = text_task(content_pictures, steps=1, learning_rate=rate, batch_size=2)

    text = text_part(train_loras(base, [learned])["content"])

    assert text is not None
    same_draw = task(content_pictures, batch_size=2)
    start = denoising_error(base, same_draw, text.scaled(0))
    forward = denoising_error(base, same_draw, text.scaled(1))
    back = denoising_error(base, same_draw, text.scaled(-1))
    assert forward < start < back
    for name, layer in text.layers.items():
        one = text.only({name})
        assert one is not None
        if layer.up_OR.abs().max() > 0:
            assert denoising_error(base, same_draw, one.scaled(30)) < denoising_error(base, same_draw, one.scaled(-30))


@pytest.mark.parametrize("both", [True, False])
def test_sides_trained_in_one_pass_learn_what_each_learns_alone(
    *, base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path], both: bool
) -> None:
    content = text_task(content_pictures, "content", batch_size=2, seed=1)
    style = task(style_pictures, "style", batch_size=3, steps=2, rank=3, text_encoder=both)

    together = train_loras(base, [content, style])

    for alone in (content, style):
        assert_same_change(together[alone.side], train_loras(base, [alone])[alone.side], 1e-2)
    assert (text_part(together["style"]) is not None) is both


@pytest.mark.parametrize("company", [0.0, 0.5])
def test_tenants_learn_what_each_learns_alone(
    base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path], company: float
) -> None:
    def tenant(content: list[Path], style: list[Path], seed: int) -> list[LoraTask]:
        tasks = [
            text_task(pictures, side, batch_size=2, steps=2, seed=seed, company=company)
            for side, pictures in (("content", content), ("style", style))
        ]
        captioned = [
            replace(each, captions=[f"{index} in {seed}" for index, _ in enumerate(each.pictures)]) for each in tasks
        ]
        return [preserving(base, each, style, weight=0.5) for each in captioned]

    tenants = [tenant(content_pictures, style_pictures, 1), tenant(style_pictures, content_pictures[:1], 7)]

    together = train_tenants(base, tenants)

    for tasks, found in zip(tenants, together, strict=True):
        for side, lora in train_loras(base, tasks).items():
            assert_same_change(found[side], lora, 2e-2)


def text_config() -> PersonalizeConfig:
    settings = resolve(
        "tiny", "pico", Prompts(subject_class="disc"), content_steps=3, style_steps=3, merge_steps=2, rank=2
    )
    changes = {"batch_size": 2, "text_encoder": True, "company": 0.5, "learning_rate": 1e-2}
    return settings.model_copy(
        update={
            "content": settings.content.model_copy(update=changes),
            "style": settings.style.model_copy(update={**changes, "preservation": Preservation(weight=1, pictures=2)}),
            "merge": settings.merge.model_copy(update={"batch_size": 1, "bank_size": 2}),
            "preview": GenerateConfig(steps=2, images=2, resolution_px=64),
        }
    )


def test_a_job_carries_its_text_encoders_through_files_merge_and_sampling(
    base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    config = text_config()

    loras = train_sides(base, pictures, config)
    merged = merge_sides(base, loras, pictures, config).weights

    text = text_part(merged)
    assert text is not None
    assert {layer.rank for layer in text.layers.values()} == {4}
    for name, layer in text.layers.items():
        expected_OI = loras["content"].layers[name].delta_OI() + loras["style"].layers[name].delta_OI()
        torch.testing.assert_close(layer.delta_OI(), expected_OI)
    write_diffusers(merged, tmp_path / "diffusers.safetensors", torch.float32)
    write_kohya(merged, tmp_path / "kohya.safetensors", torch.float32, family=base.family)
    for path in tmp_path.iterdir():
        assert_same_change(read_lora(path, base.layers()), merged, 1e-5)
    unet = merged.only(merged.layers.keys() - text.layers.keys())
    drawn = [generate(base, ["a sbu disc in szn style"], config.preview, lora) for lora in (merged, unet)]
    assert drawn[0][0].tobytes() != drawn[1][0].tobytes()


def test_same_seed_gives_the_same_numbers(base: DiffusionBase, content_pictures: list[Path]) -> None:
    one, other = (train_loras(base, [text_task(content_pictures, seed=4)])["content"] for _ in range(2))

    assert_same_lora(one, other)
