"""Reading and writing: what is written is read back, in every key format that is in use."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from duolora.errors import InvalidLora
from duolora.families.sdxl import SDXL
from duolora.lora.base_layers import BaseLayers
from duolora.lora.keys import kohya_key
from duolora.lora.peft_config import PEFT_METADATA_KEY
from duolora.lora.read import read_lora
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.lora.write import write_diffusers, write_kohya
from tests.duolora.dense import assert_same_change
from tests.duolora.pico import random_layer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from duolora.families.family import Family

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
Write = Callable[..., None]


def mixed_lora(alpha: float | None = None) -> LoraWeights:
    """Ranks 3, 5 and 5 in layers of different shapes."""
    return LoraWeights(
        {
            f"{BLOCK}.attn1.to_q": random_layer(8, 8, 3, seed=1, alpha=alpha),
            f"{BLOCK}.attn1.to_out.0": random_layer(8, 8, 5, seed=2, alpha=alpha),
            f"{BLOCK}.attn2.to_k": random_layer(8, 12, 5, seed=3, alpha=alpha),
        }
    )


def even_lora(alpha: float | None = None) -> LoraWeights:
    return LoraWeights({f"{BLOCK}.attn1.to_q": random_layer(8, 6, 4, alpha=alpha)})


def base_with(family: Family = SDXL, **shapes: tuple[int, ...]) -> BaseLayers:
    """The layers of a base that has just these."""
    return BaseLayers(family, shapes)


def base_of(weights: LoraWeights, family: Family = SDXL) -> BaseLayers:
    """The layers of a base that has just those that a LoRA changes."""
    return BaseLayers(family, {name: layer.weight_shape for name, layer in weights.layers.items()})


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
@pytest.mark.parametrize("alpha", [None, 1.0, 7.0])
def test_written_file_is_read_back_with_the_same_deltas(tmp_path: Path, write: Write, alpha: float | None) -> None:
    weights = mixed_lora(alpha)
    path = tmp_path / "lora.safetensors"

    write(weights, path, torch.float32)

    read = read_lora(path, base_of(weights))
    assert_same_change(read, weights, tolerance=1e-6)
    assert [layer.rank for layer in read.layers.values()].count(5) == 2


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_layers_of_the_text_encoders_are_written_and_read_back(tmp_path: Path, write: Write) -> None:
    weights = LoraWeights(
        {
            f"{BLOCK}.attn1.to_q": random_layer(8, 8, 3, seed=1),
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": random_layer(6, 6, 2, seed=2),
            "text_encoder_2.text_model.encoder.layers.1.mlp.fc1": random_layer(9, 6, 2, seed=3),
        }
    )

    write(weights, tmp_path / "lora.safetensors", torch.float32)

    assert_same_change(read_lora(tmp_path / "lora.safetensors", base_of(weights)), weights, tolerance=1e-6)


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_half_precision_is_the_default_and_costs_less_than_a_thousandth(tmp_path: Path, write: Write) -> None:
    weights = mixed_lora(2.0)

    write(weights, tmp_path / "lora.safetensors")

    assert {tensor.dtype for tensor in load_file(tmp_path / "lora.safetensors").values()} == {torch.float16}
    assert_same_change(read_lora(tmp_path / "lora.safetensors", base_of(weights)), weights, tolerance=1e-3)


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_alpha_1_at_a_high_rank_survives_half_precision(tmp_path: Path, write: Write) -> None:
    """Trainers leave up factors of 1e-3; folded by 1/128 they would fall among float16's subnormal numbers."""
    name = f"{BLOCK}.attn1.to_q"
    layer = random_layer(8, 8, 128, alpha=1.0)
    weights = LoraWeights({name: LoraLayer(layer.down_RI * 0.03, layer.up_OR * 1e-3, 1.0)})

    write(weights, tmp_path / "lora.safetensors")

    assert_same_change(read_lora(tmp_path / "lora.safetensors", base_of(weights)), weights, tolerance=1e-3)


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_numbers_beyond_half_precision_are_refused_by_name(tmp_path: Path, write: Write) -> None:
    weights = LoraWeights({f"{BLOCK}.attn1.to_q": random_layer(8, 8, 4, scale=1e6)})

    with pytest.raises(InvalidLora, match=r"attn1\.to_q holds numbers that do not fit torch\.float16"):
        write(weights, tmp_path / "lora.safetensors")

    assert not (tmp_path / "lora.safetensors").exists()
    write(weights, tmp_path / "lora.safetensors", torch.float32)


