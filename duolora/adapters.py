"""The rank-space adapter: several LoRAs in one model, chosen per sample by a mask over their joined ranks.

The factors of all sides are joined along the rank axis once; a sample's role is a row of a mask matrix: content
`[1, 0]`, style `[0, 1]`, merged `[m_c, m_s]`. One pass of the base then serves samples of every role, and the masks
keep the gradients of the sides apart.

Several *tenants*, each with its own LoRAs, can share a pass as well: their samples stand tenant after tenant in the
batch, the same number of each, and meet only their own factors (as S-LoRA and Punica serve many LoRAs at once).

B batch, T tokens, I inputs, O outputs, R joined rank, N roles, J tenants; B = J * n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from duolora.errors import InvalidLora, LayerGroupEmpty
from duolora.grouped import GroupedFactors, GroupedLayer, are_side_by_side, side_span, through
from duolora.joined import JoinedFactors
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType


@dataclass(slots=True, eq=False)
class RoleRows:
    """The role of every sample in the next pass, shared by all layers of one adapter.

    Equal rows are always the same tensor, so that a recorded pass finds its own in place whatever came between. `span`
    is the sides that the samples stand for, where they stand in order (see `grouped.side_span`), `first` the role of
    the first.
    """

    tenants: int
    sides: int
    rows_B: Tensor | None = None
    span: slice | None = None
    first: int | None = None
    merged_B1: Tensor | bool = False
    """Which samples stand for the learned masks: all, none, or as a tensor says."""
    known: dict[tuple[int, ...], tuple[Tensor, slice | None, Tensor | bool]] = field(default_factory=dict)

    def assign(self, rows_B: Tensor, device: torch.device) -> None:
        """Take over rows (B,) int64; rows on the CPU are read without waiting for the device."""
        rows = tuple(rows_B.tolist())
        if rows not in self.known:
            merged = [row == self.sides for row in rows]
            merged_B1 = all(merged) if all(merged) or not any(merged) else torch.tensor(merged, device=device)[:, None]
            self.known[rows] = (rows_B.to(device), side_span(rows, self.tenants, self.sides), merged_B1)
        self.rows_B, self.span, self.merged_B1 = self.known[rows]
        self.first = rows[0] if rows else None


class RankSpaceLinear(nn.Module):
    """A frozen linear layer plus the joined low-rank changes of all its sides, masked per sample."""

    def __init__(
        self, base: nn.Linear, parts: Mapping[str, tuple[Tensor, Tensor]], masks_NR: Tensor, roles: RoleRows
    ) -> None:
        """`parts`: side -> factors of all tenants, down (J, R, I) and up (J, O, R), scales folded in."""
        super().__init__()
        device = base.weight.device
        self.base = base
        self.downs = nn.ParameterDict({side: _frozen(down_JRI, device) for side, (down_JRI, _) in parts.items()})
        self.ups = nn.ParameterDict({side: _frozen(up_JOR, device) for side, (_, up_JOR) in parts.items()})
        self.ranks = {side: down_JRI.shape[1] for side, (down_JRI, _) in parts.items()}
        self.tenants = next(iter(parts.values()))[0].shape[0]
        self.fixed_NR = nn.Buffer(masks_NR.to(device), persistent=False)
        self.learned_JR: Tensor | None = None
        self.grouped: GroupedLayer | None = None
        self._roles = roles
        self._joined: JoinedFactors | None = None

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return the base's output plus the change that each sample's role selects, (B, T, O)."""
        rows_B = self._roles.rows_B
        if rows_B is None:
            raise RuntimeError("assign a role to every sample before running the model")
        if self.grouped is not None and self.span is not None:
            return through([self.grouped], x_BTI, self.span)[0]
        # One mask for all tokens of a sample; layers of the time embedding see no tokens, (B, I).
        masks_BR = self._masks(rows_B).to(x_BTI.dtype) if self._is_masked else None
        return self.joined_factors(x_BTI.dtype)(x_BTI, self.base, masks_BR)

    @property
    def span(self) -> slice | None:
        """The sides that the samples of the present pass stand for, if the pass may take the short way."""
        return self._roles.span if torch.is_grad_enabled() else None

    def joined_factors(self, dtype: torch.dtype) -> JoinedFactors:
        """Join the factors of all sides along the rank axis; once for all passes while none of them learns."""
        if any(factor.requires_grad for factors in (self.downs, self.ups) for factor in factors.values()):
            return JoinedFactors.of(self.downs.values(), self.ups.values(), dtype, learns=True)
        if self._joined is None or self._joined.down_JRI.dtype != dtype:
            self._joined = JoinedFactors.of(self.downs.values(), self.ups.values(), dtype, learns=False)
        return self._joined

    def _masks(self, rows_B: Tensor) -> Tensor:
        """Return the mask of every sample, (B, R): its role's row, of its own tenant where masks are learned."""
        learned_JR, merged_B1 = self.learned_JR, self._roles.merged_B1
        if learned_JR is None or merged_B1 is False:
            return self.fixed_NR[rows_B]
        # Stretched, not looked up by index: the gradient of a sum is one kernel, that of an index many.
        each = len(rows_B) // self.tenants
        learned_BR = learned_JR[:, None].expand(-1, each, -1).reshape(len(rows_B), -1)
        if isinstance(merged_B1, bool):
            return learned_BR
        return torch.where(merged_B1, learned_BR, self.fixed_NR[rows_B.clamp(max=len(self.fixed_NR) - 1)])

    @property
    def _is_masked(self) -> bool:
        """False when one side is alone in the whole adapter, so that its mask is all ones for every sample."""
        return self.learned_JR is not None or self.fixed_NR.shape[0] > 1


