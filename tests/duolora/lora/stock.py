"""What stock diffusers and peft make of our files, with nothing of ours in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DiffusionPipeline

from duolora.config import GenerateConfig

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from duolora.models.base import DiffusionBase

PROMPTS = ["a sbu dog in szn style", "a cat"]
CONFIG = GenerateConfig(steps=3, images=2, resolution_px=64, guidance_scale=4.0, seed=5)


def open_stock(folder: Path, file: Path | None) -> DiffusionPipeline:
    """The pipeline of a base's folder, with the LoRA of a file loaded."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if file is not None:
        pipeline.load_lora_weights(file)
    return pipeline


def stock_deltas(pipeline: DiffusionPipeline, base: DiffusionBase) -> dict[str, torch.Tensor]:
    """What peft would add to each weight, by our names of the layers."""
    deltas = {}
    for component in base.family.components:
        for path, module in getattr(pipeline, component).named_modules():
            if adapters := list(getattr(module, "lora_A", ())):
                level = "" if component == "unet" or path.startswith("text_model.") else "text_model."
                deltas[f"{component}.{level}{path}"] = module.get_delta_weight(adapters[0])
    return deltas


def draw_stock(pipeline: DiffusionPipeline, noise: torch.Tensor, config: GenerateConfig = CONFIG) -> np.ndarray:
    with torch.no_grad():
        pictures = pipeline(
            PROMPTS,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            height=config.resolution_px,
            width=config.resolution_px,
            latents=noise.clone(),
        ).images
    return pixels(pictures)


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(np.int64)