def test_both_files_give_bit_equal_deltas_when_all_ranks_are_equal(tmp_path: Path) -> None:
    weights = even_lora(alpha=3.0)
    write_diffusers(weights, tmp_path / "diffusers.safetensors")
    write_kohya(weights, tmp_path / "kohya.safetensors")

    ours = read_lora(tmp_path / "diffusers.safetensors")
    theirs = read_lora(tmp_path / "kohya.safetensors", base_of(weights))

    for name in weights.layers:
        assert torch.equal(ours.layers[name].delta_OI(), theirs.layers[name].delta_OI())


def test_both_files_give_equal_deltas_within_half_precision_when_ranks_differ(tmp_path: Path) -> None:
    weights = mixed_lora()
    write_diffusers(weights, tmp_path / "diffusers.safetensors")
    write_kohya(weights, tmp_path / "kohya.safetensors")

    ours = read_lora(tmp_path / "diffusers.safetensors")

    assert_same_change(read_lora(tmp_path / "kohya.safetensors", base_of(weights)), ours, tolerance=2**-11)


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_equal_ranks_are_written_so_that_readers_without_alpha_are_right(tmp_path: Path, write: Write) -> None:
    weights = even_lora(alpha=1.0)
    write(weights, tmp_path / "lora.safetensors", torch.float32)

    tensors = load_file(tmp_path / "lora.safetensors")

    down = next(tensor for key, tensor in tensors.items() if key.endswith((".lora_A.weight", ".lora_down.weight")))
    up = next(tensor for key, tensor in tensors.items() if key.endswith((".lora_B.weight", ".lora_up.weight")))
    torch.testing.assert_close(up @ down, weights.layers[f"{BLOCK}.attn1.to_q"].delta_OI())


def test_diffusers_file_names_ranks_that_differ_from_the_most_frequent_one(tmp_path: Path) -> None:
    write_diffusers(mixed_lora(), tmp_path / "lora.safetensors")

    config = json.loads(header(tmp_path / "lora.safetensors")[PEFT_METADATA_KEY])

    odd = {f"{BLOCK.removeprefix('unet.')}.attn1.to_q": 3}
    assert (config["unet.r"], config["unet.lora_alpha"]) == (5, 5)
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == odd
    assert len(config["unet.target_modules"]) == 3


def test_kohya_file_has_one_alpha_that_diffusers_cannot_mistake(tmp_path: Path) -> None:
    write_kohya(mixed_lora(), tmp_path / "lora.safetensors")

    tensors = load_file(tmp_path / "lora.safetensors")

    alphas = [tensor for key, tensor in tensors.items() if key.endswith(".alpha")]
    assert len(alphas) == 3
    assert all(alpha.shape == () and alpha.item() == 3 for alpha in alphas)


@pytest.mark.parametrize(("weights", "dim"), [(even_lora(), "4"), (mixed_lora(), "Dynamic")])
def test_kohya_file_says_its_rank_or_that_it_varies(tmp_path: Path, weights: LoraWeights, dim: str) -> None:
    write_kohya(weights, tmp_path / "lora.safetensors")

    words = header(tmp_path / "lora.safetensors")

    assert words["ss_network_dim"] == words["ss_network_alpha"] == dim
    assert words["ss_network_module"] == "networks.lora"
    assert words["ss_base_model_version"] == "sdxl_base_v1-0"
    assert {"ss_v2", "ss_network_args"} <= words.keys()


