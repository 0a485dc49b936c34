"""Rival (a): what one step of diffusers' DreamBooth-LoRA example for SDXL does, in our own words.

As the example does with `--mixed_precision bf16 --cache_latents`: a frozen U-Net in bfloat16, PEFT's LoRA on the q, k,
v and output projections with its factors in float32, the forward pass under autocast as accelerate wraps it, latents
drawn anew each step from the distribution that the VAE gave once, prompts encoded once, AdamW, gradients clipped to
norm 1, the loss read by the host for the progress bar in every step. Attention is diffusers' default, torch's
scaled_dot_product_attention. The U-Net is diffusers' own, without our kernels. The batches' pictures are handed out in
turn.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch.nn import functional

from duolora.images import load_pictures
from tests.benchmarks.gpu.stock import stock_unet
from tests.benchmarks.gpu.timing import GIB, measured, share_of, step_seconds
from tests.benchmarks.gpu.workbench import Findings, Workbench, attempted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from duolora.models.base import DiffusionBase

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


class DreamBoothLoop:
    """A LoRA by PEFT on a stock U-Net with a base's weights and the example's step on it; the base stays as it is.

    Args:
        base: the base; its U-Net's dtype says whether autocast is on.
        rank: of every layer; alpha is the same.
        learning_rate: of AdamW.
        checkpointing: whether activations are computed again instead of kept.
        weight_decay: of AdamW; the example's default.
        max_grad_norm: what gradients are clipped to; the example's default; None clips nothing.
    """

    def __init__(
        self,
        base: DiffusionBase,
        *,
        rank: int,
        learning_rate: float = 1e-4,
        checkpointing: bool = False,
        weight_decay: float = 1e-2,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        self.unet = stock_unet(base)
        self._device = base.runtime.device
        self._mixed = base.runtime.dtype is not torch.float32
        self._dtype = base.runtime.dtype
        self._max_grad_norm = max_grad_norm
        lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
        self.unet.add_adapter(lora)
        cast_training_params(self.unet, dtype=torch.float32)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.parameters: list[nn.Parameter] = [each for each in self.unet.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.999), weight_decay=weight_decay, eps=1e-8
        )
        self._rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _step: 1.0)

    def learn(
        self,
        noisy_BCHW: Tensor,
        noise_BCHW: Tensor,
        timesteps_B: Tensor,
        hidden_BTD: Tensor,
        added: Mapping[str, Tensor] | None,
    ) -> float:
        """Take one step of the optimiser on noised latents; return the loss."""
        with torch.autocast(self._device.type, self._dtype) if self._mixed else nullcontext():
            predicted_BCHW = self.unet(
                noisy_BCHW.to(self._dtype), timesteps_B, hidden_BTD, added_cond_kwargs=added, return_dict=False
            )[0]
        loss = functional.mse_loss(predicted_BCHW.float(), noise_BCHW.float(), reduction="mean")
        loss.backward()
        if self._max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._max_grad_norm)
        self.optimizer.step()
        self._rate.step()
        self.optimizer.zero_grad()
        return loss.detach().item()


class ExampleBatches:
    """The example's batches: everything that does not change over the training is computed once."""

    def __init__(self, bench: Workbench, batch_size: int) -> None:
        base, device = bench.base(), bench.device
        rgb_NCHW = load_pictures(bench.pictures("content"), bench.scale.resolution_px)
        vae = base.pipeline.vae
        with torch.no_grad():
            self._distributions = [vae.encode(rgb_1CHW.to(device)).latent_dist for rgb_1CHW in rgb_NCHW.split(1)]
        self._prompt = base.encode_prompts([bench.job().prompts.content])
        self._schedule = DDPMScheduler.from_config(base.pipeline.scheduler.config)
        self._scale: float = vae.config.scaling_factor
        self._side_px = bench.scale.resolution_px
        self._batch_size = batch_size
        self._device, self._dtype = device, base.runtime.dtype
        self._drawn = 0

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Return what `DreamBoothLoop.learn` takes, for one step."""
        size = self._batch_size
        chosen = [self._distributions[(self._drawn + index) % len(self._distributions)] for index in range(size)]
        self._drawn += size
        latents_BCHW = torch.cat([each.sample() for each in chosen]) * self._scale
        latents_BCHW = latents_BCHW.to(self._dtype)
        noise_BCHW = torch.randn_like(latents_BCHW)
        steps = self._schedule.config.num_train_timesteps
        timesteps_B = torch.randint(0, steps, (size,), device=self._device).long()
        noisy_BCHW = self._schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        square = [self._side_px, self._side_px]
        time_ids_B6 = torch.tensor([[*square, 0, 0, *square]] * size).to(self._device, self._dtype)
        added = {"time_ids": time_ids_B6, "text_embeds": self._prompt.pooled_BP.repeat(size, 1)}
        return noisy_BCHW, noise_BCHW, timesteps_B, self._prompt.hidden_BTD.repeat(size, 1, 1), added


NOTE = (
    "AdamW on factors in float32, bfloat16 autocast, the loss read in every step. Idle is what of the peak are VAE and "
    "text encoders, which the example would have given back by then."
)


def idle_gib(base: DiffusionBase) -> float:
    """Return the memory of what a training with cached latents and prompts does not run."""
    pipeline = base.pipeline
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    sizes: list[int] = [each.numel() * each.element_size() for part in parts for each in part.parameters()]
    return sum(sizes) / GIB


def measure(bench: Workbench) -> Findings:
    """Time the loop at every batch, with and without checkpointing; about 35 s on an H100, attaching included."""
    rows = [
        attempted(
            {"batch": batch, "gradient_checkpointing": checkpointing},
            partial(_row, bench, batch, checkpointing=checkpointing),
        )
        for batch, checkpointing in bench.scale.rival_batches
    ]
    named = {
        (1, False): "diffusers_step_s_per_image",
        (1, True): "diffusers_checkpointed_step_s_per_image",
        (4, False): "diffusers_batch_4_step_s_per_image",
    }
    figures = {
        name: row["s_per_image"]
        for row in rows
        if (name := named.get((row["batch"], row["gradient_checkpointing"]))) and "s_per_image" in row
    }
    return Findings(figures, rows, NOTE)


def _row(bench: Workbench, batch: int, *, checkpointing: bool) -> dict[str, Any]:
    """Time the loop with one setting."""
    batches, scale = ExampleBatches(bench, batch), bench.scale
    loop = DreamBoothLoop(bench.base(), rank=scale.rank, checkpointing=checkpointing)
    with measured(bench.device) as region:
        seconds = step_seconds(
            lambda: loop.learn(*batches.draw()), bench.device, warm_up=scale.warm_up, times=scale.rival_steps
        )
    step_s = median(seconds)
    return {
        "s_per_step": step_s,
        "s_per_image": step_s / batch,
        "peak_gib": region.peak_gib,
        "of_it_idle_gib": idle_gib(bench.base()),
        "share_of_matmul_rate": share_of(bench.figures.get("matmul_tflops"), step_s / batch),
    }
