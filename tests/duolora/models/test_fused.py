"""A U-Net with the project's kernels against one without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from duolora.models.fused import fuse, fuse_blocks
from tests.duolora.interpreted import NEEDS_TRITON, assert_all_pass
from tests.duolora.models.test_lean import prediction
from tests.duolora.pico import pico_unet


def blocks(unet: torch.nn.Module) -> list[BasicTransformerBlock]:
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


def test_nothing_changes_without_a_gpu():
    unet = pico_unet()
    fuse(unet, torch.device("cpu"))
    assert not any("forward" in vars(module) for module in unet.modules())


@NEEDS_TRITON
def test_blocks_that_add_and_normalise_in_one_kernel_compute_what_the_usual_ones_do():
    assert_all_pass(Path(__file__).with_name("fused_cases.py"), 5, interpreted=True)


@pytest.mark.parametrize(
    "kind",
    [
        {"norm_type": "ada_norm", "num_embeds_ada_norm": 10},
        {"norm_elementwise_affine": False},
        {"positional_embeddings": "sinusoidal", "num_positional_embeddings": 16},
        {"only_cross_attention": True},
        {"cross_attention_dim": None},
    ],
    ids=lambda kind: next(iter(kind)),
)
def test_blocks_that_do_more_or_less_are_left_alone(kind: dict[str, object]):
    block = BasicTransformerBlock(24, 2, 12, **{"cross_attention_dim": 20, **kind})
    fuse_blocks(block)
    assert "forward" not in vars(block)


def test_blocks_called_with_more_go_the_usual_way():
    """What they cannot do: the kernel would refuse weights that learn."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(24, 2, 12, cross_attention_dim=20).eval()
    hidden, words = torch.randn(3, 7, 24), torch.randn(3, 5, 20)
    expected = block(hidden, encoder_hidden_states=words)
    fuse_blocks(block)
    assert "forward" in vars(block)
    scaled = block(hidden, None, words, None, None, {"scale": 1.0}, None, added_cond_kwargs=None)
    assert torch.equal(scaled, expected)
    block.set_chunk_feed_forward(1)
    torch.testing.assert_close(block(hidden, encoder_hidden_states=words), expected)


@pytest.mark.gpu
def test_predictions_and_gradients_stay_the_same_on_a_gpu():
    torch.manual_seed(0)
    usual, fused = (pico_unet().eval().requires_grad_(False).cuda() for _ in range(2))
    fused.load_state_dict(usual.state_dict())
    fuse(fused, torch.device("cuda"))
    assert blocks(fused)
    assert all("forward" in vars(block) for block in blocks(fused))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # convolutions of either order would round apart
        predictions = zip(prediction(fused), prediction(usual), strict=True)
    for found, expected in predictions:
        assert (found - expected).norm() <= 1e-4 * expected.norm()