@pytest.mark.parametrize("write", [write_diffusers, write_kohya])
def test_header_follows_model_spec_and_hashes_the_tensor_bytes(tmp_path: Path, write: Write) -> None:
    weights = mixed_lora().with_metadata(
        **{"modelspec.title": "a title", "modelspec.trigger_phrase": "a sbu dog", "duolora.seed": "3", "other": "x"}
    )
    path = tmp_path / "lora.safetensors"
    write(weights, path)

    words = header(path)

    assert words["modelspec.sai_model_spec"] == "1.0.1"
    assert words["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert words["modelspec.implementation"].startswith("https://github.com/")
    assert (words["modelspec.title"], words["modelspec.trigger_phrase"]) == ("a title", "a sbu dog")
    assert words["duolora.seed"] == "3"
    assert "other" not in words
    # Bytes of the tensors in key order, computed here without the engine's own function.
    digest = hashlib.sha256()
    for _, tensor in sorted(load_file(path).items()):
        digest.update(tensor.numpy().tobytes())
    assert words["modelspec.hash_sha256"] == "0x" + digest.hexdigest()


def test_metadata_survives_a_round_trip_without_the_readers_own_entry(tmp_path: Path) -> None:
    write_diffusers(mixed_lora().with_metadata(**{"modelspec.title": "t"}), tmp_path / "lora.safetensors")

    read = read_lora(tmp_path / "lora.safetensors")

    assert read.metadata["modelspec.title"] == "t"
    assert PEFT_METADATA_KEY not in read.metadata


def layer_tensors(down: str, up: str, layer: LoraLayer) -> dict[str, Tensor]:
    return {down: layer.down_RI, up: layer.up_OR}


@pytest.mark.parametrize(
    ("down", "up", "name"),
    [
        (f"{BLOCK}.attn1.to_q.lora_A.weight", f"{BLOCK}.attn1.to_q.lora_B.weight", f"{BLOCK}.attn1.to_q"),
        (f"{BLOCK}.attn1.to_q.lora.down.weight", f"{BLOCK}.attn1.to_q.lora.up.weight", f"{BLOCK}.attn1.to_q"),
        (
            f"{BLOCK}.attn1.processor.to_q_lora.down.weight",
            f"{BLOCK}.attn1.processor.to_q_lora.up.weight",
            f"{BLOCK}.attn1.to_q",
        ),
        (
            f"{BLOCK}.attn1.processor.to_out_lora.down.weight",
            f"{BLOCK}.attn1.processor.to_out_lora.up.weight",
            f"{BLOCK}.attn1.to_out.0",
        ),
    ],
)
def test_key_formats_of_diffusers_are_read(tmp_path: Path, down: str, up: str, name: str) -> None:
    layer = random_layer(8, 6, 4)
    save_file(layer_tensors(down, up, layer), tmp_path / "lora.safetensors")

    assert_same_change(read_lora(tmp_path / "lora.safetensors"), LoraWeights({name: layer}), tolerance=0)


@pytest.mark.parametrize(
    "stem", [kohya_key(f"{BLOCK}.attn1.to_q"), "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"]
)
def test_kohya_keys_are_read_with_their_alpha_and_with_either_block_names(tmp_path: Path, stem: str) -> None:
    layer = random_layer(8, 6, 4, alpha=1.0)
    tensors = layer_tensors(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", layer)
    save_file({**tensors, f"{stem}.alpha": torch.tensor(1.0)}, tmp_path / "lora.safetensors")

    read = read_lora(
        tmp_path / "lora.safetensors", base_with(**{f"{BLOCK}.attn1.to_k": (8, 6), f"{BLOCK}.attn1.to_q": (8, 6)})
    )

    assert_same_change(read, LoraWeights({f"{BLOCK}.attn1.to_q": layer}), tolerance=0)


def test_kohya_file_without_alpha_has_scale_one(tmp_path: Path) -> None:
    layer = random_layer(8, 6, 4)
    stem = kohya_key(f"{BLOCK}.attn1.to_q")
    save_file(layer_tensors(f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", layer), tmp_path / "l.safetensors")

    base = base_with(**{f"{BLOCK}.attn1.to_q": (8, 6)})
    assert read_lora(tmp_path / "l.safetensors", base).layers[f"{BLOCK}.attn1.to_q"].scale == 1


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({}, 4.0),
        ({"unet.lora_alpha": 8}, 8.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {f"{BLOCK[5:]}.attn1.to_q": 2}}, 2.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 2}}, 2.0),  # PEFT matches the end of the path
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"o_q": 2}}, 8.0),  # but only whole names of it
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 3, "to_q": 2}}, 3.0),  # the first that fits
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {r"attn1\.to_q": 3}}, 3.0),  # a dot may be escaped
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 16.0),  # alpha / sqrt(4) written as alpha / 4
        ({"text_encoder.lora_alpha": 8}, 4.0),
    ],
)
def test_alpha_follows_pefts_configuration_in_the_header(tmp_path: Path, config: dict[str, Any], alpha: float) -> None:
    name = f"{BLOCK}.attn1.to_q"
    tensors = layer_tensors(f"{name}.lora_A.weight", f"{name}.lora_B.weight", random_layer(8, 6, 4))
    save_file(tensors, tmp_path / "lora.safetensors", metadata={PEFT_METADATA_KEY: json.dumps(config)})

    assert read_lora(tmp_path / "lora.safetensors").layers[name].alpha == alpha


