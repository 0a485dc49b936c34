"""Sampling pictures from a base model with LoRAs, by the model's own sampler and classifier-free guidance.

B pictures, J tenants with n pictures each (B = J * n, tenant after tenant), C latent channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import torch
from diffusers import EulerDiscreteScheduler

from duolora.adapters import RankSpaceAdapter
from duolora.errors import InvalidConfig, InvalidLora
from duolora.events import Observer, Progress, Silent, advance
from duolora.images import to_pictures
from duolora.lora.carry import SplitLora, split
from duolora.models.base import DiffusionBase, PromptEmbeddings
from duolora.models.carried import applied
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image
    from torch import Tensor

    from duolora.config import GenerateConfig
    from duolora.lora.weights import LoraWeights


class Attached(Protocol):
    """A change of the U-Net that follows the sampling; enter it to attach it, leave it to restore the model."""

    def __enter__(self) -> Self:
        """Attach."""

    def __exit__(self, *exception: object) -> None:
        """Restore the model exactly."""

    def before_step(self, step: int, total: int) -> None:
        """Hear that step `step` of `total` comes next; samples stand as in every pass of several tenants."""


@runtime_checkable
class Predicting(Attached, Protocol):
    """A change that runs the passes of the U-Net itself.

    One that outlives many samplings can so record its passes once, with a `duolora.capture.CapturedPredictor` of its
    own, and have them replayed in all samplings.
    """

    def predict_noise(self, noisy_BCHW: Tensor, timesteps_B: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Predict the noise as `DiffusionBase.predict_noise` does."""


