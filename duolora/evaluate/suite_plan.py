"""What every suite is run by: seeds, methods, how LoRAs are trained, where everything goes, and which part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duolora.errors import InvalidConfig
from duolora.recipes import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from duolora.config import PersonalizeConfig, Prompts
    from duolora.evaluate.methods import Method

_PART = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuitePlan:
    """Seeds 0 to `seeds - 1`, methods, how many pairs share a pass, and where everything goes.

    `recipe` decides how LoRAs are trained and pictures sampled, None for the base's own; `lora_steps` overrides it.
    `workers` is the number of processes for merges that need no GPU, None for as many as there are cores.
    """

    seeds: int
    methods: Sequence[Method]
    tenants: int
    out: Path
    base_name: str
    recipe: str | None = None
    lora_steps: int | None = None
    workers: int | None = None

    def config(self, prompts: Prompts, seed: int) -> PersonalizeConfig:
        """Return the configuration of one pair, by its captions, and seed.

        Raises:
            InvalidConfig: the recipe is unknown.
        """
        steps = self.lora_steps
        return resolve(self.recipe, self.base_name, prompts, content_steps=steps, style_steps=steps, seed=seed)


@dataclass(frozen=True, slots=True)
class Part:
    """One of `of` parts of a run, `index` from 0; parts may run at once, on several GPUs, in one folder."""

    index: int
    of: int

    @property
    def file_name(self) -> str:
        """Name of the part's own file of scores."""
        return f"scores.{self.index + 1}-of-{self.of}.jsonl"

    @classmethod
    def from_word(cls, word: str) -> Part:
        """Read `2/6`, the second of six.

        Raises:
            InvalidConfig: it does not say a part.
        """
        found = _PART.fullmatch(word)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InvalidConfig(f"--part must say which of how many, as in 1/2; got {word!r}")
        return cls(int(found[1]) - 1, int(found[2]))
