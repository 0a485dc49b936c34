"""Stable Diffusion 1.x: one text encoder, and a U-Net that sees the prompt and the timestep alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor


def _nothing(_pooled_BP: Tensor, _side_px: int) -> None:
    """Add nothing: the prompt's hidden states are all that the U-Net is told."""


SD15 = Family(
    title="SD 1.5",
    pipeline="StableDiffusionPipeline",
    checkpoint_key="cond_stage_model.transformer.",
    architecture="stable-diffusion-v1/lora",
    kohya_base_version="sd_v1",
    kohya_prefixes={"unet": "lora_unet", "text_encoder": "lora_te"},
    prompt_width=768,
    foreign_prompt_widths=(1024,),  # SD 2, whose LoRAs no SD 1.5 base can use
    published_blocks=2,
    added_conditions=_nothing,
)
