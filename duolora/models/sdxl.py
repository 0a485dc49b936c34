"""SDXL and everything in its format: loading, encoding, noise prediction, layer names and the resolution they run at.

B batch, T tokens, D width of the text embedding, P width of the pooled one, C latent channels, H W latent size.
Nothing here knows how large a model is: all sizes come from the model's own configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors import SafetensorError
from torch import Tensor, nn

from duolora.config import TargetLayers
from duolora.errors import InvalidBase, LayerGroupEmpty
from duolora.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.runtime import Runtime

_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_FEED_FORWARD = r"ff\.net\.(0\.proj|2)"
TARGET_PATTERNS = {
    TargetLayers.ATTENTION: re.compile(rf"{_ATTENTION}$"),
    TargetLayers.TRANSFORMER: re.compile(rf"({_ATTENTION}|{_FEED_FORWARD})$"),
}
"""Which linear layers each choice of targets stands for."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptEmbeddings:
    """Encoded prompts: hidden_BTD for cross-attention, pooled_BP for the added condition."""

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


class SdxlBase:
    """A frozen base model in SDXL's format."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, location: str, runtime: Runtime) -> None:
        self.location = location
        self.runtime = runtime
        self.pipeline = pipeline
        self.unet: nn.Module = pipeline.unet.to(runtime.device, runtime.dtype)
        # SDXL's VAE overflows in half precision; in float32 it is never wrong, and it runs once a job.
        self.vae: nn.Module = pipeline.vae.to(runtime.device, torch.float32)
        for part in (self.unet, self.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.to(runtime.device).eval().requires_grad_(False)
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        if scheduler.config.prediction_type != "epsilon":
            raise InvalidBase(f"{location} predicts {scheduler.config.prediction_type!r}; only epsilon is supported")
        self.schedule = NoiseSchedule(scheduler.alphas_cumprod.to(runtime.device))
        self._latent_scale: float = pipeline.vae.config.scaling_factor
        self._pixels_per_latent: int = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, location: str, runtime: Runtime) -> SdxlBase:
        """Load a base model from a folder in diffusers' layout, a single-file checkpoint, or a Hugging Face id.

        Raises:
            InvalidBase: nothing loadable is there, or it is not in SDXL's format.
        """
        single_file = Path(location).is_file()
        load = StableDiffusionXLPipeline.from_single_file if single_file else StableDiffusionXLPipeline.from_pretrained
        try:
            pipeline = load(location, dtype=runtime.dtype)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise InvalidBase(f"{location} cannot be loaded as an SDXL model: {error}") from error
        return cls(pipeline, location, runtime)

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
        """Encode prompts with both text encoders, one row each."""
        hidden_BTD, _, pooled_BP, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.runtime.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return PromptEmbeddings(hidden_BTD.to(self.runtime.dtype), pooled_BP.to(self.runtime.dtype))

    @torch.no_grad()
    def encode_unconditional(self) -> PromptEmbeddings:
        """Return the embedding that guidance pushes away from, as the model's own pipeline chooses it; one row."""
        _, hidden_BTD, _, pooled_BP = self.pipeline.encode_prompt(
            "", device=self.runtime.device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        return PromptEmbeddings(hidden_BTD.to(self.runtime.dtype), pooled_BP.to(self.runtime.dtype))

    @torch.no_grad()
    def encode_pictures(self, rgb_BCHW: Tensor) -> LatentMoments:
        """Encode pictures in [-1, 1] to the moments of their scaled latents, float32."""
        posterior = self.pipeline.vae.encode(rgb_BCHW.to(self.runtime.device, torch.float32)).latent_dist
        return LatentMoments(posterior.mean * self._latent_scale, posterior.std * self._latent_scale)

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Decode scaled latents to pictures in about [-1, 1], float32."""
        rgb_BCHW: Tensor = self.pipeline.vae.decode(latents_BCHW.float() / self._latent_scale).sample
        return rgb_BCHW

    def predict_noise(self, noisy_BCHW: Tensor, timesteps_B: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Predict the noise in noised latents, (B, C, H, W) float32; runs in the base's own dtype."""
        side = noisy_BCHW.shape[-1] * self._pixels_per_latent
        time_ids_B6 = noisy_BCHW.new_tensor([[side, side, 0, 0, side, side]]).expand(noisy_BCHW.shape[0], -1)
        prediction: Tensor = self.unet(
            noisy_BCHW.to(self.runtime.dtype),
            timesteps_B,
            encoder_hidden_states=prompts.hidden_BTD,
            added_cond_kwargs={"text_embeds": prompts.pooled_BP, "time_ids": time_ids_B6.to(self.runtime.dtype)},
        ).sample
        return prediction.float()

    def layer_names(self) -> list[str]:
        """Return the names of all linear layers of the U-Net, for reading files whose keys are ambiguous."""
        return [f"unet.{path}" for path, module in self.unet.named_modules() if isinstance(module, nn.Linear)]

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

    def layer_resolutions(self, layer_names: Sequence[str], resolution_px: int) -> dict[str, int]:
        """Measure at which latent resolution each layer runs.

        A copy of the U-Net without storage is run once, so the cost does not depend on the model's size.

        Raises:
            LayerGroupEmpty: a layer is in no transformer block, so it has no such resolution.
        """
        sides = _transformer_sides(self.pipeline.unet.config, self.latent_size(resolution_px))
        resolutions: dict[str, int] = {}
        for name in layer_names:
            path = name.removeprefix("unet.")
            owner = next((block for block in sides if path.startswith(block + ".")), None)
            if owner is None:
                raise LayerGroupEmpty(f"{name} lies in no transformer block; its role cannot be read off a resolution")
            resolutions[name] = sides[owner]
        return resolutions


def _transformer_sides(unet_config: Any, latent_size: int) -> dict[str, int]:  # noqa: ANN401 - diffusers' own record
    """Side length at which each transformer of a U-Net runs, by its path."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        sides: dict[str, int] = {}

        def note(path: str) -> Any:  # noqa: ANN401 - a hook, as torch defines it
            return lambda _module, inputs, kwargs: sides.__setitem__(
                path, (inputs[0] if inputs else kwargs["hidden_states"]).shape[-1]
            )

        for path, module in unet.named_modules():
            if isinstance(module, Transformer2DModel):
                module.register_forward_pre_hook(note(path), with_kwargs=True)
        pooled = unet_config.projection_class_embeddings_input_dim - 6 * unet_config.addition_time_embed_dim
        unet(
            torch.empty(1, unet_config.in_channels, latent_size, latent_size),
            torch.zeros(1, dtype=torch.int64),
            encoder_hidden_states=torch.empty(1, 1, unet_config.cross_attention_dim),
            added_cond_kwargs={"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)},
        )
    return sides
