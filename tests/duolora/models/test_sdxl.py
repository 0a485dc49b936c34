from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import UNet2DConditionModel

from duolora.adapters import RankSpaceAdapter
from duolora.config import TargetLayers
from duolora.errors import InvalidBase, LayerGroupEmpty
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.method.priors import Role, roles_by_resolution
from duolora.models.base import DiffusionBase, LatentMoments, PromptEmbeddings
from duolora.models.registry import load_base
from duolora.runtime import Runtime
from duolora.tiny.architecture import LATENT_CHANNELS, VAE_FACTOR
from tests.duolora.models.architectures import SDXL_UNET
from tests.duolora.pico import CPU, pico_pipeline, pico_unet

if TYPE_CHECKING:
    from pathlib import Path

SDXL_ROLES = {
    "down_blocks.1.": (Role.STYLE, 64),
    "up_blocks.1.": (Role.STYLE, 64),
    "down_blocks.2.": (Role.CONTENT, 32),
    "mid_block.": (Role.CONTENT, 32),
    "up_blocks.0.": (Role.CONTENT, 32),
}


@pytest.fixture(scope="module")
def sdxl() -> DiffusionBase:
    """Real SDXL's U-Net without storage; the VAE has its factor of 8."""
    meta = torch.device("meta")
    pipeline = pico_pipeline()
    with meta:
        pipeline.unet = UNet2DConditionModel(**SDXL_UNET)
    return DiffusionBase(pipeline, "sdxl", Runtime(meta, torch.float32))


def test_sdxl_has_560_attention_layers_and_140_feed_forward_layers(sdxl: DiffusionBase) -> None:
    attention = sdxl.target_layers(TargetLayers.ATTENTION)
    transformer = sdxl.target_layers(TargetLayers.TRANSFORMER)

    assert (len(attention), len(transformer)) == (560, 700)
    assert set(attention) < set(transformer)
    assert {path.rpartition("attn")[2].partition(".")[2] for path in attention} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_every_attention_layer_of_sdxl_is_in_exactly_the_group_of_its_resolution(sdxl: DiffusionBase) -> None:
    names = [f"unet.{path}" for path in sdxl.target_layers(TargetLayers.ATTENTION)]

    resolutions = sdxl.layer_resolutions(names, 1024)
    roles = roles_by_resolution(resolutions)

    assert list(roles) == names
    for name in names:
        groups = [expected for block, expected in SDXL_ROLES.items() if name.startswith(f"unet.{block}")]
        assert groups == [(roles[name], resolutions[name])]
    assert list(roles.values()).count(Role.CONTENT) + list(roles.values()).count(Role.STYLE) == 560


def test_rank_64_on_both_sides_gives_71680_mask_numbers(sdxl: DiffusionBase) -> None:
    """Counted on the adapter itself, attached to a storage-free SDXL U-Net."""
    paths = sdxl.target_layers(TargetLayers.ATTENTION)
    linears = {path: sdxl.unet.get_submodule(path) for path in paths}
    sides = {
        side: LoraWeights(
            {
                f"unet.{path}": LoraLayer(
                    torch.empty(64, linear.in_features, device="meta"),
                    torch.empty(linear.out_features, 64, device="meta"),
                    64.0,
                )
                for path, linear in linears.items()
            }
        )
        for side in ("content", "style")
    }
    ones = {side: {name: torch.ones(64, device="meta") for name in lora.layers} for side, lora in sides.items()}

    with RankSpaceAdapter(sides).inject(sdxl.unet) as adapter:
        masks = adapter.learn_masks(ones)

    assert sum(mask.numel() for mask in masks) == 71_680


def test_roles_follow_the_resolution_a_model_really_runs_at(base: DiffusionBase) -> None:
    names = [f"unet.{path}" for path in base.target_layers(TargetLayers.ATTENTION)]

    at_64, at_128 = base.layer_resolutions(names, 64), base.layer_resolutions(names, 128)

    assert {name: side * 2 for name, side in at_64.items()} == at_128
    assert set(at_64.values()) == {8, 4}
    assert {name.split(".")[1] + name.split(".")[2] for name, side in at_64.items() if side == 8} == {
        "down_blocks0",
        "up_blocks1",
    }


def test_layer_outside_every_transformer_has_no_resolution(base: DiffusionBase) -> None:
    with pytest.raises(LayerGroupEmpty, match="time_embedding"):
        base.layer_resolutions(["unet.time_embedding.linear_1"], 64)


def test_model_that_attends_at_one_resolution_has_no_prior_by_resolution() -> None:
    pipeline = pico_pipeline()
    pipeline.unet = pico_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    base = DiffusionBase(pipeline, "one resolution", CPU)
    names = [f"unet.{path}" for path in base.target_layers(TargetLayers.ATTENTION)]

    with pytest.raises(LayerGroupEmpty, match=r"\[4\]"):
        roles_by_resolution(base.layer_resolutions(names, 64))


def test_model_without_attention_has_no_layers_to_adapt() -> None:
    pipeline = pico_pipeline()
    pipeline.unet = pico_unet(
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), mid_block_type=None
    )

    with pytest.raises(LayerGroupEmpty, match="bare has no attention layers"):
        DiffusionBase(pipeline, "bare", CPU).target_layers(TargetLayers.ATTENTION)


def test_everything_of_a_base_is_frozen_and_in_evaluation_mode(base: DiffusionBase) -> None:
    for part in (base.unet, base.vae, base.pipeline.text_encoder, base.pipeline.text_encoder_2):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize("name", ["pico", "tiny"])
