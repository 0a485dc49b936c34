"""Gradients through the sampler, against differences of what is sampled and against a graph of the whole sampling."""

from __future__ import annotations

import pytest
import torch

from duolora.adapters import RankSpaceAdapter
from duolora.config import GenerateConfig
from duolora.evaluate.sampler_gradients import EulerSampler, value_and_gradients
from duolora.generate import sample_tenants, starting_noise
from duolora.models.base import DiffusionBase
from duolora.runtime import Runtime
from tests.duolora.pico import pico_pipeline, random_lora

PROMPTS = ["a disc", "a ball in the style of ink"]
SIDES = ("content", "style")


def config(guidance: float, steps: int = 4) -> GenerateConfig:
    return GenerateConfig(steps=steps, guidance_scale=guidance, images=1, resolution_px=64)


def two_tenants(base):
    return [
        {side: random_lora(base, seed=10 * tenant + role, ranks=(3,), scale=0.15) for role, side in enumerate(SIDES)}
        for tenant in range(2)
    ]


class Sampled:
    """A sampling of two tenants in float64, as a function of their masks."""

    def __init__(self, base: DiffusionBase, adapter: RankSpaceAdapter, guidance: float) -> None:
        generator = torch.Generator().manual_seed(3)
        ones = {side: {name: torch.ones(2, 3) for name in adapter.layers} for side in SIDES}
        adapter.learn_masks(ones)
        self.masks = []
        for layer in adapter.layers.values():
            start_JR = 0.5 + torch.rand(2, 6, generator=generator, dtype=torch.float64)
            layer.learned_JR = torch.nn.Parameter(start_JR)
            self.masks.append(layer.learned_JR)
        self.base = base
        self.sampler = EulerSampler(base, PROMPTS, config(guidance), self.predict)
        adapter.assign_all(adapter.merged, len(PROMPTS) * self.sampler.copies)
        shape = (2, 4, 8, 8)
        self.noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        self._wanted = torch.randn(shape, generator=generator, dtype=torch.float64)

    def predict(self, noisy_BCHW, timesteps_B, prompts):
        """`DiffusionBase.predict_noise`, but for its cast to float32."""
        conditions = self.base.family.added_conditions(prompts.pooled_BP, 64)
        return self.base.unet(
            noisy_BCHW, timesteps_B, encoder_hidden_states=prompts.hidden_BTD, added_cond_kwargs=conditions
        ).sample

    def value(self, clean_BCHW):
        return (clean_BCHW * self._wanted).mean().sin() + 1e-3 * clean_BCHW.square().mean()

    def whole(self):
        """The value, by the plain loop and in one graph."""
        latents_BCHW = self.sampler.first(self.noise)
        for step in range(self.sampler.steps):
            latents_BCHW = self.sampler.step(latents_BCHW, step)
        return self.value(latents_BCHW)

    def gradients(self):
        return value_and_gradients(self.sampler, self.noise, self.value, self.masks)


@pytest.fixture(params=[4.0, 1.0], ids=["guided", "unguided"])
def sampled(request):
    base = DiffusionBase(pico_pipeline(), "pico", Runtime(torch.device("cpu"), torch.float64))
    with RankSpaceAdapter(*two_tenants(base)).inject(base.unet) as adapter:
        yield Sampled(base, adapter, request.param)


def along(masks, directions, way):
    with torch.no_grad():
        for mask_JR, direction_JR in zip(masks, directions, strict=True):
            mask_JR.add_(direction_JR, alpha=way)


def central_difference(sampled, directions, width=1e-5):
    values = []
    for way in (width, -2 * width):
        along(sampled.masks, directions, way)
        with torch.no_grad():
            values.append(float(sampled.whole()))
    along(sampled.masks, directions, width)
    return (values[0] - values[1]) / (2 * width)


def test_gradients_are_the_differences_of_what_is_sampled(sampled):
    value, gradients = sampled.gradients()
    with torch.no_grad():
        assert value == pytest.approx(float(sampled.whole()), rel=1e-12)
    generator = torch.Generator().manual_seed(8)
    everywhere = [torch.randn(2, 6, generator=generator, dtype=torch.float64) for _ in gradients]
    directions = [everywhere]
    for layer, tenant, rank in ((0, 0, 1), (len(gradients) // 2, 1, 5), (len(gradients) - 1, 0, 3)):
        single = [torch.zeros_like(gradient) for gradient in gradients]
        single[layer][tenant, rank] = 1
        directions.append(single)
    for direction in directions:
        found = sum(float((one * other).sum()) for one, other in zip(gradients, direction, strict=True))
        assert abs(found) > 1e-9
        assert found == pytest.approx(central_difference(sampled, direction), rel=1e-4)


def test_gradients_are_those_of_a_graph_of_all_steps(sampled):
    _, found = sampled.gradients()
    expected = torch.autograd.grad(sampled.whole(), sampled.masks)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert all(mask.grad is None for mask in sampled.masks)


class SameMemory(torch.autograd.Function):
    """A pass whose backward pass hands out the same memory each time, as a recorded one does."""

    @staticmethod
    def forward(ctx, run, places, noisy_BCHW, *masks):
        with torch.enable_grad():
            ctx.inputs = [tensor.detach().requires_grad_() for tensor in (noisy_BCHW, *masks)]
            ctx.output = run(*ctx.inputs)
        ctx.places = places
        return ctx.output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, back_BCHW):
        for place, gradient in zip(ctx.places, torch.autograd.grad(ctx.output, ctx.inputs, back_BCHW), strict=True):
            place.copy_(gradient)
        return None, None, *(place.detach() for place in ctx.places)


def test_passes_that_give_their_gradients_in_the_same_memory_add_up():
    kernels = [torch.full((2, 1, 1, 1), 0.3, requires_grad=True), torch.full((2, 1, 1, 1), -0.2, requires_grad=True)]
    base = DiffusionBase(pico_pipeline(), "pico", Runtime(torch.device("cpu"), torch.float32))

    def run(noisy_BCHW, one, other):
        return (noisy_BCHW * one).tanh() + other

    places: list[torch.Tensor] = []

    def recorded(noisy_BCHW, _timesteps_B, _prompts):
        places[:] = places or [torch.zeros(2, 4, 8, 8), *(torch.zeros_like(kernel) for kernel in kernels)]
        return SameMemory.apply(run, places, noisy_BCHW, *kernels)

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found, expected = (
        value_and_gradients(EulerSampler(base, PROMPTS, config(1.0), predict), noise, torch.mean, kernels)[1]
        for predict in (recorded, lambda noisy_BCHW, *_: run(noisy_BCHW, *kernels))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_it_samples_what_the_product_samples(base, guidance):
    loras = [{"lora": tenant["style"]} for tenant in two_tenants(base)]
    with RankSpaceAdapter(*loras).inject(base.unet) as adapter, torch.no_grad():
        adapter.assign_all(0, 1)
        sampler = EulerSampler(base, PROMPTS, config(guidance), base.predict_noise)
        latents_BCHW = sampler.first(torch.cat([starting_noise(base, config(guidance), seed) for seed in (4, 5)]))
        for step in range(sampler.steps):
            latents_BCHW = sampler.step(latents_BCHW, step)
        found = base.decode_latents(latents_BCHW)
    prompts = [[prompt] for prompt in PROMPTS]
    expected = sample_tenants(base, [lora["lora"] for lora in loras], prompts, config(guidance), [4, 5])
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-4, atol=1e-4)
