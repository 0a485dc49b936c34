from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duolora.errors import InvalidLora
from duolora.families.sd15 import SD15
from duolora.families.sdxl import SDXL
from duolora.lora.keys import diffusers_path, kohya_key, plain_path, split_stem

if TYPE_CHECKING:
    from duolora.families.family import Family

# Every block of both U-Nets: the original release's name, diffusers' name.
SDXL_BLOCKS = [
    ("input_blocks_0_0", "conv_in"),
    ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
    ("input_blocks_2_0_out_layers_3", "down_blocks_0_resnets_1_conv2"),
    ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
    ("input_blocks_4_0_skip_connection", "down_blocks_1_resnets_0_conv_shortcut"),
    ("input_blocks_4_1_proj_in", "down_blocks_1_attentions_0_proj_in"),
    ("input_blocks_5_1_proj_in", "down_blocks_1_attentions_1_proj_in"),
    ("input_blocks_6_0_op", "down_blocks_1_downsamplers_0_conv"),
    ("input_blocks_7_1_proj_in", "down_blocks_2_attentions_0_proj_in"),
    ("input_blocks_8_0_emb_layers_1", "down_blocks_2_resnets_1_time_emb_proj"),
    ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
    ("middle_block_0_in_layers_2", "mid_block_resnets_0_conv1"),
    ("middle_block_1_proj_out", "mid_block_attentions_0_proj_out"),
    ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
    ("output_blocks_0_0_in_layers_2", "up_blocks_0_resnets_0_conv1"),
    ("output_blocks_0_1_proj_in", "up_blocks_0_attentions_0_proj_in"),
    ("output_blocks_1_1_proj_in", "up_blocks_0_attentions_1_proj_in"),
    ("output_blocks_2_1_proj_in", "up_blocks_0_attentions_2_proj_in"),
    ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
    ("output_blocks_3_1_proj_in", "up_blocks_1_attentions_0_proj_in"),
    ("output_blocks_5_1_proj_in", "up_blocks_1_attentions_2_proj_in"),
    ("output_blocks_5_2_conv", "up_blocks_1_upsamplers_0_conv"),
    ("output_blocks_8_0_skip_connection", "up_blocks_2_resnets_2_conv_shortcut"),
    ("time_embed_0", "time_embedding_linear_1"),
    ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"),
    ("label_emb_0_2", "add_embedding_linear_2"),
    ("out_2", "conv_out"),
]
SD15_BLOCKS = [
    ("input_blocks_1_1_proj_in", "down_blocks_0_attentions_0_proj_in"),
    ("input_blocks_2_1_proj_in", "down_blocks_0_attentions_1_proj_in"),
    ("input_blocks_9_0_op", "down_blocks_2_downsamplers_0_conv"),
    ("input_blocks_11_0_out_layers_3", "down_blocks_3_resnets_1_conv2"),
    ("output_blocks_2_1_conv", "up_blocks_0_upsamplers_0_conv"),  # this block has no attention before it
    ("output_blocks_3_1_proj_in", "up_blocks_1_attentions_0_proj_in"),
    ("output_blocks_8_2_conv", "up_blocks_2_upsamplers_0_conv"),
    ("output_blocks_11_1_proj_in", "up_blocks_3_attentions_2_proj_in"),
]


@pytest.mark.parametrize(("original", "diffusers"), SDXL_BLOCKS + SD15_BLOCKS)
def test_original_block_names_become_those_of_diffusers(original: str, diffusers: str) -> None:
    assert diffusers_path(original, blocks=2) == diffusers
    assert diffusers_path(diffusers, blocks=2) == diffusers  # and those stay what they are


@pytest.mark.parametrize("rest", ["transformer_blocks_0_attn1_to_q", "transformer_blocks_9_ff_net_0_proj", "norm"])
def test_layers_inside_a_transformer_keep_their_names(rest: str) -> None:
    assert diffusers_path(f"input_blocks_4_1_{rest}", blocks=2) == f"down_blocks_1_attentions_0_{rest}"


@pytest.mark.parametrize("path", ["middle_block_7_x", "input_blocks_4_5_x", "input_blocks_0_0_x"])
def test_blocks_that_no_release_has_are_left_alone(path: str) -> None:
    assert diffusers_path(path, blocks=2) == path


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("unet.mid_block.x", ("unet", "unet", "mid_block.x")),
        ("unet.base_model.model.mid_block.x", ("unet", "unet", "mid_block.x")),
        ("base_model.model.unet.mid_block.x", ("unet", "unet", "mid_block.x")),
        ("base_model.model.mid_block.x", ("", "unet", "mid_block.x")),
        ("up_blocks.0.x", ("", "unet", "up_blocks.0.x")),
        ("diffusion_model.input_blocks.4.1.x", ("diffusion_model", "unet", "input_blocks.4.1.x")),
        ("text_encoder.text_model.x", ("text_encoder", "text_encoder", "text_model.x")),
        ("text_encoder_2.text_model.x", ("text_encoder_2", "text_encoder_2", "text_model.x")),
        ("clip_g.text_model.x", ("clip_g", "text_encoder_2", "text_model.x")),
        ("lora_unet_mid_block_x", ("lora_unet", "unet", "mid_block_x")),
        ("lora_unet.mid_block.x", ("lora_unet", "unet", "mid_block.x")),
        ("lora_te_text_model_x", ("lora_te", "text_encoder", "text_model_x")),
        ("lora_te1_text_model_x", ("lora_te1", "text_encoder", "text_model_x")),
        ("lora_te2.text_model.x", ("lora_te2", "text_encoder_2", "text_model.x")),
        ("lora_te3_encoder_x", None),
        ("transformer.x", None),
        ("vae.x", None),
        ("unetx", None),
    ],
)
def test_stems_are_split_into_component_and_path(stem: str, parts: tuple[str, str, str] | None) -> None:
    assert split_stem(stem) == parts


@pytest.mark.parametrize(
    ("component", "path", "plain"),
    [
        ("unet", "b.attn1.processor.to_q", "b.attn1.to_q"),
        ("unet", "b.attn1.processor.to_out", "b.attn1.to_out.0"),
        ("unet", "b_attn1_to_out", "b_attn1_to_out_0"),
        ("unet", "b.attn1.to_out.0", "b.attn1.to_out.0"),
        ("text_encoder", "l.0.self_attn.to_q", "l.0.self_attn.q_proj"),
        ("text_encoder_2", "l.0.self_attn.to_out", "l.0.self_attn.out_proj"),
        ("text_encoder", "l.0.self_attn.q_proj", "l.0.self_attn.q_proj"),
    ],
)
def test_names_of_old_attention_processors_become_those_of_their_layers(component: str, path: str, plain: str) -> None:
    assert plain_path(component, path) == plain


@pytest.mark.parametrize(
    ("layer", "family", "key"),
    [
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
            SDXL,
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            SDXL,
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", SDXL, "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            SD15,
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        ),
    ],
)
def test_kohya_names_are_those_that_kohyas_scripts_write(layer: str, family: Family, key: str) -> None:
    assert kohya_key(layer, family) == key


@pytest.mark.parametrize(("layer", "family"), [("vae.decoder.conv_in", SDXL), ("text_encoder_2.text_model.x", SD15)])
def test_component_that_the_family_lacks_is_refused(layer: str, family: Family) -> None:
    with pytest.raises(InvalidLora, match=layer.partition(".")[0]):
        kohya_key(layer, family)
