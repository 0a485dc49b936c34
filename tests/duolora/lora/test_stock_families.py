"""Our files of both families in stock diffusers and peft: transformers, convolutions and text encoders.

Tolerances. Deltas of the diffusers file equal ours bit for bit; those of the kohya file of mixed ranks are rounded to
float16 at another place, 2^-11 of each delta's norm. Pictures: as in test_stock_diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from duolora.generate import generate, starting_noise
from duolora.lora.carry import split
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.models.carried import applied
from tests.duolora.dense import assert_same_change
from tests.duolora.lora.stock import CONFIG, PROMPTS, draw_stock, open_stock, pixels, stock_deltas
from tests.duolora.pico import pico_base, pico_sd15_base, random_lora_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

BUILD = {"SDXL": pico_base, "SD 1.5": pico_sd15_base}


@pytest.fixture(scope="module", params=list(BUILD))
def family_base(request: pytest.FixtureRequest) -> DiffusionBase:
    return BUILD[request.param]()


@pytest.fixture(scope="module")
def folder(family_base: DiffusionBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("families") / "base"
    family_base.pipeline.save_pretrained(path)
    return path


def whole_lora(base: DiffusionBase) -> LoraWeights:
    """Changes attention, feed-forward, every kind of convolution, time projections and the text encoders."""
    ends = ("attn1.to_q", "attn2.to_out.0", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "samplers.0.conv")
    ends += ("time_emb_proj", "q_proj", "out_proj", "mlp.fc1")
    names = [name for name in base.layers().shapes if name.endswith(ends)]
    assert {name.partition(".")[0] for name in names} == set(base.family.components)
    return random_lora_on(base, names, ranks=(2, 3, 3))


def attention_lora(base: DiffusionBase) -> LoraWeights:
    names = [name for name in base.layers().shapes if name.endswith(("attn1.to_q", "attn2.to_v"))]
    return random_lora_on(base, names, ranks=(3,), scale=0.3)


def stock(folder: Path, file: Path | None) -> DiffusionPipeline:
    pipeline = open_stock(folder, file)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def draw_ours(base: DiffusionBase, lora: LoraWeights | None) -> np.ndarray:
    if lora is None:
        return pixels(generate(base, PROMPTS, CONFIG))
    parts = split(lora)
    with applied(base, parts.carried):
        return pixels(generate(base, PROMPTS, CONFIG, parts.by_masks))


@pytest.mark.parametrize("kind", ["whole", "attention"])
@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_stock_diffusers_draws_our_pictures(
    family_base: DiffusionBase, folder: Path, tmp_path: Path, write: object, kind: str
) -> None:
    base = family_base
    write(
        {"whole": whole_lora, "attention": attention_lora}[kind](base), tmp_path / "l.safetensors", family=base.family
    )
    lora = read_lora(tmp_path / "l.safetensors", base.layers())

    pipeline = stock(folder, tmp_path / "l.safetensors")

    deltas = stock_deltas(pipeline, base)
    assert deltas.keys() == lora.layers.keys()
    for name, layer in lora.layers.items():
        assert deltas[name].shape == layer.weight_shape
        error = (deltas[name] - layer.delta_weight()).norm() / layer.delta_weight().norm()
        assert error <= 1e-6, f"{name}: relative error {error:.2e}"
    noise = starting_noise(base, CONFIG)
    ours = draw_ours(base, lora)
    assert np.abs(draw_ours(base, None) - ours).mean() > 5, "the LoRA must matter, or agreeing means nothing"
    assert np.abs(draw_stock(pipeline, noise) - ours).max() <= 1


def test_pictures_without_a_lora_are_those_of_stock_diffusers(family_base: DiffusionBase, folder: Path) -> None:
    ours = draw_ours(family_base, None)

    assert np.abs(draw_stock(stock(folder, None), starting_noise(family_base, CONFIG)) - ours).max() <= 1


def test_both_files_hold_the_same_deltas(family_base: DiffusionBase, tmp_path: Path) -> None:
    lora, layers = whole_lora(family_base), family_base.layers()
    write_diffusers(lora, tmp_path / "d.safetensors", family=family_base.family)
    write_kohya(lora, tmp_path / "k.safetensors", family=family_base.family)

    ours, theirs = read_lora(tmp_path / "d.safetensors", layers), read_lora(tmp_path / "k.safetensors", layers)

    for found in (ours, theirs):
        assert_same_change(found, lora, 2**-10)
    assert all(layer.kernel == lora.layers[name].kernel for name, layer in ours.layers.items())


def test_file_of_peft_itself_is_read_with_its_alpha(family_base: DiffusionBase, folder: Path, tmp_path: Path) -> None:
    """`save_pretrained` keeps alpha in a file of its own, and keys without a component."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv1"], init_lora_weights=False)
    model = get_peft_model(stock(folder, None).unet, config)
    model.save_pretrained(tmp_path)
    expected = {
        path.removeprefix("base_model.model."): module.get_delta_weight("default")
        for path, module in model.named_modules()
        if "default" in getattr(module, "lora_A", ())
    }

    lora = read_lora(tmp_path / "adapter_model.safetensors", family_base.layers())

    assert {name.removeprefix("unet.") for name in lora.layers} == expected.keys()
    for name, layer in lora.layers.items():
        torch.testing.assert_close(layer.delta_weight(), expected[name.removeprefix("unet.")])


