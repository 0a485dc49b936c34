"""Lets a U-Net leave out work that changes nothing: divisions by one after every attention, and copies of pictures.

Divisions and their gradients pass over all activations once more each; a copy into channels-first order makes every
normalisation and convolution behind it turn the picture back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn import functional

from duolora.adapters import project

if TYPE_CHECKING:
    from torch import Tensor, nn

# B samples, T tokens of the picture, D width.


def simplify_attention(unet: nn.Module) -> None:
    """Replace the processors of attentions that do nothing but attend."""
    for module in unet.modules():
        if isinstance(module, Attention) and _is_plain(module):
            module.set_processor(PlainAttention())


def keep_order(unet: nn.Module) -> None:
    """Let pictures leave the transformers in the order in memory that they came in: for channels-last ones."""
    for module in unet.modules():
        if isinstance(module, Transformer2DModel) and module.is_input_continuous and module.use_linear_projection:
            module._get_output_for_continuous_inputs = partial(_out_of, module)  # noqa: SLF001 - its one hook


class PlainAttention:
    """Attention without norms, masks, residual or rescaling; whatever is called with more goes diffusers' way."""

    def __init__(self) -> None:
        self._usual = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,  # noqa: ANN401 - whatever diffusers hands on
    ) -> Tensor:
        """Attend from (B, T, D) to the prompt, or to itself without one; (B, T, D)."""
        if attention_mask is not None or hidden_states.ndim != 3:
            usual: Tensor = self._usual(attn, hidden_states, encoder_hidden_states, attention_mask, **others)
            return usual
        if encoder_hidden_states is None:
            projected = project((attn.to_q, attn.to_k, attn.to_v), hidden_states)
        else:
            projected = (attn.to_q(hidden_states), *project((attn.to_k, attn.to_v), encoder_hidden_states))
        query, key, value = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in projected)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        return out


def _is_plain(attn: Attention) -> bool:
    """Say whether an attention does nothing but attend."""
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k)
    rescales = attn.residual_connection or attn.rescale_output_factor != 1 or attn.norm_cross
    return all(norm is None for norm in norms) and not rescales and isinstance(attn.processor, AttnProcessor2_0)


def _out_of(
    transformer: Transformer2DModel, *, hidden_states: Tensor, residual: Tensor, inner_dim: int, **sizes: int
) -> Tensor:
    """Project tokens (B, T, D) and add them to the picture (B, C, H, W) that came in; called as diffusers does."""
    shape = (sizes["batch_size"], sizes["height"], sizes["width"], inner_dim)
    projected: Tensor = transformer.proj_out(hidden_states)
    return projected.view(shape).permute(0, 3, 1, 2) + residual
