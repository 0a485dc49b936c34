"""The rank-space adapter: several LoRAs in one model, chosen per sample by a mask over their joined ranks.

The factors of all sides are joined along the rank axis once; a sample's role is a row of a mask matrix: content
`[1, 0]`, style `[0, 1]`, merged `[m_c, m_s]`. One pass of the base then serves samples of every role, and the masks
keep the gradients of the sides apart.

B batch, T tokens, I inputs, O outputs, R joined rank, N roles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from duolora.errors import InvalidLora, LayerGroupEmpty
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType


@dataclass(slots=True, eq=False)
class RoleRows:
    """The role of every sample in the next pass, shared by all layers of one adapter."""

    rows_B: Tensor | None = None


class RankSpaceLinear(nn.Module):
    """A frozen linear layer plus the joined low-rank changes of all its sides, masked per sample."""

    def __init__(self, base: nn.Linear, parts: Mapping[str, LoraLayer], masks_NR: Tensor, roles: RoleRows) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base
        self.downs = nn.ParameterDict({side: _frozen(part.down_RI, device) for side, part in parts.items()})
        self.ups = nn.ParameterDict({side: _frozen(part.up_OR, device) for side, part in parts.items()})
        self.ranks = {side: part.rank for side, part in parts.items()}
        self.fixed_NR = nn.Buffer(masks_NR.to(device), persistent=False)
        self.learned_R: nn.Parameter | None = None
        self._roles = roles

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return the base's output plus the change that each sample's role selects, (B, T, O)."""
        if self._roles.rows_B is None:
            raise RuntimeError("assign a role to every sample before running the model")
        hidden_BTR = functional.linear(x_BTI, self._joined(self.downs, 0, x_BTI.dtype))
        if self._is_masked:
            learned = self.learned_R
            masks_NR = self.fixed_NR if learned is None else torch.cat([self.fixed_NR, learned[None]])
            masks_BR = masks_NR[self._roles.rows_B].to(x_BTI.dtype)
            # One mask for all tokens of a sample; layers of the time embedding see no tokens, (B, I).
            hidden_BTR = hidden_BTR * masks_BR.view(-1, *(1,) * (x_BTI.ndim - 2), masks_BR.shape[1])
        output: Tensor = self.base(x_BTI)
        return output + functional.linear(hidden_BTR, self._joined(self.ups, 1, x_BTI.dtype))

    @property
    def _is_masked(self) -> bool:
        """False when one side is alone in the whole adapter, so that its mask is all ones for every sample."""
        return self.learned_R is not None or self.fixed_NR.shape[0] > 1

    @staticmethod
    def _joined(factors: nn.ParameterDict, dim: int, dtype: torch.dtype) -> Tensor:
        """Join the factors of all sides along the rank axis; one side alone needs no copy."""
        parts = list(factors.values())
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)).to(dtype)


def _frozen(factor: Tensor, device: torch.device) -> nn.Parameter:
    """Return a copy of a factor as a frozen float32 parameter."""
    return nn.Parameter(factor.detach().to(device, torch.float32, copy=True), requires_grad=False)


