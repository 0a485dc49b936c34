"""Measured layer priors: how strongly each side should act in each group of layers, found by experiment.

The paper assumes that low resolution carries content and high resolution carries style (section 4.2). The same can be
measured: strengths of groups of layers are moved until merges of known pairs come out best
(`duolora.evaluate.measure_priors`). What was found agrees with the paper: content acts in full at low resolution and at
about half at high resolution, while style acts in full nearly everywhere. Groups go by block, kind and part; block
names mean other resolutions in other layouts, so a model's layers are told by where they stand. `measured_priors.json`
has the strengths that ship.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from duolora.method.priors import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from duolora.lora.weights import LoraLayer

_BLOCK = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.")
_PART = re.compile(r"\.attn(?P<kind>[12])\.to_(?P<part>[qkv]|out)")
_STANDING = {
    ("down", Role.STYLE): "down_blocks.1",
    ("down", Role.CONTENT): "down_blocks.2",
    ("mid", Role.STYLE): "mid_block",
    ("mid", Role.CONTENT): "mid_block",
    ("up", Role.CONTENT): "up_blocks.0",
    ("up", Role.STYLE): "up_blocks.1",
}
"""SDXL's blocks by where they stand: before or behind the middle, at high (style) or low resolution (content)."""
SMALLEST_SHARE = 1e-3
"""Singular values below this share of the first one count as this share, so that a tail keeps finite masks."""


def layer_group(name: str, role: Role | None = None) -> str:
    """Return the group of a layer: its block, then self- or cross-attention with "qk" or "vo", or "rest".

    `unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0` is in `up_blocks.0.cross.vo`.

    Args:
        name: the layer.
        role: what its resolution makes of it (`duolora.method.priors.roles_by_resolution`). Groups are named for SDXL's
            blocks; with its role a layer of any other layout finds the block that stands where it stands.
    """
    part, block = _PART.search(name), _block(name)
    if role is not None:
        block = _STANDING.get((block.partition("_")[0], role), block)
    if part is None:
        return f"{block}.rest"
    return f"{block}.{'self' if part['kind'] == '1' else 'cross'}.{'qk' if part['part'] in 'qk' else 'vo'}"


def _block(name: str) -> str:
    """Return the block that a layer lies in, or "elsewhere"."""
    found = _BLOCK.search(name)
    return found[1] if found else "elsewhere"


@dataclass(frozen=True, slots=True)
class SidePrior:
    """One side: group -> strength, and how fast masks fall with the singular values (`tail`, 0 for not at all)."""

    strengths: Mapping[str, float]
    tail: float

    def strength(self, group: str) -> float:
        """Return a group's strength; one that was not measured gets the mean of its block, or of all."""
        if group in self.strengths:
            return self.strengths[group]
        near = [value for name, value in self.strengths.items() if _block(f"{name}.") == _block(f"{group}.")]
        known = near or list(self.strengths.values())
        return sum(known) / len(known)

    def mask(self, name: str, layer: LoraLayer, role: Role | None = None) -> Tensor:
        """Return the mask of a canonical layer, (R,): strength * (s_r / s_1)^tail for its singular values s.

        `role` is the layer's by resolution, as in `layer_group`.
        """
        # Canonical form: a column of `up` has the length of the square root of its singular value.
        singular_R = layer.up_OR.square().sum(dim=0)
        share_R = (singular_R / singular_R.max().clamp(min=1e-30)).clamp(min=SMALLEST_SHARE)
        mask_R: Tensor = self.strength(layer_group(name, role)) * share_R**self.tail
        return mask_R


@cache
def measured_priors() -> Mapping[Role, SidePrior]:
    """Return the priors that ship, by role."""
    document = json.loads(Path(__file__).with_name("measured_priors.json").read_text(encoding="utf-8"))
    return {role: SidePrior(document[role.value]["strengths"], document[role.value]["tail"]) for role in Role}
