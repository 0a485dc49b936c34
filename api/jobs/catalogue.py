"""The recipes and base models that an installation offers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.jobs.schemas import RecipePage, RecipeRead
from duolora.config import Prompts
from duolora.recipes import MERGE_RECIPES, RECIPES

if TYPE_CHECKING:
    from api.settings import ApiSettings


def recipe_page(settings: ApiSettings) -> RecipePage:
    """Describe every recipe, resolved for the default base model."""
    base = settings.default_base_model
    return RecipePage(
        recipes=[
            RecipeRead(
                name=name,
                description=(recipe.__doc__ or name).strip(),
                defaults=recipe(base, Prompts()).model_dump(mode="json"),
            )
            for name, recipe in RECIPES.items()
        ],
        merge_recipes={name: merge.model_dump(mode="json") for name, merge in MERGE_RECIPES.items()},
        base_models=list(settings.base_models),
        default_base_model=base,
    )
