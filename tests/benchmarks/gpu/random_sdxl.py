"""SDXL with random weights, made where it is used: the arithmetic of the published model without its files.

Sizes are those of the published configuration (stabilityai/stable-diffusion-xl-base-1.0; Podell et al. 2023, arXiv
2307.01952, table 1): the U-Net has 2,567,463,684 parameters and 560 linear layers in its attention. The tokenizers are
those of the embedded tiny base, since no network is at hand: a caption is 77 tokens all the same.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from duolora.models.base import DiffusionBase
from duolora.tiny.base import base_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duolora.runtime import Runtime

TOKENS = 77
"""Length of a caption that CLIP's text encoders take."""

UNET_PARAMETERS = 2_567_463_684
ATTENTION_LINEARS = 560


@dataclass(frozen=True, slots=True)
class SdxlSizes:
    """What tells one size of SDXL from another: keyword arguments of the models' own configurations."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    first_text: Mapping[str, Any]
    second_text: Mapping[str, Any]
    everywhere: Mapping[str, Any] = field(
        default_factory=lambda: {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "addition_embed_type": "text_time",
            "use_linear_projection": True,
        }
    )
    """What the U-Nets of all sizes share."""


PUBLISHED = SdxlSizes(
    unet={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),  # diffusers' name for the number of heads
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,  # six numbers of 256 and the pooled prompt, 1280
    },
    vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024},
    first_text={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "vocab_size": 49_408,
    },
    second_text={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
        "vocab_size": 49_408,
    },
)

SMALL = SdxlSizes(
    unet={
        "sample_size": 8,
        "block_out_channels": (32, 64, 96),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 4, 6),
        "cross_attention_dim": 80,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96,
    },
    vae={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
    first_text={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
        "hidden_act": "quick_gelu",
        "vocab_size": 3000,
    },
    second_text={
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 48,
        "hidden_act": "gelu",
        "vocab_size": 3000,
    },
)
"""The same classes in widths that a CPU runs in milliseconds."""


def random_sdxl(sizes: SdxlSizes, runtime: Runtime, seed: int = 0) -> DiffusionBase:
    """Make the whole pipeline on the runtime's device and hand it to the engine; 7.1 GB at the published sizes.

    Where the U-Net is to be held in eight bits, a part once made waits in the host's memory, as one loaded from a disk
    does: the card may be too small for all of them.
    """
    torch.manual_seed(seed)
    waits = runtime.memory is not None and runtime.memory.eight_bit_unet
    place = torch.device("cpu") if waits else runtime.device
    with made_on(runtime.device, runtime.dtype):
        encoder_config, second_config = text_config(sizes.first_text), text_config(sizes.second_text)
        unet = UNet2DConditionModel(**unet_config(sizes)).to(place)
        text_encoder = CLIPTextModel(encoder_config).to(place)
        text_encoder_2 = CLIPTextModelWithProjection(second_config).to(place)
    with made_on(runtime.device, torch.float32):
        vae = AutoencoderKL(**vae_config(sizes)).to(place)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=_tokenizer("tokenizer"),
        tokenizer_2=_tokenizer("tokenizer_2"),
        unet=unet,
        scheduler=published_scheduler(),
        add_watermarker=False,
    )
    return DiffusionBase(pipeline, "random-sdxl", runtime)


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let modules be made on a device in a dtype, so that nothing is made elsewhere and carried over."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def unet_config(sizes: SdxlSizes) -> dict[str, Any]:
    """Return the arguments of `UNet2DConditionModel`."""
    return {**sizes.everywhere, **sizes.unet}


def vae_config(sizes: SdxlSizes) -> dict[str, Any]:
    """Return the arguments of `AutoencoderKL`: factor 8, 4 latent channels."""
    levels = len(sizes.vae["block_out_channels"])
    return {
        **sizes.vae,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
    }


def text_config(sizes: Mapping[str, Any]) -> CLIPTextConfig:
    """Return one text encoder's configuration; its special tokens are those of the tokenizers that are used here."""
    tokenizer = _tokenizer("tokenizer")
    return CLIPTextConfig(
        **sizes,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def published_scheduler() -> EulerDiscreteScheduler:
    """Return SDXL's sampler with its training schedule."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _tokenizer(name: str) -> CLIPTokenizer:
    """Return a tokenizer of the embedded base that pads and cuts to CLIP's length."""
    return CLIPTokenizer.from_pretrained(base_path() / name, model_max_length=TOKENS)
