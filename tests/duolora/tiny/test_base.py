"""The shipped base: size, stock loading, samples."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from duolora.tiny.base import base_path, samples_path
from duolora.tiny.captions import class_nouns, training_glyphs
from duolora.tiny.held_out import held_out_combinations, held_out_subjects
from duolora.tiny.world import draw

MAX_SHIPPED_BYTES = 48_000_000


@pytest.fixture(scope="module")
def pipeline():
    torch.set_num_threads(1)
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(base_path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_is_shipped_is_small_enough():
    package = base_path().parent
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) <= MAX_SHIPPED_BYTES


def test_stock_diffusers_samples_a_trained_picture(pipeline):
    picture = pipeline(
        "an apple",
        num_inference_steps=8,
        guidance_scale=4.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images[0]
    assert picture.shape == (3, 64, 64)
    centre, corner = picture[:, 28:36, 28:36].mean((1, 2)), picture[:, :4, :4].mean((1, 2))
    assert (centre - corner).abs().max() > 0.2


def test_the_autoencoder_gives_a_held_out_picture_back(pipeline):
    pictures = torch.stack([draw("fox", seed=0), draw("fox", "halftone", "red", seed=0)])
    with torch.no_grad():
        latents = pipeline.vae.encode(2 * pictures - 1).latent_dist.mean
        again = pipeline.vae.decode(latents).sample / 2 + 0.5
    assert (again - pictures).abs().mean() < 0.05
    assert 0.7 < float((latents * pipeline.vae.config.scaling_factor).std()) < 1.4


def test_the_samples_are_a_held_out_subject_and_a_held_out_combination():
    samples = json.loads((samples_path() / "samples.json").read_text(encoding="utf-8"))
    assert samples["content"]["subject"] in held_out_subjects()
    assert samples["content"]["noun"] in class_nouns()
    assert (samples["style"]["style"], samples["style"]["colour"]) in held_out_combinations()
    trained = {glyph.name for glyph in training_glyphs()}
    assert {image["subject"] for image in samples["style"]["images"]} <= trained
    for part in ("content", "style"):
        for image in samples[part]["images"]:
            with Image.open(samples_path() / image["file"]) as picture:
                assert np.asarray(picture.convert("RGB")).shape == (64, 64, 3)
