"""The space in which layer priors are measured: a strength for each side and group of layers, and two tails.

A point of it is a vector of logarithms of the strengths, content's groups first, then style's, and behind them the two
tails as they are. J tenants, D coordinates of a point, G groups, R ranks of a side in one layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from duolora.method.measured_priors import SMALLEST_SHARE, SidePrior, layer_group
from duolora.method.priors import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.lora.weights import LoraWeights

WEAKEST, STRONGEST = 0.1, 3.0
LEAST_TAIL, GREATEST_TAIL = -0.5, 2.0
ROLES = (Role.CONTENT, Role.STYLE)


class PriorSpace:
    """Points and the priors that they stand for."""

    def __init__(self, layer_roles: Mapping[str, Role]) -> None:
        """Take the groups of these layers: layer name -> what its resolution makes of it."""
        self.group_of = {name: layer_group(name, role) for name, role in layer_roles.items()}
        self.groups = sorted(set(self.group_of.values()))

    @property
    def width(self) -> int:
        """Number of coordinates D."""
        return 2 * len(self.groups) + 2

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value of every coordinate, (D,) each."""
        return (
            self._point(math.log(WEAKEST), LEAST_TAIL),
            self._point(math.log(STRONGEST), GREATEST_TAIL),
        )

    def ones(self) -> Tensor:
        """Return the point of the plain sum, (D,)."""
        return self._point(0.0, 0.0)

    def _point(self, log_strength: float, tail: float) -> Tensor:
        return torch.tensor([log_strength] * 2 * len(self.groups) + [tail] * 2)

    def point(self, priors: Mapping[Role, SidePrior]) -> Tensor:
        """Return the point of some priors, (D,), as near as the bounds allow."""
        logs = [math.log(max(WEAKEST, priors[role].strength(group))) for role in ROLES for group in self.groups]
        point_D = torch.tensor([*logs, *(priors[role].tail for role in ROLES)])
        return point_D.clamp(*self.bounds)

    def priors(self, point_D: Tensor) -> dict[Role, SidePrior]:
        """Return the priors of a point."""
        values, count = point_D.tolist(), len(self.groups)
        return {
            role: SidePrior(
                {
                    group: math.exp(value)
                    for group, value in zip(self.groups, values[index * count : (index + 1) * count], strict=True)
                },
                values[2 * count + index],
            )
            for index, role in enumerate(ROLES)
        }


class PriorMasks:
    """The masks of many tenants' LoRAs at points of the space; what does not depend on the point is computed once."""

    def __init__(self, space: PriorSpace, tenants: Sequence[Mapping[str, LoraWeights]], device: torch.device) -> None:
        """Take the canonical LoRAs of every tenant, "content" and "style", alike in layers and ranks."""
        self._space = space
        self._log_shares = {
            role: {
                name: torch.stack([_log_share(tenant[role.value], name) for tenant in tenants]).to(device)
                for name in tenants[0][role.value].layers
            }
            for role in ROLES
        }

    def at(self, points_JD: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return masks, side -> layer -> (J, R), of one point for each tenant, on the device of the points."""
        groups = {group: place for place, group in enumerate(self._space.groups)}
        masks: dict[str, dict[str, Tensor]] = {}
        for index, (role, log_shares) in enumerate(self._log_shares.items()):
            tail_J1 = points_JD[:, 2 * len(groups) + index, None]
            masks[role.value] = {
                name: torch.exp(
                    points_JD[:, index * len(groups) + groups[self._space.group_of[name]], None]
                    + tail_J1 * log_share_JR
                )
                for name, log_share_JR in log_shares.items()
            }
        return masks


def _log_share(lora: LoraWeights, name: str) -> Tensor:
    """Return the logarithm of each singular value's share of the first, as `SidePrior.mask` takes it, (R,)."""
    singular_R = lora.layers[name].up_OR.square().sum(dim=0)
    return (singular_R / singular_R.max().clamp(min=1e-30)).clamp(min=SMALLEST_SHARE).log()
