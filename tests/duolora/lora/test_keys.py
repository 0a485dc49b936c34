from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duolora.errors import InvalidLora
from duolora.lora.keys import diffusers_block_name, kohya_index, kohya_key

if TYPE_CHECKING:
    from duolora.models.sdxl import SdxlBase

# The transformers of SDXL's U-Net: block of the original release, block in diffusers.
SDXL_BLOCKS = [
    ("input_blocks_4_1", "down_blocks_1_attentions_0"),
    ("input_blocks_5_1", "down_blocks_1_attentions_1"),
    ("input_blocks_7_1", "down_blocks_2_attentions_0"),
    ("input_blocks_8_1", "down_blocks_2_attentions_1"),
    ("middle_block_1", "mid_block_attentions_0"),
    ("output_blocks_0_1", "up_blocks_0_attentions_0"),
    ("output_blocks_1_1", "up_blocks_0_attentions_1"),
    ("output_blocks_2_1", "up_blocks_0_attentions_2"),
    ("output_blocks_3_1", "up_blocks_1_attentions_0"),
    ("output_blocks_4_1", "up_blocks_1_attentions_1"),
    ("output_blocks_5_1", "up_blocks_1_attentions_2"),
]


@pytest.mark.parametrize(("original", "diffusers"), SDXL_BLOCKS)
@pytest.mark.parametrize("rest", ["transformer_blocks_0_attn1_to_q", "transformer_blocks_9_ff_net_0_proj", "proj_in"])
def test_original_block_names_become_those_of_diffusers(original: str, diffusers: str, rest: str) -> None:
    assert diffusers_block_name(f"lora_unet_{original}_{rest}") == f"lora_unet_{diffusers}_{rest}"


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_unet_input_blocks_4_0_in_layers_2",  # a residual block, which the rule for transformers must not touch
        "lora_unet_middle_block_0_in_layers_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    ],
)
def test_names_that_are_no_original_transformer_come_back_unchanged(name: str) -> None:
    assert diffusers_block_name(name) == name


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
    ],
)
def test_kohya_names_are_those_that_kohyas_scripts_write(layer: str, key: str) -> None:
    assert kohya_key(layer) == key


def test_component_without_a_kohya_prefix_is_refused() -> None:
    with pytest.raises(InvalidLora, match="vae"):
        kohya_key("vae.decoder.conv_in")


def test_every_layer_of_a_base_is_found_again_by_its_kohya_name(base: SdxlBase) -> None:
    names = base.layer_names()

    assert list(kohya_index(names).values()) == names  # no two layers share a kohya name
