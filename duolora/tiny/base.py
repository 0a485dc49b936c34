"""Where the shipped base and its sample pictures lie."""

from __future__ import annotations

from pathlib import Path


def base_path() -> Path:
    """Return the folder of the tiny base, in diffusers' StableDiffusionXLPipeline layout."""
    return Path(__file__).parent / "base"


def samples_path() -> Path:
    """Return the folder with `content/*.png`, `style/*.png` and `samples.json`, which says what they show."""
    return Path(__file__).parent / "samples"
