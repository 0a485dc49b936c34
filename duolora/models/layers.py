"""The layers of a base that a LoRA may change, from its modules; without its weights where only the names matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from duolora.errors import InvalidBase
from duolora.lora.base_layers import BaseLayers
from duolora.models.loading import LOADING_ERRORS, family_of_index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duolora.families.family import Family

TEXT_LEVEL = "text_model."
"""Level of CLIP's text encoders that layer names always have and the modules of transformers 5 sometimes have not."""

_TEXT_ENCODERS = {encoder.__name__: encoder for encoder in (CLIPTextModel, CLIPTextModelWithProjection)}


def layers_of(family: Family, components: Mapping[str, nn.Module]) -> BaseLayers:
    """Return all linear layers and convolutions of a family's components, by the names that LoRAs give them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for component, model in components.items():
        level = "" if component == "unet" else TEXT_LEVEL
        for path, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                in_level = path == "text_projection" or path.startswith(level)
                shapes[f"{component}.{'' if in_level else level}{path}"] = tuple(module.weight.shape)
    return BaseLayers(family, shapes)


def layers_without_weights(folder: str) -> BaseLayers | None:
    """Return the layers of a base from its configuration files, at the cost of reading those.

    Args:
        folder: folder in diffusers' layout, or a Hugging Face id.

    Returns:
        The layers, or None for a single-file checkpoint, which has no such files.

    Raises:
        InvalidBase: nothing readable is there, or it is of no known family.
    """
    if Path(folder).is_file():
        return None
    try:
        family = family_of_index(folder)
        classes = DiffusionPipeline.load_config(folder)
        with torch.device("meta"):
            components: dict[str, nn.Module] = {
                "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
            }
            for name in family.components[1:]:
                encoder = _TEXT_ENCODERS[classes[name][1]]
                components[name] = encoder(CLIPTextConfig.from_pretrained(folder, subfolder=name))
    except LOADING_ERRORS as error:
        raise InvalidBase(f"{folder} cannot be read as a base model: {error}") from error
    return layers_of(family, components)
