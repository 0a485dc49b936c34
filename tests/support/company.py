"""Recipes whose jobs have the same stages, and last as short, whatever the shipped ones come to ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.recipes import RECIPES, tiny

if TYPE_CHECKING:
    import pytest

    from duolora.config import PersonalizeConfig, Prompts
    from duolora.recipes import Recipe


def alone(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """The recipe `tiny` with each side trained by itself: a stage for each LoRA."""
    return _in_company(tiny(base_model, prompts), 0.0)


def together(base_model: str, prompts: Prompts) -> PersonalizeConfig:
    """The recipe `tiny` with both sides trained in one pass: one stage for both LoRAs."""
    return _in_company(tiny(base_model, prompts), 0.5)


def quick(recipe: Recipe) -> Recipe:
    """The recipe with the least of a preview."""

    def quicker(base_model: str, prompts: Prompts) -> PersonalizeConfig:
        config = recipe(base_model, prompts)
        return config.model_copy(update={"preview": config.preview.model_copy(update={"steps": 1, "images": 1})})

    return quicker


def offer_as_tiny(patch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    """Let whoever asks for the recipe `tiny` in this process get this one."""
    patch.setitem(RECIPES, "tiny", recipe)


def _in_company(config: PersonalizeConfig, company: float) -> PersonalizeConfig:
    sides = {side: getattr(config, side).model_copy(update={"company": company}) for side in ("content", "style")}
    return config.model_copy(update=sides)
