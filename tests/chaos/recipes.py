"""`python -m tests.chaos.recipes`: the API, with two recipes more whose jobs take seconds instead of a minute.

What is short is the work that a recipe asks for; everything that does it is the real thing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.__main__ import main
from duolora.recipes import MERGE_RECIPES, RECIPES, tiny

if TYPE_CHECKING:
    from duolora.config import PersonalizeConfig, Prompts

APART = "chaos"
"""Each LoRA a stage of its own; a merge of a few steps."""
TOGETHER = "chaos-together"
"""Both LoRAs in one stage."""


def _short(base_model: str, prompts: Prompts, company: float) -> PersonalizeConfig:
    config = tiny(base_model, prompts)
    side = {"rank": 4, "batch_size": 2, "steps": 12, "company": company}
    return config.model_copy(
        update={
            "content": config.content.model_copy(update=side),
            "style": config.style.model_copy(update=side),
            "merge": MERGE_RECIPES["paper"].model_copy(update={"steps": 8, "bank_size": 4}),
            "preview": config.preview.model_copy(update={"steps": 4, "images": 1}),
        }
    )


def _register() -> None:
    RECIPES[APART] = lambda base_model, prompts: _short(base_model, prompts, 0.0)
    RECIPES[TOGETHER] = lambda base_model, prompts: _short(base_model, prompts, 0.5)


if __name__ == "__main__":
    _register()
    main()