def project(layers: Sequence[nn.Module], x_BTI: Tensor) -> Sequence[Tensor]:
    """Return what every one of several linear layers makes of one input, (B, T, O) each.

    Adapted layers of one module share their low-rank products where a training takes the short way.
    """
    adapted = [layer for layer in layers if isinstance(layer, RankSpaceLinear)]
    grouped = [layer.grouped for layer in adapted if layer.grouped is not None]
    span = adapted[0].span if len(grouped) == len(layers) and are_side_by_side(grouped) else None
    if span is None:
        return [layer(x_BTI) for layer in layers]
    return through(grouped, x_BTI, span)


def _frozen(factor: Tensor, device: torch.device) -> nn.Parameter:
    """Return a copy of a factor as a frozen float32 parameter."""
    return nn.Parameter(factor.detach().to(device, torch.float32, copy=True), requires_grad=False)


class RankSpaceAdapter:
    """Several LoRAs ("sides") attached to one model, for one tenant or for several at once.

    Use as a context manager: leaving it restores the model exactly. Roles 0 to len(sides) - 1 are the sides alone;
    role `merged` follows when masks are learned. Ranks that differ between tenants are filled up with zeros.
    """

    def __init__(self, *tenants: Mapping[str, LoraWeights], component: str = "unet") -> None:
        """Every tenant brings the same sides.

        Raises:
            InvalidLora: there is no tenant, or the sides differ.
        """
        if not tenants or any(tuple(tenant) != tuple(tenants[0]) for tenant in tenants):
            raise InvalidLora("an adapter needs tenants that all bring the same sides, in one order")
        self.sides = tuple(tenants[0])
        self._tenants = tenants
        self._component = component
        self._names = sorted({name for tenant in tenants for weights in tenant.values() for name in weights.layers})
        self._roles = RoleRows(len(tenants), len(self.sides))
        self._device = torch.device("cpu")
        self._attached: dict[str, tuple[nn.Module, str, RankSpaceLinear]] = {}

    @property
    def tenants(self) -> int:
        """Number of tenants J."""
        return len(self._tenants)

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
        self._device = next(model.parameters()).device
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
        self._roles.assign(rows_B, self._device)

    def present_rows(self) -> Tensor:
        """Return the roles assigned last, (B,) int64."""
        if self._roles.rows_B is None:
            raise RuntimeError("no roles have been assigned")
        return self._roles.rows_B

    def present_role(self) -> int:
        """Return the role of the first sample, without waiting for the device."""
        if self._roles.first is None:
            raise RuntimeError("no roles have been assigned")
        return self._roles.first

    def assign_all(self, role: int, batch: int) -> None:
        """Give all samples of the next passes one role."""
        self.assign(torch.full((batch,), role, dtype=torch.int64))

    def train_factors(self, side: str) -> list[nn.Parameter]:
        """Let the factors of one side learn and return them; the roles' masks stay as they are."""
        parameters = list(self.factors(side).values())
        for parameter in parameters:
            parameter.requires_grad = True
        return parameters

    def group_factors(self, dtype: torch.dtype) -> GroupedFactors | None:
        """Let training passes take the short way of `duolora.grouped` where roles allow it; all sides must learn.

        None, and nothing changes, where a layer lacks a side or its sides differ in rank.
        """
        layers = list(self.layers.values())
        if any(len(layer.ranks) < len(self.sides) or len(set(layer.ranks.values())) > 1 for layer in layers):
            return None
        members = []
        for siblings in self._siblings():
            factors = [(layer.base, dict(layer.downs.items()), dict(layer.ups.items())) for layer in siblings]
            copies = GroupedLayer.side_by_side(factors, dtype)
            for layer, grouped, (_, downs, ups) in zip(siblings, copies, factors, strict=True):
                layer.grouped = grouped
                members.append((grouped, downs, ups))
        return GroupedFactors(members)

    def takes_groups(self) -> bool:
        """Say whether a pass of the roles assigned last takes the short way, and leaves its gradients there."""
        return self._roles.span is not None and all(layer.grouped is not None for layer in self.layers.values())

    def factors(self, side: str) -> dict[str, nn.Parameter]:
        """Return the factors of one side by layer and kind, (J, R, I) and (J, O, R)."""
        return {
            f"{name}.{kind}": factors[side]
            for name, layer in self.layers.items()
            for kind, factors in (("down", layer.downs), ("up", layer.ups))
            if side in factors
        }

    def learn_masks(self, starts: Mapping[str, Mapping[str, Tensor]]) -> list[nn.Parameter]:
        """Add the role `merged` with a learnable mask per layer and return the masks; the factors stay frozen.

        Args:
            starts: side -> layer name -> first value of the mask, (J, R of that side), or (R,) for one tenant.
        """
        masks: list[nn.Parameter] = []
        for name, layer in self.layers.items():
            start_JR = torch.cat([starts[side][name].view(self.tenants, -1) for side in layer.ranks], dim=1)
            layer.learned_JR = nn.Parameter(start_JR.to(layer.fixed_NR.device))
            masks.append(layer.learned_JR)
        return masks

    def switch_all_on(self) -> int:
        """Let the role `merged` have every rank of every side in full, and return it."""
        for layer in self.layers.values():
            ranks = sum(layer.ranks.values())
            layer.learned_JR = torch.ones(self.tenants, ranks, device=layer.fixed_NR.device)
        return self.merged

    def learned_masks(self) -> dict[str, dict[str, Tensor]]:
        """Return the learned masks, side -> layer name -> (J, R of that side); gradients flow through them."""
        masks: dict[str, dict[str, Tensor]] = {side: {} for side in self.sides}
        for name, layer in self.layers.items():
            if layer.learned_JR is None:
                raise RuntimeError("no masks are being learned")
            parts = torch.split(layer.learned_JR, list(layer.ranks.values()), dim=1)
            for side, part_JR in zip(layer.ranks, parts, strict=True):
                masks[side][name] = part_JR
        return masks

    def stacked_masks(self, names: Sequence[str]) -> Tensor:
        """Return the learned masks of layers of equal ranks, (len(names), J, R); gradients flow through them.

        Raises:
            RuntimeError: no masks are being learned.
        """
        layers = self.layers
        masks = [layers[name].learned_JR for name in names]
        found = [mask_JR for mask_JR in masks if mask_JR is not None]
        if len(found) < len(names):
            raise RuntimeError("no masks are being learned")
        return torch.stack(found)

    def export(self, side: str, tenant: int = 0) -> LoraWeights:
        """Return the present factors of one side of one tenant as a LoRA, on the CPU."""
        given = self._tenants[tenant][side].layers
        layers: dict[str, LoraLayer] = {}
        for name, layer in self.layers.items():
            if name in given:
                rank = given[name].rank
                down_RI, up_OR = layer.downs[side][tenant, :rank], layer.ups[side][tenant, :, :rank]
                layers[name] = LoraLayer(down_RI, up_OR, float(rank)).to(torch.float32)
        return LoraWeights(layers)

    def _siblings(self) -> Iterable[Sequence[RankSpaceLinear]]:
        """Return the layers by what may read one input: those of one module, width and rank, in the module's order."""
        own = set(self.layers.values())
        siblings: dict[tuple[nn.Module, int, int], list[RankSpaceLinear]] = {}
        for parent in dict.fromkeys(parent for parent, _, _ in self._attached.values()):
            for layer in parent.children():
                if isinstance(layer, RankSpaceLinear) and layer in own:
                    rank = next(iter(layer.ranks.values()))
                    siblings.setdefault((parent, layer.base.in_features, rank), []).append(layer)
        return siblings.values()

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
        """Join the factors of all sides and tenants of one layer, scales folded in."""
        shape = (linear.out_features, linear.in_features)
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        for side in self.sides:
            layers = [tenant[side].layers.get(name) for tenant in self._tenants]
            if any(layer is not None for layer in layers):
                parts[side] = _stack([_fitting(layer, name, side, shape) for layer in layers], shape)
        rows = [
            torch.cat(
                [torch.full((down_JRI.shape[1],), float(side == owner)) for owner, (down_JRI, _) in parts.items()]
            )
            for side in self.sides
        ]
        return RankSpaceLinear(linear, parts, torch.stack(rows), self._roles)


