"""Stable Diffusion XL: two text encoders, and a U-Net that is told the pooled prompt and six numbers of size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor


def _text_and_time(pooled_BP: Tensor, side_px: int) -> dict[str, Tensor]:
    """Return the pooled prompt and (B, 6) original size, crop and target size of an uncropped square picture."""
    time_ids_B6 = pooled_BP.new_tensor([[side_px, side_px, 0, 0, side_px, side_px]]).expand(pooled_BP.shape[0], -1)
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
