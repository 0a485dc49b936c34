"""Every refusal names the key and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from duolora.errors import InvalidLora
from duolora.families.sd15 import SD15
from duolora.families.sdxl import SDXL
from duolora.lora.base_layers import BaseLayers
from duolora.lora.read import read_lora

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

NAME = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
BASE = BaseLayers(SDXL, {NAME: (6, 2048)})
FACTORS = {f"{KOHYA}.lora_down.weight": torch.ones(2, 2048), f"{KOHYA}.lora_up.weight": torch.ones(6, 2)}


def refused(tmp_path: Path, tensors: dict[str, Tensor], base: BaseLayers | None = BASE) -> str:
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(InvalidLora) as caught:
        read_lora(tmp_path / "lora.safetensors", base)
    return str(caught.value)


def test_the_layer_these_tests_spoil_is_read(tmp_path: Path) -> None:
    save_file(FACTORS, tmp_path / "lora.safetensors")

    assert set(read_lora(tmp_path / "lora.safetensors", BASE).layers) == {NAME}


@pytest.mark.parametrize(
    ("suffix", "kind", "remedy"),
    [
        ("hada_w1_a", "LoHa", "plain LoRA"),
        ("hada_t1", "LoHa", "plain LoRA"),
        ("lokr_w1", "LoKr", "plain LoRA"),
        ("lokr_w2_a", "LoKr", "plain LoRA"),
        ("dora_scale", "DoRA", "without DoRA"),
        ("lora_magnitude_vector", "DoRA", "without DoRA"),
        ("lora_magnitude_vector.weight", "DoRA", "without DoRA"),
        ("a1.weight", "GLoRA", "plain LoRA"),
        ("oft_blocks", "OFT", "plain LoRA"),
        ("oft_R.weight", "OFT", "plain LoRA"),
        ("boft_R", "OFT", "plain LoRA"),
        ("on_input", "IA", "plain LoRA"),
        ("lora_mid.weight", "Tucker", "use_tucker"),
        ("diff", "full change", "plain LoRA"),
        ("diff_b", "full change", "plain LoRA"),
        ("w_norm", "full change", "plain LoRA"),
        ("lora_B.bias", "biases", "without lora_bias"),
    ],
)
def test_other_kinds_of_adapter_are_refused(tmp_path: Path, suffix: str, kind: str, remedy: str) -> None:
    message = refused(tmp_path, FACTORS | {f"{KOHYA}.{suffix}": torch.ones(2)})

    assert f"{KOHYA}.{suffix}" in message
    assert kind in message
    assert remedy in message


def test_bundled_embeddings_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, FACTORS | {"bundle_emb.sbu.clip_l": torch.ones(2)})

    assert "bundle_emb.sbu.clip_l" in message
    assert "without its embeddings" in message


@pytest.mark.parametrize(
    ("stem", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        ("lora_unet_single_blocks_0_linear1", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "SD 3"),
        ("transformer.transformer_blocks.0.attn.to_q", "diffusion transformer"),
        ("transformer_blocks.0.attn.to_q", "diffusion transformer"),
        ("diffusion_model.blocks.0.self_attn.q", "diffusion transformer"),
    ],
)
@pytest.mark.parametrize("base", [BASE, None])
def test_families_without_our_unet_are_refused(tmp_path: Path, stem: str, family: str, base: BaseLayers | None) -> None:
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 4), f"{stem}.lora_up.weight": torch.ones(4, 2)}

    message = refused(tmp_path, tensors, base)

    assert stem in message
    assert family in message
    assert "another LoRA" in message


def te_key(prefix: str) -> dict[str, Tensor]:
    stem = f"{prefix}_text_model_encoder_layers_0_mlp_fc1"
    return {f"{stem}.lora_down.weight": torch.ones(2, 4), f"{stem}.lora_up.weight": torch.ones(4, 2)}


def cross_attention(width: int) -> dict[str, Tensor]:
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{stem}.lora_down.weight": torch.ones(2, width), f"{stem}.lora_up.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("base", "tensors", "made_for"),
    [
        (BASE, te_key("lora_te"), "SD 1.5"),
        (BASE, cross_attention(768), "SD 1.5"),
        (BaseLayers(SD15, {NAME: (6, 768)}), te_key("lora_te1"), "SDXL"),
        (BaseLayers(SD15, {NAME: (6, 768)}), cross_attention(2048), "SDXL"),
    ],
)
def test_lora_of_our_other_family_is_refused(
    tmp_path: Path, base: BaseLayers, tensors: dict[str, Tensor], made_for: str
) -> None:
    message = refused(tmp_path, tensors, base)

    assert min(tensors).partition(".")[0] in message
    assert f"made for {made_for}" in message
    assert "use a base of that family" in message


def test_layer_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    message = refused(tmp_path, FACTORS, BaseLayers(SDXL, {NAME: (6, 768)}))

    assert f"{KOHYA}.lora_down.weight" in message
    assert "(6, 2048)" in message
    assert "(6, 768)" in message


def test_convolution_on_a_linear_layer_is_refused(tmp_path: Path) -> None:
    tensors = {f"{KOHYA}.lora_down.weight": torch.ones(2, 4, 3, 3), f"{KOHYA}.lora_up.weight": torch.ones(6, 2, 1, 1)}

    assert "(6, 4, 3, 3)" in refused(tmp_path, tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", [f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight", f"{KOHYA}.alpha"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, key: str, value: float, dtype: torch.dtype) -> None:
    tensors = {
        name: tensor.to(dtype, copy=True) for name, tensor in (FACTORS | {f"{KOHYA}.alpha": torch.tensor(2.0)}).items()
    }
    tensors[key].view(-1)[-1] = value

    message = refused(tmp_path, tensors)

    assert key in message
    assert "NaN or infinity" in message


@pytest.mark.parametrize("shape", [(2,), (1, 2), (0,)])
def test_alpha_must_be_one_number(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert f"{KOHYA}.alpha must be one number" in refused(tmp_path, FACTORS | {f"{KOHYA}.alpha": torch.ones(shape)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_factors_that_are_not_of_floating_point_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    message = refused(tmp_path, {key: tensor.to(dtype) for key, tensor in FACTORS.items()})

    assert f"{KOHYA}.lora_down.weight is stored as" in message


def test_alpha_that_is_neither_float_nor_integer_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, FACTORS | {f"{KOHYA}.alpha": torch.tensor(1).to(torch.bool)})

    assert f"{KOHYA}.alpha is stored as BOOL" in message


def test_two_names_of_one_layer_are_refused(tmp_path: Path) -> None:
    twice = {f"{NAME}.lora_A.weight": torch.ones(2, 2048), f"{NAME}.lora_B.weight": torch.ones(6, 2)}

    assert "another key of the file changes already" in refused(tmp_path, FACTORS | twice)


def test_two_forms_of_one_factor_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, FACTORS | {f"{KOHYA}.lora_A.weight": torch.ones(2, 2048)})

    assert "same factor" in message
