"""From a folder, a single-file checkpoint or a Hugging Face id to a pipeline of the right family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from duolora.errors import InvalidBase
from duolora.families.index import FAMILIES

if TYPE_CHECKING:
    import torch

    from duolora.families.family import Family

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
"""What diffusers and transformers raise for missing, cut or contradicting files."""


def load_pipeline(location: str, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the pipeline of a base model; pickled checkpoints are never opened.

    Raises:
        InvalidBase: nothing loadable is there, or it is of no known family.
    """
    try:
        if Path(location).is_file():
            family = _family_of_checkpoint(Path(location))
            return getattr(diffusers, family.pipeline).from_single_file(location, dtype=dtype)
        family = family_of_index(location)
        pipeline = getattr(diffusers, family.pipeline)
        return pipeline.from_pretrained(location, dtype=dtype, use_safetensors=True, **_without_checker(family))
    except LOADING_ERRORS as error:
        raise InvalidBase(f"{location} cannot be loaded as a base model: {error}") from error


def _family_of_checkpoint(path: Path) -> Family:
    """Tell the family of a single-file checkpoint by its keys.

    Raises:
        ValueError: it is a pickle, or of no known family.
        SafetensorError: it is damaged.
    """
    if path.suffix != ".safetensors":
        raise ValueError("only .safetensors checkpoints are read, never pickles (.ckpt, .pt, .bin)")
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
    for family in FAMILIES:
        if any(key.startswith(family.checkpoint_key) for key in keys):
            return family
    raise ValueError(f"its keys are of no known family ({', '.join(family.title for family in FAMILIES)})")


def family_of_index(location: str) -> Family:
    """Tell the family of a folder or a hub id by the pipeline that its index names.

    Raises:
        ValueError: the index is unreadable or names another pipeline.
        OSError: there is no index.
    """
    try:
        name = DiffusionPipeline.load_config(location).get("_class_name")
    except json.JSONDecodeError as error:
        raise ValueError(f"its model_index.json is not JSON: {error}") from error
    for family in FAMILIES:
        if name == family.pipeline:
            return family
    known = ", ".join(f"{family.title} ({family.pipeline})" for family in FAMILIES)
    raise ValueError(f"its model_index.json names {name}; known: {known}")


def _without_checker(family: Family) -> dict[str, None]:
    """Return options that leave out the safety checker, which SD 1.5's pipeline would load and nothing here runs."""
    return {} if "text_encoder_2" in family.components else {"safety_checker": None, "feature_extractor": None}
