"""A U-Net whose transformer blocks add and normalise in one kernel against diffusers' own.

Run by `test_fused` in Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from duolora.models.fused import fuse_blocks
from tests.duolora.models.test_lean import prediction
from tests.duolora.pico import pico_base, pico_unet
from tests.duolora.test_grouped import gradients


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])])
def test_predictions_and_gradients_are_those_of_the_usual_blocks(mask: torch.Tensor | None):
    torch.manual_seed(0)
    unet = pico_unet().eval().requires_grad_(False)
    more = {} if mask is None else {"encoder_attention_mask": mask}
    expected = prediction(unet, **more)
    fuse_blocks(unet)
    for one, other in zip(prediction(unet, **more), expected, strict=True):
        assert_close(one, other)


def test_one_block_and_the_gradients_of_both_its_inputs():
    torch.manual_seed(0)
    block = BasicTransformerBlock(24, 2, 12, cross_attention_dim=20).eval().requires_grad_(False)
    hidden, words = torch.randn(3, 7, 24), torch.randn(3, 5, 20)

    def run() -> list[torch.Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, words)]
        out = block(inputs[0], encoder_hidden_states=inputs[1])
        return [out.detach(), *torch.autograd.grad(out.pow(3).sum(), inputs)]

    expected = run()
    fuse_blocks(block)
    for one, other in zip(run(), expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("recomputes", [False, True])
def test_adapters_learn_the_same_whether_activations_are_kept_or_computed_again(*, recomputes: bool):
    base, shares = pico_base(), [(0, 1), (1, 1)]
    expected = gradients(base, 1, shares, grouped=True)
    fuse_blocks(base.unet)
    found = gradients(base, 1, shares, grouped=True, recomputes=recomputes)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor)