@pytest.mark.parametrize(
    "words",
    [
        "{",
        "[]",
        '{"unet.alpha_pattern": [1]}',
        '{"unet.alpha_pattern": {"(": 1}}',
        '{"unet.alpha_pattern": {"([a-z0-9_.]+)+X": 1}}',  # would run for ever as a regular expression
        '{"unet.lora_alpha": null}',
    ],
)
def test_header_that_is_no_peft_configuration_is_refused(tmp_path: Path, words: str) -> None:
    tensors = layer_tensors("unet.a.lora_A.weight", "unet.a.lora_B.weight", random_layer(8, 6, 4))
    save_file(tensors, tmp_path / "lora.safetensors", metadata={PEFT_METADATA_KEY: words})

    with pytest.raises(InvalidLora, match=PEFT_METADATA_KEY):
        read_lora(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    write_diffusers(mixed_lora(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:keep])

    with pytest.raises(InvalidLora, match=r"cut\.safetensors"):
        read_lora(tmp_path / "cut.safetensors")


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidLora, match=r"absent\.safetensors"):
        read_lora(tmp_path / "absent.safetensors")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.trace, "w")


def test_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (tmp_path / "lora.safetensors").write_bytes(pickle.dumps(Bomb(str(trace))))
    torch.save({"a": Bomb(str(trace))}, tmp_path / "lora.pt")

    for name in ("lora.safetensors", "lora.pt"):
        with pytest.raises(InvalidLora, match="safetensors"):
            read_lora(tmp_path / name)
    assert not trace.exists()


ONE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.a.lora_A.weight": ONE}, "unet.a.lora_A.weight has no matching up factor"),
        ({"unet.a.lora_B.weight": ONE}, "unet.a.lora_B.weight has no matching down factor"),
        ({"unet.a.weight": ONE}, "not part of a LoRA"),
        ({"unet.a.lora_A.weight": ONE, "unet.a.lora_B.weight": torch.ones(2, 3)}, "factors"),
        (
            {"unet.a.lora_A.weight": torch.ones(2, 2, 3, 3), "unet.a.lora_B.weight": torch.ones(2, 2, 3, 3)},
            "unet.a.lora_A.weight: factors of a convolution",
        ),
        ({"lora_unet_x.lora_down.weight": ONE, "lora_unet_x.lora_up.weight": ONE}, "lora_unet_x names no layer"),
        (
            {"unet.a.lora_down.weight": ONE, "unet.a.lora_up.weight": ONE, "unet.a.alpha": torch.ones(2)},
            "unet.a.alpha must be one number",
        ),
        (
            {"unet.a.lora_A.weight": ONE, "unet.a.lora_B.weight": ONE, "unet.a.lora_magnitude_vector": ONE},
            "lora_magnitude_vector",  # DoRA: reading it as a plain LoRA would be wrong
        ),
    ],
)
def test_tensors_that_are_no_lora_are_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "lora.safetensors")

    with pytest.raises(InvalidLora, match=message):
        read_lora(tmp_path / "lora.safetensors", base_with(**{"unet.a": (2, 2)}))


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "lora.safetensors")

    with pytest.raises(InvalidLora, match="without layers"):
        read_lora(tmp_path / "lora.safetensors")
