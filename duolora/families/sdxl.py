"""Stable Diffusion XL: two text encoders, and a U-Net that is told the pooled prompt and six numbers of size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from duolora.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor


def _text_and_time(pooled_BP: Tensor, side_px: int) -> dict[str, Tensor]:
    """Return the pooled prompt and (B, 6) original size, crop and target size of an uncropped square picture."""
    # Filled where they are used: a copy from the host cannot be recorded in a CUDA graph.
    size_B1, corner_B1 = pooled_BP.new_full((len(pooled_BP), 1), side_px), pooled_BP.new_zeros((len(pooled_BP), 1))
    time_ids_B6 = torch.cat([size_B1, size_B1, corner_B1, corner_B1, size_B1, size_B1], dim=1)
    return {"text_embeds": pooled_BP, "time_ids": time_ids_B6}


SDXL = Family(
    title="SDXL",
    pipeline="StableDiffusionXLPipeline",
    checkpoint_key="conditioner.embedders.1.",
    architecture="stable-diffusion-xl-v1-base/lora",
    kohya_base_version="sdxl_base_v1-0",
    kohya_prefixes={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    prompt_width=2048,
    foreign_prompt_widths=(1280,),  # the refiner
    published_blocks=2,
    added_conditions=_text_and_time,
)