def test_sizes_come_from_the_models_own_configuration(base: DiffusionBase, name: str) -> None:
    model = base if name == "pico" else load_base("tiny", CPU)
    factor, channels = {"pico": (8, 4), "tiny": (VAE_FACTOR, LATENT_CHANNELS)}[name]
    rgb = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    moments = model.encode_pictures(rgb)

    assert model.latent_size(64) == 64 // factor
    assert moments.mean_BCHW.shape == moments.std_BCHW.shape == (2, channels, 64 // factor, 64 // factor)
    assert model.decode_latents(moments.mean_BCHW).shape == (2, 3, 64, 64)
    prediction = model.predict_noise(moments.mean_BCHW, torch.tensor([1, 999]), model.encode_prompts(["a", "b"]))
    assert prediction.shape == moments.mean_BCHW.shape


def test_latents_are_scaled_as_the_vae_says(base: DiffusionBase) -> None:
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = base.vae.encode(rgb).latent_dist

    moments = base.encode_pictures(rgb)

    torch.testing.assert_close(moments.mean_BCHW, posterior.mean * base.vae.config.scaling_factor)
    torch.testing.assert_close(moments.std_BCHW, posterior.std * base.vae.config.scaling_factor)
    decoded = base.vae.decode(posterior.mean).sample
    torch.testing.assert_close(base.decode_latents(moments.mean_BCHW), decoded, rtol=1e-4, atol=1e-4)


def test_latents_are_drawn_around_the_mean_of_the_chosen_pictures() -> None:
    moments = LatentMoments(torch.tensor([0.0, 10.0]).view(2, 1, 1, 1), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))

    drawn = moments.sample(torch.tensor([1] * 4000 + [0] * 3), torch.Generator().manual_seed(0))

    assert drawn.shape == (4003, 1, 1, 1)
    assert drawn[:4000].mean().item() == pytest.approx(10, abs=0.1)
    assert drawn[:4000].std().item() == pytest.approx(1, abs=0.1)
    assert drawn[4000:].tolist() == [[[[0.0]]]] * 3


def test_prompts_in_one_batch_are_encoded_as_each_alone(base: DiffusionBase) -> None:
    both = base.encode_prompts(["a sbu dog", "zebra crossing in szn style"])

    for index, prompt in enumerate(["a sbu dog", "zebra crossing in szn style"]):
        alone = base.encode_prompts([prompt])
        torch.testing.assert_close(both.hidden_BTD[index], alone.hidden_BTD[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both.pooled_BP[index], alone.pooled_BP[0], rtol=1e-4, atol=1e-5)
    assert (both.hidden_BTD[0] - both.hidden_BTD[1]).abs().max() > 0.1


@pytest.mark.parametrize(("name", "zeros"), [("pico", True), ("tiny", False)])
def test_empty_prompt_is_what_the_models_pipeline_chooses(base: DiffusionBase, name: str, zeros: bool) -> None:
    model = base if name == "pico" else load_base("tiny", CPU)

    empty = model.encode_unconditional()

    assert empty.hidden_BTD.shape[0] == empty.pooled_BP.shape[0] == 1
    assert bool((empty.hidden_BTD == 0).all()) is zeros
    if not zeros:
        torch.testing.assert_close(empty.hidden_BTD, model.encode_prompts([""]).hidden_BTD)


def test_prompt_embeddings_are_selected_repeated_and_joined_by_row() -> None:
    prompts = PromptEmbeddings(torch.arange(6.0).view(3, 1, 2), torch.arange(3.0).view(3, 1))

    chosen = PromptEmbeddings.join([prompts[torch.tensor([2, 0])], prompts[torch.tensor([2])]])

    assert chosen.pooled_BP.flatten().tolist() == [2, 0, 2]
    assert chosen.hidden_BTD[:, 0, 0].tolist() == [4, 0, 4]


def test_base_is_loaded_from_a_folder(base: DiffusionBase, base_folder: Path) -> None:
    loaded = load_base(str(base_folder), CPU)

    assert loaded.location == str(base_folder)
    for name, parameter in base.unet.named_parameters():
        assert torch.equal(loaded.unet.get_parameter(name), parameter)


def broken_base(folder: Path, base_folder: Path, kind: str) -> str:
    if kind == "garbage file":
        (folder / "base.safetensors").write_bytes(b"no checkpoint" * 50)
        return str(folder / "base.safetensors")
    if kind == "empty folder":
        return str(folder)
    shutil.copytree(base_folder, folder / "base")
    if kind == "damaged weights":
        (folder / "base/unet/diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    if kind == "damaged text encoder":
        (folder / "base/text_encoder/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    if kind == "missing part":
        shutil.rmtree(folder / "base/unet")
    if kind == "broken index":
        (folder / "base/model_index.json").write_text("{")
    return str(folder / "base")


@pytest.mark.parametrize(
    "kind", ["empty folder", "garbage file", "damaged weights", "damaged text encoder", "missing part", "broken index"]
)
def test_base_that_cannot_be_loaded_is_refused_by_name(tmp_path: Path, base_folder: Path, kind: str) -> None:
    location = broken_base(tmp_path, base_folder, kind)

    with pytest.raises(InvalidBase, match=location):
        load_base(location, CPU)


def test_base_that_does_not_predict_noise_is_refused(tmp_path: Path, base_folder: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    scheduler = tmp_path / "base/scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))

    with pytest.raises(InvalidBase, match="v_prediction"):
        load_base(str(tmp_path / "base"), CPU)
