"""Every key format finds every layer of the real architectures, built without storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from duolora.errors import InvalidLora
from duolora.families.sd15 import SD15
from duolora.families.sdxl import SDXL
from duolora.lora.base_layers import BaseLayers, made_for, unverified_name
from duolora.lora.keys import kohya_key
from tests.duolora.models.architectures import SD15_UNET, SDXL_UNET

if TYPE_CHECKING:
    from duolora.families.family import Family

BLOCKS = {"down_blocks": "input_blocks", "mid_block": "middle_block", "up_blocks": "output_blocks"}
RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_path(path: str, names: set[str]) -> str:
    """The original release's name of a layer, from diffusers' name; written apart from the engine's own rule."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    block, *rest = path.split(".")
    index = 0 if block == "mid_block" else int(rest.pop(0))
    kind, layer, *tail = rest
    if kind == "downsamplers":
        return f"input_blocks.{3 * index + 3}.0.op"
    if kind == "upsamplers":
        attends = any(name.startswith(f"up_blocks.{index}.attentions") for name in names)
        return f"output_blocks.{3 * index + 2}.{2 if attends else 1}.conv"
    end = RESIDUAL[tail[0]] if kind == "resnets" else ".".join(tail)
    inner = 0 if kind == "resnets" else 1
    if block == "mid_block":
        return f"middle_block.{1 if inner else 2 * int(layer)}.{end}"
    number = 3 * index + int(layer) + (1 if block == "down_blocks" else 0)
    return f"{BLOCKS[block]}.{number}.{inner}.{end}"


def unet_layers(family: Family, config: dict) -> BaseLayers:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    shapes = {
        f"unet.{path}": tuple(module.weight.shape)
        for path, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return BaseLayers(family, shapes)


REAL = {"SDXL": (SDXL, SDXL_UNET, 794), "SD 1.5": (SD15, SD15_UNET, 282)}


@pytest.fixture(scope="module", params=list(REAL))
def real(request: pytest.FixtureRequest) -> BaseLayers:
    family, config, count = REAL[request.param]
    layers = unet_layers(family, config)
    assert len(layers.shapes) == count
    return layers


def test_every_layer_is_found_by_every_form_of_its_name(real: BaseLayers) -> None:
    paths = {name.removeprefix("unet.") for name in real.shapes}
    for name in real.shapes:
        path = name.removeprefix("unet.")
        original = original_path(path, paths)
        stems = [
            name,
            kohya_key(name, real.family),
            f"lora_unet.{path}",  # OneTrainer
            f"base_model.model.{path}" if path.startswith(("down_", "mid_", "up_", "conv_", "time_")) else name,
            f"lora_unet_{original.replace('.', '_')}",
            f"unet.{original}",
            f"diffusion_model.{original}",  # ComfyUI
        ]
        for stem in stems:
            assert real.find(stem) == name, stem


TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("family", "stem", "name"),
    [
        (SDXL, f"lora_te1_{TEXT.replace('.', '_')}", f"text_encoder.{TEXT}"),
        (SDXL, f"lora_te2_{TEXT.replace('.', '_')}", f"text_encoder_2.{TEXT}"),
        (SDXL, f"lora_te2.{TEXT}", f"text_encoder_2.{TEXT}"),
        (SDXL, f"text_encoder.{TEXT}", f"text_encoder.{TEXT}"),
        (SDXL, f"text_encoder.{TEXT.removeprefix('text_model.')}", f"text_encoder.{TEXT}"),
        (SDXL, "text_encoder_2.text_model.encoder.layers.0.self_attn.to_q", f"text_encoder_2.{TEXT}"),
        (SDXL, f"clip_g.transformer.{TEXT}", f"text_encoder_2.{TEXT}"),
        (SD15, f"lora_te_{TEXT.replace('.', '_')}", f"text_encoder.{TEXT}"),
        (SD15, f"clip_l.{TEXT}", f"text_encoder.{TEXT}"),
        # The other family's prefix is no name of this one's layers, though the path behind it fits.
        (SD15, f"lora_te1_{TEXT.replace('.', '_')}", None),
        (SDXL, f"lora_te_{TEXT.replace('.', '_')}", None),
        (SD15, f"text_encoder_2.{TEXT}", None),
    ],
)
def test_text_encoders_are_found_by_their_familys_names(family: Family, stem: str, name: str | None) -> None:
    shapes = {f"{component}.{TEXT}": (4, 4) for component in family.components if component != "unet"}

    assert BaseLayers(family, shapes).find(stem) == name


def test_layers_that_underscores_cannot_tell_apart_are_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="dots and underscores"):
        BaseLayers(SDXL, {"unet.a.b": (1, 1), "unet.a_b": (1, 1)})


@pytest.mark.parametrize(
    ("stems", "width", "family"),
    [
        (["lora_te_text_model_x"], None, "SD 1.5"),
        (["lora_te1_text_model_x"], None, "SDXL"),
        (["lora_unet_x"], 768, "SD 1.5"),
        (["lora_unet_x"], 2048, "SDXL"),
        (["lora_unet_x"], None, None),
    ],
)
def test_family_of_a_file_is_guessed_from_its_names_and_widths(
    stems: list[str], width: int | None, family: str | None
) -> None:
    assert made_for(stems, width) == family


@pytest.mark.parametrize(
    "stem", ["lora_unet_down_blocks_0_x", "lora_unet.mid_block.x", "unet.input_blocks.4.1.x", "whatever"]
)
def test_names_that_only_a_base_can_tell_ask_for_one(stem: str) -> None:
    with pytest.raises(InvalidLora, match="give the base"):
        unverified_name(stem)


def test_names_with_dots_can_be_told_without_a_base() -> None:
    assert unverified_name("mid_block.attn1.processor.to_out") == "unet.mid_block.attn1.to_out.0"
    assert unverified_name("text_encoder.text_model.x") == "text_encoder.text_model.x"
