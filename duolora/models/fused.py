"""Lets a U-Net on a CUDA device use the project's kernels in place of PyTorch's element-wise ones.

Weights stay where they are; convolutions get theirs in channels-last order, as the GPU's fast ones read them. What
comes out differs from PyTorch's by rounding: once, to the base's dtype, instead of after every element-wise step.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.nn import functional

from duolora.models.lean import keep_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def fuse(unet: nn.Module, device: torch.device) -> None:
    """Replace gated units, and normalisations with what stands around them; on CUDA with Triton only."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return
    from duolora.kernels.geglu import geglu  # noqa: PLC0415 - needs Triton

    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_order(unet)
    fuse_blocks(unet)
    for module in unet.modules():
        if isinstance(module, GEGLU):
            module.forward = partial(_gated, module, geglu)
        elif isinstance(module, Transformer2DModel):
            _fuse_norm(module.norm, silu=False)
        elif isinstance(module, ResnetBlock2D) and isinstance(module.nonlinearity, nn.SiLU):
            _fuse_norm(module.norm1, silu=True)
            _fuse_norm(module.norm2, silu=True)
            module.nonlinearity = _SiluOfTheEmbedding()
    last, activation = getattr(unet, "conv_norm_out", None), getattr(unet, "conv_act", None)
    if isinstance(last, nn.GroupNorm) and isinstance(activation, nn.SiLU):
        _fuse_norm(last, silu=True)
        unet.conv_act = nn.Identity()


def fuse_blocks(unet: nn.Module) -> None:
    """Let transformer blocks add and normalise in one kernel, where layer norms and additions are all there is.

    Needs Triton, and a CUDA device or its interpreter. Hooks of the normalisations are not called.
    """
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock) and _is_plain(module):
            module.forward = partial(_through_block, module)


class _SiluOfTheEmbedding(nn.Module):
    """SiLU of a time embedding; pictures come here from a normalisation that has applied it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return SiLU of (B, D), pictures (B, C, H, W) as they are."""
        return functional.silu(x) if x.ndim == 2 else x


def _gated(module: nn.Module, geglu: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    """Do what diffusers' `GEGLU.forward` does; its projection may be an adapted one by now."""
    projected: Tensor = module.proj(hidden_states)  # type: ignore[operator]
    return geglu(projected)


def _is_plain(block: BasicTransformerBlock) -> bool:
    """Say whether a block is attention to itself, attention to the prompt and a feed-forward net, each after a norm."""
    norms = (block.norm1, block.norm2, block.norm3)
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and block.pos_embed is None
        and not block.only_cross_attention
        and all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in norms)
    )


def _through_block(  # noqa: PLR0917 - in diffusers' order
    block: BasicTransformerBlock,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    *labels: Any,  # noqa: ANN401 - whatever diffusers hands on
    **others: Any,  # noqa: ANN401
) -> Tensor:
    """Do what a plain block's forward does, (B, T, D); whatever is called with more goes diffusers' way."""
    if cross_attention_kwargs or hidden_states.ndim != 3 or block._chunk_size is not None:  # noqa: SLF001
        masks = (attention_mask, encoder_hidden_states, encoder_attention_mask)
        usual: Tensor = BasicTransformerBlock.forward(
            block, hidden_states, *masks, timestep, cross_attention_kwargs, *labels, **others
        )
        return usual
    hidden, normed = _added_and_normed(None, hidden_states, block.norm1)
    attended = block.attn1(normed, attention_mask=attention_mask)
    hidden, normed = _added_and_normed(attended, hidden, block.norm2)
    attended = block.attn2(normed, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
    hidden, normed = _added_and_normed(attended, hidden, block.norm3)
    out: Tensor = block.ff(normed) + hidden
    return out


def _added_and_normed(branch: Tensor | None, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return the sum, to go on with in the residual's place, and what the normalisation makes of it."""
    from duolora.kernels.layer_norm import added_norm  # noqa: PLC0415 - needs Triton

    return added_norm(branch, residual, norm.weight, norm.bias, eps=norm.eps)


def _fuse_norm(norm: nn.GroupNorm, *, silu: bool) -> None:
    """Let a normalisation use the kernel."""
    norm.forward = partial(_normed, norm, silu=silu)  # type: ignore[method-assign]


def _normed(norm: nn.GroupNorm, x_NCHW: Tensor, *, silu: bool) -> Tensor:
    """Do what the normalisation does, and SiLU if asked; a picture in another order is put in order first."""
    from duolora.kernels.group_norm import group_norm  # noqa: PLC0415 - needs Triton

    ordered_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
    return group_norm(ordered_NCHW, norm.weight, norm.bias, groups=norm.num_groups, eps=norm.eps, silu=silu)
