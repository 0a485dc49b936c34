"""Sampling pictures from a base model with LoRAs, by the model's own sampler and classifier-free guidance.

B pictures, C latent channels, H W latent size.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from diffusers import EulerDiscreteScheduler

from duolora.adapters import RankSpaceAdapter
from duolora.events import Observer, Progress, Silent, advance
from duolora.images import to_pictures
from duolora.models.sdxl import PromptEmbeddings, SdxlBase
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

    from duolora.config import GenerateConfig
    from duolora.lora.weights import LoraWeights


def generate(
    base: SdxlBase,
    prompts: Sequence[str],
    config: GenerateConfig,
    lora: LoraWeights | None = None,
    observer: Observer | None = None,
) -> list[Image]:
    """Sample `config.images` pictures; prompts are used in turn.

    The result equals that of stock diffusers with `load_lora_weights` on the same noise (see `starting_noise`).

    Raises:
        InvalidLora: the LoRA does not fit the base.
        Cancelled: the observer asked to stop.
        OutOfMemory: the device is too small.
    """
    observer = observer or Silent()
    adapter = None if lora is None else RankSpaceAdapter({"lora": lora})
    with memory_errors(), torch.no_grad(), nullcontext() if adapter is None else adapter.inject(base.unet):
        if adapter is not None:
            adapter.assign_all(0, 2 * config.images, base.runtime.device)
        latents_BCHW = _sample(base, prompts, config, observer)
        return to_pictures(base.decode_latents(latents_BCHW))


def starting_noise(base: SdxlBase, config: GenerateConfig) -> Tensor:
    """Return the noise that sampling starts from, (B, C, H, W) float32 standard normal; the seed alone decides it."""
    side = base.latent_size(config.resolution_px)
    shape = (config.images, base.latent_channels, side, side)
    return torch.randn(shape, generator=base.runtime.generator(config.seed)).to(base.runtime.device)


def _sample(base: SdxlBase, prompts: Sequence[str], config: GenerateConfig, observer: Observer) -> Tensor:
    """Denoise from noise to clean latents, (B, C, H, W)."""
    rows_B = torch.arange(config.images, device=base.runtime.device) % len(prompts)
    conditions = base.encode_prompts(prompts)[rows_B]
    guides = config.guidance_scale > 1  # at 1 and below the prompt alone decides, as in diffusers
    if guides:
        unconditional = base.encode_unconditional()[torch.zeros_like(rows_B)]
        conditions = PromptEmbeddings.join([unconditional, conditions])
    copies = 2 if guides else 1
    sampler = EulerDiscreteScheduler.from_config(base.pipeline.scheduler.config)
    sampler.set_timesteps(config.steps, device=base.runtime.device)
    latents_BCHW: Tensor = starting_noise(base, config) * sampler.init_noise_sigma
    for step, timestep in enumerate(sampler.timesteps):
        scaled_BCHW = sampler.scale_model_input(latents_BCHW, timestep)
        noise_BCHW = base.predict_noise(
            scaled_BCHW.repeat(copies, 1, 1, 1), timestep.expand(copies * config.images), conditions
        )
        if guides:
            free_BCHW, guided_BCHW = noise_BCHW.chunk(2)
            noise_BCHW = free_BCHW + config.guidance_scale * (guided_BCHW - free_BCHW)
        latents_BCHW = sampler.step(noise_BCHW, timestep, latents_BCHW, return_dict=False)[0]
        advance(observer, Progress(step=step + 1, total=config.steps, note="sampling"))
    return latents_BCHW
