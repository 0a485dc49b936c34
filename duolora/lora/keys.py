"""Stems of the keys of LoRA files (`duolora.lora.factors`), and the layers they stand for.

Stems name a component and a path in it, with dots or with underscores, with the block names of diffusers
(`down_blocks.1.attentions.0`) or of the original release (`input_blocks.4.1`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora
from duolora.families.sdxl import SDXL

if TYPE_CHECKING:
    from duolora.families.family import Family

COMPONENT_OF_PREFIX = {
    "lora_unet": "unet",
    "unet": "unet",
    "model.diffusion_model": "unet",
    "diffusion_model": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "text_encoder": "text_encoder",
    "clip_l": "text_encoder",
    "lora_te2": "text_encoder_2",
    "text_encoder_2": "text_encoder_2",
    "clip_g": "text_encoder_2",
}
"""How a stem may begin -> component; kohya's end in an underscore or, in OneTrainer's files, in a dot."""

_PREFIX = re.compile(
    r"^(?P<prefix>lora_unet|unet|(?:model\.)?diffusion_model|lora_te[12]?|text_encoder(?:_2)?|clip_[lg])"
    r"(?:\.|(?<=lora_unet)_|(?<=lora_te)_|(?<=lora_te[12])_)(?P<path>.+)$"
)
_PEFT_ROOT = "base_model.model."
_UNET_START = re.compile(r"^(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|conv_|time_embed)")

_BLOCK = re.compile(r"^(input_blocks|output_blocks)_(\d{1,3})_(\d)_(.+)$|^middle_block_(\d)_(.+)$")
_MIDDLE = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}
_KINDS = {"0": "resnets", "1": "attentions"}
_RESAMPLERS = {"input_blocks": "op", "output_blocks": "conv"}
_OUTSIDE_BLOCKS = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_RESIDUAL = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
"""Layers of a residual block in the original release -> in diffusers."""


def split_stem(stem: str) -> tuple[str, str, str] | None:
    """Return (prefix as written, component, path) of a stem; None when it names no component.

    PEFT's own files name none; a path that begins like a U-Net's is one.
    """
    match = _PREFIX.match(stem.removeprefix(_PEFT_ROOT))
    if match is not None:
        prefix = match["prefix"]
        return prefix, COMPONENT_OF_PREFIX[prefix], match["path"].removeprefix(_PEFT_ROOT)
    path = stem.removeprefix(_PEFT_ROOT)
    return ("", "unet", path) if _UNET_START.match(path) else None


def plain_path(component: str, path: str) -> str:
    """Undo what old attention processors did to the names of their layers."""
    path = path.replace(".processor.", ".")
    if component != "unet":  # to_q of a text encoder's processor is its q_proj
        return re.sub(r"self_attn([._])to_(q|k|v|out)$", r"self_attn\1\2_proj", path)
    return f"{path}{path[-7]}0" if re.search(r"[._]to_out$", path) else path


def kohya_key(layer_name: str, family: Family = SDXL) -> str:
    """Return the kohya name of a layer, without suffix.

    Raises:
        InvalidLora: the layer's component has no kohya prefix.
    """
    component, _, path = layer_name.partition(".")
    if component not in family.kohya_prefixes:
        raise InvalidLora(
            f"no kohya name for {layer_name}: {family.title} has no {component!r}, only {', '.join(family.components)}"
        )
    return f"{family.kohya_prefixes[component]}_{path.replace('.', '_')}"


def diffusers_path(flat_path: str, blocks: int) -> str:
    """Rewrite a U-Net path with the original release's block names into diffusers' block names.

    Args:
        flat_path: path with underscores; names that already use diffusers' blocks come back unchanged.
        blocks: residual blocks in each down block; the original release numbers blocks through (diffusers has one more
            in each up block).
    """
    match = _BLOCK.match(flat_path)
    if match is None:
        return _OUTSIDE_BLOCKS.get(flat_path, flat_path)
    side, number, inner, rest, middle, middle_rest = match.groups()
    if side is None:
        block = _MIDDLE.get(middle)
        return flat_path if block is None else f"mid_block_{block}_{_RESIDUAL.get(middle_rest, middle_rest)}"
    is_input = side == "input_blocks"
    block_index, layer = divmod(int(number) - (1 if is_input else 0), blocks + 1)
    name = f"{'down' if is_input else 'up'}_blocks_{block_index}"
    if rest == _RESAMPLERS[side]:  # behind the attention where the block has one, so at any inner number
        return f"{name}_downsamplers_0_conv" if is_input else f"{name}_upsamplers_0_conv"
    kind = _KINDS.get(inner)
    if kind is None or (is_input and number == "0"):
        return flat_path
    return f"{name}_{kind}_{layer}_{_RESIDUAL.get(rest, rest)}"
