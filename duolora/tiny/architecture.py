"""Builds the untrained components of the tiny base: SDXL's layout, shrunk to 64 px and 19 M U-Net parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from duolora.tiny.noise_schedule import BETA_RANGE, TRAIN_STEPS
from duolora.tiny.tokenizer import MAX_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

RESOLUTION_PX = 64
LATENT_CHANNELS = 8
VAE_CHANNELS = (48, 96, 112)
VAE_FACTOR = 2 ** (len(VAE_CHANNELS) - 1)
TEXT_WIDTH = 128
TEXT_LAYERS = 3
TIME_EMBED_DIM = 16
UNET_CHANNELS = (64, 128, 160)
UNET_TRANSFORMER_LAYERS = (1, 2, 2)
UNET_HEADS = (2, 4, 5)
TIME_IDS = (RESOLUTION_PX, RESOLUTION_PX, 0, 0, RESOLUTION_PX, RESOLUTION_PX)
"""SDXL's (original size, crop corner, target size): constant, since every picture of the world has one size."""


@dataclass(frozen=True, slots=True)
class Components:
    """The modules of one base; everything a StableDiffusionXLPipeline has but the tokenizers."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection


def build_vae() -> AutoencoderKL:
    """Return the autoencoder: (B,3,64,64) in [-1,1] <-> latents (B,8,16,16), float32, random weights."""
    levels = len(VAE_CHANNELS)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=RESOLUTION_PX,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Return the U-Net, random weights: latents (B,8,16,16), text (B,32,256), pooled text (B,128) -> noise."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION_PX // VAE_FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=2,
        transformer_layers_per_block=UNET_TRANSFORMER_LAYERS,
        attention_head_dim=UNET_HEADS,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBED_DIM,
        projection_class_embeddings_input_dim=len(TIME_IDS) * TIME_EMBED_DIM + TEXT_WIDTH,
        norm_num_groups=16,
    )


def text_config(vocabulary_size: int) -> CLIPTextConfig:
    """Return the configuration both text encoders share; the last two ids of the vocabulary are start and end."""
    return CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1,
        pad_token_id=vocabulary_size - 1,
    )


def build_components(vocabulary_size: int) -> Components:
    """Return all four modules with random weights, drawn from the global generator."""
    config = text_config(vocabulary_size)
    return Components(build_vae(), build_unet(), CLIPTextModel(config), CLIPTextModelWithProjection(config))


def write_scheduler(folder: Path) -> None:
    """Write the scheduler of the base: Euler on SDXL's noise schedule, predicting noise."""
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=BETA_RANGE[0],
        beta_end=BETA_RANGE[1],
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.save_pretrained(folder)


def write_model_index(folder: Path) -> None:
    """Write model_index.json, which makes `folder` loadable as a StableDiffusionXLPipeline."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": False,
        "add_watermarker": False,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
