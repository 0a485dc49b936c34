"""Measured layer priors: how strongly each side should act in each group of layers, found by experiment.

The paper assumes that low resolution carries content and high resolution carries style (section 4.2). The same can be
measured: strengths of groups of layers are moved until merges of known pairs come out best
(`duolora.evaluate.measure_priors`). What was found agrees with the paper: content acts in full at low resolution and at
about half at high resolution, while style acts in full nearly everywhere. Groups go by block, kind and part, which SDXL
and every model of its layout share. `measured_priors.json` has the strengths that ship.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from duolora.priors import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from duolora.lora.weights import LoraLayer

_BLOCK = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.")
_PART = re.compile(r"\.attn(?P<kind>[12])\.to_(?P<part>[qkv]|out)")
SMALLEST_SHARE = 1e-3
"""Singular values below this share of the first one count as this share, so that a tail keeps finite masks."""


def layer_group(name: str) -> str:
    """Return the group of a layer: its block, then self- or cross-attention with "qk" or "vo", or "rest".

    `unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0` is in `up_blocks.0.cross.vo`.
    """
    block, part = _BLOCK.search(name), _PART.search(name)
    where = block[1] if block else "elsewhere"
    if part is None:
        return f"{where}.rest"
    return f"{where}.{'self' if part['kind'] == '1' else 'cross'}.{'qk' if part['part'] in 'qk' else 'vo'}"


@dataclass(frozen=True, slots=True)
class SidePrior:
    """One side: group -> strength, and how fast masks fall with the singular values (`tail`, 0 for not at all)."""

    strengths: Mapping[str, float]
    tail: float

    def strength(self, group: str) -> float:
        """Return a group's strength; one that was not measured gets the mean of its block, or of all."""
        if group in self.strengths:
            return self.strengths[group]
        block = _BLOCK.match(f"{group}.")
        near = [value for name, value in self.strengths.items() if block and name.startswith(block[0])]
        known = near or list(self.strengths.values())
        return sum(known) / len(known)

    def mask(self, name: str, layer: LoraLayer) -> Tensor:
        """Return the mask of a canonical layer, (R,): strength * (s_r / s_1)^tail for its singular values s."""
        # Canonical form: a column of `up` has the length of the square root of its singular value.
        singular_R = layer.up_OR.square().sum(dim=0)
        share_R = (singular_R / singular_R.max().clamp(min=1e-30)).clamp(min=SMALLEST_SHARE)
        mask_R: Tensor = self.strength(layer_group(name)) * share_R**self.tail
        return mask_R


@cache
def measured_priors() -> Mapping[Role, SidePrior]:
    """Return the priors that ship, by role."""
    document = json.loads(Path(__file__).with_name("measured_priors.json").read_text(encoding="utf-8"))
    return {role: SidePrior(document[role.value]["strengths"], document[role.value]["tail"]) for role in Role}
