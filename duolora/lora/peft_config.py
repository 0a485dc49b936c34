"""PEFT's configuration of a LoRA, which holds the alphas that PEFT's files keep out of their tensors."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duolora.lora.weights import LoraWeights

PEFT_METADATA_KEY = "lora_adapter_metadata"
"""Header entry in which diffusers keeps the PEFT configuration (JSON, keys prefixed by the component)."""


class PeftAlphas:
    """alpha of a layer by PEFT's rules: alpha_pattern, else lora_alpha, else the layer's own rank.

    PEFT reads the keys of a pattern as regular expressions for the end of a path. A file may come from anybody and an
    expression can be made to run for ever, so only plain names are taken, with the meaning PEFT gives them. Keys
    without a component (PEFT's own files know none) hold for every component.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._common: dict[str, float] = {}
        self._patterns: dict[str, dict[str, float]] = {}
        self._by_root: set[str] = set()
        for key, value in config.items():
            component, _, word = key.rpartition(".")
            if word == "lora_alpha":
                self._common[component] = _finite(value)
            elif word == "alpha_pattern":
                self._patterns[component] = {_plain(path): _finite(alpha) for path, alpha in (value or {}).items()}
            elif word == "use_rslora" and value:
                self._by_root.add(component)
            elif word == "use_dora" and value:
                raise ValueError("it says use_dora; only a plain LoRA can be merged by ranks: train it without DoRA")

    def __call__(self, layer_name: str, rank: int) -> float:
        """Return the alpha of a layer."""
        owner, _, path = layer_name.partition(".")
        component = owner if any(owner in known for known in (self._common, self._patterns, self._by_root)) else ""
        patterns = self._patterns.get(component, {})
        matching = (alpha for name, alpha in patterns.items() if _fits(name, path))
        alpha = next(matching, self._common.get(component, float(rank)))
        # rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank); written as alpha / rank that is alpha * sqrt(rank).
        return alpha * rank**0.5 if component in self._by_root else alpha


def _fits(name: str, path: str) -> bool:
    """Tell whether a plain name of a pattern means a path: its end, or all of it after `^`."""
    if name.startswith("^"):
        return path == name[1:]
    return path == name or path.endswith(f".{name}")


def _finite(value: float | str) -> float:
    """Return a number of the configuration.

    Raises:
        ValueError: it is not finite.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _plain(path: str) -> str:
    """Return a key of a pattern if it is a plain path, perhaps with its dots escaped.

    Raises:
        ValueError: it is a regular expression.
    """
    name = path.replace("\\.", ".").removesuffix("$")
    if not re.fullmatch(r"\^?[\w.]+", name):
        raise ValueError(f"the key {path!r} is not a plain layer path")
    return name


def peft_alphas(words: str, source: str) -> PeftAlphas:
    """Read PEFT's configuration from JSON.

    Args:
        words: the JSON.
        source: where it stands, for errors.

    Raises:
        InvalidLora: it is no configuration of PEFT's, or asks for what cannot be honoured.
    """
    try:
        config = json.loads(words)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidLora(f"{source} is not JSON") from error
    if not isinstance(config, dict):
        raise InvalidLora(f"{source} must be a JSON object")
    try:
        return PeftAlphas(config)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InvalidLora(f"{source} holds no configuration of a LoRA: {error}") from error


def peft_config(weights: LoraWeights) -> dict[str, Any]:
    """Return PEFT's configuration of each component, prefixed by its name as diffusers stores it."""
    config: dict[str, Any] = {}
    components = sorted({name.partition(".")[0] for name in weights.layers})
    for component in components:
        prefix = component + "."
        # Text encoders of transformers 5 have lost the level `text_model`, those of 4 have it: the end fits both.
        ranks = {
            name.removeprefix(prefix).removeprefix("text_model."): layer.rank
            for name, layer in weights.layers.items()
            if name.startswith(prefix)
        }
        common = weights.common_rank
        odd = {name: rank for name, rank in ranks.items() if rank != common}
        config |= {
            f"{prefix}peft_type": "LORA",
            f"{prefix}r": common,
            f"{prefix}lora_alpha": common,
            f"{prefix}rank_pattern": odd,
            f"{prefix}alpha_pattern": odd,
            f"{prefix}target_modules": sorted(ranks),
        }
    return config
