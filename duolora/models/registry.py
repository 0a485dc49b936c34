"""From the name or place of a base model to the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.models.base import DiffusionBase
from duolora.models.layers import layers_without_weights
from duolora.recipes import EMBEDDED
from duolora.tiny.base import base_path

if TYPE_CHECKING:
    from duolora.lora.base_layers import BaseLayers
    from duolora.runtime import Runtime


def load_base(location: str, runtime: Runtime) -> DiffusionBase:
    """Load a base: "tiny" for the embedded one, else a folder, a single-file checkpoint or a Hugging Face id.

    Raises:
        InvalidBase: nothing loadable is there.
    """
    return DiffusionBase.load(_path(location), runtime)


def base_layers(location: str, runtime: Runtime) -> BaseLayers:
    """Return the layers of a base, all that reading a LoRA needs; its weights are loaded only for a single file.

    Raises:
        InvalidBase: as `load_base`.
    """
    layers = layers_without_weights(_path(location))
    return load_base(location, runtime).layers() if layers is None else layers


def _path(location: str) -> str:
    """Return the folder of the embedded base for its name, other locations as they are."""
    return str(base_path()) if location == EMBEDDED else location
