"""Rivals (b): the cost of one merge step of DuoLoRA's release and of ZipLoRA, from the project's method notes.

What is on record of them (method.md, sections 2, 3 and 8): passes of the U-Net at batch 1, eight a step in the release
and four in ZipLoRA; two VAE encodings in float32 a step; the product `up @ down` made dense anew in every adapted layer
of every pass; half precision; gradient checkpointing; masks over ranks, one for the four projections of an attention
module (release), or over columns, one for each layer (ZipLoRA). No line of either program was looked at.

Assumed, always the cheaper way where the notes are silent: of the eight passes six are teachers without gradient (each
LoRA on its own picture, and the two legs of either cycle) and two are students (the merged model on either picture), of
ZipLoRA's four two and two; a teacher rebuilds its own LoRA's product alone; the product is added to the frozen weight,
so that a layer is one linear map of its input; prompts are encoded once; one backward pass serves both students;
the U-Net is diffusers' own; neither autocast nor a gradient scaler; one Adam step a loss, foreach; the host does not
read the loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from duolora.baselines.duolora_release import release_prior
from duolora.images import load_pictures
from tests.benchmarks.gpu.stock import stock_unet
from tests.benchmarks.gpu.timing import measured, step_seconds
from tests.benchmarks.gpu.workbench import Findings, Workbench, attempted, random_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from diffusers import UNet2DConditionModel

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase, PromptEmbeddings

SIDES = ("content", "style")
_PROJECTION = re.compile(r"\.to_(?:q|k|v|out\.0)$")


@dataclass(slots=True)
class Attached:
    """Which LoRAs are on in the present pass, and whether their masks are."""

    sides: tuple[str, ...] = SIDES
    masked: bool = False


class DenseMergedLinear(nn.Module):
    """A frozen linear layer to which the dense changes of the LoRAs that are on are added in every call.

    `factors` by side, down (R, I) and up (O, R) in the base's dtype; `masks` by side, float32, (R,) over ranks or (O,)
    over columns.
    """

    def __init__(
        self,
        base: nn.Linear,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        masks: Mapping[str, nn.Parameter],
        attached: Attached,
        *,
        over_ranks: bool,
    ) -> None:
        super().__init__()
        self.base = base
        self._factors = factors
        self._masks = masks
        self._attached = attached
        self._over_ranks = over_ranks

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Rebuild what is on and apply it, (B, T, O)."""
        weight_OI: Tensor = self.base.weight
        for side in self._attached.sides:
            weight_OI = weight_OI + self._change(side)
        return functional.linear(x_BTI, weight_OI, self.base.bias)

    def _change(self, side: str) -> Tensor:
        """Return the dense change of one side, (O, I)."""
        down_RI, up_OR = self._factors[side]
        if not self._attached.masked:
            return up_OR @ down_RI
        mask = self._masks[side].to(up_OR.dtype)
        return (up_OR * mask) @ down_RI if self._over_ranks else mask[:, None] * (up_OR @ down_RI)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What a step looks at: a picture of either side, (1, 3, H, W) each, and the words."""

    pictures: Mapping[str, Tensor]
    own: Mapping[str, PromptEmbeddings]
    joint: PromptEmbeddings


@dataclass(slots=True, eq=False)
class RivalMerge:
    """One rival's merge with both LoRAs attached; `masks` by side and by what shares a mask."""

    base: DiffusionBase
    unet: UNet2DConditionModel
    samples: Samples
    attached: Attached
    masks: dict[str, dict[str, nn.Parameter]]
    calls: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        every = [mask for of_side in self.masks.values() for mask in of_side.values()]
        self.optimizer = torch.optim.Adam(every, lr=0.01)

    def release_step(self) -> Tensor:
        """Take one step as the release is described: eight passes, the cycle's weight 0.01."""
        loss = torch.zeros((), device=self.base.runtime.device)
        for side, other in zip(SIDES, reversed(SIDES), strict=True):
            noisy, timesteps = self._noised(side)
            with torch.no_grad():
                direct = self._pass((side,), noisy, timesteps, self.samples.own[side])
                added = self._pass((other,), noisy, timesteps, self.samples.joint)
                clean = self.base.schedule.predict_clean(noisy, added, timesteps)
                again = self.base.schedule.add_noise(clean, torch.randn_like(clean), timesteps)
                cycled = self._pass((other,), again, timesteps, self.samples.own[side])
            merged = self._pass(SIDES, noisy, timesteps, self.samples.own[side], masked=True)
            loss = loss + functional.mse_loss(merged, direct) + 0.01 * functional.mse_loss(merged, cycled)
        content, style = self.masks["content"], self.masks["style"]
        prior = torch.stack([release_prior(content[name][None], style[name][None]) for name in content]).mean()
        return self._learn(loss + 0.01 * prior)

    def ziplora_step(self) -> Tensor:
        """Take one step as ZipLoRA is described: four passes, and the masks' likeness with weight 0.01."""
        loss = torch.zeros((), device=self.base.runtime.device)
        for side in SIDES:
            noisy, timesteps = self._noised(side)
            with torch.no_grad():
                direct = self._pass((side,), noisy, timesteps, self.samples.own[side])
            merged = self._pass(SIDES, noisy, timesteps, self.samples.own[side], masked=True)
            loss = loss + functional.mse_loss(merged, direct)
        content, style = self.masks["content"], self.masks["style"]
        likeness = torch.stack([(content[name] * style[name]).abs().mean() for name in content]).sum()
        return self._learn(loss + 0.01 * likeness)

    def _noised(self, side: str) -> tuple[Tensor, Tensor]:
        """Encode a side's picture and noise it: latents (1, C, H, W) and timesteps (1,)."""
        with torch.no_grad():
            posterior = self.base.pipeline.vae.encode(self.samples.pictures[side]).latent_dist
            latents = posterior.sample() * self.base.pipeline.vae.config.scaling_factor
            timesteps = torch.randint(0, self.base.schedule.timesteps, (1,), device=latents.device)
            return self.base.schedule.add_noise(latents, torch.randn_like(latents), timesteps), timesteps

    def _pass(
        self,
        sides: tuple[str, ...],
        noisy: Tensor,
        timesteps: Tensor,
        prompt: PromptEmbeddings,
        *,
        masked: bool = False,
    ) -> Tensor:
        """Run the U-Net once, batch 1, with some LoRAs on; float32."""
        self.attached.sides, self.attached.masked = sides, masked
        self.calls += 1
        dtype = self.unet.dtype
        predicted: Tensor = self.unet(
            noisy.to(dtype),
            timesteps,
            encoder_hidden_states=prompt.hidden_BTD.to(dtype),
            added_cond_kwargs=self.base.family.added_conditions(prompt.pooled_BP.to(dtype), noisy.shape[-1] * 8),
        ).sample
        return predicted.float()

    def _learn(self, loss: Tensor) -> Tensor:
        """Step on a loss. Checkpointed blocks run again in here, as the merged model, which ran last."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def rival_merge(bench: Workbench, *, over_ranks: bool) -> RivalMerge:
    """Attach two random LoRAs the dense way to a stock U-Net in half precision with checkpointing."""
    base, unet = bench.base(), stock_unet(bench.base())
    half = torch.float16 if bench.device.type == "cuda" else base.runtime.dtype  # a CPU's convolutions know no half
    unet.to(half)
    loras = {side: random_lora(base, bench.scale.rank, seed) for seed, side in enumerate(SIDES)}
    attached = Attached()
    masks: dict[str, dict[str, nn.Parameter]] = {side: {} for side in SIDES}
    for path, layer in _dense_layers(unet, loras, masks, attached, over_ranks=over_ranks).items():
        unet.set_submodule(path, layer)
    unet.enable_gradient_checkpointing()
    unet.train()
    return RivalMerge(base, unet, _samples(bench), attached, masks)


def _dense_layers(
    unet: Any,
    loras: Mapping[str, LoraWeights],
    masks: dict[str, dict[str, nn.Parameter]],
    attached: Attached,
    *,
    over_ranks: bool,
) -> dict[str, nn.Module]:
    """Return the dense layers by path; their masks, all ones, are put into `masks`."""
    layers: dict[str, nn.Module] = {}
    for name in loras["content"].layers:
        path = name.removeprefix("unet.")
        linear: nn.Linear = unet.get_submodule(path)
        shared = _PROJECTION.sub("", path) if over_ranks else path
        factors, own = {}, {}
        for side in SIDES:
            layer = loras[side].layers[name]
            factors[side] = (layer.down_RI.to(linear.weight), layer.up_OR.to(linear.weight))
            ones = torch.ones(layer.rank if over_ranks else linear.out_features, device=linear.weight.device)
            own[side] = masks[side].setdefault(shared, nn.Parameter(ones))
        layers[path] = DenseMergedLinear(linear, factors, own, attached, over_ranks=over_ranks)
    return layers


def _samples(bench: Workbench) -> Samples:
    """Return a picture of either side on the device, and the job's words, encoded."""
    base, prompts = bench.base(), bench.job().prompts
    pictures = {
        side: load_pictures(bench.pictures(side)[:1], bench.scale.resolution_px).to(bench.device) for side in SIDES
    }
    words = {"content": prompts.content, "style": prompts.style(0)}
    return Samples(
        pictures,
        {side: base.encode_prompts([caption]) for side, caption in words.items()},
        base.encode_prompts([prompts.joint]),
    )


