"""Reading a LoRA file of any common format into `LoraWeights`. Safetensors only: pickles are never opened."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from duolora.errors import InvalidLora
from duolora.lora.keys import DOWN_SUFFIXES, UP_OF_DOWN, diffusers_block_name, kohya_index
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

PEFT_METADATA_KEY = "lora_adapter_metadata"
"""Header entry in which diffusers keeps the PEFT configuration (JSON, keys prefixed by the component)."""


def read_lora(path: Path, layer_names: Iterable[str] = ()) -> LoraWeights:
    """Read a LoRA file.

    Args:
        path: a safetensors file with diffusers, older diffusers or kohya keys.
        layer_names: layers of the base, needed for kohya keys, whose underscores are ambiguous.

    Raises:
        InvalidLora: the file is damaged, holds no LoRA, or names a layer that the base does not have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise InvalidLora(f"{path.name} is not a readable safetensors file: {error}") from error
    return from_state_dict(tensors, metadata, layer_names)


def from_state_dict(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], layer_names: Iterable[str] = ()
) -> LoraWeights:
    """Build `LoraWeights` from the tensors of a file; see `read_lora`."""
    rest = dict(tensors)
    peft = _peft_alphas(metadata)
    index = kohya_index(layer_names) if any(key.startswith("lora_") for key in rest) else {}
    layers: dict[str, LoraLayer] = {}
    for key in tensors:
        suffix = next((ending for ending in DOWN_SUFFIXES if key.endswith(ending)), None)
        if suffix is None:
            continue
        stem = key.removesuffix(suffix)
        up = rest.pop(stem + UP_OF_DOWN[suffix], None)
        if up is None:
            raise InvalidLora(f"{key} has no matching {stem + UP_OF_DOWN[suffix]}")
        down = rest.pop(key)
        name = _layer_name(stem, index)
        alpha = rest.pop(stem + ".alpha", None)
        layers[name] = LoraLayer(down, up, peft(name, down.shape[0]) if alpha is None else _alpha(stem, alpha))
    if rest:
        raise InvalidLora(f"{len(rest)} tensors are not part of a LoRA, for example {min(rest)}")
    return LoraWeights(layers, {key: value for key, value in metadata.items() if key != PEFT_METADATA_KEY})


def _layer_name(stem: str, index: Mapping[str, str]) -> str:
    """Turn the stem of a key into a layer name."""
    if stem.startswith("lora_"):
        name = index.get(diffusers_block_name(stem))
        if name is None:
            raise InvalidLora(f"{stem} names no layer of this base model")
        return name
    path = stem.replace(".processor.", ".")
    return f"{path}.0" if path.endswith(".to_out") else path  # attention processors called their output layer to_out


def _alpha(stem: str, tensor: Tensor) -> float:
    """Read the alpha of a layer."""
    if tensor.numel() != 1:
        raise InvalidLora(f"{stem}.alpha must be one number; its shape is {tuple(tensor.shape)}")
    return float(tensor)


class _PeftAlphas:
    """alpha of a layer by PEFT's rules: alpha_pattern, else lora_alpha, else the layer's own rank.

    PEFT reads the keys of a pattern as regular expressions for the end of a path. A file may come from anybody and an
    expression can be made to run for ever, so only plain names are taken, with the meaning PEFT gives them.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._common = {
            key.removesuffix(".lora_alpha"): float(value)
            for key, value in config.items()
            if key.endswith(".lora_alpha")
        }
        self._patterns = {
            key.removesuffix(".alpha_pattern"): {_plain(path): float(alpha) for path, alpha in (value or {}).items()}
            for key, value in config.items()
            if key.endswith(".alpha_pattern")
        }
        self._by_root = {
            key.removesuffix(".use_rslora") for key, value in config.items() if key.endswith(".use_rslora") and value
        }

    def __call__(self, layer_name: str, rank: int) -> float:
        component, _, path = layer_name.partition(".")
        patterns = self._patterns.get(component, {})
        matching = (alpha for end, alpha in patterns.items() if path == end or path.endswith(f".{end}"))
        alpha = next(matching, self._common.get(component, float(rank)))
        # rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank); written as alpha / rank that is alpha * sqrt(rank).
        return alpha * rank**0.5 if component in self._by_root else alpha


def _plain(path: str) -> str:
    """Return a key of a pattern if it is a plain path, perhaps with its dots escaped.

    Raises:
        ValueError: it is a regular expression.
    """
    name = path.replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError(f"the key {path!r} is not a plain layer path")
    return name


def _peft_alphas(metadata: Mapping[str, str]) -> _PeftAlphas:
    """Read PEFT's configuration from the header, if the file has one."""
    try:
        config = json.loads(metadata.get(PEFT_METADATA_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise InvalidLora(f"the header entry {PEFT_METADATA_KEY} is not JSON") from error
    if not isinstance(config, dict):
        raise InvalidLora(f"the header entry {PEFT_METADATA_KEY} must be a JSON object")
    try:
        return _PeftAlphas(config)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise InvalidLora(f"the header entry {PEFT_METADATA_KEY} holds no alpha_pattern of PEFT: {error}") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Concatenate the raw bytes of tensors in key order (ModelSpec 1.0.1 hashes exactly these)."""
    return b"".join(
        tensors[key].contiguous().view(torch.uint8).numpy().tobytes() if tensors[key].ndim else _scalar(tensors[key])
        for key in sorted(tensors)
    )


def _scalar(tensor: Tensor) -> bytes:
    """Raw bytes of a tensor without dimensions."""
    return tensor.reshape(1).view(torch.uint8).numpy().tobytes()
