"""Sampling with a LoRA added to the weights: what is the same for every sample of a pass need not be worked out in it.

The rank-space adapter serves linear layers of the U-Net's transformers per sample. Convolutions and text encoders, and
all layers where one LoRA is sampled by itself, are added to the weights for as long as they are needed, and the very
same tensors are put back.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase


@contextmanager
def applied(base: DiffusionBase, lora: LoraWeights | None) -> Iterator[None]:
    """Add a LoRA to the weights of the base and its text encoders inside the `with`; None changes nothing.

    Leaving it puts back the tensors that were there before, so the base is restored exactly. Prompts that are to feel
    the LoRA must be encoded inside.

    Raises:
        InvalidLora: the base has no such layer, or its weight has another shape.
    """
    places = [] if lora is None else [(_place(base, name), layer) for name, layer in lora.layers.items()]
    for (name, module), layer in places:
        if layer.weight_shape != tuple(module.weight.shape):
            raise InvalidLora(
                f"{name} changes a weight of shape {layer.weight_shape}, the base model's has "
                f"{tuple(module.weight.shape)}; was it trained on another base?"
            )
    before = [(module, module.weight) for (_, module), _ in places]
    try:
        with torch.no_grad():
            for (_, module), layer in places:
                delta = layer.delta_weight(module.weight.device)
                changed = (module.weight.to(delta.dtype) + delta).to(module.weight.dtype)
                module.weight = nn.Parameter(changed, requires_grad=False)
        yield
    finally:
        for module, weight in before:
            module.weight = weight


def _place(base: DiffusionBase, name: str) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Find the layer that a name stands for."""
    try:
        module = base.module(name)
    except AttributeError as error:
        raise InvalidLora(f"the base model has no layer {name}") from error
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        raise InvalidLora(f"{name} is a {type(module).__name__}; only linear layers and convolutions can be changed")
    return name, module
