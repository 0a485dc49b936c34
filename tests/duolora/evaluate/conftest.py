"""Small networks of the paper's kinds with random weights, in the layouts that real ones come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from duolora.tiny.tokenizer import write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIDE, PATCH = 32, 8


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=PATCH,
    )
    _seeded(ViTModel, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = write_tokenizer(folder)
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    _seeded(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def csd_tower() -> CLIPVisionModel:
    """The tower whose tensors `csd_file` holds under OpenAI's names."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
    )
    return _seeded(CLIPVisionModel, config).eval()


@pytest.fixture(scope="session")
def csd_style() -> torch.Tensor:
    return torch.randn(128, 24, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="session")
def csd_file(tmp_path_factory: pytest.TempPathFactory, csd_tower: CLIPVisionModel, csd_style: torch.Tensor) -> Path:
    state = {name.removeprefix("vision_model."): tensor for name, tensor in csd_tower.state_dict().items()}
    tensors = {
        "backbone.class_embedding": state["embeddings.class_embedding"],
        "backbone.conv1.weight": state["embeddings.patch_embedding.weight"],
        "backbone.positional_embedding": state["embeddings.position_embedding.weight"],
        "last_layer_style": csd_style,
        "last_layer_content": torch.zeros(128, 24),
    }
    for kind in ("weight", "bias"):
        tensors[f"backbone.ln_pre.{kind}"] = state[f"pre_layrnorm.{kind}"]
        tensors[f"backbone.ln_post.{kind}"] = state[f"post_layernorm.{kind}"]
        for block in range(2):
            ours, theirs = f"backbone.transformer.resblocks.{block}", f"encoder.layers.{block}"
            tensors[f"{ours}.ln_1.{kind}"] = state[f"{theirs}.layer_norm1.{kind}"]
            tensors[f"{ours}.ln_2.{kind}"] = state[f"{theirs}.layer_norm2.{kind}"]
            tensors[f"{ours}.mlp.c_fc.{kind}"] = state[f"{theirs}.mlp.fc1.{kind}"]
            tensors[f"{ours}.mlp.c_proj.{kind}"] = state[f"{theirs}.mlp.fc2.{kind}"]
            tensors[f"{ours}.attn.out_proj.{kind}"] = state[f"{theirs}.self_attn.out_proj.{kind}"]
            thirds = [state[f"{theirs}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            tensors[f"{ours}.attn.in_proj_{kind}"] = torch.cat(thirds)
    path = tmp_path_factory.mktemp("csd") / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _seeded(kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind(config)
        for parameter in model.parameters():  # the library's starting weights are near zero: embeddings hardly differ
            torch.nn.init.normal_(parameter, std=0.15)
        return model
