"""SD 1.5: what it does differently, and the whole way from pictures to a merged LoRA that works like SDXL's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from duolora.config import TargetLayers
from duolora.generate import generate
from duolora.lora.read import read_lora
from duolora.lora.write import write_kohya
from duolora.method.priors import Role, roles_by_resolution
from duolora.models.base import DiffusionBase, PromptEmbeddings
from duolora.personalize import merge_sides, train_sides
from duolora.runtime import Runtime
from tests.duolora.models.architectures import SD15_UNET
from tests.duolora.pico import pico_sd15_pipeline
from tests.duolora.test_personalize import lean_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def real() -> DiffusionBase:
    """Real SD 1.5's U-Net without storage; the VAE has its factor of 8."""
    pipeline = pico_sd15_pipeline()
    with torch.device("meta"):
        pipeline.unet = UNet2DConditionModel(**SD15_UNET)
    return DiffusionBase(pipeline, "SD 1.5", Runtime(torch.device("meta"), torch.float32))


def test_sd15_has_128_attention_layers_and_32_feed_forward_layers(real: DiffusionBase) -> None:
    assert len(real.target_layers(TargetLayers.ATTENTION)) == 16 * 8
    assert len(real.target_layers(TargetLayers.TRANSFORMER)) == 16 * 10


def test_layers_of_sd15_run_at_four_resolutions(real: DiffusionBase) -> None:
    names = [f"unet.{path}" for path in real.target_layers(TargetLayers.ATTENTION)]

    sides = real.layer_resolutions(names, 512)
    roles = roles_by_resolution(sides)

    expected = {"down_blocks.0": 64, "down_blocks.1": 32, "down_blocks.2": 16, "mid_block": 8}
    expected |= {"up_blocks.1": 16, "up_blocks.2": 32, "up_blocks.3": 64}
    for name in names:
        block = next(block for block in expected if name.startswith(f"unet.{block}."))
        assert sides[name] == expected[block]
        assert roles[name] == (Role.STYLE if expected[block] > 22.6 else Role.CONTENT)


def test_prompts_have_no_pooled_part(sd15_base: DiffusionBase) -> None:
    prompts = sd15_base.encode_prompts(["a", "b"])

    assert prompts.hidden_BTD.shape == (2, sd15_base.pipeline.tokenizer.model_max_length, 32)
    assert prompts.pooled_BP.shape == (2, 0)
    assert sd15_base.encode_unconditional().pooled_BP.shape == (1, 0)
    joined = PromptEmbeddings.join([prompts[torch.tensor([1])], prompts])
    assert joined.pooled_BP.shape == (3, 0)


def test_unconditional_prompt_is_the_empty_one(sd15_base: DiffusionBase) -> None:
    empty = sd15_base.encode_unconditional()

    torch.testing.assert_close(empty.hidden_BTD, sd15_base.encode_prompts([""]).hidden_BTD)


def test_noise_is_predicted_from_prompt_and_timestep(sd15_base: DiffusionBase) -> None:
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = sd15_base.encode_prompts(["a dog", "a cat"])

    with torch.no_grad():
        ours = sd15_base.predict_noise(noisy_BCHW, torch.tensor([10, 900]), prompts)
        direct = sd15_base.unet(noisy_BCHW, torch.tensor([10, 900]), encoder_hidden_states=prompts.hidden_BTD).sample

    assert torch.equal(ours, direct)


def test_pictures_become_two_loras_a_merge_and_pictures(
    sd15_base: DiffusionBase, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    config = lean_config("pico SD 1.5")
    before = {name: parameter.clone() for name, parameter in sd15_base.unet.named_parameters()}

    loras = {side: train_sides(sd15_base, {side: pictures[side]}, config)[side] for side in pictures}
    merged = merge_sides(sd15_base, loras, pictures, config)
    drawn = generate(sd15_base, ["a sbu disc in szn style"], config.preview, merged.weights)

    layers = {f"unet.{path}" for path in sd15_base.target_layers(config.content.targets)}
    assert all(set(lora.layers) == layers for lora in loras.values())
    assert set(merged.weights.layers) <= layers
    assert np.asarray(drawn[0]).std() > 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in sd15_base.unet.named_parameters())
    write_kohya(merged.weights, tmp_path / "merged.safetensors", family=sd15_base.family)
    again = read_lora(tmp_path / "merged.safetensors", sd15_base.layers())
    assert again.layers.keys() == merged.weights.layers.keys()
