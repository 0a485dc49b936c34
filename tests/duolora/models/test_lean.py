"""What a U-Net leaves out must not be missed."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from duolora.adapters import project
from duolora.models.lean import PlainAttention, keep_order, simplify_attention
from tests.duolora.pico import pico_sd15_pipeline, pico_unet


def prediction(unet: torch.nn.Module, **more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and its gradient with respect to the latents, on the U-Net's device."""
    device, generator = next(unet.parameters()).device, torch.Generator().manual_seed(3)
    noisy = torch.randn(2, 4, 8, 8, generator=generator).to(device).requires_grad_()
    words = torch.randn(2, 5, 80, generator=generator).to(device)
    added = {
        "text_embeds": torch.randn(2, 24, generator=generator).to(device),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2, device=device),
    }
    predicted = unet(
        noisy, torch.tensor([10, 800], device=device), encoder_hidden_states=words, added_cond_kwargs=added, **more
    ).sample
    (gradient,) = torch.autograd.grad(predicted.square().sum(), noisy)
    return predicted.detach(), gradient


def same_weights() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A U-Net as diffusers made it, and the same lightened."""
    torch.manual_seed(0)
    usual = pico_unet().eval()
    light = pico_unet().eval()
    light.load_state_dict(usual.state_dict())
    simplify_attention(light)
    keep_order(light)
    return usual, light


def test_predictions_and_gradients_stay_the_same():
    usual, light = same_weights()
    for found, expected in zip(prediction(light), prediction(usual), strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_every_attention_is_a_plain_one_and_pictures_leave_transformers_in_the_order_they_came_in():
    _, light = same_weights()
    attentions = [module for module in light.modules() if isinstance(module, Attention)]
    assert attentions
    assert all(isinstance(attention.processor, PlainAttention) for attention in attentions)
    ordered = light.to(memory_format=torch.channels_last)
    layouts = []
    for name, module in ordered.named_modules():
        if name.endswith(".attentions.0"):
            module.register_forward_hook(lambda _module, _inputs, output: layouts.append(output[0]))
    prediction(ordered)
    assert layouts
    assert all(picture.is_contiguous(memory_format=torch.channels_last) for picture in layouts)


def test_projections_of_one_input_are_made_together(monkeypatch: pytest.MonkeyPatch):
    _, light = same_weights()
    seen = []
    monkeypatch.setattr(
        "duolora.models.lean.project", lambda layers, x: seen.append((len(layers), x.shape[-1])) or project(layers, x)
    )
    prediction(light)
    assert {count for count, width in seen if width < 80} == {3}  # query, key and value of a picture
    assert {count for count, width in seen if width == 80} == {2}  # key and value of a prompt


def test_a_mask_is_heeded():
    usual, light = same_weights()
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    masked = prediction(light, encoder_attention_mask=mask)
    for found, expected in zip(masked, prediction(usual, encoder_attention_mask=mask), strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert not torch.allclose(masked[0], prediction(light)[0], atol=1e-3)


def test_attention_that_does_more_is_left_alone():
    attention = Attention(query_dim=16, heads=2, dim_head=8, rescale_output_factor=2.0, processor=AttnProcessor2_0())
    simplify_attention(torch.nn.ModuleList([attention]))
    assert isinstance(attention.processor, AttnProcessor2_0)


def test_transformers_with_convolutions_around_them_keep_their_way_out():
    unet = pico_sd15_pipeline().unet
    before = {name: module for name, module in unet.named_modules() if name.endswith("attentions.0")}
    keep_order(unet)
    assert all("_get_output_for_continuous_inputs" not in vars(module) for module in before.values())


@pytest.mark.parametrize("context", [None, torch.randn(2, 3, 12)])
def test_one_attention(context: torch.Tensor | None):
    attention = Attention(query_dim=16, cross_attention_dim=None if context is None else 12, heads=2, dim_head=8)
    x = torch.randn(2, 7, 16)
    expected = attention(x, encoder_hidden_states=context)
    simplify_attention(torch.nn.ModuleList([attention]))
    torch.testing.assert_close(attention(x, encoder_hidden_states=context), expected)
