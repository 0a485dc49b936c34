"""The layers of a base model that a LoRA may change, and how the stems of a file's keys find them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora
from duolora.families.index import FAMILIES
from duolora.lora.keys import diffusers_path, plain_path, split_stem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from duolora.families.family import Family

_ORIGINAL_BLOCKS = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")

_WITHOUT_LEVEL = "text_model_"
"""The level of CLIP's text encoders that files of some programs leave out."""


@dataclass(frozen=True, slots=True)
class BaseLayers:
    """Layers of one base: name -> shape of its weight, (O, I) or (O, I, height, width), and the base's family."""

    family: Family
    shapes: Mapping[str, tuple[int, ...]]
    _by_flat_path: Mapping[tuple[str, str], str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the layers by their paths with underscores, which is all that kohya's keys tell."""
        index: dict[tuple[str, str], str] = {}
        for name in self.shapes:
            component, _, path = name.partition(".")
            index[component, path.replace(".", "_").removeprefix(_WITHOUT_LEVEL)] = name
        if len(index) != len(self.shapes):
            raise ValueError("two layers of the base differ in dots and underscores only")
        object.__setattr__(self, "_by_flat_path", index)

    def find(self, stem: str) -> str | None:
        """Return the layer that a stem of any format names, None when this base has no such layer."""
        found = self._component_and_path(stem)
        if found is None:
            return None
        component, path = found
        flat = plain_path(component, path).replace(".", "_")
        if component == "unet":
            flat = diffusers_path(flat, self.family.published_blocks)
        else:
            flat = flat.removeprefix("transformer_").removeprefix(_WITHOUT_LEVEL)
        return self._by_flat_path.get((component, flat))

    def _component_and_path(self, stem: str) -> tuple[str, str] | None:
        """Split a stem; None when its prefix belongs to another family."""
        parts = split_stem(stem)
        if parts is None:
            return None
        prefix, component, path = parts
        if prefix.startswith("lora_") and self.family.kohya_prefixes.get(component) != prefix:
            return None
        return component, path


def made_for(stems: Iterable[str], prompt_width: int | None) -> str | None:
    """Guess which of our families a file was made for.

    Args:
        stems: its keys without their suffixes.
        prompt_width: inputs of its cross-attention layers, if it has any.
    """
    prefixes = {parts[0] for stem in stems if (parts := split_stem(stem)) is not None}
    for family in FAMILIES:
        others = {prefix for other in FAMILIES if other is not family for prefix in other.kohya_prefixes.values()}
        own = set(family.kohya_prefixes.values()) - others
        if prefixes & own or family.prompt_width == prompt_width:
            return family.title
    return None


def unverified_name(stem: str) -> str:
    """Return the layer that a stem with dots names on any base; without a base nothing can be looked up.

    Raises:
        InvalidLora: only the layers of a base can tell, because the stem has underscores or the original block names.
    """
    parts = split_stem(stem)
    if parts is None or parts[0].startswith("lora_") or _ORIGINAL_BLOCKS.match(parts[2]):
        raise InvalidLora(f"{stem} names no layer that can be told without a base model; give the base to read it for")
    _, component, path = parts
    return f"{component}.{plain_path(component, path)}"
