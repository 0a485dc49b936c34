"""Key names of LoRA files and the module paths they stand for.

Two families are in use. diffusers/PEFT: `unet.<path>.lora_A.weight` and `.lora_B.weight` (older: `.lora.down.weight`,
`.lora.up.weight`). kohya: `lora_unet_<path with underscores>.lora_down.weight`, `.lora_up.weight` and a scalar
`.alpha`; for SDXL the path may use the block names of the original release (`input_blocks_4_1_...`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Iterable

KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
"""Component of the base -> prefix of a kohya key (SDXL)."""

DOWN_SUFFIXES = (".lora_A.weight", ".lora.down.weight", ".lora_down.weight", "_lora.down.weight")
"""Endings of a key that holds a down factor, newest format first."""

UP_OF_DOWN = {
    ".lora_A.weight": ".lora_B.weight",
    ".lora.down.weight": ".lora.up.weight",
    ".lora_down.weight": ".lora_up.weight",
    "_lora.down.weight": "_lora.up.weight",
}

LAYERS_PER_BLOCK = 2
"""Residual blocks in each down block of SDXL; the original release numbers blocks through (diffusers adds one in each
up block)."""

_LDM_BLOCK = re.compile(r"^(input_blocks|output_blocks)_(\d+)_(\d+)_(.+)$|^middle_block_(\d+)_(.+)$")


def kohya_key(layer_name: str) -> str:
    """Return the kohya name of a layer, without suffix.

    Raises:
        InvalidLora: the layer's component has no kohya prefix.
    """
    component, _, path = layer_name.partition(".")
    if component not in KOHYA_PREFIXES:
        raise InvalidLora(f"no kohya name for a layer of {component!r}; known: {', '.join(KOHYA_PREFIXES)}")
    return f"{KOHYA_PREFIXES[component]}_{path.replace('.', '_')}"


def kohya_index(layer_names: Iterable[str]) -> dict[str, str]:
    """Map kohya names back to layer names; underscores are ambiguous, so the base's own layers must be given."""
    return {kohya_key(name): name for name in layer_names}


def diffusers_block_name(kohya_name: str) -> str:
    """Rewrite a kohya name with SDXL's original block names into one with diffusers' block names.

    Names that already use diffusers' blocks come back unchanged.
    """
    if not kohya_name.startswith("lora_unet_"):
        return kohya_name
    match = _LDM_BLOCK.match(kohya_name.removeprefix("lora_unet_"))
    if match is None:
        return kohya_name
    side, number, inner, rest, middle, middle_rest = match.groups()
    if side is None:
        return f"lora_unet_mid_block_attentions_0_{middle_rest}" if middle == "1" else kohya_name
    if inner != "1":  # 1 is the transformer of a block, 0 its residual block, 2 its resampler
        return kohya_name
    index = int(number) - (1 if side == "input_blocks" else 0)
    block, layer = divmod(index, LAYERS_PER_BLOCK + 1)
    return f"lora_unet_{'down' if side == 'input_blocks' else 'up'}_blocks_{block}_attentions_{layer}_{rest}"
