"""DINO, CLIP and CSD from files, against direct computation with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from duolora.errors import InvalidConfig
from duolora.evaluate.perceptual import CLIP_DEVIATION, CLIP_MEAN, IMAGENET_DEVIATION, IMAGENET_MEAN, Clip, Csd, Dino

CPU = torch.device("cpu")
SIDE = 32


@pytest.fixture
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(3)]


def normalised(pictures, mean, deviation):
    rgb_NHW3 = torch.tensor(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
    return ((rgb_NHW3 - torch.tensor(mean)) / torch.tensor(deviation)).permute(0, 3, 1, 2)


def test_dino_is_the_class_token(dino_folder, pictures):
    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        tokens = model(normalised(pictures, IMAGENET_MEAN, IMAGENET_DEVIATION)).last_hidden_state
    expected = functional.normalize(tokens[:, 0], dim=1)
    torch.testing.assert_close(Dino(str(dino_folder), CPU).pictures(pictures), expected, atol=1e-5, rtol=1e-5)


def test_clip_embeds_pictures_and_texts_as_the_library_does(clip_folder, pictures):
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    clip = Clip(str(clip_folder), CPU)
    texts = ["a fox in red neon style", "a bicycle"]
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        output = model(pixel_values=normalised(pictures, CLIP_MEAN, CLIP_DEVIATION), **tokens)
    torch.testing.assert_close(clip.pictures(pictures), output.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip.texts(texts), output.text_embeds, atol=1e-5, rtol=1e-5)


def test_csd_is_the_style_head_on_the_tower(csd_file, csd_tower, csd_style, pictures):
    with torch.no_grad():
        pooled = csd_tower(normalised(pictures, CLIP_MEAN, CLIP_DEVIATION)).pooler_output
    expected = functional.normalize(pooled @ csd_style, dim=1)
    for location in (csd_file, csd_file.parent):
        torch.testing.assert_close(Csd(str(location), CPU).pictures(pictures), expected, atol=1e-5, rtol=1e-5)


def test_csd_with_the_prefix_of_its_training_is_the_same(csd_file, pictures, tmp_path):
    prefixed = {f"module.{name}": tensor for name, tensor in load_file(csd_file).items()}
    save_file(prefixed, tmp_path / "trained.safetensors")
    one, other = Csd(str(csd_file), CPU), Csd(str(tmp_path / "trained.safetensors"), CPU)
    assert torch.equal(one.pictures(pictures), other.pictures(pictures))


def test_pictures_of_any_shape_are_cut_to_their_central_square(dino_folder):
    wide = Image.new("RGB", (200, 100), (200, 30, 30))
    wide.paste((30, 30, 200), (50, 0, 150, 100))
    square = Image.new("RGB", (100, 100), (30, 30, 200))
    embedded = Dino(str(dino_folder), CPU).pictures([wide, square])
    assert embedded[0] @ embedded[1] > 0.98


@pytest.mark.parametrize(("network", "option"), [(Dino, "--dino"), (Clip, "--clip"), (Csd, "--csd")])
def test_missing_weights_are_an_error_that_names_the_option_and_the_remedy(network, option, tmp_path):
    with pytest.raises(InvalidConfig, match=rf"{option} .*(give|folder)"):
        network(str(tmp_path / "nothing"), CPU)


def test_another_networks_file_is_refused_as_csd(csd_file, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidConfig, match="last_layer_style"):
        Csd(str(tmp_path / "other.safetensors"), CPU)
    short = {name: tensor for name, tensor in load_file(csd_file).items() if "resblocks.0.mlp" not in name}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(InvalidConfig, match="does not fit"):
        Csd(str(tmp_path / "short.safetensors"), CPU)
