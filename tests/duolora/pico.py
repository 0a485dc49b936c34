"""The smallest base in SDXL's format: built in code from a seed, so that no test depends on trained weights.

It differs from the shipped tiny base and from SDXL in every size that code could take for granted: 4 latent channels, a
VAE of factor 8, two levels that both attend, one residual block a level, text encoders of unequal width.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.models.base import DiffusionBase
from duolora.runtime import Runtime
from duolora.tiny.base import base_path

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.memory import MemoryProfile

CPU = Runtime(torch.device("cpu"), torch.float32)
RESOLUTION_PX = 64
POOLED_WIDTH = 24
TIME_EMBED_DIM = 8


def share_the_cores() -> None:
    """Compute with one thread under pytest-xdist: processes with all threads each slow each other down tenfold."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pico_unet(**changes: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 80,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBED_DIM,
            "projection_class_embeddings_input_dim": 6 * TIME_EMBED_DIM + POOLED_WIDTH,
            "norm_num_groups": 8,
            **changes,
        }
    )


def pico_pipeline(seed: int = 7) -> StableDiffusionXLPipeline:
    """Build the pipeline; the process's own random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizers = [CLIPTokenizer.from_pretrained(base_path() / name) for name in ("tokenizer", "tokenizer_2")]
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizers[0], width=32)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizers[1], width=48)),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=pico_unet(),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                timestep_spacing="leading",
                steps_offset=1,
            ),
            force_zeros_for_empty_prompt=True,  # as SDXL has it; the tiny base has it the other way
            add_watermarker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pico_sd15_pipeline(seed: int = 7) -> StableDiffusionPipeline:
    """Build the smallest pipeline in SD 1.5's format: one text encoder, no added condition, 1 x 1 convolutions around
    its transformers, and two residual blocks a level, so that the original release's block names fit it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = CLIPTokenizer.from_pretrained(base_path() / "tokenizer")
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer, width=32)),
            tokenizer=tokenizer,
            unet=pico_unet(
                layers_per_block=2,
                transformer_layers_per_block=1,
                cross_attention_dim=32,
                use_linear_projection=False,
                addition_embed_type=None,
                addition_time_embed_dim=None,
                projection_class_embeddings_input_dim=None,
            ),
            # As SD 1.5 has it; sampling replaces it.
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                set_alpha_to_one=False,
                timestep_spacing="leading",  # said, so that it survives in memory as it does on disk
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pico_sd15_base(seed: int = 7) -> DiffusionBase:
    return DiffusionBase(pico_sd15_pipeline(seed), "pico SD 1.5", CPU)


def pico_base(seed: int = 7, memory: MemoryProfile | None = None) -> DiffusionBase:
    return DiffusionBase(pico_pipeline(seed), "pico", replace(CPU, memory=memory))


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION_PX,
        scaling_factor=0.13025,
        force_upcast=False,
    )
    # Random weights decode to almost one grey; a stretched last layer lets differences be seen in the pictures.
    vae.decoder.conv_out.weight.data *= 2.0
    return vae


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def random_layer(
    outputs: int, inputs: int, rank: int, *, seed: int = 0, alpha: float | None = None, scale: float = 1.0
) -> LoraLayer:
    """A layer with standard normal factors; alpha is the rank unless given."""
    generator = torch.Generator().manual_seed(seed)
    return LoraLayer(
        torch.randn(rank, inputs, generator=generator) * scale,
        torch.randn(outputs, rank, generator=generator) * scale,
        float(rank) if alpha is None else alpha,
    )


def random_lora(
    base: DiffusionBase,
    *,
    seed: int = 0,
    ranks: tuple[int, ...] = (4,),
    alpha: float | None = None,
    scale: float = 0.25,
    paths: list[str] | None = None,
) -> LoraWeights:
    """A LoRA on the base's attention (or the paths given) that changes a lot; ranks are dealt out in turn."""
    chosen = base.target_layers("attention") if paths is None else paths
    layers = {}
    for index, path in enumerate(chosen):
        linear = base.unet.get_submodule(path)
        layers[f"unet.{path}"] = random_layer(
            linear.out_features,
            linear.in_features,
            ranks[index % len(ranks)],
            seed=1000 * seed + index,
            alpha=alpha,
            scale=scale,
        )
    return LoraWeights(layers)


def random_lora_on(
    base: DiffusionBase, names: list[str], *, seed: int = 0, ranks: tuple[int, ...] = (3,), scale: float = 0.1
) -> LoraWeights:
    """A LoRA on any layers of the base, convolutions and text encoders included; ranks are dealt out in turn."""
    layers = {}
    for index, name in enumerate(names):
        outputs, *inputs = base.layers().shapes[name]
        kernel = (inputs[1], inputs[2]) if len(inputs) == 3 else None
        factors = random_layer(
            outputs, int(np.prod(inputs)), ranks[index % len(ranks)], seed=1000 * seed + index, scale=scale
        )
        layers[name] = LoraLayer(factors.down_RI, factors.up_OR, factors.alpha, kernel)
    return LoraWeights(layers)


def draw_pictures(folder: Path, colours: tuple[tuple[int, int, int], ...], size_px: int = 80) -> list[Path]:
    """Write one picture per colour: a disc on a ramp."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:size_px, 0:size_px] / size_px
    disc = (rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.1
    paths = []
    for index, colour in enumerate(colours):
        pixels = np.repeat((rows * 200)[..., None], 3, axis=2)
        pixels[disc] = colour
        path = folder / f"{index:03d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        paths.append(path)
    return paths