def test_file_of_stock_diffusers_is_read(family_base: DiffusionBase, folder: Path, tmp_path: Path) -> None:
    """Through stock diffusers and back: its own loader, its own `save_lora_weights`, our reader."""
    write_diffusers(whole_lora(family_base), tmp_path / "ours.safetensors", family=family_base.family)
    lora = read_lora(tmp_path / "ours.safetensors", family_base.layers())
    pipeline = stock(folder, tmp_path / "ours.safetensors")
    adapted = {
        f"{name}_lora_layers": get_peft_model_state_dict(getattr(pipeline, name), adapter_name="default_0")
        for name in family_base.family.components
    }
    pipeline.save_lora_weights(tmp_path / "stock", **adapted)

    theirs = read_lora(tmp_path / "stock" / "pytorch_lora_weights.safetensors", family_base.layers())

    assert theirs.layers.keys() == lora.layers.keys()
    for name, layer in lora.layers.items():
        torch.testing.assert_close(theirs.layers[name].delta_weight(), layer.delta_weight())


@pytest.mark.parametrize("convert", [convert_state_dict_to_diffusers, convert_state_dict_to_kohya])
def test_files_that_stock_diffusers_converts_are_read(tmp_path: Path, convert: Callable[..., Any]) -> None:
    """Its older keys (`.lora.down`, `.lora_linear_layer.down`) and its kohya keys, whose alphas are integers."""
    base = pico_base()
    names = [name for name in base.layers().shapes if name.endswith(("attn1.to_q", "to_out.0", "q_proj", "out_proj"))]
    lora = random_lora_on(base, names)
    write_diffusers(lora, tmp_path / "ours.safetensors", torch.float32)
    save_file(convert(load_file(tmp_path / "ours.safetensors")), tmp_path / "theirs.safetensors")

    found = read_lora(tmp_path / "theirs.safetensors", base.layers())

    assert found.layers.keys() == lora.layers.keys()
    for name, layer in lora.layers.items():
        torch.testing.assert_close(found.layers[name].delta_weight(), layer.delta_weight())


def test_headers_name_the_family(family_base: DiffusionBase, tmp_path: Path) -> None:
    lora = attention_lora(family_base)
    write_kohya(lora, tmp_path / "k.safetensors", family=family_base.family)
    with safe_open(tmp_path / "k.safetensors", framework="pt") as file:
        words = file.metadata()

    expected = {
        "SDXL": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
        "SD 1.5": ("stable-diffusion-v1/lora", "sd_v1"),
    }
    found = (words["modelspec.architecture"], words["ss_base_model_version"])
    assert found == expected[family_base.family.title]


def test_one_by_one_convolutions_are_read_in_the_kind_of_the_base(tmp_path: Path) -> None:
    """SD 1.5's proj_in is a convolution, SDXL's is linear; programs write either form for either."""
    for base in (pico_base(), pico_sd15_base()):
        name = "unet.down_blocks.0.attentions.0.proj_in"
        lora = random_lora_on(base, [name])
        write_diffusers(lora, tmp_path / "l.safetensors", torch.float32, family=base.family)
        tensors = load_file(tmp_path / "l.safetensors")
        other_form = {
            key: tensor.flatten(1).clone() if tensor.ndim == 4 else tensor[:, :, None, None].clone()
            for key, tensor in tensors.items()
        }
        save_file(other_form, tmp_path / "other.safetensors")

        found = read_lora(tmp_path / "other.safetensors", base.layers()).layers[name]

        assert found.kernel == lora.layers[name].kernel
        assert torch.equal(found.delta_weight(), lora.layers[name].delta_weight())
