"""A frozen base model with a U-Net: loading, encoding, noise prediction, layer names and the resolution they run at.

What differs between families comes from its `Family` record; how large a model is comes from its own configuration.
B batch, T tokens, D width of the text embedding, P width of the pooled one, C latent channels, H W latent size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from duolora.config import TargetLayers
from duolora.errors import InvalidBase, LayerGroupEmpty
from duolora.families.index import FAMILIES
from duolora.models.eight_bit import hold_in_eight_bits
from duolora.models.fused import fuse
from duolora.models.layers import TEXT_LEVEL, layers_of
from duolora.models.lean import simplify_attention
from duolora.models.loading import load_pipeline
from duolora.models.parking import Parking, Part
from duolora.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from diffusers import DiffusionPipeline

    from duolora.families.family import Family
    from duolora.lora.base_layers import BaseLayers
    from duolora.runtime import Runtime

_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_TEXT_ATTENTION = re.compile(r"^text_encoder(_\d+)?\..+\.self_attn\.(q|k|v|out)_proj$")
_FEED_FORWARD = r"ff\.net\.(0\.proj|2)"
TARGET_PATTERNS = {
    TargetLayers.ATTENTION: re.compile(rf"{_ATTENTION}$"),
    TargetLayers.TRANSFORMER: re.compile(rf"({_ATTENTION}|{_FEED_FORWARD})$"),
}
"""Which linear layers each choice of targets stands for."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptEmbeddings:
    """Encoded prompts: hidden_BTD for cross-attention, pooled_BP for the added condition (P is 0 without one)."""

    hidden_BTD: Tensor
    pooled_BP: Tensor

    def __getitem__(self, rows_B: Tensor) -> PromptEmbeddings:
        """Select or repeat prompts by row."""
        return PromptEmbeddings(self.hidden_BTD[rows_B], self.pooled_BP[rows_B])

    @staticmethod
    def join(parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        """Put several batches of prompts behind each other."""
        return PromptEmbeddings(
            torch.cat([part.hidden_BTD for part in parts]), torch.cat([part.pooled_BP for part in parts])
        )


@dataclass(frozen=True, slots=True, eq=False)
class LatentMoments:
    """What the VAE says of pictures: mean and standard deviation of their scaled latents, (B, C, H, W) each."""

    mean_BCHW: Tensor
    std_BCHW: Tensor

    def sample(self, rows_B: Tensor, generator: torch.Generator) -> Tensor:
        """Draw latents of the given pictures, (len(rows_B), C, H, W)."""
        mean_BCHW = self.mean_BCHW[rows_B]
        noise_BCHW = torch.randn(mean_BCHW.shape, generator=generator).to(mean_BCHW.device)
        return mean_BCHW + self.std_BCHW[rows_B] * noise_BCHW


class DiffusionBase:
    """A frozen base model of any family in `duolora.families`.

    Args:
        pipeline: a text-to-image pipeline of diffusers; its class decides the family.
        location: where it came from, for errors.
        runtime: device and dtype to hold it in, and how to use the device's memory.

    Raises:
        InvalidBase: the pipeline is of no known family, lacks a part, or does not predict noise.
    """

    def __init__(self, pipeline: DiffusionPipeline, location: str, runtime: Runtime) -> None:
        self.location = location
        self.runtime = runtime
        self.pipeline = pipeline
        self.family: Family = _family_of(pipeline, location)
        self.unet: nn.Module = pipeline.unet.to(runtime.dtype)
        simplify_attention(self.unet)
        self.memory = runtime.profile_for(sum(parameter.numel() for parameter in self.unet.parameters()))
        if self.memory.eight_bit_unet:
            hold_in_eight_bits(self.unet, runtime.device)
        fuse(self.unet, runtime.device)
        # SDXL's VAE overflows in half precision; in float32 no VAE is wrong, and it runs once a job.
        self.vae: nn.Module = pipeline.vae.to(torch.float32)
        encoders = [self.component(name) for name in self.family.components[1:]]
        for part in (self.unet, self.vae, *encoders):
            part.eval().requires_grad_(False)
        parts = {Part.UNET: [self.unet], Part.VAE: [self.vae], Part.TEXT: encoders}
        self._parking = Parking(parts, runtime.device, self.memory)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        if scheduler.config.prediction_type != "epsilon":
            raise InvalidBase(f"{location} predicts {scheduler.config.prediction_type!r}; only epsilon is supported")
        self.schedule = NoiseSchedule(scheduler.alphas_cumprod.to(runtime.device))
        self._sides_at: dict[int, dict[str, int]] = {}
        self._latent_scale: float = pipeline.vae.config.scaling_factor
        self._pixels_per_latent: int = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, location: str, runtime: Runtime) -> DiffusionBase:
        """Load a base model from a folder in diffusers' layout, a single-file checkpoint, or a Hugging Face id.

        Raises:
            InvalidBase: nothing loadable is there, or it is of no known family.
        """
        return cls(load_pipeline(location, runtime.dtype), location, runtime)

    def component(self, name: str) -> nn.Module:
        """Return the U-Net or a text encoder by the name that layer names begin with.

        Raises:
            InvalidBase: the pipeline lacks it.
        """
        part: nn.Module | None = getattr(self.pipeline, name, None)
        if part is None:
            raise InvalidBase(f"{self.location} has no {name}; {self.family.title} needs one")
        return part

    def part(self, name: str) -> nn.Module:
        """Return a component as the module that the paths in layer names begin at.

        Raises:
            InvalidBase: the pipeline lacks it.
        """
        component = self.component(name)
        if name == "unet" or hasattr(component, TEXT_LEVEL.rstrip(".")):
            return component
        return nn.ModuleDict({TEXT_LEVEL.rstrip("."): component})

    def on_card(self, part: Part) -> AbstractContextManager[None]:
        """Let a part be on the device inside the `with`; what the base does by itself it brings its parts for."""
        return self._parking.on_card(part)

    def latent_size(self, resolution_px: int) -> int:
        """Side of the latents of a square picture."""
        return resolution_px // self._pixels_per_latent

    @property
    def latent_channels(self) -> int:
        """Number of latent channels C."""
        channels: int = self.pipeline.unet.config.in_channels
        return channels

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Encode prompts with all text encoders, one row each."""
        return self.embed_prompts(prompts)

    def embed_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Encode prompts as `encode_prompts` does, so that gradients reach LoRAs attached to the text encoders.

        Whoever wants gradients keeps the text encoders on the device until they are taken (`on_card`).
        """
        with self.on_card(Part.TEXT):
            encoded = self.pipeline.encode_prompt(
                list(prompts), device=self.runtime.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return self._embeddings(*encoded[::2])

    @torch.no_grad()
    def encode_unconditional(self) -> PromptEmbeddings:
        """Return the embedding that guidance pushes away from, as the model's own pipeline chooses it; one row."""
        with self.on_card(Part.TEXT):
            encoded = self.pipeline.encode_prompt(
                "", device=self.runtime.device, num_images_per_prompt=1, do_classifier_free_guidance=True
            )
        return self._embeddings(*encoded[1::2])

    def _embeddings(self, hidden_BTD: Tensor, pooled_BP: Tensor | None = None) -> PromptEmbeddings:
        """Take what a pipeline encodes; one that pools nothing gives an empty (B, 0)."""
        if pooled_BP is None:
            pooled_BP = hidden_BTD.new_empty(hidden_BTD.shape[0], 0)
        return PromptEmbeddings(hidden_BTD.to(self.runtime.dtype), pooled_BP.to(self.runtime.dtype))

    @torch.no_grad()
    def encode_pictures(self, rgb_BCHW: Tensor) -> LatentMoments:
        """Encode pictures in [-1, 1] to the moments of their scaled latents, float32 on the device."""
        with self.on_card(Part.VAE):
            posteriors = [
                self.pipeline.vae.encode(rgb_nCHW.to(self.runtime.device, torch.float32)).latent_dist
                for rgb_nCHW in self._lots(rgb_BCHW)
            ]
        means = [posterior.mean * self._latent_scale for posterior in posteriors]
        deviations = [posterior.std * self._latent_scale for posterior in posteriors]
        return LatentMoments(torch.cat(means), torch.cat(deviations))

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Decode scaled latents to pictures in about [-1, 1], float32; latents that ask for a gradient get one.

        Whoever wants it keeps the VAE on the device until it is taken (`on_card`).
        """
        with self.on_card(Part.VAE):
            rgb = [
                self.pipeline.vae.decode(latents_nCHW.float() / self._latent_scale).sample
                for latents_nCHW in self._lots(latents_BCHW)
            ]
        return torch.cat(rgb)

    def _lots(self, pictures_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Split pictures or latents into what the VAE takes at once."""
        lots: tuple[Tensor, ...] = pictures_BCHW.split(self.memory.pictures_at_once or max(1, len(pictures_BCHW)))
        return lots

    def predict_noise(self, noisy_BCHW: Tensor, timesteps_B: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Predict the noise in noised latents, (B, C, H, W) float32; runs in the base's own dtype."""
        prediction: Tensor = self.unet(
            noisy_BCHW.to(self.runtime.dtype),
            timesteps_B,
            encoder_hidden_states=prompts.hidden_BTD,
            added_cond_kwargs=self.family.added_conditions(
                prompts.pooled_BP, noisy_BCHW.shape[-1] * self._pixels_per_latent
            ),
        ).sample
        return prediction.float()

    def layers(self) -> BaseLayers:
        """Return all layers that a LoRA may change: linear layers and convolutions of U-Net and text encoders."""
        return layers_of(self.family, {name: self.component(name) for name in self.family.components})

    def layer_names(self) -> list[str]:
        """Return the names of all linear layers of the U-Net."""
        return [f"unet.{path}" for path, module in self.unet.named_modules() if isinstance(module, nn.Linear)]

    def module(self, layer_name: str) -> nn.Module:
        """Return the module of a layer, by the layer's name in a LoRA.

        Raises:
            InvalidBase: the pipeline lacks the component.
            AttributeError: the component has no such module.
        """
        name, _, path = layer_name.partition(".")
        component = self.component(name)
        if path.startswith(TEXT_LEVEL) and not hasattr(component, "text_model"):
            path = path.removeprefix(TEXT_LEVEL)
        return component.get_submodule(path)

    def target_layers(self, targets: TargetLayers) -> list[str]:
        """Return the paths, inside the U-Net, of the linear layers that a LoRA adapts.

        Raises:
            LayerGroupEmpty: the model has none.
        """
        pattern = TARGET_PATTERNS[targets]
        paths = [
            path for path, module in self.unet.named_modules() if isinstance(module, nn.Linear) and pattern.search(path)
        ]
        if not paths:
            raise LayerGroupEmpty(f"{self.location} has no {targets} layers to adapt")
        return paths

    def text_layers(self) -> list[str]:
        """Return the names of the text encoders' attention layers, which a LoRA may adapt beside the U-Net's.

        Raises:
            LayerGroupEmpty: the model has none.
        """
        names = [name for name in self.layers().shapes if _TEXT_ATTENTION.search(name)]
        if not names:
            raise LayerGroupEmpty(f"{self.location} has no text encoder whose attention could be adapted")
        return names

    def layer_resolutions(self, layer_names: Sequence[str], resolution_px: int) -> dict[str, int]:
        """Measure at which latent resolution each layer runs.

        A copy of the U-Net without storage is run once for each resolution, so the cost does not depend on the model's
        size.

        Raises:
            LayerGroupEmpty: a layer is in no transformer block, so it has no such resolution.
        """
        size = self.latent_size(resolution_px)
        if size not in self._sides_at:
            self._sides_at[size] = _transformer_sides(self.pipeline.unet.config, self.family, size)
        sides = self._sides_at[size]
        resolutions: dict[str, int] = {}
        for name in layer_names:
            path = name.removeprefix("unet.")
            owner = next((block for block in sides if path.startswith(block + ".")), None)
            if owner is None:
                raise LayerGroupEmpty(f"{name} lies in no transformer block; its role cannot be read off a resolution")
            resolutions[name] = sides[owner]
        return resolutions


def _family_of(pipeline: DiffusionPipeline, location: str) -> Family:
    """Return the family of a pipeline by its class."""
    for family in FAMILIES:
        if type(pipeline).__name__ == family.pipeline:
            if pipeline.unet.config.cross_attention_dim in family.foreign_prompt_widths:
                raise InvalidBase(f"{location} is of a family that shares {family.title}'s pipeline, but not its files")
            return family
    known = ", ".join(family.title for family in FAMILIES)
    raise InvalidBase(f"{location} is a {type(pipeline).__name__}; known families: {known}")


def _transformer_sides(unet_config: Any, family: Family, latent_size: int) -> dict[str, int]:  # noqa: ANN401 - diffusers' own record
    """Side length at which each transformer of a U-Net runs, by its path.

    The transformers themselves are passed by: they leave the size as it is, and are nine tenths of the time.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        sides: dict[str, int] = {}

        def noting(path: str) -> Any:  # noqa: ANN401 - stands for a module's forward
            def note(hidden_states: Tensor, **_kwargs: object) -> tuple[Tensor]:
                sides[path] = hidden_states.shape[-1]
                return (hidden_states,)

            return note

        for path, module in unet.named_modules():
            if isinstance(module, Transformer2DModel):
                module.forward = noting(path)
        pooled = (unet_config.projection_class_embeddings_input_dim or 0) - 6 * (
            unet_config.addition_time_embed_dim or 0
        )
        unet(
            torch.empty(1, unet_config.in_channels, latent_size, latent_size),
            torch.zeros(1, dtype=torch.int64),
            encoder_hidden_states=torch.empty(1, 1, unet_config.cross_attention_dim),
            added_cond_kwargs=family.added_conditions(torch.empty(1, pooled), latent_size),
        )
    return sides