def generate(
    base: DiffusionBase,
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
    attached = None if lora is None else _Fixed([lora], base)
    in_turn = [prompts[index % len(prompts)] for index in range(config.images)]
    request = _Request([in_turn], [config.seed], config, base.memory.predicts_at_once)
    return to_pictures(_sample(base, request, attached, observer or Silent()))


def sample_tenants(
    base: DiffusionBase,
    loras: Sequence[LoraWeights] | Attached | None,
    prompts: Sequence[Sequence[str]],
    config: GenerateConfig,
    seeds: Sequence[int],
    *,
    observer: Observer | None = None,
) -> Tensor:
    """Sample pictures of several tenants, each with its own LoRA, in the same passes of the U-Net.

    Args:
        base: the base model.
        loras: one LoRA per tenant, or a change of the U-Net that knows the tenants itself, or None.
        prompts: every tenant's prompts, `config.images` each.
        config: steps, guidance and resolution; its seed is not used.
        seeds: one per tenant; decides the noise, as `generate` does for the same seed.
        observer: receives progress; may stop the work.

    Returns:
        Pictures in [-1, 1], about: (J, n, 3, H, W) float32 on the base's device.

    Raises:
        InvalidConfig: a tenant has another number of prompts than pictures, or the memory profile is for one tenant.
        InvalidLora, Cancelled, OutOfMemory: as `generate`.
    """
    if any(len(of_tenant) != config.images for of_tenant in prompts):
        raise InvalidConfig(f"every tenant needs {config.images} prompts, one for each picture")
    if not base.memory.shares_passes and len(prompts) > 1:
        raise InvalidConfig(f"with the memory profile {base.memory.name} only one tenant is sampled at a time")
    attached = _Fixed(loras, base) if isinstance(loras, Sequence) else loras
    rgb_B3HW = _sample(
        base, _Request(prompts, seeds, config, base.memory.predicts_at_once), attached, observer or Silent()
    )
    return rgb_B3HW.view(len(prompts), config.images, *rgb_B3HW.shape[1:])


@dataclass(frozen=True, slots=True)
class _Request:
    """What to sample: every tenant's prompts and seed; and how many samples a pass may hold, None for all."""

    prompts: Sequence[Sequence[str]]
    seeds: Sequence[int]
    config: GenerateConfig
    at_once: int | None = None


def starting_noise(base: DiffusionBase, config: GenerateConfig, seed: int | None = None) -> Tensor:
    """Return the noise that sampling starts from, (n, C, H, W) float32 standard normal; the seed alone decides it."""
    side = base.latent_size(config.resolution_px)
    shape = (config.images, base.latent_channels, side, side)
    generator = base.runtime.generator(config.seed if seed is None else seed)
    return torch.randn(shape, generator=generator).to(base.runtime.device)


class _Fixed:
    """Plain LoRAs, one per tenant, the same at every step; one by itself is added to the weights if these stay put."""

    def __init__(self, loras: Sequence[LoraWeights], base: DiffusionBase) -> None:
        fuses = len(loras) == 1 and base.memory.fuses
        halves = [SplitLora(None, lora) if fuses else split(lora) for lora in loras]
        self._base = base
        self._by_masks = [half.by_masks for half in halves]
        self._carried = [half.carried for half in halves]
        if len(loras) > 1 and (any(self._carried) or not all(self._by_masks)):
            raise InvalidLora("LoRAs sampled together may change linear layers of the U-Net's transformers only")
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._carried[0] is not None:
                stack.enter_context(applied(self._base, self._carried[0]))
            present = [lora for lora in self._by_masks if lora is not None]
            if present:
                adapter = RankSpaceAdapter(*({"lora": lora} for lora in present))
                stack.enter_context(adapter.inject(self._base.unet))
                # The one role there is; without masks its rows are not looked at, so any number of samples will do.
                adapter.assign_all(0, 1)
            self._inside = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._inside.close()

    def before_step(self, step: int, total: int) -> None:
        """Change nothing."""


def _sample(base: DiffusionBase, request: _Request, attached: Attached | None, observer: Observer) -> Tensor:
    """Sample and decode; pictures in [-1, 1], (B, 3, H, W)."""
    with memory_errors(), torch.no_grad(), nullcontext() if attached is None else attached:
        predict = attached.predict_noise if isinstance(attached, Predicting) else base.predict_noise
        before_step = (lambda *_: None) if attached is None else attached.before_step
        in_lots = _in_lots(predict, request.at_once)
        return base.decode_latents(_denoise(base, request, in_lots, before_step, observer))


def _in_lots(
    predict: Callable[[Tensor, Tensor, PromptEmbeddings], Tensor], at_once: int | None
) -> Callable[[Tensor, Tensor, PromptEmbeddings], Tensor]:
    """Return a prediction that runs so many samples a pass at most; None: all of them."""
    if at_once is None:
        return predict

    def predicted(noisy_BCHW: Tensor, timesteps_B: Tensor, prompts: PromptEmbeddings) -> Tensor:
        spans = [slice(row, row + at_once) for row in range(0, len(noisy_BCHW), at_once)]
        return torch.cat(
            [
                predict(
                    noisy_BCHW[span],
                    timesteps_B[span],
                    PromptEmbeddings(prompts.hidden_BTD[span], prompts.pooled_BP[span]),
                )
                for span in spans
            ]
        )

    return predicted


def _denoise(
    base: DiffusionBase,
    request: _Request,
    predict: Callable[[Tensor, Tensor, PromptEmbeddings], Tensor],
    before_step: Callable[[int, int], None],
    observer: Observer,
) -> Tensor:
    """Denoise from noise to clean latents, (B, C, H, W)."""
    config = request.config
    tenants, total = len(request.prompts), config.steps
    conditions, copies = _conditions(base, request)
    sampler = EulerDiscreteScheduler.from_config(base.pipeline.scheduler.config)
    sampler.set_timesteps(total, device=base.runtime.device)
    noise_BCHW = torch.cat([starting_noise(base, config, seed) for seed in request.seeds])
    latents_BCHW: Tensor = noise_BCHW * sampler.init_noise_sigma
    for step, timestep in enumerate(sampler.timesteps):
        before_step(step, total)
        scaled_BCHW = sampler.scale_model_input(latents_BCHW, timestep)
        # A tenant's guided and free samples stand together: the batch stays tenant after tenant.
        doubled = scaled_BCHW.unflatten(0, (tenants, 1, -1)).expand(-1, copies, *(-1,) * 4).flatten(0, 2)
        predicted_BCHW = predict(doubled, timestep.expand(len(doubled)), conditions)
        if copies > 1:
            free, guided = predicted_BCHW.unflatten(0, (tenants, copies, -1)).unbind(1)
            predicted_BCHW = (free + config.guidance_scale * (guided - free)).flatten(0, 1)
        latents_BCHW = sampler.step(predicted_BCHW, timestep, latents_BCHW, return_dict=False)[0]
        advance(observer, Progress(step=step + 1, total=total, note="sampling"))
    return latents_BCHW


def _conditions(base: DiffusionBase, request: _Request) -> tuple[PromptEmbeddings, int]:
    """Encode prompts, each once, for a pass of all tenants; with guidance also its unconditional half, 2 copies."""
    prompts = request.prompts
    distinct = list(dict.fromkeys(prompt for of_tenant in prompts for prompt in of_tenant))
    encoded = base.encode_prompts(distinct)
    guides = request.config.guidance_scale > 1  # at 1 and below the prompt alone decides, as in diffusers
    if guides:
        encoded = PromptEmbeddings.join([encoded, base.encode_unconditional()])
    free = [len(distinct)]
    rows = [
        row
        for of_tenant in prompts
        for row in [*(free * len(of_tenant) if guides else []), *(distinct.index(prompt) for prompt in of_tenant)]
    ]
    return encoded[torch.tensor(rows, device=base.runtime.device)], 2 if guides else 1
