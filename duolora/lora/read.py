"""Reading a LoRA file of any common format into `LoraWeights`. Safetensors only: pickles are never opened."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora
from duolora.lora.base_layers import BaseLayers, made_for, unverified_name
from duolora.lora.factors import pair_up
from duolora.lora.foreign import refuse_other_adapters, refuse_other_families
from duolora.lora.header import MAX_HEADER_BYTES
from duolora.lora.peft_config import PEFT_METADATA_KEY, PeftAlphas, peft_alphas
from duolora.lora.safe_file import read_tensors
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

PEFT_SIDECAR = "adapter_config.json"
"""File in which PEFT's own `save_pretrained` keeps the configuration, beside `adapter_model.safetensors`."""


def read_lora(path: Path, base: BaseLayers | None = None) -> LoraWeights:
    """Read a LoRA file: diffusers, older diffusers, PEFT, kohya or OneTrainer keys, convolutions included.

    Args:
        path: a safetensors file. A file of PEFT's own may have its `adapter_config.json` beside it.
        base: layers of the base that the LoRA is for. With it every layer is looked up and its shape checked; without
            it only keys with dots and diffusers' block names can be read.

    Raises:
        InvalidLora: the file is damaged, holds no plain LoRA, or does not fit the base.
    """
    tensors, metadata = read_tensors(path)
    sidecar = path.with_name(PEFT_SIDECAR)
    if PEFT_METADATA_KEY not in metadata and path.name == "adapter_model.safetensors" and sidecar.is_file():
        if sidecar.stat().st_size > MAX_HEADER_BYTES:
            raise InvalidLora(f"{PEFT_SIDECAR} is larger than any configuration of PEFT's")
        metadata[PEFT_METADATA_KEY] = sidecar.read_text(encoding="utf-8", errors="replace")
    return from_state_dict(tensors, metadata, base)


def from_state_dict(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: BaseLayers | None = None
) -> LoraWeights:
    """Build `LoraWeights` from the tensors of a file; see `read_lora`."""
    refuse_other_adapters(tensors)
    pairs = pair_up(tensors)
    downs, ups, rest = pairs.downs, pairs.ups, {key: tensors[key] for key in pairs.others}
    refuse_other_families(downs)
    alphas = peft_alphas(metadata.get(PEFT_METADATA_KEY, "{}"), f"the header entry {PEFT_METADATA_KEY}")
    layers: dict[str, LoraLayer] = {}
    for stem, key in downs.items():
        name = unverified_name(stem) if base is None else _find(base, stem, tensors, downs)
        if name in layers:
            raise InvalidLora(f"{key} changes {name}, which another key of the file changes already")
        alpha = _alpha(stem, rest.pop(f"{stem}.alpha", None), name, tensors[key], alphas)
        layer = _layer(key, tensors[key], tensors[ups[stem]], alpha)
        layers[name] = layer if base is None else _fitted(base, name, key, layer)
    if rest:
        raise InvalidLora(f"{len(rest)} tensors are not part of a LoRA, for example {min(rest)}")
    return LoraWeights(layers, {key: value for key, value in metadata.items() if key != PEFT_METADATA_KEY})


def _find(base: BaseLayers, stem: str, tensors: Mapping[str, Tensor], downs: Mapping[str, str]) -> str:
    """Return the base's layer that a stem names, or say what the file seems to be made for."""
    name = base.find(stem)
    if name is None:
        widths = [
            tensors[key].shape[1]
            for other, key in downs.items()
            if tensors[key].ndim > 1 and re.search(r"attn2[._]to_[kv]$", other)
        ]
        family = made_for(downs, widths[0] if widths else None)
        if family is not None and family != base.family.title:
            raise InvalidLora(
                f"{stem} names no layer of this base model ({base.family.title}); the file was made for {family}: use "
                "a base of that family, or another LoRA"
            )
        raise InvalidLora(f"{stem} names no layer of this base model ({base.family.title}); was it trained on another?")
    return name


def _layer(key: str, down: Tensor, up: Tensor, alpha: float) -> LoraLayer:
    """Build a layer from the factors of a file."""
    try:
        if down.ndim == up.ndim == 4:
            return LoraLayer.of_convolution(down, up, alpha)
        return LoraLayer(down, up, alpha)
    except InvalidLora as error:
        raise InvalidLora(f"{key}: {error}") from error


def _fitted(base: BaseLayers, name: str, key: str, layer: LoraLayer) -> LoraLayer:
    """Return a layer in the kind of the base's own, whose shape it must have.

    Convolutions over single pixels are linear layers; programs write either form for either.
    """
    shape = base.shapes[name]
    if layer.kernel in (None, (1, 1)):
        layer = LoraLayer(layer.down_RI, layer.up_OR, layer.alpha, (1, 1) if len(shape) == 4 else None)
    if layer.weight_shape != shape:
        raise InvalidLora(
            f"{key} is of a change of shape {layer.weight_shape}; the base model's {name} has shape {shape}: use a "
            "LoRA that was trained on this base"
        )
    return layer


def _alpha(stem: str, tensor: Tensor | None, name: str, down: Tensor, alphas: PeftAlphas) -> float:
    """Return the alpha of a layer: its own tensor, else what PEFT's configuration says, else its rank."""
    if tensor is None:
        return alphas(name, down.shape[0] if down.ndim else 0)
    if tensor.numel() != 1:
        raise InvalidLora(f"{stem}.alpha must be one number; its shape is {tuple(tensor.shape)}")
    return float(tensor)