def measure(bench: Workbench) -> Findings:
    """Time a step of both rivals; about 35 s on an H100."""
    rows = [
        attempted({"rival": "DuoLoRA release"}, lambda: _row(bench, RivalMerge.release_step, over_ranks=True)),
        attempted({"rival": "ZipLoRA"}, lambda: _row(bench, RivalMerge.ziplora_step, over_ranks=False)),
    ]
    names = ("release_merge_100_s", "ziplora_merge_100_s")
    figures = {name: row["steps_100_s"] for name, row in zip(names, rows, strict=True) if "steps_100_s" in row}
    return Findings(figures, rows, "100 steps are 100 times the median step; no preparation is counted.")


def _row(bench: Workbench, step: Callable[[RivalMerge], Tensor], *, over_ranks: bool) -> dict[str, Any]:
    """Time one rival's step."""
    merge = rival_merge(bench, over_ranks=over_ranks)
    with measured(bench.device) as region:
        seconds = step_seconds(lambda: step(merge), bench.device, warm_up=1, times=bench.scale.rival_merge_steps)
    calls = merge.calls // (1 + bench.scale.rival_merge_steps)
    numbers = sum(mask.numel() for of_side in merge.masks.values() for mask in of_side.values())
    return {
        "unet_passes_a_step": calls,
        "mask_numbers": numbers,
        "s_per_step": median(seconds),
        "steps_100_s": 100 * median(seconds),
        "peak_gib": region.peak_gib,
    }
