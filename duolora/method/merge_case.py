"""What a merge of two given LoRAs may look at: the LoRAs, each side's own pictures and captions, the joint caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duolora.errors import InvalidConfig
from duolora.method.priors import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import LatentMoments, PromptEmbeddings


CONTENT, STYLE = Role.CONTENT.value, Role.STYLE.value
SIDES = (CONTENT, STYLE)
"""The sides of an ordinary merge, in the order of adapters and of batches; a merge of more has its own."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSide:
    """Latents and captions of one side's pictures, a row each."""

    moments: LatentMoments
    prompts: PromptEmbeddings


def role_of(side: str) -> Role:
    """Return the role that a side's name says: "content", "style", or one of them with more behind it ("style-2").

    Raises:
        InvalidConfig: the name says neither.
    """
    for role in Role:
        if side.startswith(role.value):
            return role
    raise InvalidConfig(f"side {side!r} must begin with {' or '.join(role.value for role in Role)}, which is its role")


@dataclass(frozen=True, slots=True, eq=False)
class MergeCase:
    """One merge of two LoRAs or more.

    `loras` and `encoded` by side, in one order; `joint` is the caption of all together (one row); `roles` by side,
    taken from the sides' names where not given.
    """

    loras: Mapping[str, LoraWeights]
    encoded: Mapping[str, EncodedSide]
    joint: PromptEmbeddings
    seed: int
    roles: Mapping[str, Role] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the sides, in order."""
        return tuple(self.loras)

    def role(self, side: str) -> Role:
        """Return the role of a side."""
        return self.roles[side] if side in self.roles else role_of(side)
