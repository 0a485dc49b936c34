"""A LoRA as an immutable value: layer name -> (down, up, alpha).

Dimensions: R rank, I inputs of the adapted layer, O its outputs.
Layer names are module paths of the base in diffusers' naming with the component in front, for example
`unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """One adapted linear layer; its weight changes by `alpha / R * up_OR @ down_RI` (LoRA, Hu et al. 2021)."""

    down_RI: Tensor
    up_OR: Tensor
    alpha: float

    def __post_init__(self) -> None:
        """Refuse factors that do not fit together."""
        if self.down_RI.ndim != 2 or self.up_OR.ndim != 2 or self.up_OR.shape[1] != self.down_RI.shape[0]:
            raise InvalidLora(
                f"factors of a linear layer must be (R, I) and (O, R); got {tuple(self.down_RI.shape)} "
                f"and {tuple(self.up_OR.shape)}"
            )
        if self.rank == 0:
            raise InvalidLora("a layer of rank 0 changes nothing; leave it out instead")

    @property
    def rank(self) -> int:
        """Number of ranks R."""
        return self.down_RI.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by: alpha / R."""
        return self.alpha / self.rank

    def delta_OI(self) -> Tensor:
        """Change of the layer's weight, (O, I), float32 at least."""
        dtype = torch.promote_types(self.up_OR.dtype, torch.float32)
        return self.scale * (self.up_OR.to(dtype) @ self.down_RI.to(dtype))

    def with_alpha(self, alpha: float) -> LoraLayer:
        """Return the same change written with another alpha; the up factor takes the difference."""
        if self.alpha == alpha:
            return self
        return LoraLayer(self.down_RI, self.up_OR * (self.alpha / alpha), alpha)

    def folded(self) -> LoraLayer:
        """Return the same change with alpha = R, so that readers that ignore alpha are right as well."""
        return self.with_alpha(float(self.rank))

    def to(self, dtype: torch.dtype) -> LoraLayer:
        """Return the layer with factors of another dtype, on the CPU and contiguous."""
        return LoraLayer(
            self.down_RI.detach().to("cpu", dtype).contiguous(),
            self.up_OR.detach().to("cpu", dtype).contiguous(),
            self.alpha,
        )


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """All layers of one LoRA, and the words that its file carries (trigger, provenance)."""

    layers: Mapping[str, LoraLayer]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty LoRA."""
        if not self.layers:
            raise InvalidLora("a LoRA without layers changes nothing")

    @property
    def trainable_numbers(self) -> int:
        """Count of the numbers in all factors."""
        return sum(layer.down_RI.numel() + layer.up_OR.numel() for layer in self.layers.values())

    @property
    def common_rank(self) -> int:
        """The rank that most layers have."""
        return Counter(layer.rank for layer in self.layers.values()).most_common(1)[0][0]

    @property
    def has_one_rank(self) -> bool:
        """True when every layer has the same rank."""
        return len({layer.rank for layer in self.layers.values()}) == 1

    def folded(self) -> LoraWeights:
        """Return the same LoRA with alpha = rank in every layer."""
        return LoraWeights({name: layer.folded() for name, layer in self.layers.items()}, self.metadata)

    def to(self, dtype: torch.dtype) -> LoraWeights:
        """Return the same LoRA in another dtype, on the CPU."""
        return LoraWeights({name: layer.to(dtype) for name, layer in self.layers.items()}, self.metadata)

    def with_metadata(self, **words: str) -> LoraWeights:
        """Return the same layers with words added to the metadata."""
        return LoraWeights(self.layers, {**self.metadata, **words})
