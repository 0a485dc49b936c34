"""A LoRA as an immutable value: layer name -> (down, up, alpha).

Dimensions: R rank, I inputs of the adapted layer, O its outputs. A convolution is the linear layer over its patches,
so its I is input channels times kernel area; the kernel is kept beside the factors and only files see four dimensions.
Layer names are module paths of the base in diffusers' naming with the component in front, for example
`unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """One adapted layer; its weight changes by `alpha / R * up_OR @ down_RI` (LoRA, Hu et al. 2021).

    Attributes:
        down_RI: (R, I), for a convolution (R, input channels * kernel area).
        up_OR: (O, R).
        alpha: the change is scaled by alpha / R.
        kernel: (height, width) of a convolution's kernel, None for a linear layer.
    """

    down_RI: Tensor
    up_OR: Tensor
    alpha: float
    kernel: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse factors that do not fit together."""
        if self.down_RI.ndim != 2 or self.up_OR.ndim != 2 or self.up_OR.shape[1] != self.down_RI.shape[0]:
            raise InvalidLora(
                f"factors of a linear layer must be (R, I) and (O, R); got {tuple(self.down_RI.shape)} "
                f"and {tuple(self.up_OR.shape)}"
            )
        if 0 in (*self.down_RI.shape, *self.up_OR.shape):
            raise InvalidLora("a layer of rank 0 or without inputs changes nothing; leave it out instead")
        if self.kernel is not None and self.down_RI.shape[1] % math.prod(self.kernel):
            raise InvalidLora(f"{self.down_RI.shape[1]} inputs are no whole number of {self.kernel} kernels")
        if not math.isfinite(self.alpha):
            raise InvalidLora(f"alpha must be a finite number, not {self.alpha}")

    @classmethod
    def of_convolution(cls, down_RIHW: Tensor, up_OR11: Tensor, alpha: float) -> LoraLayer:
        """Return the layer of a convolution from factors as files hold them, (R, I, H, W) and (O, R, 1, 1).

        Raises:
            InvalidLora: they have other shapes.
        """
        if down_RIHW.ndim != 4 or up_OR11.ndim != 4 or up_OR11.shape[2:] != (1, 1):
            raise InvalidLora(
                f"factors of a convolution must be (R, I, H, W) and (O, R, 1, 1); got {tuple(down_RIHW.shape)} "
                f"and {tuple(up_OR11.shape)}"
            )
        kernel = (down_RIHW.shape[2], down_RIHW.shape[3])
        if 0 in kernel:
            raise InvalidLora(f"a kernel of {kernel} has no size")
        return cls(down_RIHW.flatten(1), up_OR11.flatten(1), alpha, kernel)

    @property
    def rank(self) -> int:
        """Number of ranks R."""
        return self.down_RI.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by: alpha / R."""
        return self.alpha / self.rank

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight that the layer changes: (O, I), or (O, input channels, height, width)."""
        outputs, inputs = self.up_OR.shape[0], self.down_RI.shape[1]
        return (outputs, inputs) if self.kernel is None else (outputs, inputs // math.prod(self.kernel), *self.kernel)

    @property
    def numbers(self) -> int:
        """Count of the numbers in both factors."""
        return self.down_RI.numel() + self.up_OR.numel()

    def delta_OI(self, device: torch.device | None = None) -> Tensor:
        """Change of the layer's weight as a matrix, (O, I), float32 at least; worked out on a device, None: its own."""
        dtype = torch.promote_types(self.up_OR.dtype, torch.float32)
        return self.scale * (self.up_OR.to(device=device, dtype=dtype) @ self.down_RI.to(device=device, dtype=dtype))

    def delta_weight(self, device: torch.device | None = None) -> Tensor:
        """Change of the layer's weight in the weight's own shape, otherwise as `delta_OI`."""
        return self.delta_OI(device).reshape(self.weight_shape)

    def file_factors(self) -> tuple[Tensor, Tensor]:
        """Return down and up as files hold them: with four dimensions for a convolution."""
        if self.kernel is None:
            return self.down_RI, self.up_OR
        return self.down_RI.reshape(self.rank, -1, *self.kernel), self.up_OR[:, :, None, None]

    def with_factors(self, down_RI: Tensor, up_OR: Tensor, alpha: float | None = None) -> LoraLayer:
        """Return a layer of the same kind with other factors; alpha is their rank unless given."""
        return LoraLayer(down_RI, up_OR, float(down_RI.shape[0]) if alpha is None else alpha, self.kernel)

    def with_alpha(self, alpha: float) -> LoraLayer:
        """Return the same change written with another alpha; the up factor takes the difference."""
        if self.alpha == alpha:
            return self
        return replace(self, up_OR=_single(self.up_OR) * (self.alpha / alpha), alpha=alpha)

    def folded(self) -> LoraLayer:
        """Return the same change with alpha = R, so that readers that ignore alpha are right as well."""
        return self.with_alpha(float(self.rank))

    def scaled(self, strength: float) -> LoraLayer:
        """Return the change times a strength, alpha folded in; the down factor stays as it is."""
        return self.with_factors(self.down_RI, _single(self.up_OR) * (self.scale * strength))

    def balanced(self) -> LoraLayer:
        """Return the same change with factors of about equal size, so that neither falls out of float16's range.

        Factors are multiplied by powers of two, which rounds nothing. Trainers that use alpha 1 at high ranks leave up
        factors of 1e-5 once alpha is folded in, where float16 has few digits left.
        """
        up, down = float(self.up_OR.abs().max()), float(self.down_RI.abs().max())
        if up == 0 or down == 0:
            return self
        shift = 2.0 ** round((math.log2(down) - math.log2(up)) / 2)
        return replace(self, up_OR=_single(self.up_OR) * shift, down_RI=_single(self.down_RI) / shift)

    def to(self, dtype: torch.dtype) -> LoraLayer:
        """Return the layer with factors of another dtype, on the CPU and contiguous."""
        return replace(
            self,
            down_RI=self.down_RI.detach().to("cpu", dtype).contiguous(),
            up_OR=self.up_OR.detach().to("cpu", dtype).contiguous(),
        )


def _single(factor: Tensor) -> Tensor:
    """Return a factor in float32 at least: products of half precision would be rounded before they are written."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


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
        return sum(layer.numbers for layer in self.layers.values())

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

    def scaled(self, strength: float) -> LoraWeights:
        """Return the LoRA times a strength."""
        return LoraWeights({name: layer.scaled(strength) for name, layer in self.layers.items()}, self.metadata)

    def to(self, dtype: torch.dtype) -> LoraWeights:
        """Return the same LoRA in another dtype, on the CPU."""
        return LoraWeights({name: layer.to(dtype) for name, layer in self.layers.items()}, self.metadata)

    def only(self, names: Collection[str]) -> LoraWeights | None:
        """Return the LoRA with only these of its layers, None when it has none of them."""
        kept = {name: layer for name, layer in self.layers.items() if name in names}
        return LoraWeights(kept, self.metadata) if kept else None

    def with_metadata(self, **words: str) -> LoraWeights:
        """Return the same layers with words added to the metadata."""
        return LoraWeights(self.layers, {**self.metadata, **words})