class RankSpaceAdapter:
    """Several LoRAs ("sides") attached to one model. Use as a context manager: leaving it restores the model exactly.

    Roles 0 to len(sides) - 1 are the sides alone; role `merged` follows when masks are learned.
    """

    def __init__(self, sides: Mapping[str, LoraWeights], component: str = "unet") -> None:
        self.sides = tuple(sides)
        self._loras = dict(sides)
        self._component = component
        self._names = sorted({name for weights in sides.values() for name in weights.layers})
        self._roles = RoleRows()
        self._attached: dict[str, tuple[nn.Module, str, RankSpaceLinear]] = {}

    @property
    def merged(self) -> int:
        """Row of the learned masks."""
        return len(self.sides)

    @property
    def layers(self) -> Mapping[str, RankSpaceLinear]:
        """Attached layers by name."""
        return {name: layer for name, (_, _, layer) in self._attached.items()}

    def inject(self, model: nn.Module) -> Self:
        """Attach every layer of every side, each exactly once.

        Raises:
            InvalidLora: a layer does not exist in the model, is not linear, has another shape, or is taken already.
        """
        if self._attached:
            raise InvalidLora("this adapter is attached already")
        places = {name: self._place(model, name) for name in self._names}
        joined = {name: self._join(name, linear) for name, (_, _, linear) in places.items()}
        for name, (parent, attribute, _) in places.items():
            setattr(parent, attribute, joined[name])
            self._attached[name] = (parent, attribute, joined[name])
        return self

    def eject(self) -> None:
        """Put the original layers back, the very same objects."""
        for parent, attribute, layer in self._attached.values():
            setattr(parent, attribute, layer.base)
        self._attached.clear()

    def __enter__(self) -> Self:
        """Return the adapter; it must have been injected."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Eject."""
        self.eject()

    def assign(self, rows_B: Tensor) -> None:
        """Choose the role of every sample of the next passes; rows_B (B,) int64."""
        self._roles.rows_B = rows_B

    def assign_all(self, role: int, batch: int, device: torch.device) -> None:
        """Give all samples of the next passes one role."""
        self.assign(torch.full((batch,), role, dtype=torch.int64, device=device))

    def train_factors(self, side: str) -> list[nn.Parameter]:
        """Let the factors of one side learn and return them; the roles' masks stay as they are."""
        parameters = [
            factors[side] for layer in self.layers.values() for factors in (layer.downs, layer.ups) if side in factors
        ]
        for parameter in parameters:
            parameter.requires_grad = True
        return parameters

    def learn_masks(self, starts: Mapping[str, Mapping[str, Tensor]]) -> list[nn.Parameter]:
        """Add the role `merged` with a learnable mask per layer and return the masks; the factors stay frozen.

        Args:
            starts: side -> layer name -> first value of the mask, (R of that side,).
        """
        masks: list[nn.Parameter] = []
        for name, layer in self.layers.items():
            start_R = torch.cat([starts[side][name] for side in layer.ranks])
            layer.learned_R = nn.Parameter(start_R.to(layer.fixed_NR.device))
            masks.append(layer.learned_R)
        return masks

    def learned_masks(self) -> dict[str, dict[str, Tensor]]:
        """Return the learned masks, side -> layer name -> (R of that side,); gradients flow through them."""
        masks: dict[str, dict[str, Tensor]] = {side: {} for side in self.sides}
        for name, layer in self.layers.items():
            if layer.learned_R is None:
                raise RuntimeError("no masks are being learned")
            parts = torch.split(layer.learned_R, list(layer.ranks.values()))
            for side, part_R in zip(layer.ranks, parts, strict=True):
                masks[side][name] = part_R
        return masks

    def export(self, side: str) -> LoraWeights:
        """Return the present factors of one side as a LoRA, on the CPU."""
        return LoraWeights(
            {
                name: LoraLayer(layer.downs[side], layer.ups[side], float(layer.ranks[side])).to(torch.float32)
                for name, layer in self.layers.items()
                if side in layer.ranks
            }
        )

    def _place(self, model: nn.Module, name: str) -> tuple[nn.Module, str, nn.Linear]:
        """Find where a layer hangs."""
        component, _, path = name.partition(".")
        if component != self._component:
            raise InvalidLora(f"{name} is not a layer of {self._component!r}")
        parent_path, _, attribute = path.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            linear = model.get_submodule(path)
        except AttributeError as error:
            raise InvalidLora(f"the base model has no layer {path}") from error
        if not isinstance(linear, nn.Linear):
            raise InvalidLora(f"{path} is a {type(linear).__name__}; only free linear layers can be adapted")
        return parent, attribute, linear

    def _join(self, name: str, linear: nn.Linear) -> RankSpaceLinear:
        """Join the factors of all sides of one layer, scales folded in."""
        parts = {side: lora.layers[name].folded() for side, lora in self._loras.items() if name in lora.layers}
        shape = (linear.out_features, linear.in_features)
        for side, part in parts.items():
            found = (part.up_OR.shape[0], part.down_RI.shape[1])
            if found != shape:
                raise InvalidLora(
                    f"{name} of the {side} LoRA changes a layer of shape {found}, the base model's has {shape}; "
                    "was it trained on another base?"
                )
        rows = [
            torch.cat([torch.full((part.rank,), float(side == owner)) for owner, part in parts.items()])
            for side in self.sides
        ]
        return RankSpaceLinear(linear, parts, torch.stack(rows), self._roles)


def fresh_lora(
    model: nn.Module, layer_paths: Iterable[str], rank: int, generator: torch.Generator, component: str = "unet"
) -> LoraWeights:
    """Return an untrained LoRA that changes nothing: down uniform as in nn.Linear, up zero (Hu et al. 2021).

    Raises:
        LayerGroupEmpty: no layers were selected.
    """
    layers: dict[str, LoraLayer] = {}
    for path in layer_paths:
        linear = model.get_submodule(path)
        if not isinstance(linear, nn.Linear):
            raise InvalidLora(f"{path} is a {type(linear).__name__}; only linear layers can be adapted")
        bound = linear.in_features**-0.5
        down_RI = (torch.rand(rank, linear.in_features, generator=generator) * 2 - 1) * bound
        layers[f"{component}.{path}"] = LoraLayer(down_RI, torch.zeros(linear.out_features, rank), float(rank))
    if not layers:
        raise LayerGroupEmpty("no layer of the base model was selected for the LoRA")
    return LoraWeights(layers)


def role_rows(counts: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Build role rows from (role, number of samples) pairs, in order; (B,) int64."""
    return torch.cat([torch.full((count,), role, dtype=torch.int64) for role, count in counts]).to(device)
