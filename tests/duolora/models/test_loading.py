from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from duolora.errors import InvalidBase
from duolora.models.base import DiffusionBase
from duolora.models.loading import load_pipeline
from duolora.models.registry import base_layers, load_base
from duolora.tiny.base import base_path
from tests.duolora.pico import CPU, pico_pipeline, pico_sd15_pipeline, pico_unet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd15") / "base"
    pico_sd15_pipeline().save_pretrained(folder)
    return folder


def test_family_of_a_folder_is_found(base_folder: Path, sd15_folder: Path) -> None:
    assert load_base(str(base_folder), CPU).family.title == "SDXL"
    assert load_base(str(sd15_folder), CPU).family.title == "SD 1.5"


def test_folder_of_another_pipeline_is_refused_by_name(sd15_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd15_folder, tmp_path / "base")
    index = tmp_path / "base/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))

    with pytest.raises(InvalidBase, match=r"FluxPipeline; known: SDXL .*, SD 1\.5"):
        load_base(str(tmp_path / "base"), CPU)


def test_folder_of_pickled_weights_is_refused(sd15_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd15_folder, tmp_path / "base")
    (tmp_path / "base/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, tmp_path / "base/unet/diffusion_pytorch_model.bin")

    with pytest.raises(InvalidBase, match="safetensors"):
        load_base(str(tmp_path / "base"), CPU)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickled_checkpoint_is_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")

    with pytest.raises(InvalidBase, match="never pickles"):
        load_base(str(tmp_path / name), CPU)


@pytest.mark.parametrize(
    ("key", "pipeline"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", StableDiffusionXLPipeline),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", StableDiffusionPipeline),
    ],
)
def test_family_of_a_single_file_is_told_by_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, pipeline: type
) -> None:
    """Loading itself is diffusers' and needs the hub; which pipeline it is asked of is ours."""
    save_file({key: torch.ones(1)}, tmp_path / "model.safetensors")
    asked: list[str] = []
    monkeypatch.setattr(pipeline, "from_single_file", lambda location, **_options: asked.append(location))

    load_pipeline(str(tmp_path / "model.safetensors"), torch.float32)

    assert asked == [str(tmp_path / "model.safetensors")]


@pytest.mark.parametrize("key", ["cond_stage_model.model.ln_final.weight", "double_blocks.0.img_attn.qkv.weight"])
def test_single_file_of_another_family_is_refused(tmp_path: Path, key: str) -> None:
    save_file({key: torch.ones(1)}, tmp_path / "model.safetensors")

    with pytest.raises(InvalidBase, match="no known family"):
        load_base(str(tmp_path / "model.safetensors"), CPU)


def test_pipeline_of_no_family_is_refused() -> None:
    class OtherPipeline(StableDiffusionPipeline):
        pass

    pipeline = pico_sd15_pipeline()
    pipeline.__class__ = OtherPipeline

    with pytest.raises(InvalidBase, match="OtherPipeline; known families"):
        DiffusionBase(pipeline, "other", CPU)


def test_sd_2_is_not_taken_for_sd_15() -> None:
    pipeline = pico_sd15_pipeline()
    pipeline.unet = pico_unet(
        cross_attention_dim=1024,
        addition_embed_type=None,
        addition_time_embed_dim=None,
        projection_class_embeddings_input_dim=None,
    )

    with pytest.raises(InvalidBase, match="not its files"):
        DiffusionBase(pipeline, "SD 2", CPU)


def test_missing_part_is_refused_by_name() -> None:
    pipeline = pico_pipeline()
    pipeline.text_encoder = None

    with pytest.raises(InvalidBase, match="has no text_encoder"):
        DiffusionBase(pipeline, "half", CPU)


@pytest.mark.parametrize("family", ["SDXL", "SD 1.5", "tiny"])
def test_layers_of_a_folder_are_known_without_its_weights(
    base_folder: Path, sd15_folder: Path, tmp_path: Path, family: str
) -> None:
    folder = {"SDXL": base_folder, "SD 1.5": sd15_folder, "tiny": base_path()}[family]
    loaded = load_base(str(folder), CPU).layers()
    shutil.copytree(folder, tmp_path / "base")
    for weights in (tmp_path / "base").rglob("*.safetensors"):
        weights.unlink()

    bare = base_layers(str(tmp_path / "base"), CPU)

    assert bare.shapes == loaded.shapes
    assert bare.family is loaded.family


@pytest.mark.parametrize("damage", ["no unet", "unknown encoder", "no index"])
def test_folder_without_usable_configuration_has_no_layers(sd15_folder: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(sd15_folder, tmp_path / "base")
    index = tmp_path / "base/model_index.json"
    if damage == "no unet":
        shutil.rmtree(tmp_path / "base/unet")
    if damage == "unknown encoder":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder": ["os", "system"]}))
    if damage == "no index":
        index.unlink()

    with pytest.raises(InvalidBase, match=str(tmp_path / "base")):
        base_layers(str(tmp_path / "base"), CPU)
