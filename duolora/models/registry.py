"""From the name or place of a base model to the loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.models.base import DiffusionBase
from duolora.tiny.base import base_path

if TYPE_CHECKING:
    from duolora.runtime import Runtime

EMBEDDED = "tiny"
"""Name of the small base that ships with the package."""


def load_base(location: str, runtime: Runtime) -> DiffusionBase:
    """Load a base: "tiny" for the embedded one, else a folder, a single-file checkpoint or a Hugging Face id.

    Raises:
        InvalidBase: nothing loadable is there.
    """
    return DiffusionBase.load(str(base_path()) if location == EMBEDDED else location, runtime)