def _fitting(layer: LoraLayer | None, name: str, side: str, shape: tuple[int, int]) -> LoraLayer | None:
    """Return a layer with its scale folded in, after a look at its shape."""
    if layer is None:
        return None
    found = (layer.up_OR.shape[0], layer.down_RI.shape[1])
    if found != shape:
        raise InvalidLora(
            f"{name} of the {side} LoRA changes a layer of shape {found}, the base model's has {shape}; "
            "was it trained on another base?"
        )
    return layer.folded()


def _stack(layers: Sequence[LoraLayer | None], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Stack the factors of all tenants, (J, R, I) and (J, O, R); missing ranks are zeros, which change nothing."""
    rank = max(layer.rank for layer in layers if layer is not None)
    if len(layers) == 1 and layers[0] is not None:
        return layers[0].down_RI[None], layers[0].up_OR[None]
    downs, ups = [], []
    for layer in layers:
        missing = rank - (0 if layer is None else layer.rank)
        downs.append(
            torch.zeros(rank, shape[1]) if layer is None else functional.pad(layer.down_RI, (0, 0, 0, missing))
        )
        ups.append(torch.zeros(shape[0], rank) if layer is None else functional.pad(layer.up_OR, (0, missing)))
    return torch.stack(downs), torch.stack(ups)


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
